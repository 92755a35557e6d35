"""Guards in front of web applications: middleware for ASGI and WSGI, which needs no framework.

    from fencer.guards.http import FencingASGI

    app = FencingASGI(app, RedisGuard(client, "orders"))

A request shows its token in the header ``Fencing-Token``: a packed sequencer as base64url without
padding (`header` makes it), or a bare token as a decimal number where the guard has no keys. What
has no token that the guard accepts never reaches the application; it is answered with a problem of
RFC 9457 instead:

=====  ====================  ======================================================================
428    ``missing-token``     the request has no such header
400    ``malformed-token``   the header is no token, not sealed as it must be, or of another name
412    ``stale-token``       a newer holder has been here; with ``resource``, ``token``, ``highest``
503    ``unavailable``       the guard could not be asked
=====  ====================  ======================================================================

The check and what the application then does are two steps: a holder that is overtaken between them
still writes. To close that gap let the application show the token to the guard where it writes; it
finds it as ``scope["fencer.sequencer"]`` or ``environ["fencer.sequencer"]``, in a form that every
guard takes (packed ``bytes``, or an ``int``)::

    guard.execute(scope["fencer.sequencer"], "SET", "balance", "42")

Clients: see `fencer.guards.httpx`.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar, cast

from fencer import _check
from fencer._lease import BaseLease
from fencer.errors import InvalidArgument, StaleToken
from fencer.guards._base import AsyncGuard, Guard
from fencer.sequencer import Sequencer

__all__ = ["HEADER", "PROBLEM", "STATE", "FencingASGI", "FencingWSGI", "header"]

HEADER = "Fencing-Token"
"""The name of the header."""

STATE = "fencer.sequencer"
"""Where the application finds what the request showed, in the scope or in the environ."""

PROBLEM = "urn:fencer:problem:"
"""What the ``type`` of each problem begins with."""

_MAX_CHARS = 1_366
"""A sequencer has at most 1,024 bytes."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_NUMBER = re.compile(r"[1-9][0-9]{0,15}")
_PACKED = re.compile(r"[A-Za-z0-9_-]+")

logger = logging.getLogger("fencer")

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
WSGIApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
G = TypeVar("G", Guard, Guard | AsyncGuard)


def header(token: BaseLease | Sequencer | bytes | int, key: bytes | None = None) -> str:
    """Return what the header ``Fencing-Token`` is to say.

    Args:
        token: a lease or a sequencer, a sequencer packed already, or a bare token.
        key: seals the sequencer; see `Sequencer.pack`.

    Raises:
        InvalidArgument: it is no token; there is a key, and nothing that it could seal; or the key
            is too short.
    """
    if isinstance(token, BaseLease):
        token = token.sequencer()
    if isinstance(token, Sequencer):
        token = token.pack(key)
    elif key is not None:
        raise InvalidArgument("only a lease or a sequencer can be sealed here")
    if isinstance(token, bytes):
        return base64.urlsafe_b64encode(token).decode().rstrip("=")
    return str(_check.token(token))


class _Problem(NamedTuple):
    """An answer in place of the application's."""

    status: int
    phrase: str
    kind: str
    title: str
    detail: str
    about: dict[str, Any] = {}  # noqa: RUF012

    def body(self) -> bytes:
        fields = {"type": PROBLEM + self.kind, "title": self.title, "status": self.status}
        return json.dumps({**fields, "detail": self.detail, **self.about}).encode()

    def headers(self) -> list[tuple[str, str]]:
        return [
            ("Content-Type", "application/problem+json"),
            ("Content-Length", str(len(self.body()))),
            ("Cache-Control", "no-store"),
        ]


class _Refused(Exception):
    def __init__(self, problem: _Problem) -> None:
        self.problem = problem
        super().__init__(problem.detail)


