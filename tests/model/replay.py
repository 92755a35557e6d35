"""Random traces of script calls, on a server and on the model, compared after every step."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable
from typing import Any

import redis

from tests.lua import scenarios as lua
from tests.lua.scenarios import HISTORY, INFO, LOCK, QUEUE, TOKEN, WAITERS, Request
from tests.model.scripts import (
    CLAIM,
    NOBODY,
    TTL,
    Done,
    Event,
    Grant,
    Info,
    Lock,
    Scripts,
    Store,
    Told,
)

MARK = "fencer:wake:mark"
TAIL = re.compile(r'"grant":"(\w+)","ttl":[\d.]+,"token":(\d+),"since":[\d.]+}$')
CLIENTS = 3


class Diverged(AssertionError):
    """The server did something else than the model."""


def holder(who: int) -> str:
    return f"holder-{who}" if who != NOBODY else "a stranger"


def who(shown: str) -> int:
    return NOBODY if shown == "a stranger" else int(shown.removeprefix("holder-"))


def channel(who: int) -> str:
    return f"fencer:wake:{who}"


def text(grant: Grant) -> str:
    return f"{grant.holder + 1:08x}{grant.number:024x}"


def grant_of(shown: str) -> Grant | None:
    return Grant(int(shown[:8], 16) - 1, int(shown[8:], 16)) if shown else None


class Replay:
    """A trace, step by step.

    Args:
        store: the server, which is empty.
        listener: hears what the scripts publish to the clients that are subscribed.
        seed: of the trace.
        minting: how tokens are minted.
    """

    def __init__(
        self, store: lua.Store, listener: redis.client.PubSub, seed: int, minting: str
    ) -> None:
        self._server = store
        self._listener = listener
        self._minting = minting
        self._dice = random.Random(seed)
        self._seed = seed
        self._model = Scripts(clock=None if minting == "dense" else lambda: self._issued())
        self._store = Store()
        self._hears: frozenset[int] = frozenset()
        self._grants: list[Grant] = [Grant(0, 0)]
        self._tokens: dict[Grant, int] = {}
        self.trace: list[str] = []
        self.seen: set[tuple[str, str]] = set()
        """Each script with each of its answers that came."""
        listener.subscribe(MARK)
        self._listen()

    def run(self, steps: int) -> None:
        """Take so many steps.

        Raises:
            Diverged: the server and the model came to different ends.
        """
        kinds: dict[Callable[[], None], int] = {
            self._acquire: 30,
            self._renew: 10,
            self._release: 20,
            self._revoke: 3,
            self._advance: 3,
            self._subscribe: 10,
            self._lock_ends: 12,
            self._something_vanishes: 3,
        }
        for _ in range(steps):
            self._dice.choices(list(kinds), list(kinds.values()))[0]()

    # Calls.

    def _acquire(self) -> None:
        grant = self._grant()
        waiting = self._dice.choice(["no", "join", "join", "stay"])
        request = lua.acquire(
            holder(grant.holder),
            text(grant),
            self._minting,
            waiting=waiting,
            channel="" if waiting == "no" else channel(grant.holder),
        )
        reply = self._call(
            f"acquire {waiting} {grant}",
            request,
            lambda: self._model.acquire(self._store, self._hears, grant, waiting),  # type: ignore[arg-type]
        )
        if reply[0] == "GRANTED":
            self._tokens[grant] = reply[1]

    def _renew(self) -> None:
        grant, token = self._token()
        describe = self._dice.random() < 0.5
        tail = f'"grant":"{text(grant)}","ttl":60,"token":{token},"since":1.000}}'
        about = f'{{"holder":"{holder(grant.holder)}",{tail}'
        request = lua.renew(token, about if describe else "", holder(grant.holder))
        self._call(
            f"renew {token} of {grant}, describe={describe}",
            request,
            lambda: self._model.renew(self._store, self._hears, grant, token, describe),
        )

    def _release(self) -> None:
        grant, token = self._token() if self._dice.random() < 0.6 else (self._grant(), 0)
        request = lua.release(token, text(grant), holder(grant.holder)).but(5, self._minting)
        self._call(
            f"release {token} of {grant}",
            request,
            lambda: self._model.release(self._store, self._hears, grant, token),
        )

    def _revoke(self) -> None:
        which = self._store.issued if self._dice.random() < 0.7 else self._token()[1]
        if which:
            self._call(
                f"revoke {which}",
                lua.revoke(which),
                lambda: self._model.revoke(self._store, self._hears, which),
            )

    def _advance(self) -> None:
        beyond = max(1, self._store.issued + self._dice.choice([-1, -1, 0, 1, 5]))
        self._call(
            f"advance {beyond}",
            lua.advance(beyond),
            lambda: self._model.advance(self._store, self._hears, beyond),
        )

    # What happens to the server and to its clients.

    def _subscribe(self) -> None:
        one = self._dice.randrange(CLIENTS)
        if one in self._hears:
            self._listener.unsubscribe(channel(one))
        else:
            self._listener.subscribe(channel(one))
        self._hears ^= {one}
        self._listen()
        self.trace.append(f"{sorted(self._hears)} hear")

    def _lock_ends(self) -> None:
        both = self._dice.random() < 0.5
        self._vanish("the lock ends", LOCK, *([INFO] if both else []))

    def _something_vanishes(self) -> None:
        keys = {
            "info": (INFO,),
            "token": (TOKEN,),
            "line": (QUEUE, WAITERS),
            "all": (LOCK, TOKEN, INFO, HISTORY, QUEUE, WAITERS),
        }
        which = self._dice.choice([*keys, "lock is another's"])
        if which in keys:
            return self._vanish(f"{which} vanishes", *keys[which])
        self._server.do("SET", LOCK, holder(NOBODY), "PX", 60_000)
        self._store = self._store._replace(lock=Lock(NOBODY))
        self.trace.append("the lock is a stranger's")
        return None

    def _vanish(self, label: str, *keys: str) -> None:
        self._server.do("DEL", *keys)
        gone: dict[str, Any] = {
            LOCK: {"lock": None},
            TOKEN: {"issued": 0},
            INFO: {"info": None},
            HISTORY: {"history": ()},
            QUEUE: {"queue": ()},
            WAITERS: {},
        }
        for key in keys:
            self._store = self._store._replace(**gone[key])
        self.trace.append(label)
        self._compare("the store", self._store, self._read())

    # Tools.

    def _grant(self) -> Grant:
        """One of the last grants, or a new one."""
        if self._dice.random() < 0.4:
            self._grants.append(Grant(self._dice.randrange(CLIENTS), len(self._grants)))
        return self._dice.choice(self._grants[-6:])

    def _token(self) -> tuple[Grant, int]:
        """One of the last tokens, the live one rather."""
        info = self._store.info
        if info and self._dice.random() < 0.6:
            return info.grant, info.token
        known = list(self._tokens.items())[-5:]
        return self._dice.choice(known) if known else (self._grant(), 1)

    def _call(self, label: str, request: Request, model: Callable[[], Done]) -> list[Any]:
        reply = self._server.send(request)
        told = self._listen()
        done = model()
        self._store = done.store
        self.trace.append(f"{label}: {reply}")
        self.seen.add((request.script, reply[0]))
        self._compare("the answer", done.reply, _answer(reply))
        self._compare("the store", done.store, self._read())
        self._compare("what was published", done.told, told)
        return reply

    def _compare(self, what: str, model: object, server: object) -> None:
        if model != server:
            trace = "\n".join(self.trace[-25:])
            raise Diverged(
                f"{what} differs (seed {self._seed}, step {len(self.trace)})\n"
                f"model:  {model}\nserver: {server}\n{trace}"
            )

    def _issued(self) -> int:
        return int(self._server.do("GET", TOKEN) or 0)

    def _listen(self) -> tuple[Told, ...]:
        """What was published since the last question."""
        mark, told = uuid.uuid4().hex, list[Told]()
        self._server.do("PUBLISH", MARK, mark)
        while True:
            message = self._listener.get_message(timeout=20)
            assert message is not None, "the mark was not heard"
            if message["type"] != "message":
                # What happens on this connection happens before the next mark is heard.
                self._server.do("PUBLISH", MARK, mark)
                continue
            if message["data"] == mark:
                return tuple(told)
            if message["channel"] != MARK:
                kind, grant, first, second = message["data"].split(" ")
                number = int(first if kind == "GRANT" else second)
                told.append(Told(kind, Grant(*(grant_of(grant) or ())), number))

    def _read(self) -> Store:
        held_by, described = self._server.do("GET", LOCK), self._server.do("GET", INFO)
        queue = self._server.queue()
        waiters = self._server._client.execute_command("HKEYS", WAITERS)
        assert sorted(waiters) == sorted(queue), "the line and what is known of it differ"
        lock = info = None
        if held_by is not None:
            lock = Lock(who(held_by), TTL if self._server.do("PTTL", LOCK) > 1_000 else CLAIM)
        if described is not None:
            found = TAIL.search(described)
            assert found
            info = Info(Grant(*(grant_of(found[1]) or ())), int(found[2]))
        events = tuple(
            Event(entry["event"], int(entry["token"]), grant_of(entry["grant"]))
            for _, entry in self._server.do("XRANGE", HISTORY, "-", "+")
        )
        line = tuple(Grant(*(grant_of(each) or ())) for each in queue)
        return Store(self._issued(), lock, info, line, events)


def _answer(reply: list[Any]) -> tuple[Any, ...]:
    """An answer without its times."""
    match reply:
        case ["GRANTED", token, _]:
            return "GRANTED", token
        case ["HELD", shown, _]:
            return "HELD", who(shown)
        case ["QUEUED", shown, _, place]:
            return "QUEUED", who(shown), place
        case ["FOREIGN", shown]:
            return "FOREIGN", who(shown)
        case _:
            return tuple(reply)
