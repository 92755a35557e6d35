"""`Replicated` on real replicas: a token that is handed out is where a failover will find it."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal

import pytest
import redis

import fencer
from fencer import NotDurable, Replicated, StoreError, _scripts, _wire
from fencer.drill.proxy import Proxy
from fencer.embedded import Server, _find_binary
from fencer.guards import MemoryGuard
from tests.durability import bugs
from tests.election.conftest import Candidate, Diary
from tests.faults import bugs as common
from tests.faults.clock import ServerClock
from tests.faults.history import History
from tests.faults.planted import no_twin, twin
from tests.fix_api import Connect
from tests.fix_replicas import Group, await_true

TOKEN = "fencer:{orders}:token"
SLOW = 30.0
"""Seconds to wait for replicas that follow: more than any machine should need."""

QUICK = 0.2
"""Seconds to wait for one that does not."""


@pytest.fixture
def plain(shared_group: Group) -> Iterator[fencer.Fencer]:
    """A client of the primary that wants nothing."""
    with fencer.connect(shared_group.primary.unix_url) as client:
        yield client


def issued_at(group: Group, server: Server, name: str = "orders") -> int:
    """The last token that a server knows of."""
    return int(group.at(server).get(f"fencer:{{{name}}}:token") or 0)


def events(client: fencer.Fencer) -> list[tuple[str, int]]:
    """The history of the name."""
    return [(event.event, event.token) for event in client.history("orders")]


def is_free_again(client: fencer.Fencer, error: NotDurable) -> None:
    """Nothing is held, and the token that was not handed out never will be."""
    status = client.inspect("orders")
    assert not status.held
    assert status.waiters == 0
    assert status.issued == error.token + 1
    assert events(client)[-2:] == [("grant", error.token), ("release", error.token)]
    lease = client.acquire("orders")
    assert lease.token > error.token
    assert lease.release()


def waits_for_replicas(group: Group) -> bool:
    """Whether the primary has kept somebody waiting for the replicas."""
    clients: Any = group.at(group.primary).info("clients")
    return bool(clients["blocked_clients"])


def asked(group: Group) -> int:
    """How often the primary has been asked to wait."""
    statistics: Any = group.at(group.primary).info("commandstats")
    return int(statistics.get("cmdstat_wait", {"calls": 0})["calls"])


def answers_for_a_connection(group: Group) -> bool:
    """Whether WAIT answers for what the connection has written; else for all that was written."""
    version = str(group.at(group.primary).info("server")["redis_version"])
    return tuple(int(part) for part in version.split(".")) >= (7, 2)


# The grant


@twin(bugs.one_replica_will_do)
def test_reached(shared_group: Group, connect: Connect) -> None:
    """A token would be handed out that a replica has not heard of."""
    group = shared_group
    # So that a replica is behind for a moment, even on a fast machine.
    group.proxy.delay(replies=0.2)
    client = connect(group.primary.unix_url, durability=Replicated(2, timeout=SLOW))
    for _ in range(2):
        lease = client.acquire("orders", ttl=120)
        for replica in (group.near, group.far):
            assert issued_at(group, replica) == lease.token
        lease.release()


@twin(common.gives_nothing_back)
def test_not_reached(shared_group: Group, connect: Connect, plain: fencer.Fencer) -> None:
    """One replica of two would be enough, or the lease be held by nobody."""
    shared_group.cut()
    client = connect(
        shared_group.primary.unix_url, durability=Replicated(2, timeout=QUICK), holder="me"
    )
    with pytest.raises(NotDurable) as caught:
        client.acquire("orders", ttl=60)
    error = caught.value
    assert (error.name, error.wanted, error.reached, error.act) == ("orders", 2, 1, "grant")
    assert error.seconds == QUICK
    is_free_again(plain, error)


@twin(bugs.takes_any_connection)
@pytest.mark.parametrize("act", ["grant", "renewal", "release"])
def test_a_connection_that_is_made_anew_before_the_question(
    shared_group: Group, connect: Connect, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """The driver connects anew without a word, and of a new connection all replicas have heard."""
    if not answers_for_a_connection(shared_group):
        pytest.skip("before Redis 7.2 a new connection waits for all that was written")
    client = connect(
        shared_group.primary.unix_url, durability=Replicated(2, timeout=QUICK), holder="me"
    )
    lease = client.acquire("bills", ttl=60)
    shared_group.cut()
    broken = break_once(monkeypatch)
    do = {
        "grant": lambda: client.acquire("orders", ttl=60),
        "renewal": lambda: lease.renew(durable=True),
        "release": lambda: lease.release(durable=True),
    }
    with pytest.raises(NotDurable) as caught:
        do[act]()
    assert caught.value.act == act
    assert broken


def break_once(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Break the connection of the next call between its script and the question about it."""
    broken: list[Any] = []
    blocks, awaits = _wire.confirmed, _wire.confirmed_async

    def confirmed(connection: Any, *rest: Any) -> Any:
        if not broken:
            broken.append(connection)
            connection.disconnect()
        return blocks(connection, *rest)

    async def confirmed_async(connection: Any, *rest: Any) -> Any:
        if not broken:
            broken.append(connection)
            await connection.disconnect()
        return await awaits(connection, *rest)

    monkeypatch.setattr(_wire, "confirmed", confirmed)
    monkeypatch.setattr(_wire, "confirmed_async", confirmed_async)
    return broken


