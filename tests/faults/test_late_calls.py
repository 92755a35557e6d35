"""Promise 2: a token is live exactly while it is the last one issued. A late call changes nothing.

The network repeats and delays: `Tap` records what clients send, and sends it once more.
"""

from __future__ import annotations

import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis

import fencer
from fencer import LeaseLost, _scripts
from fencer._drive import run
from fencer._protocol import Granted, Protocol, Settings
from fencer._steps import Call, Enter, Steps, Wait
from fencer._wire import Wire
from fencer.drill.proxy import Proxy
from fencer.embedded import Server
from fencer.errors import StoreUnavailable
from tests.faults import bugs, bugs_leases
from tests.faults.planted import twin
from tests.fix_api import Connect
from tests.ways import way  # noqa: F401

LOCK, TOKEN, INFO, HISTORY = (
    f"fencer:{{orders}}:{key}" for key in ["lock", "token", "info", "history"]
)

End = Callable[[fencer.Fencer, fencer.Lease, redis.Redis], object]


class Tap(socketserver.ThreadingTCPServer):
    """Passes everything on to a server, and remembers every request."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.target = ("127.0.0.1", port)
        self.requests: list[bytes] = []
        self.url = f"redis://127.0.0.1:{self.server_address[1]}/0"

    def calls(self, script: str) -> list[bytes]:
        """The calls of a script so far, as they were sent."""
        sha = _scripts.load(script).sha.encode()
        return [request for request in self.requests if sha in request]

    def send(self, request: bytes) -> bytes:
        """Send bytes to the server, and return its reply."""
        with socket.create_connection(self.target, 10) as late:
            late.sendall(request)
            return late.recv(65536)

    def again(self, script: str) -> bytes:
        """Send the last call of a script once more, byte for byte, and return the reply."""
        return self.send(self.calls(script)[-1])


class _Connection(socketserver.BaseRequestHandler):
    server: Tap

    def handle(self) -> None:
        with socket.create_connection(self.server.target) as upstream:
            while True:
                for source in select.select([self.request, upstream], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is upstream:
                        self.request.sendall(data)
                    else:
                        self.server.requests.append(data)
                        upstream.sendall(data)


@pytest.fixture
def tap(shared_server: Server) -> Iterator[Tap]:
    """Stands before the shared server."""
    with Tap(shared_server.port) as tap:
        thread = threading.Thread(target=tap.serve_forever, args=(0.01,))
        thread.start()
        yield tap
        tap.shutdown()
        thread.join()


@pytest.fixture
def holder(tap: Tap, client: fencer.Fencer, connect: Connect) -> fencer.Fencer:
    """A client whose calls can be repeated; `client` is another one, past the tap."""
    holder = connect(tap.url)
    with holder.acquire("warm") as lease:  # a script that the server does not know goes by its body
        lease.renew()
    holder.revoke("warm", token=1)
    holder.advance("warm", 1)
    tap.requests.clear()
    return holder


def everything(store: redis.Redis) -> dict[bytes, object]:
    """All keys with their values, and whether they end."""
    keys: list[bytes] = list(store.scan_iter())
    return {key: (store.dump(key), store.pttl(key) == -1) for key in keys}


def unchanged(store: redis.Redis, late: Callable[[], object]) -> None:
    """The check: the call changes nothing in the store, and prolongs nothing."""
    before = everything(store)
    left = {key: store.pttl(key) for key in before}
    late()
    assert everything(store) == before
    assert all(store.pttl(key) <= left[key] for key in left)


def release(client: fencer.Fencer, lease: fencer.Lease, store: redis.Redis) -> None:
    """End it by its holder's will."""
    assert lease.release()


def revoke(client: fencer.Fencer, lease: fencer.Lease, store: redis.Redis) -> None:
    """End it by an operator's will."""
    assert client.revoke("orders") == lease.token


def advance(client: fencer.Fencer, lease: fencer.Lease, store: redis.Redis) -> None:
    """End it by lifting the tokens beyond it."""
    assert client.advance("orders", lease.token + 5)


def succeed(client: fencer.Fencer, lease: fencer.Lease, store: redis.Redis) -> None:
    """End it early, and grant it to another."""
    store.delete(LOCK)
    assert client.acquire("orders").token > lease.token


def release_and_succeed(client: fencer.Fencer, lease: fencer.Lease, store: redis.Redis) -> None:
    """End it, and grant it to another."""
    release(client, lease, store)
    client.acquire("orders")


def release_twice(client: fencer.Fencer, lease: fencer.Lease, store: redis.Redis) -> None:
    """End it, and the lease of another after it."""
    release(client, lease, store)
    client.acquire("orders").release()


def forget(client: fencer.Fencer, lease: fencer.Lease, store: redis.Redis) -> None:
    """Lose everything."""
    store.flushall()


