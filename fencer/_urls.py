"""Clients of the driver, made from URLs. Every URL is read here.

``redis+sentinel://[user:password@]host:26379,host2:26379/service[/db][?options]`` names sentinels,
and the service whose primary they are asked for at each new connection. User, password, database
and options are those of the primary, as in the driver's own URLs; the sentinels' own login is given
by the options ``sentinel_username`` and ``sentinel_password``. With ``rediss+sentinel://`` both
talk TLS.

``redis+cluster://`` and ``rediss+cluster://`` are read by `fencer._cluster`.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any
from urllib.parse import unquote

import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel  # noqa: F401  reached through the module that is passed

from fencer._cluster import from_cluster_url, is_cluster_url
from fencer.embedded import Server
from fencer.errors import InvalidArgument

_SENTINEL = re.compile(r"(rediss?)\+sentinel://")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^][:@/]+)(?::(\d{1,5}))?")
_PORT = 26379

_PATIENCE = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}
"""Seconds for a sentinel that does not answer: the next one is asked then."""


def server_url(url: str | None, opened: contextlib.ExitStack) -> str:
    """The URL that was asked for; starts an embedded server for ``embedded:``."""
    url = url or os.environ.get("FENCER_URL")
    if url is not None and not isinstance(url, str):
        raise InvalidArgument(f"a URL is a str such as redis://localhost:6379/0, not {url!r}")
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
        options: for the driver; they go before those in the URL.

    Raises:
        InvalidArgument: the URL cannot be read, or the driver does not know an option.
    """
    if is_cluster_url(url):
        return from_cluster_url(driver.cluster, url, options)
    try:
        make = _by_sentinels if _SENTINEL.match(url) else driver_from_url
        client = make(driver, url, options)
        for each in (client, *sentinels_of(client)):
            pool = each.connection_pool
            pool.connection_class(**pool.connection_kwargs)
        return client
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"the URL or a driver option cannot be used: {error}") from error


def driver_from_url(driver: Any, url: str, options: dict[str, Any]) -> Any:
    """Make a client for a URL that the driver itself reads."""
    return driver.Redis.from_url(url, **options)


def sentinels_of(client: Any) -> list[Any]:
    """The driver's clients of the sentinels that a client asks; they are closed with it."""
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return list(manager.sentinels) if manager is not None else []


def _by_sentinels(driver: Any, url: str, options: dict[str, Any]) -> Any:
    scheme, _, rest = url.partition("+sentinel://")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    login, at, hosts = authority.rpartition("@")
    service, _, database = path.partition("/")
    if not service:
        raise ValueError("it names no service, as in redis+sentinel://host:26379/mymaster")
    if database and not database.isdecimal():
        raise ValueError("what follows the service's name must be the number of a database")
    addresses = [_address(place, host) for place, host in enumerate(hosts.split(","), 1)]
    read = driver.connection.parse_url(f"{scheme}://{login}{at}primary/{database}?{query}")
    for decided in ("host", "connection_class"):
        read.pop(decided, None)
    primary = {"db": 0, **read, **options}
    asked: dict[str, Any] = {**_PATIENCE}
    for key in ("username", "password"):
        if (value := primary.pop(f"sentinel_{key}", None)) is not None:
            asked[key] = value
    if scheme == "rediss":
        primary["ssl"] = True
    shared = {key: primary[key] for key in primary if key.startswith(("socket_", "ssl", "retry"))}
    sentinel = driver.sentinel.Sentinel(addresses, sentinel_kwargs={**asked, **shared}, **primary)
    return sentinel.master_for(unquote(service))


def _address(place: int, text: str) -> tuple[str, int]:
    # The text is not shown: a password with a slash in it could be read as an address.
    found = _HOST.fullmatch(text)
    port = int(found[2] or _PORT) if found else 0
    if found is None or not 0 < port < 65_536:
        raise ValueError(f"the address of sentinel {place} is not HOST or HOST:PORT")
    return unquote(found[1]).strip("[]"), port
