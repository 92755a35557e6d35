"""The conformance suite passes guards that keep the rules, and fails each planted bug."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from fencer.errors import InvalidArgument, StaleToken
from fencer.guards import MemoryGuard, RedisGuard, testing
from fencer.guards._base import BaseGuard, Claim, Mark, Token
from fencer.guards.testing import NonConforming, conform, conform_async
from tests.guards.caught import caught

ROUNDS = 400


@dataclass
class Box:
    """A resource in memory, and its mark."""

    value: str | None = None
    mark: Mark = field(default_factory=Mark)
    lock: Any = field(default_factory=threading.RLock)


class Right(BaseGuard):
    """A guard that keeps the rules; each bug below overrides one step of it."""

    def __init__(self, boxes: dict[str, Box], resource: str) -> None:
        super().__init__(resource)
        self.box = boxes[resource]

    def write(self, token: Token, value: str) -> None:
        with self.box.lock:
            self.check(token)
            self.box.value = value

    def read(self) -> str | None:
        return self.box.value

    def check(self, token: Token) -> None:
        claim = self._claim(token)
        with self.box.lock:
            self.box.mark = self.decide(self.box.mark, claim)

    def decide(self, mark: Mark, claim: Claim) -> Mark:
        return mark.accept(claim, self.resource)

    def highest(self) -> int:
        return self.box.mark.highest


def run(guard: type[Right], **options: Any) -> None:
    boxes: dict[str, Box] = defaultdict(Box)
    conform(lambda resource: guard(boxes, resource), **{"rounds": ROUNDS, **options})


class TwoSteps(Right):
    """Checks, and then writes."""

    def write(self, token: Token, value: str) -> None:
        self.check(token)
        self.box.value = value


class OlderToo(Right):
    """Compares nothing."""

    def decide(self, mark: Mark, claim: Claim) -> Mark:
        return Mark(max(mark.highest, claim.token), claim.grant)


class OnlyLarger(Right):
    """``>`` instead of ``>=``."""

    def decide(self, mark: Mark, claim: Claim) -> Mark:
        if claim.token == mark.highest:
            raise StaleToken(self.resource, claim.token, mark.highest)
        return mark.accept(claim, self.resource)


class AsText(Right):
    """Compares digits."""

    def decide(self, mark: Mark, claim: Claim) -> Mark:
        if str(claim.token) < str(mark.highest):
            raise StaleToken(self.resource, claim.token, mark.highest)
        return Mark(*claim)


class Rounded(Right):
    """Keeps 14 digits, as Lua's tostring does."""

    def decide(self, mark: Mark, claim: Claim) -> Mark:
        token, grant = mark.accept(claim, self.resource)
        return Mark(int(float(f"{token:.14g}")), grant)


class Narrow(Right):
    """Keeps the mark in 32 bits."""

    def decide(self, mark: Mark, claim: Claim) -> Mark:
        token, grant = mark.accept(claim, self.resource)
        return Mark(token % 2**32, grant)


class AnyGrant(Right):
    """Forgets to compare grants."""

    def decide(self, mark: Mark, claim: Claim) -> Mark:
        return mark.accept(Claim(claim.token, ""), self.resource)


class GrantWiped(Right):
    """A bare token wipes out the grant that is known."""

    def decide(self, mark: Mark, claim: Claim) -> Mark:
        mark.accept(claim, self.resource)
        return Mark(*claim)


class GrantStays(Right):
    """The grant of the last token stays when a bare larger one comes."""

    def decide(self, mark: Mark, claim: Claim) -> Mark:
        after = mark.accept(claim, self.resource)
        return Mark(after.highest, after.grant or mark.grant)


class GrantNotAdopted(Right):
    """A bare token first: no grant is compared afterwards."""

    def decide(self, mark: Mark, claim: Claim) -> Mark:
        after = mark.accept(claim, self.resource)
        return mark if claim.token == mark.highest else after


class AnyName(Right):
    """Takes the tokens of all names."""

    def _claim(self, token: Token) -> Claim:
        try:
            return super()._claim(token)
        except InvalidArgument as error:
            if "different names" not in str(error):
                raise
            return Claim(token.token, token.grant)  # type: ignore[union-attr]


class AnyInteger(Right):
    """Takes what is no token."""

    def _claim(self, token: Token) -> Claim:
        if isinstance(token, int) and token >= 1:
            return Claim(int(token), "")
        return super()._claim(token)


