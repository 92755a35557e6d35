"""`Fsynced`, and power cuts: a token that is handed out is on the disk, or the next is larger.

What differs between servers is asked of the server under test: whether it has ``WAITAOF``, and
whether it can be relied upon with ``appendfsync everysec``.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import pytest
import redis

import fencer
from fencer import Fsynced, NotDurable, Replicated, StoreError
from fencer.durability import Durability, _known
from fencer.embedded import Persistence, Server
from tests.durability import bugs
from tests.durability.power import MakePower, Power
from tests.faults import bugs as common
from tests.faults.planted import no_twin, twin
from tests.fix_api import Connect
from tests.fix_servers import MakeServer

TTL = 3_600.0
PATIENT = Fsynced(timeout=60.0)
"""More time than any disk should need."""


@pytest.fixture(scope="module")
def known(lasting_server: Server) -> tuple[str, tuple[int, ...]]:
    """Which server it is, and of which version."""
    with redis.Redis.from_url(lasting_server.unix_url) as client:
        connection = client.connection_pool.get_connection()
        connection.send_command("INFO", "server")
        found = _known(connection.read_response())
        client.connection_pool.release(connection)
    assert found[0], "a server that does not say what it is"
    return found


@pytest.fixture(scope="module")
def waits(known: tuple[str, tuple[int, ...]]) -> bool:
    """Whether the server has ``WAITAOF``."""
    return known >= ("Redis", (7, 2))


@pytest.fixture
def has_waitaof(waits: bool) -> None:
    """Skip what says nothing about a server without ``WAITAOF``."""
    if not waits:
        pytest.skip("this server has no WAITAOF: see test_a_server_without_waitaof")


@pytest.fixture(scope="module")
def waits_for_the_second(known: tuple[str, tuple[int, ...]]) -> bool:
    """Whether ``WAITAOF`` waits for the fsync that comes once a second."""
    return known[0] == "Redis" and known[1] >= (8,)


@pytest.fixture
def keeps_its_word(waits_for_the_second: bool) -> None:
    """Skip what needs a server that does."""
    if not waits_for_the_second:
        pytest.skip("this server does not wait for the sync that comes once a second")


@pytest.fixture
def answers_early(has_waitaof: None, waits_for_the_second: bool) -> None:
    """Skip what needs a server that does not."""
    if waits_for_the_second:
        pytest.skip("this server keeps its word whatever is set")


def given_back(server: Server) -> None:
    """Nothing is held, and the token that was granted has been retired."""
    with fencer.connect(server.unix_url) as client:
        assert not client.inspect("orders").held
        assert [event.event for event in client.history("orders")] == ["grant", "release"]


# Servers that keep it, and servers that do not


@twin(bugs.takes_replicas_for_the_disk, raises=(NotDurable,))
@pytest.mark.usefixtures("has_waitaof")
def test_always(make_server: MakeServer, connect: Connect) -> None:
    """A server that keeps its word would be refused."""
    server = make_server(persistence="aof-always")
    client = connect(server.unix_url, durability=PATIENT)
    with client.acquire("orders", ttl=TTL) as lease:
        lease.renew(durable=True)
        assert lease.release(durable=True)


@twin(bugs.says_it_in_the_servers_words)
def test_a_server_without_waitaof(make_server: MakeServer, connect: Connect, waits: bool) -> None:
    """A grant would be called safe by a server that was not asked, or stay held."""
    if waits:
        pytest.skip("this server has WAITAOF")
    for persistence in ("aof-always", "aof"):
        server = make_server(persistence=persistence)
        client = connect(server.unix_url, durability=PATIENT)
        with pytest.raises(StoreError, match="has no WAITAOF") as caught:
            client.acquire("orders")
        assert caught.value.code == "NOFSYNC"
        given_back(server)


@twin(bugs.reads_no_map, raises=(StoreError,))
@pytest.mark.usefixtures("has_waitaof")
def test_resp3(make_server: MakeServer, connect: Connect) -> None:
    """``CONFIG GET`` answers a map there, and would be taken for a refusal."""
    url = make_server(persistence="aof-always").unix_url
    for more in ("protocol=3", "protocol=3&decode_responses=True", "decode_responses=True"):
        connect(f"{url}&{more}", durability=PATIENT).acquire("orders", ttl=TTL).release()


@twin(bugs.relies_on_every_server)
@pytest.mark.usefixtures("answers_early")
def test_everysec(make_server: MakeServer, connect: Connect) -> None:
    """A token would be called safe that a power cut takes: see the power cuts below."""
    server = make_server(persistence="aof")
    client = connect(server.unix_url, durability=PATIENT)
    said = "appendfsync everysec.*CONFIG SET appendfsync always"
    with pytest.raises(StoreError, match=said) as caught:
        client.acquire("orders", ttl=TTL)
    assert caught.value.code == "NOFSYNC"
    given_back(server)


@twin(bugs.relies_on_no_everysec, raises=(StoreError,))
@pytest.mark.usefixtures("keeps_its_word")
def test_everysec_where_it_will_do(make_server: MakeServer, connect: Connect) -> None:
    """A server that keeps its word would be refused, or have to sync at each write."""
    server = make_server(persistence="aof")
    client = connect(server.unix_url, durability=PATIENT)
    assert client.acquire("orders", ttl=TTL).release()


@twin(bugs.says_it_in_the_servers_words)
def test_no_file_at_all(make_server: MakeServer, connect: Connect, waits: bool) -> None:
    """The server's own words would not say what to do."""
    server = make_server(persistence="none")
    client = connect(server.unix_url, durability=PATIENT)
    with pytest.raises(StoreError, match="appendonly yes" if waits else "has no WAITAOF"):
        client.acquire("orders", ttl=TTL)
    given_back(server)


