"""Promise 4, of the server: its wall clock is not trusted either. A real one jumps."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import redis

import fencer
from fencer import embedded
from fencer.embedded import Server
from fencer.guards import RedisGuard
from tests.faults import bugs, bugs_leases
from tests.faults.clock import ServerClock
from tests.faults.planted import twin
from tests.fix_api import Connect, plain
from tests.fix_servers import MakeServer


@pytest.fixture
def shifted(make_server: MakeServer, server_clock: ServerClock, tmp_path: Path) -> Server:
    """A server whose clock is `server_clock`: a script that preloads the shim is its program."""
    program = tmp_path / "server"
    exports = [f"export {key}={shlex.quote(value)}" for key, value in server_clock.env.items()]
    binary = shlex.quote(str(embedded._find_binary(None)))
    program.write_text("\n".join(["#!/bin/sh", *exports, f'exec {binary} "$@"', ""]))
    program.chmod(0o700)
    return make_server(persistence="none", binary=program)


@pytest.fixture
def store(shifted: Server) -> Iterator[redis.Redis]:
    """The driver's client on that server."""
    with redis.Redis.from_url(shifted.unix_url) as store:
        yield store


@pytest.fixture
def far(shifted: Server, connect: Connect) -> fencer.Fencer:
    """A client on that server."""
    return connect(shifted.unix_url)


@pytest.fixture
def other(shifted: Server, connect: Connect) -> fencer.Fencer:
    """Another one."""
    return connect(shifted.unix_url)


def ends_within(ttl: float, remaining: float) -> None:
    """The check: nobody has to wait for longer than a ttl."""
    assert remaining <= ttl, remaining


@twin(bugs_leases.trusts_the_servers_clock)
def test_a_jump_back_does_not_keep_a_dead_holders_lease(
    far: fencer.Fencer, other: fencer.Fencer, server_clock: ServerClock
) -> None:
    """A crash and a clock that is set back would block a name for two minutes."""
    dead = far.acquire("orders", ttl=1)
    server_clock.jump(-120)
    with pytest.raises(fencer.NotAcquired) as caught:
        other.acquire("orders")
    ends_within(1, caught.value.remaining or 0)
    ends_within(1, other.inspect("orders").remaining or 0)
    lease = other.acquire("orders", wait=20)
    assert not dead.valid
    assert lease.token == dead.token + 1


@twin(bugs_leases.trusts_the_servers_clock)
def test_a_jump_back_does_not_show_in_inspect(
    far: fencer.Fencer, server_clock: ServerClock
) -> None:
    """An operator would be told of a lease that ends in two minutes."""
    far.acquire("orders", ttl=5)
    server_clock.jump(-120)
    ends_within(5, far.inspect("orders").remaining or 0)


@twin(bugs_leases.ends_what_is_too_long)
def test_a_jump_back_does_not_hurt_a_live_holder(
    far: fencer.Fencer, other: fencer.Fencer, server_clock: ServerClock
) -> None:
    """The cure for a dead holder would cost a live one its lease."""
    lease = far.acquire("orders", ttl=2)
    server_clock.jump(-120)
    for _ in range(8):
        with pytest.raises(fencer.NotAcquired):
            other.acquire("orders")
        lease.renew()
        time.sleep(0.3)
    lease.check()
    assert lease.release()


@twin(bugs_leases.renews_what_is_there_alone)
def test_a_jump_ahead_does_not_end_a_live_leadership(
    far: fencer.Fencer, other: fencer.Fencer, server_clock: ServerClock
) -> None:
    """A leader that nobody has replaced would be thrown out by its server's clock."""
    lease = far.acquire("orders", ttl=10, info={"instance_id": "instance-2"})
    server_clock.jump(60)
    assert not other.inspect("orders").held
    lease.renew()
    lease.check()
    status = other.inspect("orders")
    assert (status.token, status.info["instance_id"]) == (lease.token, "instance-2")
    with pytest.raises(fencer.NotAcquired):
        other.acquire("orders")
    assert [event.event for event in other.history("orders")] == ["grant"]


@twin(bugs.renews_without_compare)
@twin(bugs.guards_nothing)
@pytest.mark.may_break("S4", why="the server's clock jumps over the end of a lease")
def test_a_jump_ahead_that_lets_another_in(
    far: fencer.Fencer, other: fencer.Fencer, store: redis.Redis, server_clock: ServerClock
) -> None:
    """Both would renew, and both would write."""
    old = far.acquire("orders", ttl=10)
    guard = RedisGuard(store, "orders")
    guard.execute(plain(old), "SET", "balance", "1")
    server_clock.jump(60)
    new = other.acquire("orders", ttl=10)
    assert new.token > old.token
    guard.execute(plain(new), "SET", "balance", "2")
    with pytest.raises(fencer.StaleToken):
        guard.execute(plain(old), "SET", "balance", "3")
    assert store.get("balance") == b"2"
    with pytest.raises(fencer.LeaseLost, match=str(new.token)):
        old.renew()
    assert not old.valid
    new.renew()
    assert other.inspect("orders").token == new.token


JUMPS = [60, -120, 3600, -7200, -0.5, 86_400, -86_400]


def must_rise(tokens: list[int]) -> None:
    """The check: each token is larger than the one before."""
    assert all(a < b for a, b in pairwise(tokens)), tokens


@twin(bugs.clock_alone)
@pytest.mark.parametrize("released", [True, False])
@pytest.mark.may_break("S4", why="the server's clock jumps over the end of a lease")
def test_tokens_rise_over_all_jumps(
    far: fencer.Fencer, store: redis.Redis, server_clock: ServerClock, released: bool
) -> None:
    """A guard would refuse the next holder until the clock has caught up."""
    tokens = []
    for jump in [0, *JUMPS]:
        server_clock.jump(jump)
        lease = far.acquire("orders")
        tokens.append(lease.token)
        if released:
            lease.release()
        else:
            store.delete("fencer:{orders}:lock")
    must_rise(tokens)