ENDS = [release, revoke, advance, succeed, release_and_succeed, release_twice, forget]


@twin(bugs.retires_nothing)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.may_break("S4", why="the lock key is deleted while its holder believes")
def test_a_late_renew(
    holder: fencer.Fencer, client: fencer.Fencer, tap: Tap, redis_client: redis.Redis, end: End
) -> None:
    """A duplicate on the network would bring an ended lease back, or cut a successor's short."""
    lease = holder.acquire("orders", ttl=60)
    lease.renew()
    end(client, lease, redis_client)
    unchanged(redis_client, lambda: tap.again("renew"))
    assert b"STALE" in tap.again("renew")


@twin(bugs.renews_without_compare)
@pytest.mark.parametrize("end", [revoke, advance, succeed, forget])
@pytest.mark.may_break("S4", why="the lock key is deleted while its holder believes")
def test_the_holders_next_renew(
    holder: fencer.Fencer, client: fencer.Fencer, redis_client: redis.Redis, end: End
) -> None:
    """A holder that was replaced would not hear of it, or would take the lease back."""
    lease = holder.acquire("orders", ttl=60)
    end(client, lease, redis_client)
    with pytest.raises(LeaseLost):
        unchanged(redis_client, lease.renew)
    assert lease.lost.is_set()
    assert not lease.valid
    unchanged(redis_client, lambda: lease.release() and pytest.fail("it had ended before"))


@twin(bugs.releases_without_compare, of="release_and_succeed")
@pytest.mark.parametrize("end", [release, release_and_succeed, release_twice])
def test_a_late_release(
    holder: fencer.Fencer, client: fencer.Fencer, tap: Tap, redis_client: redis.Redis, end: End
) -> None:
    """A duplicate on the network would end the lease of a successor."""
    lease = holder.acquire("orders", ttl=60)
    end(client, lease, redis_client)
    unchanged(redis_client, lambda: tap.again("release"))
    assert b"RELEASED" in tap.again("release"), "and it would not answer as the first did"


@twin(bugs.knows_no_grant_again)
@pytest.mark.parametrize(
    "end",
    [release, revoke, release_and_succeed, release_twice],
)
def test_a_late_acquire(
    holder: fencer.Fencer, client: fencer.Fencer, tap: Tap, redis_client: redis.Redis, end: End
) -> None:
    """A duplicate on the network would be granted once more, to nobody."""
    lease = holder.acquire("orders", ttl=60)
    end(client, lease, redis_client)
    unchanged(redis_client, lambda: tap.again("acquire"))
    assert b"GRANTED" not in tap.again("acquire")


@twin(bugs.knows_no_grant_again)
def test_a_late_acquire_of_a_live_lease(holder: fencer.Fencer, tap: Tap) -> None:
    """A duplicate on the network would issue a second token, and the holder be fenced off."""
    lease = holder.acquire("orders", ttl=60)
    assert str(lease.token).encode() in tap.again("acquire")
    lease.renew()
    assert holder.inspect("orders").token == lease.token


@twin(bugs_leases.orders_without_compare, of="revoke")
@twin(bugs_leases.orders_without_compare, of="advance")
@pytest.mark.parametrize("which", ["revoke", "advance"])
def test_a_late_order_of_an_operator(
    holder: fencer.Fencer, client: fencer.Fencer, tap: Tap, redis_client: redis.Redis, which: str
) -> None:
    """A duplicate on the network would end the lease of a successor."""
    lease = client.acquire("orders")
    {"revoke": revoke, "advance": advance}[which](holder, lease, redis_client)
    client.acquire("orders")
    unchanged(redis_client, lambda: tap.again(which))


@twin(bugs.renews_without_compare)
@pytest.mark.parametrize("end", [revoke, succeed])
@pytest.mark.may_break("S4", why="the lock key is deleted while its holder believes")
def test_a_renew_that_is_long_on_its_way(
    client: fencer.Fencer,
    redis_client: redis.Redis,
    shared_server: Server,
    connect: Connect,
    end: End,
) -> None:
    """A renew that arrives after the end would be carried out."""
    with Proxy(("127.0.0.1", shared_server.port)) as proxy:
        lease = connect(proxy.url).acquire("orders", ttl=60)
        proxy.delay(requests=0.5)
        failure: list[BaseException] = []

        def renew() -> None:
            try:
                lease.renew()
            except LeaseLost as error:
                failure.append(error)

        thread = threading.Thread(target=renew)
        thread.start()
        while not proxy.delayed:
            time.sleep(0.001)
        end(client, lease, redis_client)
        unchanged(redis_client, thread.join)
    assert failure
    assert not lease.valid