@twin(bugs.relies_on_what_was_set)
@pytest.mark.usefixtures("answers_early")
def test_a_setting_that_is_changed_later(make_server: MakeServer, connect: Connect) -> None:
    """A client that has asked once would trust a server that another operator has changed since.

    So it is with a failover: the address is the same, and the server another one.
    """
    server = make_server(persistence="aof-always")
    client = connect(server.unix_url, durability=PATIENT)
    assert client.acquire("orders", ttl=TTL).release()
    with redis.Redis.from_url(server.unix_url) as operator:
        operator.config_set("appendfsync", "everysec")
        with pytest.raises(StoreError, match="appendfsync everysec"):
            client.acquire("orders", ttl=TTL)
        operator.config_set("appendfsync", "always")
    assert client.acquire("orders", ttl=TTL).release()


@twin(bugs.relies_on_every_server)
@pytest.mark.usefixtures("has_waitaof")
def test_a_user_who_may_not_ask(make_server: MakeServer, connect: Connect) -> None:
    """What cannot be known would be taken for safe."""
    server = make_server(persistence="aof-always")
    with redis.Redis.from_url(server.unix_url) as operator:
        rules = ["reset", "on", "nopass", "~*", "&*", "+@all", "-config", "-info"]
        operator.execute_command("ACL", "SETUSER", "poor", *rules)
        client = connect(f"redis://poor:x@127.0.0.1:{server.port}/0", durability=PATIENT)
        with pytest.raises(StoreError, match=r"\+config\|get"):
            client.acquire("orders", ttl=TTL)
        given_back(server)
        operator.execute_command("ACL", "SETUSER", "poor", "+config|get")
        assert client.acquire("orders", ttl=TTL).release()


@twin(bugs.looks_at_no_answer)
@pytest.mark.usefixtures("keeps_its_word")
def test_a_disk_that_is_too_slow(make_power: MakePower, connect: Connect) -> None:
    """A grant that is not on the disk in time would be handed out, or stay held.

    Other servers sync before they answer the script, however long that takes.
    """
    power = make_power("aof", slow_ms=1_000)
    client = connect(power.server.unix_url, durability=Fsynced(timeout=0.1))
    with pytest.raises(NotDurable) as caught:
        client.acquire("orders", ttl=TTL)
    assert (caught.value.place, caught.value.wanted, caught.value.reached) == ("disk", 1, 0)
    given_back(power.server)


@twin(bugs.the_disk_will_do)
@pytest.mark.usefixtures("has_waitaof")
def test_both(make_server: MakeServer, connect: Connect) -> None:
    """The disk alone would do, where replicas were asked for, too."""
    server = make_server(persistence="aof-always")
    both = (Replicated(1, timeout=0.1), PATIENT)
    with pytest.raises(NotDurable) as caught:
        connect(server.unix_url, durability=both).acquire("orders", ttl=TTL)
    assert (caught.value.place, caught.value.reached) == ("replicas", 0)
    given_back(server)


# Power cuts


def grants(power: Power, durability: Durability | None) -> Generator[int]:
    """Grants, one after the other, each handed out to a caller, until the power is cut."""
    with fencer.connect(power.server.unix_url, durability=durability) as client:
        while True:
            lease = client.acquire("orders", ttl=TTL)
            yield lease.token
            lease.release()


