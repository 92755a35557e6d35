"""Fixtures: the clients under test. A test that takes ``connect`` or ``client`` runs on both APIs.

The asyncio client is driven from the test's thread: `Blocking` hands every coroutine to a loop in
another thread and waits for it, so that one text of tests serves both.

Where the second API adds nothing, for the code is shared, or makes no sense, a test is marked with
`on_threads`, or a module overrides `connect` by `connect_threads`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import pytest

import fencer
from fencer._lease import BaseLease
from fencer.embedded import Server

on_threads = pytest.mark.parametrize("connect", ["threads"], indirect=True)
"""The test runs on the API for threads alone; it takes ``connect`` or ``client`` as others do."""


class Connect(Protocol):
    """Opens a client, closed when the test ends: ``connect(url, **options of fencer.connect)``."""

    def __call__(self, url: str | None = None, **options: Any) -> fencer.Fencer: ...


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        left = self.run(self._left_over())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        assert not left, f"tasks were left behind: {left}"

    async def _left_over(self) -> list[str]:
        return [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]


class Blocking:
    """An object of the asyncio API, used as its twin for threads would be."""

    def __init__(self, twin: Any, loop: Loop) -> None:
        self._twin = twin
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        found = self._loop.run(self._attribute(name))
        if not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            return self._loop.run(self._result(found, *args, **options))

        return call

    async def _attribute(self, name: str) -> Any:
        return getattr(self._twin, name)

    async def _result(self, found: Any, *args: Any, **options: Any) -> Any:
        result = found(*args, **options)
        if isinstance(result, AsyncIterator):
            return iter([item async for item in result])
        if inspect.isawaitable(result):
            result = await result
        return Blocking(result, self._loop) if isinstance(result, fencer.AsyncLease) else result

    def __enter__(self) -> Any:
        self._loop.run(self._twin.__aenter__())
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._loop.run(self._twin.__aexit__(kind, error, trace))


def plain(lease: fencer.Lease) -> BaseLease:
    """The lease itself, which a guard takes: of asyncio's the tests see its `Blocking` only."""
    return lease._twin if isinstance(lease, Blocking) else lease


@contextmanager
def connecting(api: str, server: Server) -> Iterator[Connect]:
    """A maker of clients of one API; without a URL, on this server."""
    with ExitStack() as opened:
        if api == "asyncio":
            loop = Loop()
            opened.callback(loop.close)

        def make(url: str | None = None, **options: Any) -> Any:
            url = url or server.unix_url
            if api == "threads":
                return opened.enter_context(fencer.connect(url, **options))

            async def open_it() -> fencer.AsyncFencer:
                return fencer.connect_async(url, **options)

            return opened.enter_context(Blocking(loop.run(open_it()), loop))

        yield make


@pytest.fixture(params=["threads", "asyncio"])
def connect(request: pytest.FixtureRequest, shared_server: Server) -> Iterator[Connect]:
    """A maker of clients, of each API in turn; without a URL, on the shared server."""
    with connecting(request.param, shared_server) as make:
        yield make


@pytest.fixture
def connect_threads(shared_server: Server) -> Iterator[Connect]:
    """The same, for threads alone."""
    with connecting("threads", shared_server) as make:
        yield make


@pytest.fixture
def connect_asyncio(shared_server: Server) -> Iterator[Connect]:
    """The same, for asyncio alone."""
    with connecting("asyncio", shared_server) as make:
        yield make


@pytest.fixture
def client(connect: Connect, redis_client: object) -> fencer.Fencer:
    """A client on the shared server, which is empty when the test begins."""
    return connect()
