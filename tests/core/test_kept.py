"""The fast path: who takes it, and that what happens to its connection is not seen from outside.

That it keeps the promises is shown by the modules that import `tests.ways`: they run on both ways.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import redis
import redis.asyncio
from redis._parsers import _AsyncRESP2Parser, _RESP2Parser
from redis.credentials import UsernamePasswordCredentialProvider

import fencer
from fencer import _kept
from fencer._kept import Line
from fencer._scripts import load
from fencer._steps import Call
from fencer._wire import AsyncWire, Wire, _by_sha
from fencer.drill.proxy import Proxy
from fencer.embedded import Server
from fencer.errors import LeaseLost, StoreUnavailable
from fencer.guards import RedisGuard
from tests.fix_api import Connect, on_threads
from tests.fix_servers import MakeServer

PATIENCE = 20.0


def line_of(client: Any) -> Any:
    """The connection that is kept and free, if there is one."""
    free = vars(client.client.connection_pool)["_fencer_kept"]._free
    return free[-1] if free else None


def look(name: str) -> Call:
    """A call that changes nothing, and whose reply tells names apart."""
    stem = f"fencer:{{{name}}}:"
    keys = tuple(stem + last for last in ("lock", "token", "info", "queue", "waiters"))
    return Call(load("inspect"), keys, ())


def await_true(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {PATIENCE:g} s"
        time.sleep(0.01)


def client_ids(server: redis.Redis) -> set[str]:
    """All connections but the one that asks."""
    own = str(server.client_id())
    return {entry["id"] for entry in server.client_list()} - {own}


@pytest.fixture
def proxy(shared_server: Server) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", shared_server.port)) as proxy:
        yield proxy


# Who takes it


KEPT: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "RESP2": {"protocol": 2},
    "decoded": {"decode_responses": True},
    "no timeout": {"socket_timeout": None},
    "short timeout": {"socket_timeout": 0.5},
    "named": {"client_name": "me"},
    "another database": {"db": 3},
    "a pool of 8": {"max_connections": 8},
}


class OwnConnection(redis.Connection):
    """Somebody may do more in it than redis-py does."""


class OwnAsyncConnection(redis.asyncio.Connection):
    """The same on asyncio."""


class OwnPool(redis.ConnectionPool):
    """The same of a pool."""


class OwnAsyncPool(redis.asyncio.ConnectionPool):
    """The same on asyncio."""


NOT_KEPT: dict[str, dict[str, Any]] = {
    "health checks": {"health_check_interval": 5},
    "a small pool": {"max_connections": 4},
    "credential provider": {"credential_provider": UsernamePasswordCredentialProvider("default")},
    "another encoding": {"encoding": "latin-1"},
    "another parser": {"protocol": 2, "parser_class": (_RESP2Parser, _AsyncRESP2Parser)},
    "own connections": {"connection_class": (OwnConnection, OwnAsyncConnection)},
    "own pool": {"pool_class": (OwnPool, OwnAsyncPool)},
    "a pool that blocks": {
        "pool_class": (redis.BlockingConnectionPool, redis.asyncio.BlockingConnectionPool)
    },
}


def driver_of(case: str, server: Server, *, tasks: bool) -> Any:
    """The driver's client for a case: of two values the second is the one for asyncio."""
    module: Any = redis.asyncio if tasks else redis
    options = {
        name: value[tasks] if isinstance(value, tuple) else value
        for name, value in NOT_KEPT[case].items()
    }
    pool = options.pop("pool_class", module.ConnectionPool)
    return module.Redis.from_pool(pool(host="127.0.0.1", port=server.port, **options))


@pytest.mark.parametrize("case", NOT_KEPT)
def test_other_clients_do_not(shared_server: Server, redis_client: redis.Redis, case: str) -> None:
    """What redis-py does for such a client between two calls would be left out."""
    with (
        driver_of(case, shared_server, tasks=False) as driver,
        fencer.Fencer(driver) as client,
        client.acquire("orders") as lease,
    ):
        lease.renew()
        assert line_of(client) is None


