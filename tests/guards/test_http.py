"""The guards in front of web applications, and the client's side, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast
from wsgiref.simple_server import WSGIRequestHandler, make_server

import httpx
import pytest
import redis
import redis.asyncio
import uvicorn

import fencer
from fencer.embedded import Server
from fencer.errors import InvalidArgument, LeaseLost, StaleToken, StoreUnavailable
from fencer.guards import AsyncRedisGuard, MemoryGuard, RedisGuard
from fencer.guards._base import Token
from fencer.guards.http import HEADER, STATE, FencingASGI, FencingWSGI, header
from fencer.guards.httpx import FencingAuth, raise_for_fencing
from fencer.sequencer import Sequencer
from tests.faults.planted import twin
from tests.faults.processes import Worker
from tests.guards import bugs

recorded = pytest.mark.usefixtures("history")

KEY = b"0123456789abcdef"
PROCESS = """
import threading
from wsgiref.simple_server import WSGIRequestHandler, make_server
import redis
from fencer.guards import RedisGuard
from fencer.guards.http import FencingWSGI

class Quiet(WSGIRequestHandler):
    def log_message(self, *words):
        pass

def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return []

guard = RedisGuard(redis.Redis.from_url(args[0]), "orders")
server = make_server("127.0.0.1", 0, FencingWSGI(app, guard), handler_class=Quiet)
threading.Thread(target=server.serve_forever, daemon=True).start()
def handle():
    return server.server_port
