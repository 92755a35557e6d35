"""Who holds, waits and leads when the primary is replaced: all go on by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import redis

from fencer.embedded import Server
from tests.election.conftest import Candidate, Diary
from tests.faults.history import History
from tests.faults.planted import twin
from tests.fix_api import Connect
from tests.fix_sentinel import Group, await_true, role
from tests.topology import bugs
from tests.wait.line import Crowd, check_nothing_left, check_order

Fault = Callable[[Group], Server]


def dies(group: Group) -> Server:
    """The primary is killed, as soon as its replicas have all that it has acknowledged."""
    pause_writes(group)
    return group.fail_over()


def is_cut_off(group: Group) -> Server:
    """Nobody hears of it any more, nor that its connections are of no use."""
    pause_writes(group)
    group.road.drop()
    return group.failed_over()


def is_demoted(group: Group) -> Server:
    """It becomes a replica, and stays.

    It goes on for a moment beside the new one, and what it renews in that moment is lost: a lease
    that ends within it would have two holders.
    """
    promoted = group.demote()
    with redis.Redis.from_url(group.primary.unix_url, decode_responses=True) as primary:
        await_true(lambda: role(primary) == "slave")
    return promoted


def pause_writes(group: Group) -> None:
    with redis.Redis.from_url(group.primary.unix_url) as primary:
        primary.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    await_true(group.in_sync)


class Service:
    """All that one API has to offer, in use."""

    def __init__(
        self,
        api: str,
        connect: Connect,
        url: str,
        opened: ExitStack,
        history: History,
        hasty: float,
    ) -> None:
        def client(who: str) -> Any:
            return connect(url, socket_timeout=0.5, holder=f"{who}-{api}")

        self.kept = client("kept").acquire(f"kept-{api}", ttl=30, keep_alive=0.3)
        self.client, self.line = client("first"), f"line-{api}"
        self.first = self.client.acquire(self.line, ttl=30)
        self.crowd = opened.enter_context(Crowd())
        self.others = [client("one"), client("two")]
        for number in range(6):
            self.crowd.queue(self.others[number % 2], self.line, ttl=30)
        self.channels = {each._wakeups._channel for each in self.others}
        self.steady, self.hasty = Diary(), Diary()
        self.candidates = {
            name: [
                Candidate(
                    client(f"{name}-{number}"), diary, {}, history, name=f"{name}-{api}", **times
                )
                for number in range(3)
            ]
            for name, diary, times in (
                ("steady", self.steady, {"ttl": 30.0, "heartbeat": 0.3}),
                ("hasty", self.hasty, {"ttl": hasty, "retry_interval": 0.4}),
            )
        }
        for each in self.all_candidates():
            opened.callback(each.election.stop)
            each.election.start()
        await_true(lambda: self.steady.of("on_elected") and self.hasty.of("on_elected"))

    def all_candidates(self) -> list[Candidate]:
        return [each for group in self.candidates.values() for each in group]

    def must_hold_what_it_held(self, promoted: Server) -> None:
        """The check: a lease that outlives the failover is renewed on the other side."""
        with redis.Redis.from_url(promoted.unix_url) as client:
            lock = f"fencer:{{{self.kept.name}}}:lock"
            await_true(lambda: not self.kept.valid or client.pttl(lock) > 29_000)
        assert self.kept.valid
        assert self.client.inspect(self.kept.name).token == self.kept.token

    def must_serve_in_order(self) -> None:
        """The check: those who waited are served in the order in which they came."""
        assert self.first.release()
        check_order(self.crowd.served(), list(range(6)))
        check_nothing_left(self.client, self.line)

    def must_have_one_leader(self, healed: float) -> None:
        """The check: who could keep the lead has kept it, and else there is a new one."""
        assert len(self.steady.of("on_elected")) == 1
        assert not self.steady.of("on_lost")
        [leader] = [each for each in self.candidates["steady"] if each.election.is_leader]
        await_true(lambda: any(each.election.is_leader for each in self.candidates["hasty"]))
        leader.election.stop()
        await_true(lambda: len(self.steady.of("on_elected")) == 2)
        # In terms that began before the end of the failover, as in those that began after it.
        assert self.hasty.of("on_elected")[0].begun < healed
        await_true(lambda: self.hasty.of("on_elected")[-1].begun > healed - 30)
        for each in self.all_candidates():
            each.election.stop()
        for diary in (self.steady, self.hasty):
            diary.check()
        assert self.hasty.of("on_lost")[0].begun < healed + 30


@twin(bugs.keeps_while_it_is_answered, of="dies")
@pytest.mark.slow
@pytest.mark.parametrize("fault", [dies, is_cut_off, is_demoted], ids=lambda fault: fault.__name__)
def test_all_go_on(
    group: Group,
    connect_threads: Connect,
    connect_asyncio: Connect,
    history: History,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
) -> None:
    """A failover would end leases, waits or elections, or there would be two leaders at once."""
    # Those who wait do not find out by themselves that they cannot be heard any more.
    monkeypatch.setattr("fencer._protocol._LOOK", 600.0)
    hasty = 30.0 if fault is is_demoted else 0.9
    with ExitStack() as opened:
        services = [
            Service("threads", connect_threads, group.url, opened, history, hasty),
            Service("asyncio", connect_asyncio, group.url, opened, history, hasty),
        ]
        promoted = fault(group)
        healed = time.monotonic()
        channels = {channel for each in services for channel in each.channels}
        with redis.Redis.from_url(promoted.unix_url, decode_responses=True) as client:
            await_true(lambda: channels <= set(client.pubsub_channels()))
        print(f"the waiters listen {time.monotonic() - healed:.2f} s after the failover has ended")
        for each in services:
            each.must_hold_what_it_held(promoted)
            each.must_serve_in_order()
            each.must_have_one_leader(healed)
        print(f"{time.monotonic() - healed:.2f} s after the failover has ended all is well")
