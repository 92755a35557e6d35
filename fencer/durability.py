"""How safe a grant must be before its token is handed out: `Replicated`, `Fsynced`, or both.

A server that dies can take with it what it has granted. Tokens rise all the same, because they are
minted from the time; but the next holder is granted the lease while the first still believes in
it, and then the guards alone keep the first one's writes out. With a durability, a token is known
outside the server's memory before anybody has seen it:

- The question goes out on the connection of the script that granted. The server answers it for
  everything that it has written up to that script, whoever wrote it: a grant that was handed over
  by a release is covered by the question that follows its claim.
- It says nothing about a script that wrote nothing. So a grant that was asked for again, or met in
  line, is renewed first, for a renew always writes.
- All that is asked for must be reached in time. Else the grant is given back, and `NotDurable` is
  raised.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fencer import _check
from fencer._steps import Confirm, text
from fencer.errors import InvalidArgument, NotDurable, StoreError

_MAX_TIMEOUT = 3_600.0
_MAX_REPLICAS = 1_000


@dataclass(frozen=True, slots=True)
class Replicated:
    """So many replicas have a grant in memory before its token is handed out (``WAIT``).

    A failover to one of them keeps the token and the lease. To be safe whichever is promoted, ask
    for all of them; then a single replica that does not follow stops every grant. Sentinel and
    Cluster prefer the replica that has heard the most.

    Args:
        replicas: how many, 1 to 1,000. All of them must have it, not one of them.
        timeout: seconds to wait for them, 0.001 to 3,600, but never more than half the ttl.

    Raises:
        InvalidArgument: an argument is out of its range.

    Cost:
        One more trip, which takes the server as long as its own trip to so many replicas. The user
        needs the permission ``+wait``.

    Not guaranteed:
        That a lease survives when the server and so many replicas are lost, or that a replica has
        the grant on its disk.
    """

    replicas: int
    timeout: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        _check.integer("replicas", self.replicas, 1, _MAX_REPLICAS)
        _check.number("timeout", self.timeout, 0.001, _MAX_TIMEOUT)

    def _questions(self, seconds: float) -> tuple[tuple[str | int, ...], ...]:
        return (("WAIT", self.replicas, _ms(seconds)),)

    def _reached(self, answers: list[Any]) -> tuple[int, int]:
        """How many were asked for, and how many were reached."""
        [answer] = answers
        return self.replicas, int(_told(answer))


@dataclass(frozen=True, slots=True)
class Fsynced:
    """A grant is on the server's disk before its token is handed out (``WAITAOF``).

    A power cut then does not take the token. It needs Redis 7.2 or Valkey, with ``appendonly yes``
    and ``appendfsync always``. With ``everysec`` it also works on Redis 8, where a grant then takes
    up to a second or two; other servers answer before the data is on the disk, and are refused at
    the first grant. What is set is asked each time, for the server may be another one by then.

    Args:
        timeout: seconds to wait for the disk, 0.001 to 3,600, but never more than half the ttl.

    Raises:
        InvalidArgument: the timeout is out of its range.

    Cost:
        One more trip, and the time of an fsync. The user needs the permissions ``+waitaof``,
        ``+info`` and ``+config|get``.

    Not guaranteed:
        That a lease survives the loss of the disk, or a failover: see `Replicated`. Pass both as
        ``durability=(Replicated(2), Fsynced())``.
    """

    timeout: float = field(default=3.0, kw_only=True)

    def __post_init__(self) -> None:
        _check.number("timeout", self.timeout, 0.001, _MAX_TIMEOUT)

    def _questions(self, seconds: float) -> tuple[tuple[str | int, ...], ...]:
        settings = ("INFO", "server"), ("CONFIG", "GET", "appendfsync")
        return *settings, ("WAITAOF", 1, 0, _ms(seconds))

    def _reached(self, answers: list[Any]) -> tuple[int, int]:
        info, setting, answer = answers
        known = _known(info)
        if isinstance(answer, StoreError):
            raise _without_waitaof(answer, known)
        _trusted(known, setting)
        return 1, int(answer[0])


Durability: TypeAlias = Replicated | Fsynced


def checked(durability: object) -> tuple[Durability, ...]:
    """Return what is asked for as a tuple, empty if nothing is.

    Raises:
        InvalidArgument: it is something else.
    """
    wanted = durability if isinstance(durability, tuple) else (durability,)
    if durability is None:
        return ()
    if not wanted or not all(isinstance(one, Replicated | Fsynced) for one in wanted):
        raise InvalidArgument(
            "durability must be Replicated(...), Fsynced(...), a tuple of them or None, "
            f"not {durability!r}"
        )
    return wanted


def confirm(wanted: tuple[Durability, ...], status: str, at_most: float) -> Confirm | None:
    """What to ask after a script that answers with ``status``, in ``at_most`` seconds in all."""
    if not wanted:
        return None
    times = _times(wanted, at_most)
    pairs = zip(wanted, times, strict=True)
    questions = tuple(words for one, seconds in pairs for words in one._questions(seconds))
    return Confirm(status, questions, sum(times))


def judge(
    wanted: tuple[Durability, ...],
    answers: list[Any],
    asked: Confirm,
    what: tuple[str, str, int],
) -> None:
    """Raise unless everything that was wanted has been reached.

    Args:
        wanted: what `confirm` made the questions of.
        answers: what came of them.
        asked: the questions.
        what: ``grant``, ``renewal`` or ``release``, the name and the token.

    Raises:
        NotDurable: something was not reached in time.
        StoreError: the server cannot tell, or refused to.
    """
    act, name, token = what
    for one, seconds in zip(wanted, _times(wanted, asked.seconds), strict=True):
        count = len(one._questions(seconds))
        needed, reached = one._reached(answers[:count])
        if reached < needed:
            place = "replicas" if isinstance(one, Replicated) else "disk"
            raise NotDurable(name, token, needed, reached, seconds, place=place, act=act)
        answers = answers[count:]


def _times(wanted: tuple[Durability, ...], at_most: float) -> list[float]:
    """Seconds for each, one after the other, in no more than there are."""
    asked = sum(one.timeout for one in wanted)
    share = min(1.0, max(0.001, at_most) / asked)
    return [one.timeout * share for one in wanted]


def _ms(seconds: float) -> int:
    return max(1, math.floor(seconds * 1000))  # 0 would be for ever


def _told(answer: Any) -> Any:
    if isinstance(answer, StoreError):
        raise answer
    return answer


def _known(info: Any) -> tuple[str, tuple[int, ...]]:
    """Which server it is, such as ``("Redis", (8, 2, 3))``; ``("", ())`` if it does not say."""
    shown = "" if isinstance(info, StoreError) else text(info)
    for kind in ("Valkey", "Redis"):
        found = re.search(rf"^{kind.lower()}_version:(\d+)\.(\d+)\.(\d+)", shown, re.MULTILINE)
        if found:
            return kind, tuple(int(part) for part in found.groups())
    return "", ()


def _shown(known: tuple[str, tuple[int, ...]]) -> str:
    kind, version = known
    return f"this server ({kind} {'.'.join(map(str, version))})" if kind else "this server"


def _without_waitaof(error: StoreError, known: tuple[str, tuple[int, ...]]) -> StoreError:
    message = str(error)
    if "unknown command" in message:
        return StoreError(
            f"{_shown(known)} has no WAITAOF, so that Fsynced cannot be kept: it takes Redis 7.2 "
            "or Valkey; Replicated works on any. The grant was given back",
            code="NOFSYNC",
        )
    if "appendonly is disabled" in message:
        return StoreError(
            f"{_shown(known)} keeps no append-only file, so that Fsynced cannot be kept: set "
            "appendonly yes and appendfsync always there. The grant was given back",
            code="NOFSYNC",
        )
    return error


def _trusted(known: tuple[str, tuple[int, ...]], setting: Any) -> None:
    """Raise if the server may have answered WAITAOF before the data was on the disk.

    Redis from 7.2.2 on, and Valkey up to 9.1 at least, do so unless they sync at each write; Redis
    8.0 has mended it (redis/redis#13793).
    """
    kind, version = known
    if kind == "Redis" and version >= (8,):
        return
    if isinstance(setting, StoreError):
        raise StoreError(
            f"{_shown(known)} does not tell its appendfsync ({setting}), without which its WAITAOF "
            "cannot be relied upon: allow this user CONFIG GET (+config|get)",
            code="NOFSYNC",
        )
    # A dict with RESP3, and a list before.
    value = text([*(setting.values() if isinstance(setting, dict) else setting[1:]), "nothing"][0])
    if value != "always":
        raise StoreError(
            f"{_shown(known)} has appendfsync {value}, with which its WAITAOF may answer before "
            "the data is on the disk: set appendfsync always there (CONFIG SET appendfsync "
            "always), or use Redis 8",
            code="NOFSYNC",
        )
