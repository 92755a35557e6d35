"""Promise 5: asking twice is asking once. Replies get lost, are cut, or nobody waits for them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import fencer
from fencer import Sequencer, StoreUnavailable, _scripts
from fencer.drill.proxy import Proxy
from fencer.embedded import Server
from fencer.guards import RedisGuard
from tests.faults import bugs, bugs_leases
from tests.faults.planted import twin
from tests.faults.processes import Worker
from tests.fix_api import Connect, on_threads, plain
from tests.ways import way  # noqa: F401

Then = Literal["cut", "silence"]

both_ways = pytest.mark.parametrize("then", ["cut", "silence"])


@pytest.fixture
def proxy(shared_server: Server) -> Iterator[Proxy]:
    """Stands before the shared server."""
    with Proxy(("127.0.0.1", shared_server.port)) as proxy:
        yield proxy


@pytest.fixture
def near(client: fencer.Fencer, redis_client: redis.Redis) -> fencer.Fencer:
    """A client past the proxy; the server knows every script."""
    with client.acquire("warm") as lease:
        lease.renew()
        RedisGuard(redis_client, "warm").check(plain(lease))
    client.revoke("warm", token=1)
    client.advance("warm", 1)
    client.inspect("warm")
    return client


@pytest.fixture
def far(near: fencer.Fencer, proxy: Proxy, connect: Connect) -> fencer.Fencer:
    """A client through the proxy, already connected."""
    far = connect(proxy.url, socket_timeout=0.5)
    far.inspect("orders")
    return far


@pytest.fixture
def far_guard(redis_client: redis.Redis, proxy: Proxy) -> Iterator[RedisGuard]:
    """A guard through the proxy, already connected; the server knows its script."""
    RedisGuard(redis_client, "warm").check(1)
    with redis.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0), socket_timeout=0.5) as far:
        far.ping()
        yield RedisGuard(far, "orders")


def lose(proxy: Proxy, script: str, count: int = 1, then: Then = "cut") -> None:
    """Lose the replies to the next calls of a script."""
    proxy.swallow_reply(count, match=_scripts.load(script).sha.encode(), then=then)


def events(client: fencer.Fencer) -> list[tuple[str, int]]:
    """The history of the name."""
    return [(event.event, event.token) for event in client.history("orders")]


def await_true(condition: Callable[[], bool]) -> None:
    """For what another process does."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        time.sleep(0.001)


# One reply lost: the repetition answers as the first would have.


@twin(bugs.knows_no_grant_again)
@both_ways
def test_acquire(far: fencer.Fencer, near: fencer.Fencer, proxy: Proxy, then: Then) -> None:
    """The repetition would be refused, and the lease held by nobody; or two tokens be issued."""
    lose(proxy, "acquire", then=then)
    lease = far.acquire("orders")
    assert proxy.swallowed == 1
    assert events(near) == [("grant", lease.token)]
    assert near.inspect("orders").token == lease.token
    lease.renew()
    assert lease.release()


@twin(bugs.tries_once)
@both_ways
def test_renew(far: fencer.Fencer, near: fencer.Fencer, proxy: Proxy, then: Then) -> None:
    """One lost packet would cost a holder its lease."""
    lease = far.acquire("orders")
    lose(proxy, "renew", then=then)
    lease.renew()
    assert proxy.swallowed == 1
    assert near.inspect("orders").token == lease.token
    assert events(near) == [("grant", lease.token)]


@twin(bugs_leases.knows_no_end_again)
@both_ways
def test_release(far: fencer.Fencer, near: fencer.Fencer, proxy: Proxy, then: Then) -> None:
    """A holder that was alone to the end would hear that it was not."""
    lease = far.acquire("orders")
    lose(proxy, "release", then=then)
    assert lease.release() is True
    assert proxy.swallowed == 1
    assert not near.inspect("orders").held
    assert events(near) == [("grant", lease.token), ("release", lease.token)]


@twin(bugs_leases.knows_no_end_again)
@both_ways
@pytest.mark.parametrize("named", [True, False])
def test_revoke(
    far: fencer.Fencer, near: fencer.Fencer, proxy: Proxy, then: Then, named: bool
) -> None:
    """An operator who ended a lease would hear that there was none."""
    lease = near.acquire("orders")
    lose(proxy, "revoke", then=then)
    assert far.revoke("orders", lease.token if named else None) == lease.token
    assert proxy.swallowed == 1
    assert events(near) == [("grant", lease.token), ("revoke", lease.token)]


@twin(bugs_leases.knows_no_end_again)
@both_ways
def test_advance(far: fencer.Fencer, near: fencer.Fencer, proxy: Proxy, then: Then) -> None:
    """An operator who lifted the tokens would hear that there was nothing to do."""
    beyond = near.acquire("orders").token + 1000
    lose(proxy, "advance", then=then)
    assert far.advance("orders", beyond) is True
    assert proxy.swallowed == 1
    assert events(near)[1:] == [("advance", beyond)]
    assert near.acquire("orders").token > beyond