"""


@dataclass
class App:
    """An application that tells what it was shown."""

    seen: list[Any] = field(default_factory=list)

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope.get(STATE))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    def wsgi(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.seen.append(environ.get(STATE))
        start_response("200 OK", [("Content-Length", "4")])
        return [b"done"]


class Quiet(WSGIRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def wsgi_server(application: Any) -> Iterator[str]:
    with make_server("127.0.0.1", 0, application, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def asgi_server(application: Any) -> Iterator[str]:
    config = uvicorn.Config(
        application, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        until = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < until
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


Serve: TypeAlias = Callable[..., httpx.Client]


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture(params=["asgi", "wsgi"])
def serve(request: pytest.FixtureRequest, app: App) -> Iterator[Serve]:
    """Serves the application behind a guard; returns a client for it."""
    with ExitStack() as opened:

        def serve(guard: Any, **options: Any) -> httpx.Client:
            if request.param == "asgi":
                url = opened.enter_context(asgi_server(FencingASGI(app.asgi, guard, **options)))
            else:
                url = opened.enter_context(wsgi_server(FencingWSGI(app.wsgi, guard, **options)))
            return opened.enter_context(httpx.Client(base_url=url, trust_env=False))

        yield serve


@pytest.fixture
def guard() -> MemoryGuard:
    return MemoryGuard("orders")


def test_the_newest_holder_gets_through(serve: Serve, guard: MemoryGuard, app: App) -> None:
    """A good request would be refused, or the application could not show the token again."""
    sequencer = Sequencer("orders", 5, "ab" * 16, "host")
    client = serve(guard)
    for _ in range(2):
        reply = client.put("/", headers={HEADER: header(sequencer)})
        assert (reply.status_code, reply.text) == (200, "done")
    assert app.seen == [sequencer.pack()] * 2
    assert guard.highest() == 5
    assert client.post("/", headers={HEADER: "6"}).status_code == 200
    assert app.seen[-1] == 6


def test_a_stale_holder_does_not(serve: Serve, guard: MemoryGuard, app: App) -> None:
    """A stale request would reach the application, or its sender would not learn why."""
    guard.check(7)
    reply = serve(guard).delete("/", headers={HEADER: "5"})
    assert reply.status_code == 412
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.json() == {
        "type": "urn:fencer:problem:stale-token",
        "title": "The fencing token is stale",
        "status": 412,
        "detail": str(StaleToken("orders", 5, 7)),
        "resource": "orders",
        "token": 5,
        "highest": 7,
    }
    assert app.seen == []


def test_a_request_without_a_token_does_not(serve: Serve, guard: MemoryGuard, app: App) -> None:
    """A client that was never taught to show a token would write unguarded."""
    reply = serve(guard).put("/")
    assert reply.status_code == 428
    assert reply.json()["type"] == "urn:fencer:problem:missing-token"
    assert "orders" in reply.json()["detail"]
    assert app.seen == []


def test_reading_is_free(serve: Serve, guard: MemoryGuard, app: App) -> None:
    """Readers would need a lease."""
    client = serve(guard)
    for method in ("GET", "HEAD", "OPTIONS"):
        assert client.request(method, "/", headers={HEADER: "?"}).status_code == 200
    assert app.seen == [None] * 3
    for method in ("POST", "PUT", "PATCH", "DELETE", "PURGE", "put"):
        assert client.request(method, "/").status_code == 428


def test_which_requests_are_guarded_can_be_chosen(
    serve: Serve, guard: MemoryGuard, app: App
) -> None:
    """An application whose writes are elsewhere could not be guarded."""
    client = serve(guard, methods=["put"])
    assert client.post("/").status_code == 200
    assert client.put("/").status_code == 428
    assert client.request("put", "/").status_code == 428
    client = serve(guard, when=lambda method, path: path.startswith("/orders"))
    assert client.put("/stock").status_code == 200
    assert client.get("/orders/1").status_code == 428


_SEQUENCER = Sequencer("orders", 5, "ab" * 16, "host")


@pytest.mark.parametrize(
    "values",
    [
        [b""],
        [b"0"],
        [b"-5"],
        [b"5.0"],
        [b"+5"],
        [b"5, 5"],
        [b"5", b"5"],
        [b"5", b"6"],
        [b"007"],
        [b"9007199254740992"],
        [b"9" * 40],
        ["５".encode()],
        [b"\xff\xfe"],
        ["größe".encode()],
        [b"A"],
        [b"AAAAA"],
        [b"lQ"],
        [b"A" * 8_000],
        [b"1" * 8_000],
        [header(_SEQUENCER).encode() + b"=="],
        [header(_SEQUENCER).encode() + b"A"],
        [header(_SEQUENCER, KEY).encode()],
        [header(Sequencer("stock", 5, "ab" * 16, "host")).encode()],
        [base64.urlsafe_b64encode(b"x" * 1_024).rstrip(b"=")],
    ],
    ids=lambda values: repr(values)[:40],
)
def test_an_odd_header_is_malformed(
    serve: Serve, guard: MemoryGuard, app: App, values: list[bytes]
) -> None:
    """A header that can be read in two ways would pass for a token, or break the server."""
    client = serve(guard)
    reply = client.put("/", headers=[(HEADER.encode(), value) for value in values])
    assert reply.status_code == 400
    assert reply.json()["type"] == "urn:fencer:problem:malformed-token"
    assert (app.seen, guard.highest()) == ([], 0)
    assert client.put("/", headers={HEADER: "1"}).status_code == 200


def test_only_sealed_tokens_count_where_there_are_keys(serve: Serve, app: App) -> None:
    """Anybody could invent a huge token, and lock the real holder out."""
    guard = MemoryGuard("orders", keys=[KEY, b"the key of before"])
    client = serve(guard)
    for shown in ("6", header(_SEQUENCER), header(_SEQUENCER, b"another key 0123")):
        assert client.put("/", headers={HEADER: shown}).status_code == 400
    assert app.seen == []
    for key in (KEY, b"the key of before"):
        assert client.put("/", headers={HEADER: header(_SEQUENCER, key)}).status_code == 200
    guard.check(app.seen[0])  # as the application itself may do
    assert guard.highest() == 5


@twin(bugs.http_tells_strangers)
@recorded
def test_a_guard_that_cannot_be_asked_lets_nobody_through(
    serve: Serve, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage of the store would switch the guard off, or tell strangers about it."""

    class Out(MemoryGuard):
        error: Exception = StoreUnavailable("no answer from 10.0.0.1", maybe_applied=False)

        def check(self, token: Token) -> None:
            raise self.error

    guard = Out("orders")
    client = serve(guard)
    for error in (guard.error, OSError("disk full at 10.0.0.1")):
        guard.error = error
        reply = client.put("/", headers={HEADER: "5"})
        assert reply.status_code == 503
        assert reply.json()["type"] == "urn:fencer:problem:unavailable"
        assert "10.0.0.1" not in reply.text
        assert "10.0.0.1" in caplog.text
        caplog.clear()
    assert app.seen == []


def test_a_guard_for_asyncio_serves_asgi(shared_server: Server, redis_client: object) -> None:
    """The mark could only be kept by blocking a thread for each request."""
    app = App()

    async def run() -> None:
        client = redis.asyncio.Redis.from_url(shared_server.unix_url)
        guarded = FencingASGI(app.asgi, AsyncRedisGuard(client, "orders"))
        transport = httpx.ASGITransport(app=cast(Any, guarded))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as web:
            assert (await web.put("/", headers={HEADER: "5"})).status_code == 200
            assert (await web.put("/", headers={HEADER: "4"})).status_code == 412
        await client.aclose()

    asyncio.run(run())
    assert app.seen == [5]


def test_a_slow_guard_for_threads_does_not_stop_the_server(app: App) -> None:
    """One slow check would hold up every other request."""
    going = threading.Event()

    class Slow(MemoryGuard):
        def check(self, token: Token) -> None:
            assert going.wait(10)

    with asgi_server(FencingASGI(app.asgi, Slow("orders"))) as url, httpx.Client() as client:
        replies: list[int] = []

        def put() -> None:
            replies.append(httpx.put(url, headers={HEADER: "5"}).status_code)

        thread = threading.Thread(target=put)
        thread.start()
        assert client.get(url).status_code == 200
        going.set()
        thread.join()
    assert replies == [200]


