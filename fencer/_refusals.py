"""What each exception of the driver means. It becomes one of `fencer.errors` here, nowhere else."""

from __future__ import annotations

import re

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    RedisError,
    ResponseError,
)

from fencer.errors import ScriptError, StoreError, StoreUnavailable

_ADVICE = {
    "READONLY": "it is a replica: connect to the primary, or by way of Sentinel",
    "OOM": "it is at its maxmemory: free memory or raise the limit; leases can still be renewed "
    "and released",
    "NOPERM": "this user lacks a permission on the server: see ACL LOG there",
    "NOAUTH": "it wants a password: put it into the URL, redis://user:password@host:port/0",
    "WRONGPASS": "user or password is wrong: check the URL",
    "BUSY": "a script there runs without end: see SCRIPT KILL",
    "MISCONF": "it cannot save its data: see its log and its disk",
    "NOREPLICAS": "too few replicas follow it (min-replicas-to-write)",
    "MASTERDOWN": "it is a replica that has lost its primary",
    "CLUSTERDOWN": "the cluster does not serve this slot now: see CLUSTER INFO there",
    "MOVED": "it is one node of a Cluster: connect by redis+cluster://host:port",
    "ASK": "it is one node of a Cluster: connect by redis+cluster://host:port",
    "TRYAGAIN": "the slot is being moved, and the keys of the name are on two nodes just now",
    "CROSSSLOT": "its keys are in different slots of the Cluster: give them the same {hash tag}",
    "WRONGTYPE": "one of its keys holds something that Fencer did not write, and nothing of it was "
    "changed; choose another namespace, or remove the key by hand",
    "CORRUPT": "one of its keys holds something that Fencer did not write, and nothing of it was "
    "changed; choose another namespace, or remove the key by hand",
    "EXHAUSTED": "choose another name",
}
_CODE = re.compile(r"-?\b(" + "|".join(_ADVICE) + r")\b")
_DENIED = re.compile(r"ACL failure in script|user executing the script can't")
"""How servers say NOPERM within a script."""

_LINE = re.compile(r"(?:@?user_script|\[string \"[^\"]*\"\]):\s?(\d+)")


def code_in(message: str, status: str | None = None) -> str:
    """The server's code in a message, or in what the driver took off its front; "" if unknown."""
    found = _CODE.search(f"{status or ''} {message}")
    if found is None and _DENIED.search(message):
        return "NOPERM"
    return found[1] if found else ""


def told(message: str) -> str:
    """A refusal of a command within a guard, with what to do about it."""
    advice = _ADVICE.get(code_in(message), "")
    return f"{message} ({advice})" if advice else message


def refusal(error: RedisError, script: str | None = None, *, sent: bool = True) -> StoreError:
    """What the driver's exception means.

    Args:
        error: the exception.
        script: which script was called; ``None`` for a plain command.
        sent: whether the request may have reached the server.
    """
    message = str(error)
    code = code_in(message, getattr(error, "status_code", None))
    if isinstance(error, BusyLoadingError) or message.startswith("LOADING"):
        return StoreUnavailable(
            "the server is loading its data and does not answer yet",
            maybe_applied=False,
            code="LOADING",
        )
    if isinstance(error, AuthenticationError | AuthorizationError):
        return StoreError(
            f"the server refused the login ({message}): {_ADVICE['WRONGPASS']}",
            code=code or "WRONGPASS",
        )
    if not isinstance(error, ResponseError):
        return StoreUnavailable(f"no answer from the server ({message})", maybe_applied=sent)
    if script is not None and (code in ("WRONGTYPE", "CORRUPT", "EXHAUSTED") or not code):
        line = _LINE.search(message)
        return ScriptError(
            f"{code}: {_ADVICE[code]}" if code else message,
            script=script,
            line=int(line[1]) if line else None,
            code=code,
        )
    advice = f": {_ADVICE[code]}" if code else ""
    return StoreError(f"the server refused ({message}){advice}", code=code)