@twin(bugs_leases.guards_take_a_token_once)
@both_ways
def test_guard_check(far_guard: RedisGuard, proxy: Proxy, then: Then) -> None:
    """The rightful holder would be fenced off by its own first try."""
    lose(proxy, "guard", then=then)
    far_guard.check(Sequencer("orders", 5, "a" * 32, "me"))
    assert proxy.swallowed == 1
    assert far_guard.highest() == 5


@twin(bugs.tries_once)
@pytest.mark.parametrize("after", [1, 9, 20])
@pytest.mark.parametrize("script", ["acquire", "renew", "release"])
def test_a_reply_cut_in_the_middle(
    far: fencer.Fencer, near: fencer.Fencer, proxy: Proxy, script: str, after: int
) -> None:
    """Half a reply would be taken for one, or be read as the start of the next."""
    proxy.cut_reply(after, match=_scripts.load(script).sha.encode())
    lease = far.acquire("orders")
    lease.renew()
    assert lease.release() is True
    assert proxy.cut == 1
    assert events(near) == [("grant", lease.token), ("release", lease.token)]


# All replies lost.


@twin(bugs.gives_nothing_back)
@pytest.mark.parametrize(
    "info",
    [
        pytest.param({}, id="plain"),
        pytest.param(
            {"before": {"grant": "a" * 32, "ttl": 10, "token": 5, "since": 1.5}}, id="look-alike"
        ),
    ],
)
def test_acquire_that_hears_nothing(
    far: fencer.Fencer, near: fencer.Fencer, proxy: Proxy, info: dict[str, Any]
) -> None:
    """A caller that gave up would leave the name blocked for a ttl."""
    proxy.swallow_reply(5, match=b"EVALSHA")
    with pytest.raises(fencer.StoreUnavailable) as caught:
        far.acquire("orders", ttl=60, info=info)
    assert caught.value.maybe_applied
    assert "may have been applied" in str(caught.value)
    assert proxy.swallowed >= 4, "three tries, and the giving back"
    assert not near.inspect("orders").held
    [(_, token), _] = events(near)
    assert events(near) == [("grant", token), ("release", token)]
    assert near.acquire("orders").token > token


@twin(bugs_leases.tells_of_the_last_try_alone)
def test_acquire_that_is_cut_off_for_good(
    far: fencer.Fencer, near: fencer.Fencer, proxy: Proxy
) -> None:
    """The caller would hear that nothing was changed, or nobody could ever get the lease again."""

    def refuse_then() -> None:
        await_true(lambda: proxy.swallowed == 1)
        proxy.refuse()

    watcher = threading.Thread(target=refuse_then)
    lose(proxy, "acquire", then="silence")
    watcher.start()
    with pytest.raises(fencer.StoreUnavailable) as caught:
        far.acquire("orders", ttl=1)
    watcher.join()
    assert caught.value.maybe_applied
    assert near.acquire("orders", wait=10).token > 0
    assert [event for event, _ in events(near)] == ["grant", "loss", "grant"]


@twin(bugs_leases.knows_no_end_again)
def test_release_that_hears_nothing(far: fencer.Fencer, near: fencer.Fencer, proxy: Proxy) -> None:
    """The holder could not ask again, or would go on after it gave the lease up."""
    lease = far.acquire("orders")
    lose(proxy, "release", 3)
    with pytest.raises(fencer.StoreUnavailable) as caught:
        lease.release()
    assert caught.value.maybe_applied
    assert not lease.valid
    near.acquire("orders").release()
    assert lease.release() is True, "it was the last one until its release"


@twin(bugs_leases.an_outage_ends_the_lease)
def test_renew_that_hears_nothing(far: fencer.Fencer, near: fencer.Fencer, proxy: Proxy) -> None:
    """A short outage would cost a holder a lease that has time left."""
    lease = far.acquire("orders", ttl=30)
    lose(proxy, "renew", 3)
    with pytest.raises(fencer.StoreUnavailable) as caught:
        lease.renew()
    assert caught.value.maybe_applied
    assert lease.valid
    lease.renew()
    assert lease.release()


@twin(bugs.gives_nothing_back)
def test_a_first_try_that_arrives_after_its_repetition_was_refused(
    near: fencer.Fencer, proxy: Proxy, connect: Connect
) -> None:
    """The caller would hear that another has the lease, and then hold it without knowing."""
    lease = near.acquire("orders")
    hasty = connect(proxy.url, socket_timeout=0.2)
    hasty.inspect("orders")
    proxy.delay(requests=1)

    def mend() -> None:
        await_true(lambda: proxy.delayed > 0)
        proxy.delay()

    mending = threading.Thread(target=mend)
    mending.start()
    with pytest.raises(fencer.NotAcquired):
        hasty.acquire("orders", ttl=60)
    mending.join()
    assert lease.release()
    assert [event for event, _ in events(near)] == ["grant", "cancel", "release"]
    time.sleep(1.2)  # the first try arrives meanwhile
    assert not near.inspect("orders").held