class _Middleware(Generic[G]):
    """Which requests are guarded, what a header says, and what a guard's answer means."""

    def __init__(
        self,
        guard: G,
        methods: Collection[str] | None,
        when: Callable[[str, str], bool] | None,
    ) -> None:
        if isinstance(guard, type) or not isinstance(guard, Guard):
            raise InvalidArgument(f"{guard!r} is no guard: it lacks resource, check or highest")
        if isinstance(methods, str) or (methods is not None and when is not None):
            raise InvalidArgument('pass either methods, such as ["PUT", "DELETE"], or when')
        self._guard: G = guard
        self._methods = None if methods is None else frozenset(each.upper() for each in methods)
        self._when = when

    def _guarded(self, method: str, path: str) -> bool:
        if self._when is not None:
            return self._when(method, path)
        # Some frameworks take "put" for PUT.
        if self._methods is not None:
            return method.upper() in self._methods
        return method.upper() not in _SAFE

    def _shown(self, values: Sequence[str]) -> int | bytes:
        """Read the header; ``values`` are those of all fields of that name."""
        if not values:
            raise _Refused(
                _Problem(
                    *(428, "Precondition Required", "missing-token", "A fencing token is required"),
                    f"Show the token of your lease for {self._guard.resource!r} in {HEADER}.",
                )
            )
        if len(values) > 1:
            raise _malformed(f"There is more than one {HEADER}.")
        (value,) = values
        if len(value) <= _MAX_CHARS and _NUMBER.fullmatch(value):
            return int(value)
        if len(value) <= _MAX_CHARS and _PACKED.fullmatch(value) and len(value) % 4 != 1:
            packed = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
            if header(packed) == value:
                return packed
        raise _malformed(f"{HEADER} is neither a sequencer in base64url nor a decimal number.")

    def _answer(self, error: Exception) -> _Problem:
        """What it means that the guard, or the reading of the header, ended with an exception."""
        match error:
            case _Refused():
                return error.problem
            case StaleToken():
                return _Problem(
                    *(412, "Precondition Failed", "stale-token", "The fencing token is stale"),
                    str(error),
                    {
                        "resource": error.resource,
                        "token": error.token,
                        "highest": error.highest,
                    },
                )
            case InvalidArgument():
                return _malformed(f"{error}.").problem
        logger.error("the guard of %r could not be asked", self._guard.resource, exc_info=error)
        return _Problem(
            *(503, "Service Unavailable", "unavailable", "The guard could not be asked"),
            f"Whether the token is stale for {self._guard.resource!r} could not be found out. "
            "The request was not carried out.",
        )


class FencingASGI(_Middleware[Guard | AsyncGuard]):
    """Lets only requests of the newest holder through to an ASGI application.

    WebSockets and lifespan pass unguarded. See the module for the answers, and for what is not
    guaranteed.

    Args:
        app: the application.
        guard: any guard, which keeps the mark, so that several processes agree if they share it. A
            guard for threads is asked in one.
        methods: which methods are guarded; by default all but GET, HEAD and OPTIONS.
        when: instead of that, called with method and path: whether the request is guarded.

    Raises:
        InvalidArgument: an argument is not allowed.

    Cost:
        A check of the guard for each request that is guarded.
    """

    def __init__(
        self,
        app: ASGIApp,
        guard: Guard | AsyncGuard,
        *,
        methods: Collection[str] | None = None,
        when: Callable[[str, str], bool] | None = None,
    ) -> None:
        super().__init__(guard, methods, when)
        self._app = app
        self._is_async = inspect.iscoroutinefunction(guard.check)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] == "http" and self._guarded(scope["method"], scope["path"]):
            try:
                scope = {**scope, STATE: await self._accepted(scope)}
            except Exception as error:
                problem = self._answer(error)
                headers = [(n.lower().encode(), v.encode()) for n, v in problem.headers()]
                start = {"type": "http.response.start", "status": problem.status}
                await send({**start, "headers": headers})
                await send({"type": "http.response.body", "body": problem.body()})
                return
        await self._app(scope, receive, send)

    async def _accepted(self, scope: Scope) -> int | bytes:
        name = HEADER.lower().encode()
        token = self._shown([v.decode("latin-1") for n, v in scope["headers"] if n == name])
        if self._is_async:
            await cast(AsyncGuard, self._guard).check(token)
        else:
            await asyncio.to_thread(self._guard.check, token)
        return token


class FencingWSGI(_Middleware[Guard]):
    """The same for a WSGI application: see `FencingASGI`.

    Args:
        app: the application.
        guard: any guard for threads.
        methods: which methods are guarded; by default all but GET, HEAD and OPTIONS.
        when: instead of that, called with method and path: whether the request is guarded.

    Raises:
        InvalidArgument: an argument is not allowed.
    """

    def __init__(
        self,
        app: WSGIApp,
        guard: Guard,
        *,
        methods: Collection[str] | None = None,
        when: Callable[[str, str], bool] | None = None,
    ) -> None:
        super().__init__(guard, methods, when)
        if inspect.iscoroutinefunction(guard.check):
            raise InvalidArgument(f"the guard of {guard.resource!r} is one for asyncio")
        self._app = app

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Serve a request."""
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        if self._guarded(environ["REQUEST_METHOD"], path):
            found = environ.get("HTTP_" + HEADER.upper().replace("-", "_"))
            try:
                token = self._shown([] if found is None else [found])
                self._guard.check(token)
            except Exception as error:
                problem = self._answer(error)
                start_response(f"{problem.status} {problem.phrase}", problem.headers())
                return [problem.body()]
            environ = {**environ, STATE: token}
        return self._app(environ, start_response)


def _malformed(detail: str) -> _Refused:
    return _Refused(
        _Problem(400, "Bad Request", "malformed-token", "The fencing token is no good", detail)
    )
