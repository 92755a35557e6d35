"""The end of a process, of an event loop, of a client: no thread, socket, lease or word is left."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
import weakref
from typing import Any

import pytest
import redis

import fencer
from fencer import LeaseLost, NotAcquired
from fencer.embedded import Server
from tests.faults.planted import twin
from tests.faults.processes import Worker
from tests.fix_api import Connect
from tests.keep import bugs
from tests.keep.helpers import calls, eventually, is_renewed, run

BEGIN = """
import asyncio, os, signal, sys, threading, time
import fencer
url = sys.argv[1]
"""

KEEPS = """
client = fencer.connect(url)
leases = [client.acquire(f"orders-{n}", ttl=60, keep_alive=True) for n in range(3)]
leases[0].on_lost(print)
"""

WAITS = """
waiter = fencer.connect(url)
for n in range(5):
    ask = dict(target=waiter.acquire, args=("orders-0",), kwargs=dict(wait=None, ttl=2.0))
    threading.Thread(**ask, daemon=True).start()
while client.inspect("orders-0").waiters < 5:
    time.sleep(0.01)
"""

ON_ASYNCIO = """
async def main():
    client = fencer.connect_async(url)
    for n in range(3):
        lease = await client.acquire(f"orders-{n}", ttl=60, keep_alive=True)
    lease.on_lost(print)
    for n in range(5):
        waiting.append(asyncio.create_task(client.acquire("orders-0", wait=None)))
    while (await client.inspect("orders-0")).waiters < 5:
        await asyncio.sleep(0.01)
    END
waiting = []
"""


def held(client: redis.Redis) -> list[object]:
    """What is held or waited for."""
    found: Any = client.keys("fencer:*")
    return [key for key in found if key.endswith((b":lock", b":queue", b":waiters"))]


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit()",
        "client.close()",
        "threading.Thread(target=time.sleep, args=(0.3,)).start()",
        "del client, leases",
    ],
)
@twin(bugs.releases_nothing_at_the_end)
def test_the_end_of_the_interpreter_releases(
    shared_server: Server, redis_client: redis.Redis, end: str
) -> None:
    """A script that ends would keep its successor waiting for a ttl, or print a traceback."""
    begun = time.monotonic()
    done = run(BEGIN + KEEPS + end, shared_server.unix_url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert held(redis_client) == []
    assert time.monotonic() - begun < 15


@twin(bugs.releases_nothing_at_the_end)
def test_an_uncaught_exception_releases(shared_server: Server, redis_client: redis.Redis) -> None:
    """A script that crashes in Python would keep its successor waiting for a ttl."""
    done = run(BEGIN + KEEPS + "print(1 / 0)", shared_server.unix_url)
    assert done.returncode == 1
    assert done.stderr.count("Error") == 1
    assert held(redis_client) == []


@twin(bugs.releases_nothing_at_the_end)
def test_the_end_with_waiters_in_daemon_threads(
    shared_server: Server, redis_client: redis.Redis
) -> None:
    """A program with waiting threads would hang at its end, or print their tracebacks."""
    done = run(BEGIN + KEEPS + WAITS, shared_server.unix_url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert b"fencer:{orders-1}:lock" not in held(redis_client), "the keeper has had its turn"
    with fencer.connect(shared_server.unix_url) as client:
        assert client.acquire("orders-0", wait=20).release(), "dead waiters are passed over"


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
@twin(bugs.failures_come_out_of_the_end)
def test_the_end_when_the_server_is_dead(server: Server, how: str) -> None:
    """A program whose server is away would hang at its end, or print a traceback."""
    end = f"os.kill({server.pid}, signal.{how}); print(time.monotonic())"
    done = run(BEGIN + KEEPS + end, server.unix_url)
    over = time.monotonic()
    assert (done.returncode, done.stderr) == (0, "")
    assert over - float(done.stdout) < 8, "seconds for a program to end"


@pytest.mark.parametrize("end", ["", "await client.close()", "sys.exit(0)", "client = None"])
@twin(bugs.releases_nothing_at_the_end)
def test_the_end_of_an_event_loop(
    shared_server: Server, redis_client: redis.Redis, end: str
) -> None:
    """asyncio.run would leave leases held, places in line, or complaints about tasks."""
    script = BEGIN + ON_ASYNCIO.replace("END", end) + "asyncio.run(main())\n"
    # If Python is strict, redis-py complains of a client that is not closed, or used once more.
    done = run(script, shared_server.unix_url, strict=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # A task that waited may be granted what its own client gives back on closing.
    served = [b"fencer:{orders-0}:lock"] if end == "await client.close()" else []
    assert [key for key in held(redis_client) if key not in served] == []


@twin(bugs.failures_come_out_of_the_end)
def test_the_end_of_an_event_loop_without_its_server(server: Server) -> None:
    """asyncio.run would hang, or complain, when the server has gone."""
    kill = f"os.kill({server.pid}, signal.SIGKILL)"
    script = BEGIN + ON_ASYNCIO.replace("END", kill) + "asyncio.run(main())\n"
    begun = time.monotonic()
    done = run(script, server.unix_url, strict=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - begun < 15


FORKS = """
import os, sys, time, fencer

