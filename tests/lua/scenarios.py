"""One scenario for each row of CALLS: it brings the server into the state of that row.

A scenario works with plain commands and other scripts, never with the client, and returns the one
request that the row is about.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.client import NEVER_DECODE

from fencer import _scripts
from tests.lua.header import Row, parse

FOLDER = Path(str(_scripts.folder()))
NAMES = sorted(path.stem for path in FOLDER.glob("*.lua"))
HEADERS = {name: parse((FOLDER / f"{name}.lua").read_text()) for name in NAMES}

HOLDER, RIVAL = "host-1:1", "host-2:2"
GRANT, OTHER, FILLER, WAITING = "a" * 32, "b" * 32, "c" * 32, "d" * 32
TTL, KEEP, LENGTH = 60_000, 3_600_000, 5_000

LOCK, TOKEN, INFO, HISTORY, QUEUE, WAITERS = ALL = tuple(
    f"fencer:{{orders}}:{kind}" for kind in ("lock", "token", "info", "history", "queue", "waiters")
)
CHANNEL, SILENT = "fencer:wake:here", "fencer:wake:nobody"
MARK, BALANCE, VISITS = "fencer:{till}:guard", "{till}:balance", "{till}:visits"

Reply = list[Any]
State = dict[str, tuple[str, Any, bool]]


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a script; ``commands`` are the caller's own, which a guard runs."""

    script: str
    keys: tuple[str, ...]
    arguments: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...] = ()

    def but(self, index: int, value: str) -> Request:
        """The same with another ARGV[index]."""
        changed = list(self.arguments)
        changed[index - 1] = value
        return Request(self.script, self.keys, tuple(changed), self.commands)


class Store:
    """A server with one name and one guarded resource on it, and somebody who listens."""

    def __init__(
        self,
        client: redis.Redis,
        shas: dict[str, str] | None = None,
        listener: redis.client.PubSub | None = None,
    ) -> None:
        self._client = client
        self._listener = listener
        self._shas = shas or {name: _scripts.load(name).sha for name in NAMES}

    def load(self) -> None:
        """Make all scripts known to the server, if they are not yet."""
        known = self.do("SCRIPT", "EXISTS", *(_scripts.load(name).sha for name in NAMES))
        for name in NAMES if not all(known) else ():
            self.do("SCRIPT", "LOAD", _scripts.load(name).body)

    def over(self, client: redis.Redis) -> Store:
        """The same over another connection."""
        return Store(client, self._shas, self._listener)

    def planted(self, script: str, pattern: str, replacement: str) -> Store:
        """The same with a bug in one script."""
        body, changes = re.subn(pattern, replacement, _scripts.load(script).body.decode())
        assert changes, "the script has changed: plant this bug anew"
        shas = {**self._shas, script: self.do("SCRIPT", "LOAD", body)}
        return Store(self._client, shas, self._listener)

    def heard(self) -> list[list[str]]:
        """What was published to `CHANNEL` since the last question, each message in words."""
        assert self._listener is not None
        mark = uuid.uuid4().hex
        self.do("PUBLISH", CHANNEL, mark)
        messages: list[str] = []
        while mark not in messages:
            message = self._listener.get_message(timeout=5)
            assert message is not None, "the mark was not heard"
            if message["type"] == "message":
                messages.append(message["data"])
        return [message.split(" ") for message in messages[:-1]]

    def queue(self) -> list[str]:
        """The grants that are waited for, in order."""
        line: list[str] = self.do("ZRANGE", QUEUE, 0, -1)
        return line

    def do(self, *words: str | bytes | int | float) -> Any:
        return self._client.execute_command(*words)

    def send(self, request: Request) -> Reply:
        """Run a script by its SHA."""
        sha = self._shas[request.script]
        reply: Reply = self.do("EVALSHA", sha, len(request.keys), *request.keys, *request.arguments)
        return reply

    def acquire(self, **changes: Any) -> int:
        """Grant the lease and return its token."""
        reply = self.send(acquire(**changes))
        assert reply[0] == "GRANTED"
        return int(reply[1])

    def state(self) -> State:
        """Every key of the database: its type, what it holds, and whether it ever ends."""
        read = {
            "string": ("GET",),
            "hash": ("HGETALL",),
            "list": ("LRANGE", "0", "-1"),
            "stream": ("XRANGE", "-", "+"),
            "zset": ("ZRANGE", "0", "-1", "WITHSCORES"),
        }
        found = {}
        for key in sorted(self.do("KEYS", "*")):
            kind = self.do("TYPE", key)
            verb, *rest = read[kind]
            # What is written of a waiter is not text.
            raw = {NEVER_DECODE: True} if kind == "hash" else {}
            holds = self._client.execute_command(verb, key, *rest, **raw)
            found[key] = kind, holds, self.do("PTTL", key) >= 0
        return found