@twin(bugs_leases.advances_to_a_token)
def test_an_advance_after_a_loss_of_data_does_not_bring_a_token_back(
    holder: fencer.Fencer, client: fencer.Fencer, tap: Tap, redis_client: redis.Redis
) -> None:
    """Lifting the tokens to what a guard has seen would make that very token live once more."""
    lease = holder.acquire("orders", ttl=60)
    lease.renew()
    revoke(client, lease, redis_client)
    redis_client.flushall()
    client.advance("orders", lease.token)
    unchanged(redis_client, lambda: tap.again("renew"))
    with pytest.raises(LeaseLost):
        lease.renew()


# A lock key that vanished early.


def delete(store: redis.Redis) -> None:
    """An operator's hand."""
    assert store.delete(LOCK)


def expire(store: redis.Redis) -> None:
    """A server whose clock runs ahead."""
    for key in (LOCK, INFO):
        store.pexpire(key, 1)
    while store.exists(LOCK, INFO):
        time.sleep(0.001)


def delete_both(store: redis.Redis) -> None:
    """Lock and info went together."""
    assert store.delete(LOCK, INFO) == 2


VANISHINGS = [delete, expire, delete_both]


@twin(bugs_leases.renews_what_is_there_alone)
@pytest.mark.parametrize("vanish", VANISHINGS)
def test_the_next_renew_heals(
    client: fencer.Fencer, redis_client: redis.Redis, vanish: Callable[[redis.Redis], None]
) -> None:
    """A holder that nobody has replaced would be thrown out by a jump of the server's clock."""
    lease = client.acquire("orders", ttl=60, info={"instance_id": "instance-2"})
    before = client.inspect("orders")
    vanish(redis_client)
    assert not client.inspect("orders").held
    lease.renew()
    after = client.inspect("orders")
    assert (after.token, after.holder, after.info) == (lease.token, lease.holder, before.info)
    assert 50 < (after.remaining or 0) <= 60
    with pytest.raises(fencer.NotAcquired):
        client.acquire("orders")
    assert lease.release()
    assert not redis_client.exists(LOCK, INFO)


@twin(bugs_leases.releases_what_is_there_alone)
@pytest.mark.parametrize("vanish", VANISHINGS)
def test_release_of_a_vanished_lease(
    client: fencer.Fencer, redis_client: redis.Redis, vanish: Callable[[redis.Redis], None]
) -> None:
    """A holder that was never replaced would hear that it was, or leave its token alive."""
    lease = client.acquire("orders", ttl=60)
    vanish(redis_client)
    assert lease.release()
    assert client.inspect("orders").issued == lease.token + 1
    assert not redis_client.exists(LOCK, INFO)


@twin(bugs.renews_without_compare)
@pytest.mark.parametrize("vanish", VANISHINGS)
@pytest.mark.may_break("S4", why="the lock key is deleted while its holder believes")
def test_it_does_not_heal_after_another_grant(
    client: fencer.Fencer, redis_client: redis.Redis, vanish: Callable[[redis.Redis], None]
) -> None:
    """Two holders would take the lease from each other in turn."""
    lease = client.acquire("orders", ttl=60)
    vanish(redis_client)
    second = client.acquire("orders", ttl=60)
    with pytest.raises(LeaseLost, match=str(second.token)):
        unchanged(redis_client, lease.renew)
    second.renew()


@twin(bugs_leases.releases_what_is_on_record_alone)
def test_it_heals_from_a_lost_history(client: fencer.Fencer, redis_client: redis.Redis) -> None:
    """What is only for operators to read would be needed to hold a lease."""
    lease = client.acquire("orders", ttl=60)
    redis_client.delete(HISTORY)
    lease.renew()
    assert lease.release()


def given_up(steps: Steps[Granted], wire: Wire) -> Call:
    """Wait in line with a first join that finds no answer, and be interrupted; return that join."""
    late: Call | None = None
    step: object = next(steps)
    try:
        while True:
            match step:
                case Call() as call if late is None and "join" in call.args:
                    late = call
                    step = steps.throw(StoreUnavailable("no answer", maybe_applied=True))
                case Call() as call:
                    step = steps.send(wire.call(call))
                case Enter():
                    step = steps.send("here")
                case Wait():
                    step = steps.throw(KeyboardInterrupt())
                case _:
                    step = steps.send(None)
    except KeyboardInterrupt:
        assert late is not None
        return late


@twin(bugs_leases.records_no_cancel)
def test_a_join_that_arrives_after_its_wait(redis_client: redis.Redis) -> None:
    """A waiter that gave up would be granted the lease behind its back."""
    wire, core = Wire(redis_client), Protocol(Settings())
    held = run(core.acquire("orders", "holder", 30_000, 0, {"holder": "holder"}), wire)
    late = given_up(core.acquire("orders", "waiter", 30_000, 30, {"holder": "waiter"}), wire)
    assert run(core.release(held), wire)[0]
    assert wire.call(late)[0] == b"ENDED"
    status = run(core.inspect("orders"), wire)
    assert (status.held, status.waiters) == (False, 0)
