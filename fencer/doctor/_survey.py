"""The leases of a namespace, as a look at the server shows them.

They are read by the commands that Fencer itself uses, so that a user who may use leases may also
look at them. The reads of one name are not one step: what may be seen by chance, while a lease
changes hands, is only told if it is still so at a second look.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import redis

from fencer import _check
from fencer._keys import Keyspace
from fencer._refusals import code_in, refusal
from fencer._steps import text
from fencer.doctor._nodes import Node, not_seen
from fencer.doctor._records import NotSeen
from fencer.errors import StoreError

MOST = 20_000
"""Names and marks that are looked at; beyond them the doctor says that it stopped."""

PATIENCE = 3.5
"""Seconds that a line gets to move: everybody in it has looked at the free lease by then."""

_CHANGE = 0.5
"""Seconds that a lease gets to change hands, and its info key with it."""

_AGAIN = 0.25
"""Seconds between two looks at what may be passing."""

_UNREAD = "ASK", "TRYAGAIN", "MOVED", "NOPERM"
"""What is said of one key, and not of the others."""

_OLDEST_TIME = 10**14
"""Microseconds: a token below was not minted by the clock, which passed it in March 1973."""

_AT_ONCE = 200
"""Names that are read in one trip."""

_TAIL = re.compile(r'"grant":"[0-9a-f]+","ttl":([\d.]+),"token":(\d+),"since":[\d.]+}$')
"""The end of an info key, as the scripts write it."""


@dataclass(frozen=True, slots=True)
class Name:
    """What the keys of one name hold.

    Attributes:
        lock: the value of the lock key; ``None`` if it is free.
        lock_ms: the time left; -1 if it never ends.
        token: the value of the token key, "" if there is none.
        info: the info key; empty if there is none.
        head: who is first in line, by the id of its grant.
        wrong: the kinds of keys that have another type than ours.
        broken: the kinds of keys whose value no script wrote.
        now: the server's time in seconds, taken after the rest was read.
    """

    name: str
    lock: str | None
    lock_ms: int
    token: str
    info: dict[str, Any]
    head: str | None
    wrong: tuple[str, ...]
    broken: tuple[str, ...]
    now: float

    @property
    def ttl(self) -> float | None:
        """The ttl of the lease, if it is held and says so."""
        ttl = self.info.get("ttl")
        return float(ttl) if self.lock and isinstance(ttl, int | float) and ttl > 0 else None

    @property
    def number(self) -> int:
        """The last token; 0 if there is none."""
        return 0 if "token" in self.broken or not self.token else int(self.token)

    @property
    def dense(self) -> bool:
        """Whether its last token is too small to be a time."""
        return 0 < self.number < _OLDEST_TIME

    def owner(self) -> str:
        """Who has it, for people."""
        place = f" on {self.info['host']}" if "host" in self.info else ""
        process = f" (process {self.info['pid']}{place})" if "pid" in self.info else ""
        return f"{self.lock!r}{process}"


@dataclass(frozen=True, slots=True)
class Mark:
    """What the mark of a guard holds.

    Attributes:
        left_ms: the time left; -1 if it never ends.
        token: the largest token that the guard has accepted; 0 if no guard wrote what is there.
        now: the server's time in seconds.
    """

    left_ms: int
    token: int
    now: float


@dataclass(slots=True)
class Survey:
    """The leases of a namespace.

    Attributes:
        names: by name.
        marks: the marks of guards, by key.
        whole: whether all were looked at.
        refused: what could not be read, and the server's code for it.
    """

    names: dict[str, Name] = field(default_factory=dict)
    marks: dict[str, Mark] = field(default_factory=dict)
    whole: bool = True
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def held(self) -> int:
        """How many are held."""
        return sum(each.lock is not None for each in self.names.values())

    @property
    def shortest(self) -> float | None:
        """The shortest ttl of those that are held."""
        return min((each.ttl for each in self.names.values() if each.ttl), default=None)

    @property
    def largest(self) -> int:
        """The largest last token; 0 if there is none."""
        return max((each.number for each in self.names.values()), default=0)

    def missed(self) -> Iterator[str]:
        """Why not all of it could be looked at."""
        if not self.whole:
            yield f"there are more than {MOST:,} names and marks"
        denied = sorted(name for name, code in self.refused.items() if code == "NOPERM")
        if denied:
            yield (
                f"this user has no permission for reading {_some_of(denied)}; --prefix leaves out "
                "what begins otherwise"
            )
        moving = sorted(self.refused.keys() - set(denied))
        if moving:
            yield f"{_some_of(moving)}: in a slot that is being moved, or is another node's"


def _some_of(names: list[str]) -> str:
    return repr(names[0]) if len(names) == 1 else f"{len(names):,} names, such as {names[0]!r}"


def survey(node: Node, keyspace: Keyspace, prefix: str = "") -> Survey:
    """Read all names and marks on a server: SCAN, and reads of a few keys each.

    Args:
        node: the server.
        keyspace: how the keys are called.
        prefix: only names and resources that begin so.

    Raises:
        NotSeen: the server refuses to answer.
        StoreUnavailable: there is no answer.
    """
    found = Survey()
    names: set[str] = set()
    marks: set[str] = set()
    cursor = "0"
    while True:
        following, keys = node.ask("SCAN", cursor, "MATCH", keyspace.whole(), "COUNT", 1_000)
        for key in keys:
            match _ours(key, keyspace):
                case mark, "guard":
                    if _resource(mark).startswith(prefix):
                        marks.add(mark)
                case name, _:
                    if name.startswith(prefix):
                        names.add(name)
        cursor = text(following)
        if len(names) + len(marks) > MOST:
            found.whole = False
            break
        if cursor == "0":
            break
    for some in _some(sorted(names)):
        found.names |= read(node, keyspace, some, found.refused)
    for some in _some(sorted(marks)):
        replies = _answers(node, [c for mark in some for c in _mark_commands(mark)], 3)
        for mark, each in zip(some, replies, strict=True):
            if code := _unread(each):
                found.refused[mark] = code
            elif each[0] != -2:  # deleted meanwhile
                found.marks[mark] = _mark(*each)
    return found


def _mark(left: int, seen: Any, now: Any) -> Mark:
    token = "" if isinstance(seen, Exception) else _shown(seen[0] or "")
    return Mark(left, int(token) if _is_token(token) else 0, _seconds(now))


def _seconds(time: Any) -> float:
    return int(time[0]) + int(time[1]) / 1e6


def _ours(key: bytes | str, keyspace: Keyspace) -> tuple[str, str] | None:
    try:
        return keyspace.read(text(key))
    except UnicodeDecodeError:
        return None


def _resource(mark: str) -> str:
    """The resource of a guard, by the key of its mark."""
    _, tagged, resource = mark.partition("}:guard:")
    return resource if tagged else mark.partition("{")[2].removesuffix("}:guard")


def _mark_commands(mark: str) -> list[tuple[Any, ...]]:
    return [("PTTL", mark), ("HMGET", mark, "token"), ("TIME",)]


def read(
    node: Node, keyspace: Keyspace, names: Iterable[str], refused: dict[str, str]
) -> dict[str, Name]:
    """Read the keys of some names; those that are not to be read go to ``refused``, with a code."""
    asked = list(names)
    commands: list[tuple[Any, ...]] = []
    for name in asked:
        keys = keyspace.of(name)
        commands += [
            ("GET", keys.lock),
            ("PTTL", keys.lock),
            ("GET", keys.token),
            ("GET", keys.info),
            ("ZRANGE", keys.queue, 0, 0),
            ("HMGET", keys.waiters, "-"),
            ("XREVRANGE", keys.history, "+", "-", "COUNT", 1),
            ("TIME",),
        ]
    found = {}
    for name, each in zip(asked, _answers(node, commands, 8), strict=True):
        if code := _unread(each):
            refused[name] = code
        else:
            found[name] = _name(name, each)
    return found


def _name(name: str, replies: Sequence[Any]) -> Name:
    kinds = ("lock", "", "token", "info", "queue", "waiters", "history")
    wrong = tuple(
        kind for kind, reply in zip(kinds, replies, strict=False) if isinstance(reply, Exception)
    )
    known: list[Any] = [None if isinstance(reply, Exception) else reply for reply in replies]
    lock, lock_ms, token, info, head, _, _, now = known
    described: dict[str, Any] = {}
    broken = []
    if token is not None and not (_is_token(_shown(token)) or _shown(token) == "0"):
        broken.append("token")
    if info is not None:
        try:
            described = dict(json.loads(_shown(info))) if _TAIL.search(_shown(info)) else {}
        except (ValueError, TypeError):
            described = {}
        if not described:
            broken.append("info")
    return Name(
        name=name,
        lock=None if lock is None else _shown(lock),
        lock_ms=lock_ms if lock is not None else -2,
        token="" if token is None else _shown(token),
        info=described,
        head=_shown(head[0]) if head else None,
        wrong=wrong,
        broken=tuple(broken),
        now=_seconds(now),
    )


def _answers(node: Node, commands: list[tuple[Any, ...]], each: int) -> list[tuple[Any, ...]]:
    """The replies to many commands in one trip; an exception where a key cannot be read."""
    try:
        pipeline: Any
        with node.client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            replies: list[Any] = pipeline.execute(raise_on_error=False)
    except redis.RedisError as error:
        raise _refused(error) from error
    for reply in replies:
        if isinstance(reply, redis.RedisError) and _code(reply) not in ("WRONGTYPE", *_UNREAD):
            raise _refused(reply) from reply
    return [tuple(replies[at : at + each]) for at in range(0, len(replies), each)]


def _unread(replies: Sequence[Any]) -> str:
    """Why a name or a mark could not be read; "" if it could."""
    codes = (_code(reply) for reply in replies if isinstance(reply, redis.RedisError))
    return next((code for code in codes if code in _UNREAD), "")


def _code(error: redis.RedisError) -> str:
    return code_in(str(error), getattr(error, "status_code", None))


def _refused(error: redis.RedisError) -> StoreError | NotSeen:
    meant = refusal(error)
    return meant if type(meant) is not StoreError else not_seen("reading the leases", meant)


def _is_token(value: str) -> bool:
    return value.isdecimal() and str(int(value)) == value and 0 < int(value) <= _check.MAX_TOKEN + 1


def _shown(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def second_look(
    node: Node, keyspace: Keyspace, found: Survey, pause: Callable[[float], None] = time.sleep
) -> None:
    """Read anew, for a while, the names that look as if something were wrong just now.

    Those that do not stay so are left without what raised the doubt.
    """
    for doubtful, seconds in ((strange, _CHANGE), (stands, PATIENCE)):
        left = [name for name, each in found.names.items() if doubtful(each)]
        until = time.monotonic() + seconds
        while left and time.monotonic() < until:
            pause(_AGAIN)
            still = []
            for some in _some(left):
                seen = read(node, keyspace, some, found.refused)
                for name in set(some) - seen.keys():
                    del found.names[name]  # it has moved away
                for name, now in seen.items():
                    before, found.names[name] = found.names[name], now
                    if doubtful(now) and (now.lock, now.head) == (before.lock, before.head):
                        still.append(name)
                    elif doubtful(now):
                        found.names[name] = _sound(now)
            left = still


def stands(each: Name) -> bool:
    """Whether it is free, and somebody waits for it."""
    return each.lock is None and each.head is not None and "lock" not in each.wrong


def strange(each: Name) -> bool:
    """Whether somebody else than the last holder has written the lock key."""
    told = each.info.get("holder", each.lock)
    return each.lock is not None and each.lock_ms != -1 and (told != each.lock or not each.token)


def _sound(each: Name) -> Name:
    """The same without what raised the doubt."""
    return replace(each, head=None) if stands(each) else replace(each, lock=None, lock_ms=-2)


def _some(names: list[str]) -> Iterator[list[str]]:
    return (names[at : at + _AT_ONCE] for at in range(0, len(names), _AT_ONCE))