def effect(before: State, after: State, *without: str) -> dict[str, tuple[str, str, bool, bool]]:
    """What a script did, told without tokens and times: per key type, value, end, changed."""
    return {
        key: (
            kind,
            re.sub(r"\d{10,}(\.\d+)?(-\d+)?", "N", repr(value)),
            ends,
            key in before and before[key][1] == value,
        )
        for key, (kind, value, ends) in after.items()
        if key not in without
    }


def acquire(
    holder: str = HOLDER,
    grant: str = GRANT,
    minting: str = "time",
    about: dict[str, Any] | None = None,
    waiting: str = "no",
    channel: str = "",
    ttl: int = TTL,
) -> Request:
    fields = json.dumps({**(about or {}), "holder": holder}, separators=(",", ":"))
    lease = (holder, grant, str(ttl), str(KEEP), fields, minting, str(LENGTH))
    return Request("acquire", ALL, (*lease, waiting, channel))


def join(grant: str, holder: str = "", channel: str = CHANNEL, ttl: int = TTL) -> Request:
    return acquire(holder or f"of {grant[:4]}", grant, waiting="join", channel=channel, ttl=ttl)


def stay(grant: str, holder: str = "", channel: str = CHANNEL) -> Request:
    return join(grant, holder, channel).but(8, "stay")


def renew(token: int, about: str = "", holder: str = HOLDER) -> Request:
    arguments = (holder, str(token), str(TTL), str(KEEP), about)
    return Request("renew", (LOCK, TOKEN, INFO), arguments)


def together(*requests: Request) -> Request:
    """One request that renews what several would; the first says whose they are and how long."""
    keys = tuple(key for request in requests for key in request.keys)
    more = tuple(request.arguments[at] for request in requests[1:] for at in (1, 4))
    return Request("renew", keys, requests[0].arguments + more)


def of_name(name: str, request: Request) -> Request:
    """The same for another name than "orders"."""
    keys = tuple(key.replace("{orders}", f"{{{name}}}") for key in request.keys)
    return Request(request.script, keys, request.arguments, request.commands)


def release(token: int, grant: str = GRANT, holder: str = HOLDER) -> Request:
    arguments = (holder, grant, str(token), str(KEEP), "time", str(LENGTH))
    return Request("release", ALL, arguments)


def revoke(token: int) -> Request:
    return Request("revoke", ALL, (str(token), str(KEEP), str(LENGTH)))


def advance(beyond: int) -> Request:
    return Request("advance", ALL, (str(beyond), str(KEEP), str(LENGTH)))


def inspect() -> Request:
    return Request("inspect", (LOCK, TOKEN, INFO, QUEUE, WAITERS), ())


def guard(token: int, *commands: tuple[str, ...], grant: str = GRANT) -> Request:
    words = [word for command in commands for word in (str(len(command)), *command)]
    arguments = (str(token), grant, str(len(commands)), *words)
    return Request("guard", (MARK, BALANCE, VISITS), arguments, commands)


Prepare = Callable[[Store], Request]
Name = tuple[str, str, str]
SCENARIOS: dict[Name, Prepare] = {}


def scenario(script: str, status: str, variant: str = "as a rule") -> Callable[[Prepare], Prepare]:
    """Register the scenario of a row."""

    def register(prepare: Prepare) -> Prepare:
        assert (script, status, variant) not in SCENARIOS
        SCENARIOS[script, status, variant] = prepare
        return prepare

    return register


ROWS: dict[Name, Row] = {
    (name, row.status, row.variant): row for name in NAMES for row in HEADERS[name].rows
}
WRITES = {"set", "incr", "del", "pexpire", "xadd", "hset", "zadd", "zrem", "publish"}
WRITING = [name for name, row in ROWS.items() if row.counts.keys() & WRITES]


def label(name: Name) -> str:
    return ", ".join(name)


def own_commands(request: Request) -> Counter[str]:
    """How often each of the caller's own commands is run."""
    return Counter(command[0].lower() for command in request.commands)