@pytest.mark.parametrize("case", NOT_KEPT)
def test_other_asyncio_clients_do_not(
    shared_server: Server, redis_client: redis.Redis, case: str
) -> None:
    """As with threads."""

    async def main() -> None:
        driver = driver_of(case, shared_server, tasks=True)
        async with driver, fencer.AsyncFencer(driver) as client:
            lease = await client.acquire("orders")
            await lease.renew()
            assert line_of(client) is None
            await lease.release()

    asyncio.run(main())


@on_threads
def test_a_redis_py_that_was_not_tested(
    connect: Connect, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new release of redis-py that renames what is private in it would break every call."""

    class Renamed:
        def __init__(self, connection: Any) -> None:
            connection._no_such_attribute  # noqa: B018

    client = connect()
    vars(client.client.connection_pool)["_fencer_kept"]._make = Renamed
    with client.acquire("orders") as lease:
        lease.renew()
        assert line_of(client) is None


# One per pool, and given back


def test_one_connection_serves_all(
    connect: Connect, redis_client: redis.Redis, shared_server: Server
) -> None:
    """Each call would cost a new connection, or each client of ours hold one more."""
    client = connect(client_name="fast")
    lease = client.acquire("orders")
    line = line_of(client)
    for number in range(20):
        lease.renew()
        client.acquire(f"order-{number}").release()
    assert line_of(client) is line
    named = [one for one in redis_client.client_list() if one["name"] == "fast"]
    assert len(named) == 1


def test_clients_that_share_a_pool_share_it(
    shared_server: Server, redis_client: redis.Redis
) -> None:
    """A program that makes a client for each request would use up the pool."""
    with redis.Redis.from_url(shared_server.unix_url, max_connections=8) as driver:
        for number in range(50):
            fencer.Fencer(driver).acquire(f"order-{number}").renew()
            RedisGuard(driver, f"guard-{number}").check(1)
        assert len(driver.connection_pool._in_use_connections) == 1
        assert driver.connection_pool._created_connections == 1


def test_close_gives_it_back(shared_server: Server, redis_client: redis.Redis) -> None:
    """A driver's client that outlives ours would lack a connection, or get one that blocks."""
    with redis.Redis.from_url(shared_server.unix_url, socket_timeout=4) as driver:
        with fencer.Fencer(driver) as client:
            client.acquire("orders").renew()
            sock = line_of(client)._sock
            assert sock.gettimeout() is None
        pool = driver.connection_pool
        assert not pool._in_use_connections
        assert sock.gettimeout() == 4
        assert driver.ping()
        assert len(pool._available_connections) == 1
        client.acquire("order-2").release()
        assert line_of(client) is not None, "it can be used again"


def test_close_gives_it_back_on_asyncio(shared_server: Server, redis_client: redis.Redis) -> None:
    """As with threads."""

    async def main() -> None:
        async with redis.asyncio.Redis.from_url(shared_server.unix_url) as driver:
            async with fencer.AsyncFencer(driver) as client:
                await (await client.acquire("orders")).renew()
                assert line_of(client) is not None
            assert not driver.connection_pool._in_use_connections
            assert await driver.ping()

    asyncio.run(main())


def test_the_driver_is_closed_first(connect: Connect, redis_client: redis.Redis) -> None:
    """A connection that the user closed would be written to, or be counted for ever."""
    client = connect()
    lease = client.acquire("orders")
    for _ in range(3):
        disconnect = client.client.connection_pool.disconnect
        if isinstance(client, fencer.Fencer):
            disconnect()
        else:
            client._loop.run(disconnect())
        lease.renew()
        assert line_of(client) is not None
    assert len(client.client.connection_pool._in_use_connections) == 1
    assert lease.release()


def test_another_pool(make_server: MakeServer, redis_client: redis.Redis) -> None:
    """A client that was moved to another server would go on asking the one before."""
    other = make_server(persistence="none")
    with redis.Redis.from_url(other.unix_url) as there, redis.Redis() as driver:
        driver.connection_pool = redis_client.connection_pool
        client = fencer.Fencer(driver)
        client.acquire("orders", ttl=60)
        driver.connection_pool = there.connection_pool
        assert not client.inspect("orders").held
        assert client.acquire("orders").release()
        client.close()


def test_it_ends_with_its_pool(shared_server: Server, redis_client: redis.Redis) -> None:
    """Clients that nobody closes would stay in memory, each with a socket."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        driver = redis.Redis.from_url(shared_server.url)
        client = fencer.Fencer(driver)
        client.acquire("orders").renew()
        pool, sock = weakref.ref(driver.connection_pool), line_of(client)._sock
        del driver, client
        gc.collect()
        assert pool() is None
        assert sock.fileno() == -1, "it is closed"


def test_loop_after_loop(shared_server: Server, redis_client: redis.Redis) -> None:
    """A client whose pool was disconnected before its loop ended would not work in the next."""
    client = fencer.connect_async(shared_server.unix_url)

    async def once() -> None:
        lease = await client.acquire("orders")
        await lease.renew()
        assert line_of(client) is not None
        await lease.release()
        await client.client.connection_pool.disconnect()

    for _ in range(3):
        asyncio.run(once())


# What happens to it


def test_it_is_cut_while_idle(client: fencer.Fencer, redis_client: redis.Redis) -> None:
    """A server that closes idle connections would cost an error, or a pause, each time."""
    lease = client.acquire("orders")
    for _ in range(3):
        line = line_of(client)
        for one in client_ids(redis_client):
            redis_client.client_kill_filter(_id=one)
        lease.renew()
        assert line_of(client) is not None
        assert line_of(client) is not line


def test_a_cut_is_seen_before_the_request(shared_server: Server, redis_client: redis.Redis) -> None:
    """A guarded write, which is not repeated, would fail after each pause of the program."""
    with redis.Redis.from_url(shared_server.unix_url) as driver:
        guard = RedisGuard(driver, "orders")
        for number in range(1, 4):
            guard.execute(number, "SET", "balance", number)
            assert vars(driver.connection_pool)["_fencer_kept"]._free
            for one in client_ids(redis_client):
                redis_client.client_kill_filter(_id=one)
        assert Wire(driver).call(look("orders"))[0] == b"FREE"


@pytest.mark.slow
def test_the_servers_idle_timeout(make_server: MakeServer, connect: Connect) -> None:
    """The same, as it happens by itself."""
    server = make_server(persistence="none")
    client = connect(server.unix_url)
    lease = client.acquire("orders", ttl=60)
    with redis.Redis.from_url(server.unix_url) as driver:
        driver.config_set("timeout", 1)
        await_true(lambda: not client_ids(driver))
        driver.config_set("timeout", 0)
    lease.renew()


def test_the_server_is_restarted(make_server: MakeServer, connect: Connect) -> None:
    """A restart would leave a client that never gets through again."""
    server = make_server()
    client = connect(server.unix_url)
    for _ in range(2):
        lease = client.acquire("orders", ttl=60)
        lease.renew()
        server.kill()
        with pytest.raises(StoreUnavailable):
            lease.renew()
        assert lease.valid
        server.start()
        lease.renew()
        lease.renew()
        assert line_of(client) is not None
        assert lease.release()


def test_the_server_forgets_the_scripts(client: fencer.Fencer, redis_client: redis.Redis) -> None:
    """NOSCRIPT on the fast path would be an error."""
    lease = client.acquire("orders")
    line = line_of(client)
    redis_client.script_flush()
    lease.renew()
    redis_client.script_flush()
    assert client.inspect("orders").token == lease.token
    redis_client.script_flush()
    assert lease.release()
    assert line_of(client) is line


def test_an_error_reply_leaves_it(client: fencer.Fencer, redis_client: redis.Redis) -> None:
    """A refusal would cost the connection, or be read by the call after."""
    client.acquire("orders").release()
    line = line_of(client)
    redis_client.set("fencer:{bad}:token", "none of ours")
    for _ in range(3):
        with pytest.raises(fencer.StoreError, match="CORRUPT"):
            client.acquire("bad")
        assert client.inspect("orders").name == "orders"
    assert line_of(client) is line


def on_line(client: Any, work: Any) -> Any:
    """What comes of work on a connection, which on asyncio has to be awaited."""
    return client._loop.run(work) if inspect.isawaitable(work) else work


def test_pushes(client: fencer.Fencer, redis_client: redis.Redis) -> None:
    """A push of RESP3 would be taken for a reply, and every reply after it for that of another."""
    lease = client.acquire("orders")
    line = line_of(client)
    on_line(client, line.connection.send_command("CLIENT", "TRACKING", "ON", "BCAST"))
    on_line(client, line.connection.read_response())
    for number in range(30):
        if number % 3 == 0:
            redis_client.set("colour", number)  # a push while it is idle
        lease.renew()  # a push after the reply: its own keys have changed
        assert client.inspect("orders").token == lease.token
    assert lease.release()


def test_a_push_before_the_reply(client: fencer.Fencer, redis_client: redis.Redis) -> None:
    """One that comes after the look at the connection would be taken for the reply."""
    client.acquire("orders", ttl=60)
    client.inspect("orders")
    kept = vars(client.client.connection_pool)["_fencer_kept"]
    line = kept.take()
    on_line(client, line.send_command("CLIENT", "TRACKING", "ON", "BCAST"))
    assert on_line(client, line.read_response()) == b"OK"
    for number in range(5):
        redis_client.set("colour", number)
        await_true(lambda: not on_line(client, looked_at(line)))
        words = _by_sha(look("orders"))
        assert on_line(client, line.ask(line.pack_command(*words)))[0] == b"HELD"
    kept.put(line)


def looked_at(line: Any) -> Any:
    """Whether it is fit; in its loop if it has one."""

    async def fit() -> bool:
        return bool(line.fit())

    return line.fit() if isinstance(line, Line) else fit()


def test_a_timeout_means_what_it_did(
    proxy: Proxy, redis_client: redis.Redis, connect: Connect
) -> None:
    """A call would block for ever, or the reply that comes too late be read by the next call."""
    client = connect(proxy.url, socket_timeout=0.2)
    lease = client.acquire("orders")
    assert line_of(client) is not None
    proxy.delay(replies=0.5)
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        lease.renew()
    took = time.monotonic() - begun
    assert caught.value.maybe_applied
    assert took >= 3 * 0.2, "three tries"
    assert took < PATIENCE
    proxy.delay()
    for _ in range(3):
        assert client.inspect("orders").token == lease.token
        assert client.inspect("nothing").token is None
        lease.renew()


def test_a_reply_after_the_ttl(connect: Connect, proxy: Proxy, redis_client: redis.Redis) -> None:
    """The holder would believe in a renewal that has run out, or leave it held by nobody."""
    client = connect(proxy.url)
    lease = client.acquire("orders", ttl=0.5)
    assert line_of(client) is not None
    proxy.delay(replies=0.7)
    with pytest.raises(LeaseLost, match="after the ttl"):
        lease.renew()
    proxy.delay()
    assert client.history("orders")[-1].event == "release", "it was given back"


# Interrupted in the middle


class Reusing(Wire):
    """A planted bug: the kept connection is kept, whatever happened on it."""

    def call(self, call: Call) -> Any:
        try:
            line = self._kept.take()
        except IndexError:
            return super().call(call)
        try:
            words = "EVAL", call.script.body, len(call.keys), *call.keys, *call.args
            return line.ask(line.pack_command(*words))
        finally:
            self._kept.put(line)


class ReusingAsync(AsyncWire):
    """The same on asyncio."""

    async def call(self, call: Call) -> Any:
        try:
            line = self._kept.take()
        except IndexError:
            return await super().call(call)
        try:
            words = "EVAL", call.script.body, len(call.keys), *call.keys, *call.args
            return await line.ask(line.pack_command(*words))
        finally:
            self._kept.put(line)


@contextmanager
def interrupting(after: float) -> Iterator[None]:
    """Raise KeyboardInterrupt in this thread soon, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def first_words(replies: list[Any]) -> list[bytes]:
    return [reply[0] for reply in replies]


@pytest.mark.parametrize("bug", [False, True], ids=["right", "planted"])
def test_an_unread_reply_is_not_read_by_the_next(
    proxy: Proxy, redis_client: redis.Redis, bug: bool
) -> None:
    """After Ctrl-C each call would get the reply to the one before it."""
    with fencer.connect(proxy.url) as client:
        client.acquire("held", ttl=60)
        wire = (Reusing if bug else Wire)(client.client)
        assert wire.call(look("held"))[0] == b"HELD"
        proxy.delay(replies=0.6)
        with interrupting(0.2), pytest.raises(KeyboardInterrupt):
            wire.call(look("held"))
        proxy.delay()
        replies = first_words([wire.call(look(name)) for name in ("free", "held", "free")])
        assert (replies == [b"FREE", b"HELD", b"FREE"]) is not bug


@pytest.mark.parametrize("bug", [False, True], ids=["right", "planted"])
def test_an_unread_reply_of_a_cancelled_task(
    proxy: Proxy, redis_client: redis.Redis, bug: bool
) -> None:
    """After a cancellation each call would get the reply to the one before it."""

    async def main() -> list[bytes]:
        async with fencer.connect_async(proxy.url) as client:
            await client.acquire("held", ttl=60)
            wire = (ReusingAsync if bug else AsyncWire)(client.client)
            assert (await wire.call(look("held")))[0] == b"HELD"
            proxy.delay(replies=0.6)
            task = asyncio.create_task(wire.call(look("held")))
            await asyncio.wait([task], timeout=0.1)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            proxy.delay()
            names = ("free", "held", "free")
            return first_words([await wire.call(look(name)) for name in names])

    assert (asyncio.run(main()) == [b"FREE", b"HELD", b"FREE"]) is not bug


def test_a_renew_that_was_interrupted_blocks_no_other(
    proxy: Proxy, redis_client: redis.Redis
) -> None:
    """Ctrl-C in a renew would make all later ones of this lease wait for it."""
    with fencer.connect(proxy.url) as client:
        lease = client.acquire("orders", ttl=60)
        for _ in range(2):
            proxy.delay(replies=0.5)
            with interrupting(0.15), pytest.raises(KeyboardInterrupt):
                lease.renew()
            proxy.delay()
            lease.renew()
            assert client.inspect("orders").token == lease.token


# Many at once


@pytest.mark.parametrize("room", [100, 8, 4])
def test_threads_at_once(shared_server: Server, redis_client: redis.Redis, room: int) -> None:
    """Two threads on one connection would read each other's replies, or use up the pool."""

    def work(number: int) -> None:
        lease = client.acquire(f"order-{number}", ttl=60)
        for _ in range(60):
            lease.renew()
            status = client.inspect(f"order-{number}")
            assert (status.token, status.name) == (lease.token, f"order-{number}")
        assert lease.release()

    with fencer.connect(shared_server.unix_url, max_connections=room) as client:
        with ThreadPoolExecutor(12) as threads:
            list(threads.map(work, range(12)))
        assert len(client.client.connection_pool._in_use_connections) == (room > 4)
        line = line_of(client)
        client.acquire("orders").release()
        assert line_of(client) is line


def test_tasks_at_once(shared_server: Server, redis_client: redis.Redis) -> None:
    """The same for tasks."""

    async def work(client: fencer.AsyncFencer, number: int) -> None:
        lease = await client.acquire(f"order-{number}", ttl=60)
        for _ in range(30):
            await lease.renew()
            status = await client.inspect(f"order-{number}")
            assert (status.token, status.name) == (lease.token, f"order-{number}")
        assert await lease.release()

    async def main() -> None:
        async with fencer.connect_async(shared_server.unix_url) as client:
            await asyncio.gather(*(work(client, number) for number in range(20)))
            assert len(client.client.connection_pool._in_use_connections) == 1

    asyncio.run(main())


def test_only_one_has_it(shared_server: Server, redis_client: redis.Redis) -> None:
    """A second caller would send on a connection whose reply another one waits for."""
    with fencer.connect(shared_server.unix_url) as client:
        client.inspect("orders")
        kept = vars(client.client.connection_pool)["_fencer_kept"]
        line = kept.take()
        assert isinstance(line, Line)
        with pytest.raises(IndexError):
            kept.take()
        client.inspect("orders")
        assert line_of(client) is None, "no second one is kept meanwhile"
        kept.put(line)
        client.inspect("orders")
        assert line_of(client) is line


# Forks


FORKS = """
import os, sys, fencer
url, leave = sys.argv[1:]
client = fencer.connect(url)
kept = vars(client.client.connection_pool)["_fencer_kept"]
mine = client.acquire("parent", ttl=60)
inode = os.fstat(kept._free[-1]._sock.fileno()).st_ino

def work(lease, name, rounds):
    for _ in range(rounds):
        lease.renew()
        assert client.inspect(name).token == lease.token, name
        assert client.inspect("nothing").issued == 0, name

def child():
    assert not kept._free
    try:
        mine.renew()
    except fencer.LeaseLost as error:
        assert "fork" in str(error)
    else:
        raise AssertionError("a child renewed its parent's lease")
    lease = client.acquire("child", ttl=60)
    assert os.fstat(kept._free[-1]._sock.fileno()).st_ino != inode
    work(lease, "child", 100)
    assert lease.release()
    if leave == "close":
        client.close()

pid = os.fork()
if pid == 0:
    status = 1
    try:
        child()
        status = 0
    finally:
        if leave == "exit":
            sys.exit(status)
        os._exit(status)
work(mine, "parent", 100)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
work(mine, "parent", 20)
assert os.fstat(kept._free[-1]._sock.fileno()).st_ino == inode, "the parent's own went on"
assert mine.release()
client.close()
"""


@pytest.mark.parametrize("leave", ["exit", "kill", "close"])
def test_a_fork(shared_server: Server, redis_client: redis.Redis, leave: str) -> None:
    """Parent and child would write on one socket, and read each other's replies."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKS, shared_server.unix_url, leave],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fork_while_a_thread_waits(proxy: Proxy, redis_client: redis.Redis) -> None:
    """The child would find the connection missing for ever, or the parent's reply be lost."""
    with fencer.connect(proxy.url) as client:
        lease = client.acquire("orders", ttl=60)
        proxy.delay(replies=1.0)
        waiting = threading.Thread(target=lease.renew)
        waiting.start()
        await_true(lambda: line_of(client) is None)
        ready, done = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads, from Python 3.12 on
            pid = os.fork()
        if pid == 0:
            kept = vars(client.client.connection_pool)["_fencer_kept"]
            os.write(done, b"1" if kept._line is None and not kept._changing.locked() else b"0")
            os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(ready, 1) == b"1"
        os.close(ready)
        os.close(done)
        proxy.delay()
        waiting.join(PATIENCE)
        assert not waiting.is_alive()
        assert client.inspect("orders").token == lease.token


# What is built once


def test_a_renew_is_built_once(connect_threads: Connect, redis_client: redis.Redis) -> None:
    """Each renew would be packed anew; or one with another ttl still send the old one."""
    client = connect_threads()
    lease = client.acquire("orders", ttl=5)
    lease.renew()
    call = lease._renew_call()
    assert call.packed
    lease.renew()
    assert lease._renew_call() is call
    lease.renew(60)
    assert lease._renew_call() is not call
    assert redis_client.pttl("fencer:{orders}:lock") > 50_000
    lease.renew(5)
    lease.renew()
    assert redis_client.pttl("fencer:{orders}:lock") <= 5_000


def test_replies_in_pieces(client: fencer.Fencer, redis_client: redis.Redis) -> None:
    """A reply longer than one read would be an error, or be left half unread."""
    lease = client.acquire("orders", info={"note": "x" * 8_000})
    assert line_of(client) is not None
    for _ in range(3):
        assert client.inspect("orders").info["note"] == "x" * 8_000
        lease.renew()


def test_the_systems_timeout_is_taken_back(
    shared_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system keeps no timeouts, a call would block for ever."""

    class Stubborn(socket.socket):
        def setsockopt(self, *args: Any) -> None:
            raise OSError("no such option")

    ours, theirs = socket.socketpair()
    stubborn = Stubborn(fileno=ours.detach())
    with stubborn, theirs:
        stubborn.settimeout(0.05)
        _kept._block(stubborn, 0.05)
        with pytest.raises(TimeoutError):
            stubborn.recv(1)
