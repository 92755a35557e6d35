"""The drivers that are known: redis-py, and valkey-py, its twin with classes of its own.

What the two do differently stands here. valkey-py is used if the caller brings it along.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis.asyncio  # noqa: F401  looked up in sys.modules

from fencer.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver, as far as sending and listening need to know it.

    Attributes:
        any: the root of its exceptions.
        response: the server answered with an error.
        no_script: it does not know a script by its SHA.
        full: all connections of a bounded pool are in use.
        connection: takes one out of a pool; to be awaited with asyncio.
        reply: reads one within so many seconds; for threads.
    """

    any: type[Exception]
    response: type[Exception]
    no_script: type[Exception]
    full: type[Exception]
    connection: Callable[[Any], Any]
    reply: Callable[[Any, float], Any]


def driver_of(client: Any, *, tasks: bool) -> Driver:
    """The driver of a client; ``tasks`` if one for asyncio is wanted.

    Raises:
        InvalidArgument: it is no client of a known driver, or the one of the other kind, or not
            one for a primary.
    """
    for package, kind, driver in (("redis", "Redis", _redis), ("valkey", "Valkey", _valkey)):
        module = sys.modules.get(f"{package}.asyncio" if tasks else package)
        if module is not None and isinstance(client, getattr(module, kind)):
            if not getattr(client.connection_pool, "is_master", True):
                raise InvalidArgument(
                    "a client for replicas cannot hold leases: make it by Sentinel.master_for(...)"
                )
            return driver(sys.modules[f"{package}.exceptions"])
    raise InvalidArgument(_wanted("redis.asyncio.Redis" if tasks else "redis.Redis", client))


def _redis(raised: Any) -> Driver:
    return Driver(
        raised.RedisError,
        raised.ResponseError,
        raised.NoScriptError,
        raised.MaxConnectionsError,
        connection=lambda pool: pool.get_connection(),
        reply=lambda connection, seconds: connection.read_response(timeout=seconds),
    )


def _valkey(raised: Any) -> Driver:
    def reply(connection: Any, seconds: float) -> Any:
        if not connection.can_read(timeout=seconds):
            raise raised.TimeoutError("Timeout reading from socket")
        return connection.read_response()

    return Driver(
        raised.ValkeyError,
        raised.ResponseError,
        raised.NoScriptError,
        raised.MaxConnectionsError,
        connection=lambda pool: pool.get_connection("EVALSHA"),
        reply=reply,
    )


def stream_of(connection: Any) -> Any:
    """What a connection writes to: another one once it has been made anew; ``None``: nothing."""
    return getattr(connection, "_sock", None) or getattr(connection, "_writer", None)


def _wanted(kind: str, client: object) -> str:
    given = f"{type(client).__module__}.{type(client).__name__}"
    if hasattr(client, "master_for"):
        return (
            f"a {given} knows servers, and is no client of one: pass what its "
            '.master_for("the service\'s name") returns'
        )
    return (
        f"a {kind} client is wanted here, not {given}; "
        "fencer.connect(url) makes one for threads, fencer.connect_async(url) one for asyncio"
    )