url, end = args
client = fencer.connect(url)

def handle(do):
    global lease
    if do == "acquire":
        lease = client.acquire("orders", ttl=1.2, keep_alive=True)
        lease.on_lost(lambda reason: os._exit(9))
        return lease.token
    if do == "look":
        return [lease.valid, lease.lost.is_set()]
    child = os.fork()
    if child == 0:
        try:
            sys.stdin = open(os.devnull)
            assert not lease.valid
            mine = client.acquire("of the child", ttl=1.2, keep_alive=True)
            time.sleep(1.5)
            assert mine.valid
            if end == "exit":
                import atexit
                atexit._run_exitfuncs()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]
"""


@pytest.mark.parametrize("end", ["exit", "_exit"])
@twin(bugs.a_child_takes_itself_for_its_parent)
def test_a_child_keeps_its_own_and_not_its_parents(
    shared_server: Server, redis_client: redis.Redis, end: str
) -> None:
    """A forked worker would release, renew or lose its parent's lease, or could keep none."""
    with Worker(FORKS, shared_server.unix_url, end) as parent:
        parent.ask(do="acquire")
        assert parent.ask(do="fork") == 0
        time.sleep(1.0)
        assert parent.ask(do="look") == [True, False]
        lock = redis_client.exists("fencer:{of the child}:lock")
        assert lock == 0 or end == "_exit"


@twin(bugs.a_child_keeps_for_its_parent)
def test_after_a_fork_only_the_parent_renews(server: Server) -> None:
    """A child that lives on would keep the lease of a parent that has died."""
    with fencer.connect(server.unix_url) as client:
        lease = client.acquire("orders", ttl=3, keep_alive=0.3)
        child = os.fork()
        if child == 0:
            time.sleep(2.0)
            os._exit(0)
        try:
            lease.release()
            before = calls(server)
            time.sleep(1.2)
            assert calls(server) == before
        finally:
            os.waitpid(child, 0)


@twin(bugs.locks_before_it_looks_at_the_pid)
def test_a_child_waits_for_no_lock_of_its_parent(shared_server: Server) -> None:
    """A child would hang, if a thread of its parent was at the lease when it was forked."""
    at_it, over = threading.Event(), threading.Event()

    def be_at_it() -> None:
        with lease._changing:
            at_it.set()
            over.wait(60)

    with fencer.connect(shared_server.unix_url) as client:
        lease = client.acquire("orders", ttl=60)
        thread = threading.Thread(target=be_at_it)
        thread.start()
        at_it.wait(60)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(3)  # What hangs is killed, and that is its status.
            try:
                for ttl in (None, 30.0):
                    with pytest.raises(LeaseLost, match="fork"):
                        lease.renew(ttl)
                assert not lease.valid
                assert not lease.release()
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        over.set()
        thread.join()
        assert status == 0
        lease.renew()


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("fencer-")}


def connected(client: redis.Redis) -> int:
    shown = client.info("clients")
    assert isinstance(shown, dict)
    return int(shown["connected_clients"])


@twin(bugs.leaves_its_sockets_open)
def test_close_leaves_no_thread_and_no_socket(connect: Connect, server: Server) -> None:
    """A program that opens and closes clients would run out of threads or descriptors."""
    with redis.Redis.from_url(server.unix_url) as watcher:
        watcher.ping()
        client = connect(server.unix_url)
        lease = client.acquire("orders", ttl=0.5, keep_alive=True)
        lease.on_lost(print)
        with pytest.raises(NotAcquired):
            client.acquire("orders", wait=0.1)
        assert connected(watcher) > 1
        client.close()
        assert eventually(lambda: connected(watcher) == 1, 4)
    assert eventually(lambda: not threads(), 5)