class LooksOnly(Right):
    """A check that leaves no mark: announcing is worth nothing."""

    def write(self, token: Token, value: str) -> None:
        with self.box.lock:
            super().check(token)
            self.box.value = value

    def check(self, token: Token) -> None:
        self.decide(self.box.mark, self._claim(token))


class WritesFirst(Right):
    """Writes, and then checks."""

    def write(self, token: Token, value: str) -> None:
        with self.box.lock:
            self.box.value = value
            self.check(token)


class MarkDropped(Right):
    """A refused write takes the mark along: what was announced is forgotten."""

    def write(self, token: Token, value: str) -> None:
        with self.box.lock:
            before, self.box.mark = self.box.mark, Mark()
            self.decide(before, self._claim(token))
            super().write(token, value)


class MarkLater(Right):
    """Writes with the check, and stamps the mark a moment later."""

    def write(self, token: Token, value: str) -> None:
        claim = self._claim(token)
        with self.box.lock:
            after = self.decide(self.box.mark, claim)
            self.box.value = value
        with self.box.lock:
            self.box.mark = max(self.box.mark, after)


class Drops(Right):
    """Accepts some writes without writing."""

    def write(self, token: Token, value: str) -> None:
        with self.box.lock:
            self.check(token)
            if not value.startswith("99 "):
                self.box.value = value


class MarkInHandle(Right):
    """Each handle has a mark of its own."""

    def __init__(self, boxes: dict[str, Box], resource: str) -> None:
        super().__init__(boxes, resource)
        self.mark = Mark()

    def check(self, token: Token) -> None:
        self.mark = self.decide(self.mark, self._claim(token))
        self.box.mark = max(self.box.mark, self.mark)


class WrongNumbers(Right):
    """Refuses with numbers that are not true."""

    def decide(self, mark: Mark, claim: Claim) -> Mark:
        try:
            return mark.accept(claim, self.resource)
        except StaleToken:
            raise StaleToken(self.resource, mark.highest, claim.token) from None


class RefusesAll(Right):
    """Never lets anybody in."""

    def decide(self, mark: Mark, claim: Claim) -> Mark:
        raise StaleToken(self.resource, claim.token, mark.highest)


BUGS: list[tuple[type[Right], set[str]]] = [
    (TwoSteps, {testing.BACK, testing.SMALLER, testing.ANNOUNCED}),
    (OlderToo, {testing.SMALLER}),
    (OnlyLarger, {testing.SAME}),
    (AsText, {testing.LARGER}),
    (Rounded, {testing.HIGHEST}),
    (Narrow, {testing.HIGHEST}),
    (AnyGrant, {testing.RIVAL}),
    (GrantWiped, {testing.RIVAL}),
    (GrantStays, {testing.LARGER, testing.SAME}),
    (GrantNotAdopted, {testing.RIVAL}),
    (AnyName, {testing.NAME}),
    (AnyInteger, {testing.INVALID}),
    (LooksOnly, {testing.HIGHEST}),
    (WritesFirst, {testing.UNTOUCHED}),
    (MarkDropped, {testing.HIGHEST}),
    (MarkLater, {testing.HIGHEST, testing.RIVAL}),
    (Drops, {testing.KEPT}),
    (MarkInHandle, {testing.SMALLER}),
    (WrongNumbers, {testing.TOLD}),
    (RefusesAll, {testing.LARGER}),
]


@pytest.mark.parametrize(("bug", "rules"), BUGS, ids=[bug.__name__ for bug, _ in BUGS])
def test_a_planted_bug_is_found(bug: type[Right], rules: set[str]) -> None:
    """A guard with this bug would be called a good one."""
    found = caught(lambda: run(bug, rounds=2 * ROUNDS))
    assert found.rule in rules, str(found)


def test_a_right_guard_passes() -> None:
    """The suite would find fault with a guard that keeps the rules."""
    run(Right)


def test_the_interpreter_switches_as_before() -> None:
    """All tests after this one would run slowly."""
    before = sys.getswitchinterval()
    run(Right, rounds=3)
    with pytest.raises(NonConforming):
        run(TwoSteps, rounds=5 * ROUNDS)
    assert sys.getswitchinterval() == before


