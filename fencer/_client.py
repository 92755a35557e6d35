"""What a client is, apart from how it sends: its settings, and what callers may ask."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

from fencer import _check, _protocol
from fencer._announce import Announcement
from fencer._keeper import heartbeat
from fencer._keys import Keyspace
from fencer._protocol import Granted, Protocol
from fencer._steps import Steps
from fencer.durability import Durability, checked
from fencer.errors import InvalidArgument
from fencer.guards._base import AsyncGuard, Guard
from fencer.records import Event, Status

Tokens: TypeAlias = Literal["time", "dense"]


class BaseFencer:
    """The settings and the checks; `Fencer` and `AsyncFencer` add the sending."""

    def __init__(
        self,
        namespace: str,
        hash_tag: bool,
        holder: str | None,
        tokens: Tokens,
        keep: float,
        history: int,
        durability: Durability | tuple[Durability, ...] | None,
    ) -> None:
        if tokens not in ("time", "dense"):
            raise InvalidArgument(f'tokens must be "time" or "dense", not {tokens!r}')
        self._keyspace = Keyspace(namespace, hash_tag)
        self._protocol = Protocol(
            _protocol.Settings(
                keyspace=self._keyspace,
                minting=tokens,
                keep_ms=round(_check.number("keep", keep, 1.0, _check.MAX_KEEP) * 1000),
                history_length=_check.integer("history", history, 1, _check.MAX_HISTORY),
                durability=checked(durability),
            )
        )
        self._host = socket.gethostname()
        self._named = None if holder is None else _check.holder(holder)
        self._own: tuple[int, str] | None = None

    @property
    def holder(self) -> str:
        """The readable id under which it holds leases."""
        if self._named is not None:
            return self._named
        pid = os.getpid()
        if self._own is None or self._own[0] != pid:
            self._own = pid, f"{self._host[:200]}:{pid}:{secrets.token_hex(4)}"
        return self._own[1]

    def _acquiring(
        self,
        name: str,
        ttl: float,
        wait: float | None,
        keep_alive: bool | float,
        info: Mapping[str, Any] | None,
        look: float | None = None,
    ) -> tuple[Steps[Granted], float | None]:
        """The steps to a grant, and the seconds between two renewals if it is to be kept alive."""
        ttl_ms = _check.ttl_ms(ttl)
        beat = heartbeat(keep_alive, ttl_ms)
        about = _protocol.about(self.holder, self._host, _check.info(info))
        steps = self._protocol.acquire(
            _check.name(name), self.holder, ttl_ms, _check.wait(wait), about, look
        )
        return steps, beat

    def _announcing(
        self, name: str, wait: float | None, guards: tuple[Guard | AsyncGuard, ...]
    ) -> Announcement:
        """What an acquire with guards does beyond one without."""
        return Announcement(guards, wait, partial(self._advancing, name), self._protocol.clock)

    def _inspecting(self, name: str) -> Steps[Status]:
        return self._protocol.inspect(_check.name(name))

    def _revoking(self, name: str, token: int | None) -> Steps[int | None]:
        checked = None if token is None else _check.token(token)
        return self._protocol.revoke(_check.name(name), checked)

    def _advancing(self, name: str, beyond: int) -> Steps[bool]:
        _check.integer("beyond", beyond, 1, _check.MAX_BEYOND)
        return self._protocol.advance(_check.name(name), beyond)

    def _recalling(self, name: str, count: int) -> Steps[list[Event]]:
        _check.integer("count", count, 1, _check.MAX_HISTORY)
        return self._protocol.history(_check.name(name), count)

    @staticmethod
    def _unseen(names: list[str], seen: set[str]) -> Iterator[str]:
        """The names that have not been seen yet: a SCAN may show a key more than once."""
        for name in names:
            if name not in seen:
                seen.add(name)
                yield name