@twin(bugs.threads_begin_once)
def test_without_work_there_are_no_threads(
    redis_client: redis.Redis, shared_server: Server
) -> None:
    """A client that keeps nothing would cost two threads for ever."""
    with fencer.connect(shared_server.unix_url) as client:
        for _ in range(3):
            with client.acquire("orders", keep_alive=True):
                assert {"fencer-keeper", "fencer-watcher"} <= threads()
            assert eventually(lambda: not threads(), 5)


@twin(bugs.keeps_nothing_after_a_close)
def test_a_client_of_ours_can_be_used_again(
    redis_client: redis.Redis, shared_server: Server
) -> None:
    """close() would leave a client that keeps nothing alive, or that does not hear its grants."""
    with redis.Redis.from_url(shared_server.unix_url) as driver:
        client = fencer.Fencer(driver)
        for _ in range(2):
            held = client.acquire("held", ttl=0.4)
            lease = client.acquire("orders", ttl=1.5, keep_alive=0.3)
            again = client.acquire("held", wait=5)
            assert is_renewed(lease)
            assert again.token > held.token
            again.release()
            client.close()
            assert not lease.valid


@twin(bugs.clients_are_known_for_ever)
def test_a_forgotten_client_goes(redis_client: redis.Redis, shared_server: Server) -> None:
    """A client that nobody closed would stay in memory with its threads and sockets."""
    client = fencer.connect(shared_server.unix_url)
    client.acquire("orders", ttl=0.6, keep_alive=True).release()
    client.acquire("orders", ttl=0.2)
    client.acquire("orders", wait=5).release()
    gone = weakref.ref(client)
    wakeups = weakref.ref(client._wakeups)
    del client
    gc.collect()
    assert gone() is None
    assert eventually(lambda: not threads(), 5)
    assert eventually(lambda: gc.collect() is None or wakeups() is None, 5)


@twin(bugs.remembers_what_it_dropped)
def test_a_dropped_client_needs_no_garbage_collector(
    redis_client: redis.Redis, shared_server: Server
) -> None:
    """Python would find its sockets first, and complain that nobody has closed them."""
    client = fencer.connect(shared_server.unix_url)
    leases = [client.acquire(f"orders-{n}", ttl=60, keep_alive=True) for n in range(3)]
    driver = weakref.ref(client.client)
    redis_client.script_flush()  # An error that is kept would keep all that stood on the stack.
    gc.collect()
    gc.disable()
    try:
        client._keeping.close()
        del client, leases
        assert eventually(lambda: driver() is None, 2)
    finally:
        gc.enable()


@twin(bugs.failures_come_out_of_the_end)
def test_close_while_the_server_is_silent(server: Server) -> None:
    """A service could not stop while its server hangs."""
    client = fencer.connect(server.unix_url)
    client.acquire("orders", ttl=60, keep_alive=True)

    def wait() -> None:
        with contextlib.suppress(fencer.FencerError):
            client.acquire("orders", wait=1.0)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.3)
    server.pause()
    begun = time.monotonic()
    try:
        client.close()
        took = time.monotonic() - begun
    finally:
        server.resume()
        waiter.join()
    assert took < 8


@twin(bugs.closing_forgets_who_comes)
def test_a_lease_that_comes_while_the_client_is_closed_is_kept(shared_server: Server) -> None:
    """It would end in silence: neither renewed, nor watched, nor released."""
    client = fencer.connect(shared_server.unix_url)
    over = threading.Event()
    leases: list[fencer.Lease] = []

    def acquire(part: int) -> None:
        number = 0
        while not over.is_set():
            leases.append(client.acquire(f"{part}-{number}", ttl=1, keep_alive=True))
            number += 1
            time.sleep(0.001)

    threads = [threading.Thread(target=acquire, args=(part,)) for part in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        time.sleep(0.02)
        client._keeping.close()
    over.set()
    for thread in threads:
        thread.join()
    kept = set(client._keeping._keeper.kept)
    assert all(lease in kept or "live" not in repr(lease) for lease in leases)
    client.close()
    assert all("live" not in repr(lease) for lease in leases)