def in_line(store: Store, *grants: str, channel: str = CHANNEL) -> int:
    """Let a rival hold the name and others wait for it; return the rival's token."""
    token = store.acquire(holder=RIVAL, grant=OTHER)
    for place, grant in enumerate(grants):
        reply = store.send(join(grant, HOLDER, channel))
        assert reply[0] == "QUEUED"
        assert reply[3] == place
    return token


def set_free(store: Store) -> None:
    """Free the name without a word, as the end of its lease does."""
    store.do("DEL", LOCK, INFO)
    store.do("DEL", HISTORY)


@scenario("acquire", "GRANTED", "fresh")
def _(store: Store) -> Request:
    return acquire()


@scenario("acquire", "GRANTED", "after a loss")
def _(store: Store) -> Request:
    store.acquire(holder=RIVAL, grant=OTHER)
    store.do("DEL", LOCK, INFO)
    return acquire()


@scenario("acquire", "GRANTED", "asked again")
def _(store: Store) -> Request:
    store.acquire()
    store.do("PEXPIRE", LOCK, TTL // 2)
    return acquire()


@scenario("acquire", "GRANTED", "again, after end")
def _(store: Store) -> Request:
    store.acquire()
    store.do("DEL", LOCK)
    return acquire()


@scenario("acquire", "GRANTED", "info is gone too")
def _(store: Store) -> Request:
    store.acquire()
    store.do("DEL", LOCK, INFO)
    return acquire()


@scenario("acquire", "GRANTED", "after a renew")
def _(store: Store) -> Request:
    token = store.acquire()
    store.send(
        renew(token, store.do("GET", INFO).replace('"ttl":60,', '"ttl":600,')).but(3, "600000")
    )
    return acquire()


@scenario("acquire", "GRANTED", "first in line")
def _(store: Store) -> Request:
    in_line(store, GRANT)
    set_free(store)
    return stay(GRANT)


@scenario("acquire", "HELD")
def _(store: Store) -> Request:
    store.acquire(holder=RIVAL, grant=OTHER)
    return acquire()


@scenario("acquire", "HELD", "clock went back")
def _(store: Store) -> Request:
    store.acquire(holder=RIVAL, grant=OTHER)
    store.do("PEXPIRE", LOCK, 10 * TTL)
    return acquire()


@scenario("acquire", "HELD", "the line is first")
def _(store: Store) -> Request:
    in_line(store, GRANT)
    set_free(store)
    return acquire(grant=FILLER)


@scenario("acquire", "QUEUED", "joins")
def _(store: Store) -> Request:
    in_line(store, WAITING)
    return join(GRANT)


@scenario("acquire", "QUEUED", "stays")
def _(store: Store) -> Request:
    in_line(store, WAITING, GRANT)
    return stay(GRANT)


@scenario("acquire", "QUEUED", "the line is first")
def _(store: Store) -> Request:
    in_line(store, WAITING)
    set_free(store)
    return join(GRANT)


@scenario("acquire", "GONE")
def _(store: Store) -> Request:
    in_line(store, WAITING)
    return stay(GRANT)


@scenario("acquire", "ENDED")
def _(store: Store) -> Request:
    store.send(release(store.acquire()))
    return acquire()


@scenario("acquire", "ENDED", "somebody has it")
def _(store: Store) -> Request:
    store.send(release(store.acquire()))
    store.acquire(holder=RIVAL, grant=OTHER)
    return join(GRANT, HOLDER)


@scenario("renew", "RENEWED")
def _(store: Store) -> Request:
    return renew(store.acquire())


@scenario("renew", "RENEWED", "lock is gone")
def _(store: Store) -> Request:
    token = store.acquire()
    store.do("DEL", LOCK)
    return renew(token)


@scenario("renew", "RENEWED", "with info")
def _(store: Store) -> Request:
    token = store.acquire()
    info = store.do("GET", INFO).replace("{", '{"port":1,', 1)
    return renew(token, info)


@scenario("renew", "RENEWED", "three leases")
def _(store: Store) -> Request:
    names = "orders", "bills", "mail"
    tokens = [store.send(of_name(name, acquire()))[1] for name in names]
    each = [of_name(name, renew(token)) for name, token in zip(names, tokens, strict=True)]
    return together(*each)


@scenario("renew", "STALE")
def _(store: Store) -> Request:
    return renew(store.acquire(grant=OTHER) - 1)


@scenario("renew", "FOREIGN")
def _(store: Store) -> Request:
    token = store.acquire()
    store.do("SET", LOCK, "somebody")
    return renew(token)


@scenario("release", "RELEASED", "nobody waits")
def _(store: Store) -> Request:
    return release(store.acquire())


@scenario("release", "RELEASED", "lock is gone")
def _(store: Store) -> Request:
    token = store.acquire()
    store.do("DEL", LOCK, INFO)
    return release(token)


@scenario("release", "RELEASED", "hands over")
def _(store: Store) -> Request:
    token = in_line(store, GRANT)
    return release(token, OTHER, RIVAL)


@scenario("release", "RELEASED", "asked again")
def _(store: Store) -> Request:
    request = release(store.acquire())
    store.send(request)
    return request


@scenario("release", "STALE")
def _(store: Store) -> Request:
    return release(store.acquire(holder=RIVAL, grant=OTHER) - 1)


@scenario("release", "CANCELLED")
def _(store: Store) -> Request:
    store.acquire(holder=RIVAL, grant=OTHER)
    return release(0)


@scenario("release", "CANCELLED", "was in line")
def _(store: Store) -> Request:
    in_line(store, WAITING, GRANT)
    return release(0)


@scenario("release", "CANCELLED", "was the head")
def _(store: Store) -> Request:
    in_line(store, GRANT, WAITING)
    return release(0)


@scenario("revoke", "REVOKED")
def _(store: Store) -> Request:
    return revoke(store.acquire())


@scenario("revoke", "REVOKED", "lock is gone")
def _(store: Store) -> Request:
    token = store.acquire()
    store.do("DEL", LOCK, INFO)
    return revoke(token)


@scenario("revoke", "REVOKED", "some wait")
def _(store: Store) -> Request:
    return revoke(in_line(store, GRANT))


@scenario("revoke", "REVOKED", "asked again")
def _(store: Store) -> Request:
    request = revoke(store.acquire())
    store.send(request)
    return request


@scenario("revoke", "STALE")
def _(store: Store) -> Request:
    return revoke(store.acquire() - 1)


@scenario("revoke", "FOREIGN")
def _(store: Store) -> Request:
    token = store.acquire()
    store.do("SET", LOCK, "somebody")
    return revoke(token)


@scenario("advance", "ADVANCED", "the name is free")
def _(store: Store) -> Request:
    return advance(10**15)


@scenario("advance", "ADVANCED", "a lease is held")
def _(store: Store) -> Request:
    return advance(store.acquire() + 10**6)


@scenario("advance", "ADVANCED", "some wait")
def _(store: Store) -> Request:
    return advance(in_line(store, GRANT) + 10**6)


@scenario("advance", "ADVANCED", "asked again")
def _(store: Store) -> Request:
    request = advance(store.acquire() + 10**6)
    store.send(request)
    return request


@scenario("advance", "AHEAD")
def _(store: Store) -> Request:
    return advance(store.acquire())


@scenario("advance", "FOREIGN")
def _(store: Store) -> Request:
    token = store.acquire()
    store.do("SET", LOCK, "somebody")
    return advance(token + 10**6)


@scenario("inspect", "HELD", "nobody waits")
def _(store: Store) -> Request:
    store.acquire()
    return inspect()


@scenario("inspect", "HELD", "some wait")
def _(store: Store) -> Request:
    in_line(store, WAITING, GRANT)
    return inspect()


@scenario("inspect", "FREE")
def _(store: Store) -> Request:
    store.send(release(store.acquire()))
    return inspect()


@scenario("guard", "ACCEPTED", "the first token")
def _(store: Store) -> Request:
    return guard(7, ("SET", BALANCE, "1"), ("INCR", VISITS))


@scenario("guard", "ACCEPTED", "a larger token")
def _(store: Store) -> Request:
    store.do("HSET", MARK, "token", "6", "grant", OTHER)
    return guard(7, ("SET", BALANCE, "1"), ("INCR", VISITS))


@scenario("guard", "ACCEPTED", "the same token")
def _(store: Store) -> Request:
    store.do("HSET", MARK, "token", "7", "grant", GRANT)
    return guard(7, ("SET", BALANCE, "1"), ("INCR", VISITS))


@scenario("guard", "ACCEPTED", "checked again")
def _(store: Store) -> Request:
    store.do("HSET", MARK, "token", "7", "grant", GRANT)
    return guard(7)


@scenario("guard", "STALE")
def _(store: Store) -> Request:
    store.do("HSET", MARK, "token", "8", "grant", OTHER)
    return guard(7)


@scenario("guard", "FAILED", "a larger token")
def _(store: Store) -> Request:
    store.do("HSET", MARK, "token", "6", "grant", OTHER)
    return guard(7, ("SET", BALANCE, "one"), ("INCR", BALANCE))