def test_a_mark_that_was_announced_outlives_a_write_that_fails() -> None:
    """A rolled-back write could take away the mark of a check that was done before it."""

    def rolls_back_all(handle: Right, token: Token) -> None:
        handle.box.mark = Mark(5)

    def rolls_back_its_own(handle: Right, token: Token) -> None:
        handle.check(token)
        raise OSError("no space left")

    def writes_half(handle: Right, token: Token) -> None:
        handle.write(token, "half")

    run(Right, rounds=0, fail=rolls_back_its_own)
    with pytest.raises(NonConforming) as caught:
        run(Right, rounds=0, fail=rolls_back_all)
    assert caught.value.rule == testing.HIGHEST
    with pytest.raises(NonConforming) as caught:
        run(Right, rounds=0, fail=writes_half)
    assert caught.value.rule == testing.UNTOUCHED


class InMemory:
    """A value in this process behind our guard."""

    def __init__(self, shelf: dict[str, Any], resource: str) -> None:
        self.guard = shelf.setdefault(resource, (MemoryGuard(resource), {}))[0]
        self.cell = shelf[resource][1]

    def write(self, token: Token, value: str) -> None:
        with self.guard.begin(token):
            self.cell["value"] = value

    def read(self) -> str | None:
        found: str | None = self.cell.get("value")
        return found

    def check(self, token: Token) -> None:
        self.guard.check(token)

    def highest(self) -> int:
        found: int = self.guard.highest()
        return found


def test_the_memory_guard_conforms() -> None:
    """Our guard for one process would break a rule of the family."""
    shelf: dict[str, Any] = {}
    conform(lambda resource: InMemory(shelf, resource), rounds=ROUNDS)


class OnRedis:
    """A key behind our guard."""

    def __init__(self, client: redis.Redis, resource: str) -> None:
        self.guard = RedisGuard(client, resource)
        self.client = client
        self.key = f"data:{resource}"

    def write(self, token: Token, value: str) -> None:
        self.guard.execute(token, "SET", self.key, value)

    def read(self) -> str | None:
        found: Any = self.client.get(self.key)
        return None if found is None else found.decode()

    def check(self, token: Token) -> None:
        self.guard.check(token)

    def highest(self) -> int:
        return self.guard.highest()


class OnRedisInTwoSteps(OnRedis):
    """Checks, and then writes."""

    def write(self, token: Token, value: str) -> None:
        self.guard.check(token)
        self.client.set(self.key, value)


def test_the_redis_guard_conforms(redis_client: redis.Redis) -> None:
    """Our guard for Redis would break a rule of the family."""
    conform(lambda resource: OnRedis(redis_client, resource))


def test_two_steps_on_redis_are_found(redis_client: redis.Redis) -> None:
    """The commonest mistake would pass on a real server."""
    with pytest.raises(NonConforming) as caught:
        conform(lambda resource: OnRedisInTwoSteps(redis_client, resource), rounds=2_000)
    assert caught.value.rule in {testing.BACK, testing.SMALLER, testing.ANNOUNCED}


class InLoop:
    """A guard for asyncio; with ``steps=2`` others run between its check and its write."""

    def __init__(self, boxes: dict[str, Box], resource: str, steps: int = 1) -> None:
        self.inner = Right(boxes, resource)
        self.steps = steps

    async def write(self, token: Token, value: str) -> None:
        await asyncio.sleep(0)
        self.inner.check(token)
        if self.steps == 2:
            await asyncio.sleep(0)
        self.inner.box.value = value

    async def read(self) -> str | None:
        return self.inner.read()

    async def check(self, token: Token) -> None:
        self.inner.check(token)

    async def highest(self) -> int:
        return self.inner.highest()


def test_guards_for_asyncio_are_tried_too() -> None:
    """An asyncio guard in two steps would pass, or one in a single step would not."""

    async def give_up(handle: InLoop, token: Token) -> None:
        handle.inner.check(token)
        raise OSError

    def at(steps: int) -> Callable[[str], InLoop]:
        boxes: dict[str, Box] = defaultdict(Box)
        return lambda resource: InLoop(boxes, resource, steps)

    asyncio.run(conform_async(at(1), fail=give_up))
    with pytest.raises(NonConforming) as caught:
        asyncio.run(conform_async(at(2), rounds=5 * ROUNDS))
    assert caught.value.rule in {testing.BACK, testing.SMALLER, testing.ANNOUNCED}