@twin(bugs.one_more_must_follow, raises=(NotDurable,))
def test_one_is_enough_if_one_is_asked_for(shared_group: Group, connect: Connect) -> None:
    """A replica that is not asked for would stop the service."""
    shared_group.cut()
    client = connect(shared_group.primary.unix_url, durability=Replicated(1, timeout=SLOW))
    lease = client.acquire("orders", ttl=120)
    assert issued_at(shared_group, shared_group.near) == lease.token


@twin(bugs.looks_at_no_answer)
def test_a_server_without_replicas(connect: Connect) -> None:
    """A server that nobody follows would be taken for a safe one."""
    client = connect(durability=Replicated(1, timeout=0.05))
    with pytest.raises(NotDurable, match="reached 0 of 1 replicas"):
        client.acquire("orders")
    assert not client.inspect("orders").held


@twin(bugs.waits_as_for_a_read)
def test_the_replicas_may_take_longer_than_a_read(
    shared_group: Group, connect: Connect, plain: fencer.Fencer
) -> None:
    """The driver's own timeout would cut the wait short, and call it a lost server."""
    shared_group.proxy.delay(requests=0.4, replies=0.4)
    durability = Replicated(2, timeout=SLOW)
    client = connect(shared_group.primary.unix_url, socket_timeout=0.3, durability=durability)
    lease = client.acquire("orders", ttl=120)
    assert issued_at(shared_group, shared_group.far) == lease.token
    assert events(plain) == [("grant", lease.token)], "it was asked again"


@twin(bugs.asks_whatever_came)
def test_held_by_another_it_does_not_wait(
    shared_group: Group, connect: Connect, plain: fencer.Fencer
) -> None:
    """A candidate that looks each second would wait for the replicas each time."""
    plain.acquire("orders", ttl=60)
    before = asked(shared_group)
    client = connect(shared_group.primary.unix_url, durability=Replicated(2, timeout=SLOW))
    with pytest.raises(fencer.NotAcquired):
        client.acquire("orders")
    assert asked(shared_group) == before


@twin(bugs.asks_elsewhere)
def test_the_question_comes_from_where_the_script_came_from(
    shared_group: Group, connect: Connect
) -> None:
    """A connection that has written nothing would ask, and always hear that all is well."""
    client = connect(
        f"redis://127.0.0.1:{shared_group.primary.port}/0", durability=Replicated(2, timeout=SLOW)
    )
    client.acquire("warm")
    with shared_group.at(shared_group.primary).monitor() as monitor:
        client.acquire("orders", ttl=120)
        came_from: dict[str, str] = {}
        while "WAIT" not in came_from:
            seen = monitor.next_command()
            came_from[seen["command"].split(" ")[0]] = seen["client_port"]
    assert came_from["EVALSHA"] == came_from["WAIT"]


