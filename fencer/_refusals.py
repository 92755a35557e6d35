"""What each exception of the driver means. It becomes one of `fencer.errors` here, nowhere else."""

from __future__ import annotations

import re
from typing import Any, TypeGuard

from fencer.errors import FencerError, ScriptError, StoreError, StoreUnavailable

_ADVICE = {
    "LOADING": "it loads its data; ask again",
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

_PASSING = "LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN"
"""What servers say in the middle of a failover or a start. It was refused before anything was
written, and it passes, so it counts as an outage: whoever waits, keeps a lease or campaigns tries
on. The other refusals want an operator, and are told at once."""

_PASSING_CODE = re.compile(rf"^(?:.*?: -)?({'|'.join(_PASSING)})\b", re.DOTALL)
"""In front, or where Redis 6.2 quotes a command in a script: else it may be a caller's own word."""

_CODES = {
    "ReadOnlyError": "READONLY",
    "BusyLoadingError": "LOADING",
    "MasterDownError": "MASTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
    "OutOfMemoryError": "OOM",
    "NoPermissionError": "NOPERM",
}
"""The codes that drivers take off a message, in the order in which one class may be another."""

_DEMOTED = "The previous master is now a slave"
"""What drivers say by way of Sentinel. Not any error within a ReadOnlyError: the caller may be
handling one of its own."""

_DENIED = re.compile(r"ACL failure in script|user executing the script can't")
"""How servers say NOPERM within a script."""

_TOO_LONG = "Protocol error: unauthenticated"
"""How servers from Redis 6.2.6 on say NOAUTH to a request of more than ten words."""

_LINE = re.compile(r"(?:@?user_script|\[string \"[^\"]*\"\]):\s?(\d+)")


def code_in(message: str, status: str | None = None) -> str:
    """The server's code in a message, or in what the driver took off its front; "" if unknown."""
    found = _CODE.search(f"{status or ''} {message}")
    if found is None and _DENIED.search(message):
        return "NOPERM"
    if message.startswith(_TOO_LONG):
        return "NOAUTH"
    return found[1] if found else ""


def told(message: str) -> str:
    """A refusal of a command within a guard, with what to do about it."""
    advice = _ADVICE.get(code_in(message), "")
    return f"{message} ({advice})" if advice else message


def is_foreign(error: BaseException | None) -> TypeGuard[Exception]:
    """Whether an exception is to be translated: the driver's, or one that came through it.

    What the driver calls, such as a credential provider of the user's, raises what it likes, and so
    does a connection that another thread closes in the middle. It is not the server's word.
    """
    return isinstance(error, Exception) and not isinstance(error, FencerError)


def refusal(error: Exception, script: str | None = None, *, sent: bool = True) -> StoreError:
    """What an exception means that came from the driver.

    Args:
        error: the exception.
        script: which script was called; ``None`` for a plain command.
        sent: whether the request may have reached the server.
    """
    kinds = _kinds(error)
    before = error.__context__
    if str(error) == _DEMOTED and "ReadOnlyError" in _kinds(before):
        # The driver has found out that a connection made by way of Sentinel leads to a replica.
        assert isinstance(before, Exception)
        return refusal(before, script)
    message = str(error)
    status = getattr(error, "status_code", None) or _status(kinds)
    code = code_in(message, status)
    passing = _passing(f"{status or ''} {message}".lstrip(), script)
    if passing:
        return StoreUnavailable(
            f"the server cannot serve now ({message}): {_ADVICE[passing]}",
            maybe_applied=False,
            code=passing,
        )
    if kinds & {"AuthenticationError", "AuthorizationError"}:
        unsaid = "NOAUTH" if message.startswith("Authentication required") else "WRONGPASS"
        return StoreError(
            f"the server refused the login ({message}): {_ADVICE['WRONGPASS']}",
            code=code or unsaid,
        )
    if message.startswith(("UNBLOCKED", "WAIT cannot be used with replica")):
        return StoreUnavailable(
            f"the server was demoted meanwhile ({message})", maybe_applied=True, code="UNBLOCKED"
        )
    if "ResponseError" not in kinds:
        if not kinds & {"RedisError", "ValkeyError"}:
            message = f"{type(error).__name__}: {message}"
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


def unreached(error: Exception, pool: Any) -> StoreError:
    """What it means that no connection was to be had from a pool: nothing was sent."""
    manager = getattr(pool, "sentinel_manager", None)
    if manager is None:
        return refusal(error, sent=False)
    asked = [sentinel.connection_pool.connection_kwargs for sentinel in manager.sentinels]
    sentinels = ", ".join(f"{each['host']}:{each['port']}" for each in asked)
    message = str(error)
    if "ResponseError" in _kinds(error) and "SENTINEL" in message.upper():
        return StoreError(
            f"one of the sentinels at {sentinels} refused ({message}): check their addresses, and "
            "what their user may do"
        )
    if "MasterNotFoundError" not in _kinds(error):
        return refusal(error, sent=False)
    if message.count("AuthenticationError") == len(asked):
        return StoreError(
            f"the sentinels at {sentinels} refused the login: check sentinel_username and "
            "sentinel_password in the URL",
            code="WRONGPASS",
        )
    silent = message.count(")> - ")
    answered = f"{silent} of them did not answer" if silent else "is this its name, and is it up?"
    return StoreUnavailable(
        f"the sentinels at {sentinels} name no primary of {pool.service_name!r} ({answered})",
        maybe_applied=False,
    )


def _passing(message: str, script: str | None) -> str:
    """The code of an outage that a refusal tells of; "" if it tells of something else."""
    if script != "guard":
        message = message.removeprefix("ERR ")  # as scripts of ours pass a refusal on
    found = _PASSING_CODE.match(message)
    return found[1] if found else ""


def _kinds(error: BaseException | None) -> set[str]:
    # By name: each driver has classes of its own.
    return {kind.__name__ for kind in type(error).__mro__}


def _status(kinds: set[str]) -> str | None:
    return next((code for kind, code in _CODES.items() if kind in kinds), None)