def next_token(power: Power) -> int:
    """The first grant after the power has come back, and the lease there was has ended."""
    with fencer.connect(power.server.unix_url) as client:
        client.revoke("orders")
        with client.acquire("orders") as lease:
            return lease.token


def issued(power: Power) -> int:
    with redis.Redis.from_url(power.server.unix_url) as client:
        return int(client.get("fencer:{orders}:token") or 0)


def keeps_back(power: Power) -> bool:
    """Whether the server has written something that its file does not have."""
    with redis.Redis.from_url(power.server.unix_url) as client:
        state: Any = client.info("persistence")
        return bool(state["aof_buffer_length"])


def cut_after(power: Power, count: int, durability: Durability | None) -> tuple[int, int]:
    """The last token that was handed out, and the bytes that were lost."""
    making = grants(power, durability)
    handed_out = [next(making) for _ in range(count)][-1]
    lost = power.cut()
    making.close()
    power.server.start()
    return handed_out, lost


LOST = pytest.mark.may_break("S4", why="the server loses the grant of one who believes")


@twin(bugs.writes_no_token)
@pytest.mark.usefixtures("has_waitaof")
@pytest.mark.parametrize("persistence", ["aof-always", "aof"])
def test_a_power_cut_takes_no_token_that_is_synced(
    make_power: MakePower, persistence: Persistence, waits_for_the_second: bool
) -> None:
    """A token that was called safe would be gone, and the lease be granted to another."""
    if persistence == "aof" and not waits_for_the_second:
        pytest.skip("this server is refused with everysec: see test_everysec")
    power = make_power(persistence)
    for count in (1, 3):
        handed_out, _ = cut_after(power, count, PATIENT)
        assert issued(power) >= handed_out
        with fencer.connect(power.server.unix_url) as client:
            assert client.inspect("orders").token == handed_out, "the holder has lost its lease"
        assert next_token(power) > handed_out


@twin(bugs.always_is_when_it_suits)
def test_a_power_cut_with_a_sync_at_each_write(make_power: MakePower) -> None:
    """The documents say of ``always`` that it keeps every token even without `Fsynced`."""
    power = make_power("aof-always")
    handed_out, lost = cut_after(power, 20, None)
    assert lost == 0
    assert issued(power) >= handed_out
    assert next_token(power) > handed_out


@LOST
@twin(common.plain_counter)
def test_a_power_cut_with_a_sync_once_a_second(make_power: MakePower) -> None:
    """A token that was lost would be issued again, to another."""
    power = make_power("aof")
    for _ in range(20):  # The sync may come just in time.
        handed_out, lost = cut_after(power, 100, None)
        lacks = issued(power) < handed_out
        assert lost or not lacks
        assert next_token(power) > handed_out
        if lacks:
            return
    pytest.fail("nothing was ever lost, so nothing was tested")


@LOST
@twin(common.plain_counter)
def test_a_crash_while_a_sync_is_under_way(make_power: MakePower) -> None:
    """With ``everysec`` even SIGKILL takes tokens, for the server then keeps its writes back.

    The documents would promise too much, or the token be issued again, to another.
    """
    power = make_power("aof", slow_ms=1_000)
    for _ in range(10):
        making = grants(power, None)
        handed_out = next(making)
        while not keeps_back(power):
            handed_out = next(making)
        power.server.kill()
        making.close()
        power.server.start()
        lacks = issued(power) < handed_out
        assert next_token(power) > handed_out
        if lacks:
            return
    pytest.fail("nothing was ever lost, so nothing was tested")


@no_twin("it looks at the server alone")
@pytest.mark.usefixtures("has_waitaof")
def test_what_the_server_says_before_the_sync(
    make_power: MakePower, waits_for_the_second: bool
) -> None:
    """The servers that are refused would be refused for nothing: this is the fact behind it."""
    power = make_power("aof")
    called_safe = 0
    with redis.Redis.from_url(power.server.unix_url) as client:
        until = time.monotonic() + (0 if waits_for_the_second else 60)
        while True:
            lost = 0
            for _ in range(1 if waits_for_the_second else 200):
                called_safe = int(client.incr("counter"))
                client.execute_command("WAITAOF", 1, 0, 60_000)
            power.cut()
            power.server.start()
            lost = called_safe - int(client.get("counter") or 0)
            if lost or time.monotonic() > until:
                break
    assert bool(lost) != waits_for_the_second
