"""Clients of the driver, made from URLs. Every URL is read here.

``redis+sentinel://[user:password@]host:26379,host2:26379/service[/db][?options]`` names sentinels,
and the service whose primary they are asked for at each new connection. User, password, database
and options are those of the primary, as in the driver's own URLs; the sentinels' own login is given
by the options ``sentinel_username`` and ``sentinel_password``. With ``rediss+sentinel://`` both
talk TLS.

What a URL says goes before the options that are passed beside it, as in the driver: so defaults,
ours and those of a program, give way to whoever writes the URL.

Clients for ``redis+cluster://`` and ``rediss+cluster://`` are made by `fencer._cluster`.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any
from urllib.parse import unquote

import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel  # noqa: F401  reached through the module that is passed

from fencer._cluster import from_cluster_url, is_cluster_url
from fencer._url_parts import ENCODED, Parts, Unreadable, reading
from fencer.embedded import Server
from fencer.errors import InvalidArgument

_PORT = 26379

_PATIENCE = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}
"""Seconds for a sentinel that does not answer: the next one is asked then."""


def server_url(url: str | None, opened: contextlib.ExitStack) -> str:
    """The URL that was asked for; starts an embedded server for ``embedded:``."""
    url = url or os.environ.get("FENCER_URL")
    if url is not None and not isinstance(url, str):
        raise InvalidArgument(
            f"a URL is a str such as redis://localhost:6379/0, not {type(url).__name__}"
        )
    if not url:
        raise InvalidArgument(
            "no server is named: pass a URL such as redis://localhost:6379/0, or set FENCER_URL; "
            '"embedded:" starts a private server for a try'
        )
    return opened.enter_context(Server(port=0)).unix_url if url == "embedded:" else url


def from_url(driver: Any, url: str, options: dict[str, Any]) -> Any:
    """Make the driver's client, and connections that are thrown away: they check the options.

    Args:
        driver: the module ``redis`` or ``redis.asyncio``.
        url: what it is to connect to.
        options: for the driver; those in the URL go before them.

    Raises:
        InvalidArgument: the URL cannot be read, or the driver does not know an option.
        StoreError: no node of the Cluster answers, or it refused; it is asked at once by threads.
    """
    if is_cluster_url(url):
        return from_cluster_url(driver.cluster, url, options)
    with reading(url) as parts:
        make = _by_sentinels if parts.topology else _by_itself
        client = make(driver, parts, options)
        for each in (client, *sentinels_of(client)):
            pool = each.connection_pool
            pool.connection_class(**pool.connection_kwargs)
        return client


def _by_itself(driver: Any, parts: Parts, options: dict[str, Any]) -> Any:
    return driver.Redis.from_url(parts.for_driver_itself(), **options)


def sentinels_of(client: Any) -> list[Any]:
    """The driver's clients of the sentinels that a client asks; they are closed with it."""
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return list(manager.sentinels) if manager is not None else []


def _by_sentinels(driver: Any, parts: Parts, options: dict[str, Any]) -> Any:
    service, _, database = parts.path.removeprefix("/").partition("/")
    if not service:
        raise Unreadable(
            f"it names no service, as in redis+sentinel://host:26379/mymaster. {ENCODED}"
        )
    addresses = parts.addresses("sentinel", _PORT)
    database = parts.database(database)
    read = driver.connection.parse_url(parts.for_driver("primary", f"/{database}"))
    for decided in ("host", "connection_class"):
        read.pop(decided, None)
    primary = {"db": 0, **options, **read}
    asked: dict[str, Any] = {**_PATIENCE}
    for key in ("username", "password"):
        if (value := primary.pop(f"sentinel_{key}", None)) is not None:
            asked[key] = value
    if parts.scheme == "rediss":
        primary["ssl"] = True
    shared = {key: primary[key] for key in primary if key.startswith(("socket_", "ssl", "retry"))}
    sentinel = driver.sentinel.Sentinel(addresses, sentinel_kwargs={**asked, **shared}, **primary)
    return sentinel.master_for(unquote(service))