@twin(bugs.redis_mark_in_the_process)
@recorded
def test_several_processes_share_one_mark(shared_server: Server, redis_client: redis.Redis) -> None:
    """A stale holder would only have to ask another process of the service."""
    with ExitStack() as opened:
        workers = [opened.enter_context(Worker(PROCESS, shared_server.unix_url)) for _ in range(3)]
        urls = [f"http://127.0.0.1:{worker.ask()}" for worker in workers]
        client = opened.enter_context(httpx.Client(trust_env=False))
        for token in range(1, 31):
            assert client.put(urls[token % 3], headers={HEADER: str(token)}).status_code == 200
            for url in urls:
                reply = client.put(url, headers={HEADER: str(max(1, token - 1))})
                assert reply.status_code == (200 if token == 1 else 412)
    assert RedisGuard(redis_client, "orders").highest() == 30


def test_other_scopes_pass(guard: MemoryGuard) -> None:
    """A server that starts up, or opens a WebSocket, would find no application."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def run() -> None:
        nothing = cast(Callable[..., Awaitable[Any]], None)
        for kind in ("lifespan", "websocket"):
            await FencingASGI(app, guard)({"type": kind}, nothing, nothing)

    asyncio.run(run())
    assert seen == ["lifespan", "websocket"]


def test_what_is_no_guard_is_refused(guard: MemoryGuard, app: App) -> None:
    """Each request would be answered with a 503."""
    for wrong in (None, MemoryGuard, app):
        with pytest.raises(InvalidArgument, match="no guard"):
            FencingWSGI(app.wsgi, cast(Any, wrong))
    with pytest.raises(InvalidArgument, match="one for asyncio"):
        FencingWSGI(app.wsgi, cast(Any, AsyncRedisGuard(redis.asyncio.Redis(), "orders")))
    with pytest.raises(InvalidArgument, match="methods"):
        FencingASGI(app.asgi, guard, methods="PUT")
    with pytest.raises(InvalidArgument, match="when"):
        FencingASGI(app.asgi, guard, methods=["PUT"], when=lambda method, path: True)


def test_the_client_shows_its_lease(client: fencer.Fencer, serve: Serve, app: App) -> None:
    """The two sides would not understand each other."""
    guard = MemoryGuard("orders", keys=[KEY])
    web = serve(guard)
    lease = client.acquire("orders")
    sequencer = lease.sequencer()
    for auth in (FencingAuth(cast(Any, sequencer), KEY), FencingAuth(sequencer.pack(KEY))):
        assert web.put("/", auth=auth).status_code == 200
    assert guard.highest() == lease.token

    newer = fencer.Sequencer("orders", lease.token + 1, "cd" * 16, "host")
    guard.check(newer.pack(KEY))
    with pytest.raises(StaleToken) as caught:
        web.put("/", auth=FencingAuth(sequencer, KEY))
    assert (caught.value.resource, caught.value.token) == ("orders", lease.token)
    assert caught.value.highest == lease.token + 1
    assert len(app.seen) == 2


def test_a_client_without_its_lease_sends_nothing(
    redis_client: object, shared_server: Server, serve: Serve, guard: MemoryGuard, app: App
) -> None:
    """A holder that could know of its loss would leave it to the server to find out."""
    web = serve(guard)
    with fencer.connect(shared_server.unix_url) as store:
        lease = store.acquire("orders")
        auth = FencingAuth(lease)
        assert web.put("/", auth=auth).status_code == 200
        lease.release()
        with pytest.raises(LeaseLost):
            web.put("/", auth=auth)
    assert len(app.seen) == 1


def test_the_client_for_asyncio_hears_of_it_too(serve: Serve, guard: MemoryGuard) -> None:
    """One of httpx's two clients would pass a refusal over."""
    guard.check(7)
    url = serve(guard).base_url

    async def run() -> None:
        async with httpx.AsyncClient(auth=FencingAuth(5), trust_env=False) as web:
            with pytest.raises(StaleToken):
                await web.put(url)
            with pytest.raises(StaleToken):
                async with web.stream("PUT", url):
                    pass

    asyncio.run(run())


def test_a_precondition_of_others_is_left_to_them() -> None:
    """An ETag that did not match would pass for a lost lease."""
    for reply in (
        httpx.Response(412),
        httpx.Response(412, json=["x"]),
        httpx.Response(412, json={"type": "about:blank", "token": 1, "highest": 2}),
        httpx.Response(412, json={"type": "urn:fencer:problem:stale-token"}),
        httpx.Response(200, json={}),
    ):
        raise_for_fencing(reply)


@pytest.mark.parametrize("wrong", [0, True, "5", None])
def test_what_cannot_be_shown_is_refused(wrong: Any) -> None:
    """A client would only learn from the server what it could have known."""
    with pytest.raises(InvalidArgument):
        header(wrong)
    with pytest.raises(InvalidArgument, match="sealed"):
        header(5, KEY)