@twin(bugs.takes_a_refusal_for_an_answer)
def test_a_user_who_may_not_ask(
    shared_group: Group, connect: Connect, plain: fencer.Fencer
) -> None:
    """A token would be handed out of which nothing is known, or the lease stay held."""
    primary = shared_group.at(shared_group.primary)
    rules = ["reset", "on", "nopass", "~*", "&*", "+@all", "-wait"]
    primary.execute_command("ACL", "SETUSER", "poor", *rules)
    client = connect(
        f"redis://poor:x@127.0.0.1:{shared_group.primary.port}/0", durability=Replicated(2)
    )
    with pytest.raises(StoreError) as caught:
        client.acquire("orders", ttl=60)
    assert caught.value.code == "NOPERM"
    assert not plain.inspect("orders").held


# Lost replies, interrupts


@contextmanager
def far_client(group: Group, connect: Connect, timeout: float) -> Iterator[tuple[Proxy, Any]]:
    """A client that reaches the primary through a proxy of its own, already connected."""
    with Proxy(("127.0.0.1", group.primary.port)) as proxy:
        client = connect(proxy.url, socket_timeout=0.5, durability=Replicated(2, timeout=timeout))
        client.inspect("orders")
        yield proxy, client
        client.close()


def lose_reply(proxy: Proxy, to: str, then: Literal["cut", "silence"] = "cut") -> None:
    match = b"\r\nWAIT\r\n" if to == "WAIT" else _scripts.load(to).sha.encode()
    proxy.swallow_reply(match=match, then=then)


@twin(common.knows_no_grant_again)
@pytest.mark.parametrize(("to", "then"), [("acquire", "cut"), ("WAIT", "cut"), ("WAIT", "silence")])
def test_a_lost_reply(
    shared_group: Group,
    connect: Connect,
    plain: fencer.Fencer,
    to: str,
    then: Literal["cut", "silence"],
) -> None:
    """A grant that is asked for again would come out as another one, or unsafe, or not at all."""
    plain.acquire("warm").release()
    with far_client(shared_group, connect, timeout=1.0 if then == "silence" else SLOW) as far:
        proxy, client = far
        lose_reply(proxy, to, then)
        lease = client.acquire("orders", ttl=120)
        assert proxy.swallowed == 1
        assert issued_at(shared_group, shared_group.far) == lease.token
        assert events(plain) == [("grant", lease.token)]
        assert lease.release()


@twin(bugs.claims_nothing)
@pytest.mark.parametrize("to", ["acquire", "WAIT"])
def test_a_lost_reply_while_a_replica_is_cut_off(
    shared_group: Group, connect: Connect, plain: fencer.Fencer, to: str
) -> None:
    """What is asked for again would be called safe, or be left held."""
    plain.acquire("warm").release()
    shared_group.cut()
    with far_client(shared_group, connect, timeout=QUICK) as (proxy, client):
        lose_reply(proxy, to)
        with pytest.raises(NotDurable) as caught:
            client.acquire("orders", ttl=120)
        assert proxy.swallowed == 1
        assert caught.value.reached == 1
        is_free_again(plain, caught.value)


@twin(bugs.claims_nothing)
def test_a_repetition_that_writes_nothing(
    server_clock: ServerClock, connect_threads: Connect
) -> None:
    """What is asked for again on a new connection, and writes nothing there, would be called safe.

    It has nothing to write, for the server's clock went back: more than the ttl is left.
    """
    program = server_clock.program(_find_binary(None))
    with ExitStack() as opened:
        group = Group(opened, program)
        plain = opened.enter_context(fencer.connect(group.primary.unix_url))
        plain.acquire("warm").release()
        far = opened.enter_context(far_client(group, connect_threads, timeout=QUICK))
        proxy, client = far
        group.cut()
        lose_reply(proxy, "acquire", "silence")  # The repetition comes half a second later.
        pool = opened.enter_context(ThreadPoolExecutor(1))
        grant = pool.submit(client.acquire, "orders", ttl=120)
        await_true(lambda: bool(proxy.swallowed))
        server_clock.jump(-30)
        with pytest.raises(NotDurable) as caught:
            grant.result(timeout=60)
        assert caught.value.reached == 1
        is_free_again(plain, caught.value)


