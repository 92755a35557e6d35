"""The promises as a plain-Python model, and the client beside it, step by step at random.

The model knows nothing of scripts and keys: it says what a lease is. Whatever order things happen
in, the client on a real server must say the same. The names S1 to S7 are those of the invariants
that every recorded history must keep.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import fencer
from fencer import LeaseLost, NotAcquired, StaleToken, StoreError
from fencer.embedded import Server
from fencer.guards import RedisGuard
from tests.faults.test_late_calls import Tap
from tests.fix_api import Connect, on_threads, plain

LOCK, TOKEN, INFO = (f"fencer:{{orders}}:{key}" for key in ("lock", "token", "info"))

some = st.randoms(use_true_random=False)


@dataclass
class Held:
    """A lease that was granted, as the model sees it."""

    lease: fencer.Lease
    believes: bool = True
    released: bool | None = None


class Promises(RuleBasedStateMachine):
    """One name, two clients, an operator, a network that repeats itself, and a store that forgets.

    The guard's mark is in another database, which forgets nothing.
    """

    clients: ClassVar[list[fencer.Fencer]]
    store: ClassVar[redis.Redis]
    resource: ClassVar[redis.Redis]
    tap: ClassVar[Tap]

    def __init__(self) -> None:
        super().__init__()
        self.store.flushall()
        self.tap.requests.clear()
        self.guard = RedisGuard(self.resource, "orders")
        self.all: list[Held] = []
        self.live: Held | None = None
        """Whose token is the last one issued."""
        self.issued = 0
        self.locked = False
        """Whether the lock key is there: of the live lease, or of one whose token was lost."""
        self.revoked: set[int] = set()
        self.advanced: set[int] = set()
        """Beyond which numbers it was advanced, as the store's history can know."""
        self.highest = 0
        self.floor = 0
        """No later token may be this small."""
        self.granted: dict[str, int] = {}

    # Holders.

    @rule(which=st.integers(0, 1))
    def acquire(self, which: int) -> None:
        """S1, S2, S4: to one only, and with a larger token than ever before."""
        client = self.clients[which]
        try:
            lease = client.acquire("orders", ttl=600)
        except NotAcquired:
            assert self.locked
            return
        assert not self.locked, "two live leases"
        assert lease.token > self.floor, "the token fell"
        self.live, self.issued, self.locked = Held(lease), lease.token, True
        self.all.append(self.live)
        self.floor = lease.token

    @precondition(lambda self: self.all)
    @rule(random=some, ttl=st.sampled_from([None, 300.0, 900.0]))
    def renew(self, random: Any, ttl: float | None) -> None:
        """S5, S6: only the live one, which also heals; who has heard of its loss never again."""
        held = self.pick(random)
        try:
            held.lease.renew(ttl=ttl)
        except LeaseLost:
            assert not held.believes or held is not self.live
            held.believes = False
            return
        assert held.believes
        assert held is self.live
        self.locked = True

    @precondition(lambda self: self.all)
    @rule(random=some)
    def release(self, random: Any) -> None:
        """S5: the truth about who held it to the end, however often it is asked."""
        held = self.pick(random)
        answer = held.lease.release()
        if held.released is not None:
            assert answer == held.released
            return
        assert answer == (held.believes and held is self.live)
        if held.believes:
            held.released = answer
        held.believes = False
        if answer:
            self.retire()

    # Operators.

    @rule()
    def revoke(self) -> None:
        """Whoever has it loses it for good."""
        status = self.clients[0].inspect("orders")
        if self.locked and status.token is None:
            with pytest.raises(StoreError) as caught:
                self.clients[0].revoke("orders")
            assert caught.value.code == "FOREIGN"
            return
        token = self.live.lease.token if self.live and self.locked else None
        assert self.clients[0].revoke("orders") == token
        if token:
            self.revoked.add(token)
            self.retire()

    @precondition(lambda self: self.all)
    @rule(random=some)
    def revoke_one(self, random: Any) -> None:
        """Only this one, and the same answer to the same question."""
        held = self.pick(random)
        token = held.lease.token
        if held is self.live and self.locked and not self.store.exists(INFO):
            return
        ended = held is self.live
        answer = self.clients[1].revoke("orders", token)
        assert answer == (token if ended or token in self.revoked else None)
        if ended:
            self.revoked.add(token)
            self.retire()

    @rule(by=st.integers(1, 50), needed=st.booleans())
    def advance(self, by: int, needed: bool) -> None:
        """The next token is larger than the number, and a smaller one that is held ends."""
        beyond = self.floor + by if needed else max(self.issued - by, 1)
        again = self.issued == beyond + 1 and beyond in self.advanced
        if self.issued < beyond and self.locked and not self.store.exists(INFO):
            with pytest.raises(StoreError):
                self.clients[0].advance("orders", beyond)
            return
        assert self.clients[0].advance("orders", beyond) == (self.issued < beyond or again)
        if self.issued < beyond:
            self.issued = beyond
            self.advanced.add(beyond)
            self.retire()

    # Writers.

    @precondition(lambda self: self.all)
    @rule(random=some, bare=st.booleans())
    def write(self, random: Any, bare: bool) -> None:
        """S3: nothing below the highest."""
        lease = self.pick(random).lease
        refused: tuple[int, int] | None
        try:
            shown = lease.token if bare else plain(lease)
            self.guard.execute(shown, "RPUSH", "written", lease.token)
        except StaleToken as error:
            refused = (error.token, error.highest)
        else:
            refused = None
        if refused:
            assert refused == (lease.token, self.highest)
            assert lease.token < self.highest
            return
        assert lease.token >= self.highest
        self.highest = lease.token

    # Faults.

    @rule(info=st.booleans(), by_hand=st.booleans())
    def lock_vanishes(self, info: bool, by_hand: bool) -> None:
        """It ends early, or somebody deletes it: the live lease is live still."""
        keys = [LOCK, INFO] if info else [LOCK]
        for key in keys:
            if by_hand:
                self.store.delete(key)
            else:
                self.store.pexpire(key, 0)
        self.locked = False

    @rule()
    def info_vanishes(self) -> None:
        """What is for operators to read is not needed."""
        self.store.delete(INFO)

    @rule()
    def token_vanishes(self) -> None:
        """S8: the last number is lost, and with it every lease; the lock key stays."""
        self.store.delete(TOKEN)
        self.forget()

    @rule()
    def everything_vanishes(self) -> None:
        """S8: all data is lost."""
        self.store.flushdb()
        self.forget()
        self.locked = False
        self.revoked.clear()
        self.advanced.clear()

    @rule()
    def scripts_vanish(self) -> None:
        """A restart of the server, to the scripts."""
        self.store.script_flush()

    @rule(script=st.sampled_from(["renew", "release", "revoke"]), random=some)
    def late(self, script: str, random: Any) -> None:
        """S5: a copy of an old request arrives. Only a renew of the live lease does anything."""
        reply = self.repeat(script, random)
        if b"RENEWED" in reply:
            assert self.live
            self.locked = True

    @rule(random=some)
    def late_acquire(self, random: Any) -> None:
        """S7: a copy of an old acquire arrives, which had been granted.

        The script looks for the end of its grant among the last four events of a free name. A copy
        that comes later still holds the name for one ttl, as is documented: it is not tried here.
        """
        recent = {event.grant for event in self.clients[0].history("orders", count=4)} - {""}
        reply = self.repeat("acquire", random, among=None if self.locked else recent)
        if b"GRANTED" in reply:
            assert self.live
            assert str(self.live.lease.token).encode() in reply
            self.locked = True

    # What always holds.

    @invariant()
    def the_store_agrees(self) -> None:
        """S4: the model knows who has the lease, and so does the store."""
        status = self.clients[0].inspect("orders")
        assert (status.held, status.issued) == (self.locked, self.issued)
        if status.token is not None:
            assert self.live
            assert (status.token, status.holder) == (self.live.lease.token, self.live.lease.holder)

    @invariant()
    def holders_agree(self) -> None:
        """S6: who was told of its end does not believe any more."""
        for held in self.all:
            assert held.lease.valid == held.believes

    @invariant()
    def the_guard_agrees(self) -> None:
        """S3: what was written rises."""
        assert self.guard.highest() == self.highest
        written: Any = self.resource.lrange("written", -2, -1)
        assert [int(token) for token in written] == sorted(map(int, written))

    @invariant()
    def the_history_agrees(self) -> None:
        """S2, S7: tokens rise in the order of the grants, and each grant has one."""
        grants = [event for event in self.clients[0].history("orders") if event.event == "grant"]
        tokens = [event.token for event in grants]
        assert tokens == sorted(set(tokens))
        for event in grants:
            assert self.granted.setdefault(event.grant, event.token) == event.token

    # Tools.

    def pick(self, random: Any) -> Held:
        """One of the leases, a late one rather."""
        held: Held = random.choice(self.all[-4:])
        return held

    def retire(self) -> None:
        """The live lease ends by somebody's will."""
        self.issued, self.live, self.locked = self.issued + 1, None, False
        self.floor = max(self.floor, self.issued)

    def forget(self) -> None:
        """The store forgets the last number. Its clock is not behind it: that is assumed."""
        while time.time_ns() // 1000 <= self.floor + 1:
            pass
        self.issued, self.live = 0, None

    def repeat(self, script: str, random: Any, among: set[str] | None = None) -> bytes:
        """Send one of the old calls of a script once more."""
        requests = [
            request
            for request in self.tap.calls(script)
            if among is None or any(grant.encode() in request for grant in among)
        ]
        return self.tap.send(random.choice(requests)) if requests else b""


