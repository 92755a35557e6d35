"""Shows a lease's token to servers behind `fencer.guards.http`, with httpx (extra ``http``).

    with httpx.Client(auth=FencingAuth(lease), base_url="http://stock.example") as client:
        client.put("/orders/1", json=order)  # StaleToken if a newer holder was there

`raise_for_fencing` takes the responses of other clients, too: those of requests, for one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any

import httpx

from fencer._lease import BaseLease
from fencer.errors import StaleToken
from fencer.guards.http import HEADER, PROBLEM, header
from fencer.sequencer import Sequencer

__all__ = ["FencingAuth", "raise_for_fencing"]


class FencingAuth(httpx.Auth):
    """Puts the token into each request, and raises `StaleToken` if it is refused.

    For ``auth=`` of a client or of one request, of httpx for threads or for asyncio. A redirect
    carries the header along, to other hosts as well; httpx follows none unless told to.

    Args:
        token: a lease, whose loss is then noticed before a request is sent; or a sequencer, or one
            packed already, or a bare token.
        key: seals the sequencer.

    Raises:
        InvalidArgument: it is no token, or the key cannot seal it.
        LeaseLost: (from a request) the lease has ended; nothing was sent.
        StaleToken: (from a request) the server's guard has refused the token, and its application
            has not seen the request.
    """

    def __init__(
        self, token: BaseLease | Sequencer | bytes | int, key: bytes | None = None
    ) -> None:
        self._lease = token if isinstance(token, BaseLease) else None
        self._header = header(token, key)

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Sign the request, and look at the response."""
        response = yield self._signed(request)
        if response.status_code == 412:
            response.read()
            raise_for_fencing(response)

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """The same for asyncio."""
        response = yield self._signed(request)
        if response.status_code == 412:
            await response.aread()
            raise_for_fencing(response)

    def _signed(self, request: httpx.Request) -> httpx.Request:
        if self._lease is not None:
            self._lease.check()
        request.headers[HEADER] = self._header
        return request


def raise_for_fencing(response: Any) -> None:
    """Raise `StaleToken` if the response says so; return otherwise, whatever else it says.

    Args:
        response: one that has been read, with ``status_code`` and ``json()`` as in httpx.

    Raises:
        StaleToken: a newer holder has been there; the application has not seen the request.
    """
    if response.status_code != 412:
        return
    try:
        problem = response.json()
        if problem["type"] != PROBLEM + "stale-token":
            return
        error = StaleToken(str(problem["resource"]), int(problem["token"]), int(problem["highest"]))
    except (ValueError, TypeError, KeyError):
        return  # Somebody else's precondition.
    raise error