class Interrupted(BaseException):
    """What a signal's handler raises."""


@twin(common.gives_nothing_back)
def test_an_interrupt(shared_group: Group, plain: fencer.Fencer) -> None:
    """Ctrl-C while the replicas are waited for would leave the lease held by nobody."""
    shared_group.cut()

    def strike() -> None:
        await_true(lambda: waits_for_replicas(shared_group))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def handler(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, handler)
    durability = Replicated(2, timeout=60)
    thread = threading.Thread(target=strike)
    try:
        with fencer.connect(shared_group.primary.unix_url, durability=durability) as client:
            thread.start()
            with pytest.raises(Interrupted):
                client.acquire("orders", ttl=300)
            assert not plain.inspect("orders").held
            assert [kind for kind, _ in events(plain)] == ["grant", "release"]
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


@twin(common.gives_nothing_back)
def test_a_cancellation(shared_group: Group, plain: fencer.Fencer) -> None:
    """A task that is cancelled while the replicas are waited for would leave the lease held."""
    shared_group.cut()

    async def story() -> None:
        durability = Replicated(2, timeout=60)
        url = shared_group.primary.unix_url
        async with fencer.connect_async(url, durability=durability) as client:
            task = asyncio.create_task(client.acquire("orders", ttl=300))
            await asyncio.to_thread(await_true, lambda: waits_for_replicas(shared_group))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(story())
    assert not plain.inspect("orders").held
    assert [kind for kind, _ in events(plain)] == ["grant", "release"]


@twin(bugs.waits_in_one_queue, raises=(StoreError,))
def test_grants_that_wait_do_not_keep_renewals_waiting(
    shared_group: Group, history: History
) -> None:
    """While a replica is away, leases that are held would be lost for want of a free turn."""

    async def story() -> None:
        url = shared_group.primary.unix_url
        async with fencer.connect_async(url, durability=Replicated(2, timeout=SLOW)) as client:
            leases = [await client.acquire(f"held-{number}", ttl=120) for number in range(2)]
            shared_group.cut()
            tasks = [
                asyncio.create_task(client.acquire(f"orders-{number}", ttl=300))
                for number in range(40)
            ]
            try:
                await asyncio.to_thread(await_true, lambda: waits_for_replicas(shared_group))
                # The first has the connection that is kept, and the second must take its turn.
                await asyncio.gather(*(lease.renew() for lease in leases))
                assert not any(task.done() for task in tasks)
                await asyncio.to_thread(shared_group.caught_up)
                history.healed(60)
                async with asyncio.timeout(60):
                    for grant in await asyncio.gather(*tasks):
                        await grant.release()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(story())