@pytest.fixture
def machine(
    shared_server: Server, redis_client: redis.Redis, connect: Connect
) -> Iterator[type[Promises]]:
    """The machine on the shared server."""
    with (
        Tap(shared_server.port) as tap,
        redis.Redis.from_url(shared_server.unix_url.replace("db=0", "db=1")) as resource,
    ):
        serving = threading.Thread(target=tap.serve_forever, args=(0.01,))
        serving.start()

        class Machine(Promises):
            clients: ClassVar = [connect(tap.url), connect(tap.url, holder="instance-2")]
            store: ClassVar = redis_client

        Machine.resource, Machine.tap = resource, tap
        yield Machine
        redis_client.flushall()
        tap.shutdown()
        serving.join()


quick = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
certain = settings(
    quick,
    max_examples=500,
    phases=[Phase.generate],
    database=None,
    print_blob=False,
    derandomize=True,  # by chance it may take long
)


@pytest.mark.slow
def test_the_promises_hold(machine: type[Promises]) -> None:
    """Some order of calls and faults would break a promise."""
    run_state_machine_as_test(machine, settings=quick)


@on_threads
def test_dense_tokens_fail(machine: type[Promises], connect: Connect) -> None:
    """The machine would not notice tokens that fall."""

    class Dense(machine):  # type: ignore[misc, valid-type]
        clients: ClassVar = [connect(machine.tap.url, tokens="dense")] * 2

    with pytest.raises(AssertionError, match="the token fell"):
        run_state_machine_as_test(Dense, settings=certain)


@on_threads
def test_a_release_that_does_not_retire_fails(machine: type[Promises]) -> None:
    """The machine would not notice a late renew that brings a released lease back."""

    class Unretired(machine):  # type: ignore[misc, valid-type]
        def retire(self) -> None:
            super().retire()
            self.issued -= 1
            self.store.set(TOKEN, self.issued)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Unretired, settings=certain)


@on_threads
def test_a_guard_that_forgets_fails(machine: type[Promises]) -> None:
    """The machine would not notice a stale write."""

    class Forgetful(machine):  # type: ignore[misc, valid-type]
        @precondition(lambda self: self.highest)
        @rule()
        def guard_forgets(self) -> None:
            self.resource.delete("fencer:{orders}:guard")
            self.highest = 0

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Forgetful, settings=certain)