# What must not be sent twice.


@twin(bugs_leases.repeats_every_call)
@both_ways
def test_execute_is_not_sent_twice(
    far_guard: RedisGuard, redis_client: redis.Redis, proxy: Proxy, then: Then
) -> None:
    """Money would be booked twice."""
    lose(proxy, "guard", then=then)
    with pytest.raises(fencer.StoreUnavailable) as caught:
        far_guard.execute(5, "INCR", "balance")
    assert caught.value.maybe_applied
    assert proxy.swallowed == 1
    assert redis_client.get("balance") == b"1"
    assert far_guard.execute(5, "INCR", "balance") == 2


@twin(bugs_leases.may_always_be_applied)
def test_execute_that_was_never_sent(
    far_guard: RedisGuard, redis_client: redis.Redis, proxy: Proxy
) -> None:
    """The caller could not know that it may safely try again."""
    proxy.refuse()
    with pytest.raises(fencer.StoreUnavailable) as caught:
        far_guard.execute(5, "INCR", "balance")
    assert not caught.value.maybe_applied
    assert redis_client.get("balance") is None


# Nobody waits for the reply any more. Cancelled tasks have tests of their own.

INTERRUPTED = """
import signal, time
import fencer
signal.signal(signal.SIGINT, signal.default_int_handler)
client = fencer.connect(args[0])
client.inspect("orders")
def handle(wait):
    try:
        return client.acquire("orders", ttl=60, wait=wait).token
    except KeyboardInterrupt:
        return "interrupted"
"""


@pytest.fixture
def worker(near: fencer.Fencer, redis_client: redis.Redis, proxy: Proxy) -> Iterator[Worker]:
    """A process that acquires through the proxy, and says if it was interrupted."""
    with Worker(INTERRUPTED, proxy.url) as worker:
        worker.ask(wait=0)
        near.revoke("orders")
        redis_client.flushall()
        yield worker


@twin(bugs.gives_nothing_back)
@on_threads
def test_interrupt_while_the_reply_is_on_its_way(
    worker: Worker, near: fencer.Fencer, proxy: Proxy
) -> None:
    """Ctrl-C would leave the name blocked for a ttl."""
    proxy.delay(replies=8)
    worker.tell(wait=0)
    await_true(lambda: near.inspect("orders").held)
    proxy.delay()
    os.kill(worker.pid, signal.SIGINT)
    assert worker.hear() == "interrupted"
    assert not near.inspect("orders").held
    assert isinstance(worker.ask(wait=0), int), "it can go on"


@twin(bugs_leases.records_no_cancel)
@on_threads
def test_interrupt_while_the_request_is_on_its_way(
    worker: Worker, near: fencer.Fencer, proxy: Proxy
) -> None:
    """The request would overtake its own cancellation, and be granted to nobody."""
    proxy.delay(requests=1)
    worker.tell(wait=0)
    await_true(lambda: proxy.delayed > 0)
    proxy.delay()
    os.kill(worker.pid, signal.SIGINT)
    assert worker.hear() == "interrupted"
    assert [event for event, _ in events(near)] == ["cancel"]
    time.sleep(1.2)  # the request arrives meanwhile
    assert not near.inspect("orders").held
    assert [event for event, _ in events(near)] == ["cancel"]


@twin(bugs.gives_nothing_back)
@on_threads
def test_interrupt_while_waiting_for_another(worker: Worker, near: fencer.Fencer) -> None:
    """A waiter that was interrupted would get the lease later, and nobody would hold it."""
    lease = near.acquire("orders")
    worker.tell(wait=30)
    await_true(lambda: near.inspect("orders").waiters == 1)
    os.kill(worker.pid, signal.SIGINT)
    assert worker.hear() == "interrupted"
    assert near.inspect("orders").waiters == 0
    lease.release()
    time.sleep(0.2)
    assert [event for event, _ in events(near)] == ["grant", "release"]
    assert not near.inspect("orders").held


@twin(bugs_leases.any_error_within_a_demotion)
def test_a_write_within_a_handler_is_not_repeated(proxy: Proxy, redis_client: redis.Redis) -> None:
    """Who handles a failover would have a guarded write applied twice."""
    with redis.Redis.from_url(proxy.url) as driver:
        guard = RedisGuard(driver, "orders")
        guard.execute(5, "SET", "count", 0)  # Now the script is known.
        proxy.swallow_reply(match=b"INCR", then="cut")
        try:
            raise redis.ReadOnlyError("READONLY of another call")
        except redis.ReadOnlyError:
            with pytest.raises(StoreUnavailable) as caught:
                guard.execute(5, "INCR", "count")
    assert caught.value.maybe_applied
    assert redis_client.get("count") == b"1"