@twin(bugs.takes_a_refusal_for_an_answer)
def test_a_primary_that_is_deposed_meanwhile(group: Group) -> None:
    """A grant of a server that has become a replica would be handed out, or waited for."""
    group.cut()
    with (
        fencer.connect(group.primary.unix_url, durability=Replicated(2, timeout=60)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        grant = pool.submit(client.acquire, "orders", ttl=300)
        await_true(lambda: waits_for_replicas(group))
        group.at(group.near).replicaof("no", "one")
        group.at(group.primary).replicaof("127.0.0.1", group.near.port)
        with pytest.raises(StoreError):
            grant.result(timeout=30)


# Waiting in line, elections, guards


@contextmanager
def waiting(client: fencer.Fencer, plain: fencer.Fencer) -> Iterator[Future[fencer.Lease]]:
    """Somebody waits in line for the lease that another holds."""
    with ThreadPoolExecutor(1) as pool:
        grant = pool.submit(client.acquire, "orders", ttl=120, wait=60)
        await_true(lambda: plain.inspect("orders").waiters == 1)
        yield grant


@twin(bugs.asks_nothing_in_line)
def test_a_hand_over(
    shared_group: Group, connect: Connect, plain: fencer.Fencer, history: History
) -> None:
    """Whoever waited in line would get a token that no replica has."""
    client = connect(shared_group.primary.unix_url, durability=Replicated(2, timeout=SLOW))
    held = plain.acquire("orders", ttl=120)
    with waiting(client, plain) as grant:
        shared_group.cut()
        held.release()
        await_true(lambda: grant.done() or waits_for_replicas(shared_group))
        assert not grant.done()
        shared_group.caught_up()
        history.healed(60)
        lease = grant.result(timeout=60)
        assert issued_at(shared_group, shared_group.far) == lease.token
        assert lease.remaining() > 60
        lease.release()


@twin(bugs.asks_nothing_in_line)
def test_a_hand_over_while_a_replica_is_cut_off(
    shared_group: Group, connect: Connect, plain: fencer.Fencer
) -> None:
    """The same; and who comes next would wait for a lease that nobody has."""
    client = connect(shared_group.primary.unix_url, durability=Replicated(2, timeout=QUICK))
    held = plain.acquire("orders", ttl=120)
    with waiting(client, plain) as grant:
        shared_group.cut()
        held.release()
        with pytest.raises(NotDurable) as caught:
            grant.result(timeout=60)
    assert caught.value.reached == 1
    is_free_again(plain, caught.value)


@twin(bugs.looks_at_no_answer)
def test_an_election(
    shared_group: Group, connect: Connect, plain: fencer.Fencer, history: History
) -> None:
    """A leader would be elected with a token that a failover takes."""
    shared_group.cut()
    client = connect(
        shared_group.primary.unix_url, durability=Replicated(2, timeout=QUICK), holder="me"
    )
    options: dict[str, Any] = {"ttl": 60.0, "retry_interval": 0.2, "name": "orders"}
    candidate = Candidate(client, Diary(), {}, history, **options)

    def tried() -> int:
        return len([kind for kind, _ in events(plain) if kind == "release"])

    candidate.election.start()
    try:
        # It has tried more than once, and each time in vain.
        await_true(lambda: tried() >= 2 or bool(candidate.election.is_leader))
        assert not candidate.election.is_leader
        shared_group.caught_up()
        history.healed(60)
        await_true(lambda: bool(candidate.election.is_leader))
        token = plain.inspect("orders").token
        assert token is not None
        assert issued_at(shared_group, shared_group.far) == token
    finally:
        candidate.election.stop()


@twin(bugs.asks_about_the_first_grant_alone)
def test_a_lease_that_is_granted_anew_for_a_guard(
    shared_group: Group, connect_threads: Connect
) -> None:
    """The second grant of an acquire with guards would not be asked about."""
    guard = MemoryGuard("orders")
    ahead = time.time_ns() // 1000 + 3_600_000_000
    guard.check(ahead)
    before = asked(shared_group)
    client = connect_threads(shared_group.primary.unix_url, durability=Replicated(2, timeout=SLOW))
    lease = client.acquire("orders", ttl=120, guards=[guard])
    assert lease.token > ahead
    assert asked(shared_group) == before + 2
    assert issued_at(shared_group, shared_group.far) == lease.token


# Renew and release


@twin(bugs.ignores_durable)
def test_a_durable_renew(shared_group: Group, connect: Connect) -> None:
    """A renewal that is called safe would be gone after a failover."""
    group = shared_group
    client = connect(group.primary.unix_url, durability=Replicated(2, timeout=QUICK))
    lease = client.acquire("orders", ttl=20)
    lease.renew(ttl=600, durable=True)
    assert int(group.at(group.far).ttl("fencer:{orders}:lock")) > 20
    group.cut()
    lease.renew()
    with pytest.raises(NotDurable) as caught:
        lease.renew(durable=True)
    assert (caught.value.act, caught.value.reached) == ("renewal", 1)
    assert lease.valid
    assert lease.remaining() > 500
    assert lease.release()


@twin(bugs.asks_no_release_again)
def test_a_durable_release(shared_group: Group, connect: Connect, plain: fencer.Fencer) -> None:
    """A release that is called safe would be undone by a failover."""
    group = shared_group
    client = connect(group.primary.unix_url, durability=Replicated(2, timeout=QUICK))
    lease = client.acquire("orders", ttl=120)
    group.cut()
    for _ in range(2):  # The second one writes nothing of its own.
        with pytest.raises(NotDurable) as caught:
            lease.release(durable=True)
        assert (caught.value.act, caught.value.reached) == ("release", 1)
        assert not lease.valid
        assert not plain.inspect("orders").held
    group.caught_up()
    group.proxy.delay(replies=0.05)
    assert lease.release(durable=True) is True
    assert issued_at(group, group.far) == lease.token + 1
    assert not group.at(group.far).exists("fencer:{orders}:lock")


# A failover


def handed_out(
    group: Group, linked: Replicated | None, cut_off: Replicated | None
) -> dict[str, int]:
    """Grants on many names, half of them after one replica was cut off; what callers got to see."""
    tokens = {}
    for first, durability in ((0, linked), (10, cut_off)):
        if first:
            group.cut()
        with fencer.connect(group.primary.unix_url, durability=durability) as client:
            for name in (f"orders-{number}" for number in range(first, first + 10)):
                with suppress(NotDurable):
                    tokens[name] = client.acquire(name, ttl=60).token
    return tokens


def missing(group: Group, tokens: dict[str, int], server: Server) -> list[str]:
    """The names whose handed-out token a server does not know."""
    return [name for name, token in tokens.items() if issued_at(group, server, name) < token]


@twin(bugs.one_replica_will_do)
def test_a_failover_keeps_what_was_handed_out(group: Group) -> None:
    """The new primary would not know of a holder that works, and grant the lease again."""
    tokens = handed_out(group, Replicated(2, timeout=SLOW), Replicated(2, timeout=0.05))
    assert sorted(tokens) == sorted(f"orders-{number}" for number in range(10))
    group.promote(group.far)
    assert missing(group, tokens, group.far) == []
    with fencer.connect(group.far.unix_url, holder="rival") as client:
        for name in tokens:
            with pytest.raises(fencer.NotAcquired):
                client.acquire(name)
        given_back = [f"orders-{number}" for number in range(10, 20)]
        for name in given_back:
            assert client.acquire(name).token > max(tokens.values())


@twin(common.plain_counter)
@pytest.mark.may_break("S4", why="the new primary has not heard of those who believe")
@pytest.mark.parametrize("durability", [None, Replicated(1, timeout=SLOW)])
def test_a_failover_takes_what_was_not_asked_about(
    group: Group, durability: Replicated | None
) -> None:
    """The test above would pass without the durability, or with one replica of two."""
    tokens = handed_out(group, durability, durability)
    assert len(tokens) == 20
    group.promote(group.far)
    cut_off = {f"orders-{number}" for number in range(10, 20)}
    assert cut_off <= set(missing(group, tokens, group.far))
    with fencer.connect(group.far.unix_url, holder="rival") as client:
        # Two holders believe in it now; yet the token of the second is larger.
        assert client.acquire("orders-19").token > tokens["orders-19"]


@no_twin("it looks at the server alone")
def test_what_a_question_says_after_a_script_that_wrote_nothing(
    shared_group: Group, plain: fencer.Fencer
) -> None:
    """The care that is taken with repeated calls would be for nothing: this is the fact behind it.

    Redis from 7.2 on and Valkey answer for the last write of the connection, and a new one has
    none; older servers answer for all that was written.
    """
    shared_group.cut()
    plain.acquire("orders")
    with redis.Redis.from_url(shared_group.primary.unix_url) as other:
        assert other.eval("return redis.call('EXISTS', KEYS[1])", 1, TOKEN) == 1
        assert other.wait(2, 2_000) == (2 if answers_for_a_connection(shared_group) else 1)
