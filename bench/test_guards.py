"""The price of a guard: each write with and without one; ``pytest bench/test_guards.py``.

The token is known to the guard already, as it is for all writes of a holder but the first. The
unguarded write does as much for the data: a file is replaced as safely, memory is locked.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import httpx
import pytest
import redis
from pytest_benchmark.fixture import BenchmarkFixture

from fencer.bench import Place
from fencer.guards import FileGuard, MemoryGuard, RedisGuard
from fencer.guards.http import HEADER, FencingWSGI
from fencer.guards.s3 import S3Guard
from tests.fix_s3 import BUCKET, s3, s3_url

__all__ = ["s3", "s3_url"]

BODY = b"x" * 10_000
both = pytest.mark.parametrize("guarded", [False, True], ids=["unguarded", "guarded"])


class Quiet(WSGIRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@pytest.mark.benchmark(group="guard: memory")
@both
def test_memory(guarded: bool, benchmark: BenchmarkFixture) -> None:
    """An assignment under a lock."""
    lock, guard, value = threading.RLock(), MemoryGuard("orders"), {}

    def plain() -> None:
        with lock:
            value["orders"] = BODY

    def through() -> None:
        with guard.begin(5):
            value["orders"] = BODY

    _measure(through if guarded else plain, benchmark, 5_000)


@pytest.mark.benchmark(group="guard: file of 10 kB")
@both
def test_file(guarded: bool, tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """A file is replaced, and flushed to the disk."""
    path, fresh = tmp_path / "orders", tmp_path / "orders.new"
    guard = FileGuard(path)

    def plain() -> None:
        with fresh.open("wb") as file:
            file.write(BODY)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        folder = os.open(tmp_path, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    _measure((lambda: guard.write(5, BODY)) if guarded else plain, benchmark, 300)


@pytest.mark.benchmark(group="guard: Redis")
@pytest.mark.parametrize("way", ["unguarded", "execute", "script"])
def test_redis(way: str, place: Place, benchmark: BenchmarkFixture) -> None:
    """A ``SET``."""
    benchmark.extra_info.update(place.facts())
    with redis.Redis.from_url(place.url) as client:
        guard = RedisGuard(client, "orders")
        ways: dict[str, Callable[[], object]] = {
            "unguarded": lambda: client.set("orders", "42"),
            "execute": lambda: guard.execute(5, "SET", "orders", "42"),
            "script": lambda: guard.script(
                5, "return redis.call('SET', KEYS[1], ARGV[1])", keys=["orders"], args=[42]
            ),
        }
        _measure(ways[way], benchmark, 3_000)


@pytest.mark.benchmark(group="guard: S3 (moto)")
@both
def test_s3(guarded: bool, s3: Any, benchmark: BenchmarkFixture) -> None:
    """A put."""
    guard = S3Guard(s3, BUCKET, "orders")

    def plain() -> None:
        s3.put_object(Bucket=BUCKET, Key="orders", Body=BODY)

    def through() -> None:
        guard.put(5, BODY)

    _measure(through if guarded else plain, benchmark, 100)


@pytest.mark.benchmark(group="guard: HTTP (wsgiref)")
@both
def test_http(guarded: bool, benchmark: BenchmarkFixture) -> None:
    """A ``PUT``, and a guard in the server's memory."""
    app = FencingWSGI(_application, MemoryGuard("orders")) if guarded else _application
    with _served(app) as url, httpx.Client(headers={HEADER: "5"}, trust_env=False) as client:
        _measure(lambda: client.put(url), benchmark, 300)


def _measure(write: Callable[[], object], benchmark: BenchmarkFixture, rounds: int) -> None:
    benchmark.pedantic(write, rounds=rounds, warmup_rounds=rounds // 10)


def _application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("204 No Content", [])
    return []


@contextmanager
def _served(application: Any) -> Iterator[str]:
    with make_server("127.0.0.1", 0, application, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
