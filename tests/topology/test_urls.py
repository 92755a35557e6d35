"""What is read out of a URL of any kind, what is refused, and what an error may show of it."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

import fencer
from fencer import InvalidArgument, StoreError, StoreUnavailable
from tests.faults.planted import no_twin
from tests.fix_api import Connect
from tests.fix_cluster import Cluster
from tests.fix_servers import MakeServer

pytestmark = no_twin("it reads URLs")

APIS = pytest.mark.parametrize("api", ["threads", "asyncio"])

KINDS = {
    "redis": "{scheme}://{login}host:1/0",
    "unix": "unix://{login}/run/redis.sock",
    "redis+sentinel": "{scheme}://{login}one,two:2/primary/0",
    "redis+cluster": "{scheme}://{login}one:1,two:2",
}


def url_of(kind: str, login: str = "") -> str:
    """A URL of one kind."""
    return KINDS[kind.replace("rediss", "redis")].format(scheme=kind, login=login)


def opened(api: str, url: Any, **options: Any) -> Any:
    """The driver's client that comes of a URL; nothing is sent, except to a Cluster."""
    if api == "threads":
        with fencer.connect(url, **options) as client:
            return client.client

    async def open_it() -> Any:
        async with fencer.connect_async(url, **options) as client:
            return client.client

    return asyncio.run(open_it())


def told(client: Any) -> dict[str, Any]:
    """What connections of a client are made with."""
    if isinstance(client, redis.cluster.RedisCluster):
        return dict(client.get_connection_kwargs())
    if isinstance(client, redis.asyncio.cluster.RedisCluster):
        return dict(client.connection_kwargs)
    return dict(client.connection_pool.connection_kwargs)


def all_of(error: BaseException) -> str:
    """All that a log could show of an error."""
    return str(error) + repr(error) + "".join(traceback.format_exception(error))


# Passwords.

PIECES = "hush", "12345"


@APIS
@pytest.mark.parametrize("odd", ["/", "?", "#", "?x=", "/@", "@/", "?x=@", "#@"])
@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("kind", ["redis", "rediss", "unix", "redis+sentinel", "redis+cluster"])
def test_no_piece_of_a_password_is_shown(api: str, kind: str, piece: str, odd: str) -> None:
    """Half of a password would stand in a log, or be taken for a host and looked up in the DNS."""
    url = url_of(kind, f"secretary:{piece}{odd}{piece}@")
    with pytest.raises(InvalidArgument, match="%2F") as caught:
        opened(api, url)
    for secret in (*PIECES, "secretary"):
        assert secret not in all_of(caught.value)


@pytest.mark.parametrize("login", ["me:hush[hush]@", "me:[hush@", "me:hush\u2100@", "me:h@hush@"])
@pytest.mark.parametrize(
    ("api", "kind"),
    [
        ("threads", "redis"),
        ("asyncio", "redis"),
        ("asyncio", "redis+cluster"),  # On threads it asks at once.
    ],
)
def test_passwords_that_the_standard_library_shows(api: str, kind: str, login: str) -> None:
    """A password would be refused, and shown, for a bracket or a sign of Unicode in it."""
    assert told(opened(api, url_of(kind, login)))["password"] == login[3:-1]


@APIS
@pytest.mark.parametrize("kind", ["redis", "unix", "redis+sentinel", "redis+cluster"])
def test_an_encoded_login(api: str, kind: str, request: pytest.FixtureRequest) -> None:
    """What the error tells people to write would not be read, or not as it was meant."""
    url = url_of(kind, "m%40e:a%2Fb%3Fc%23d%40e%25f%3Ag+h@")
    if kind == "redis+cluster" and api == "threads":  # It asks at once.
        cluster: Cluster = request.getfixturevalue("cluster")
        with user(cluster, "m@e", "a/b?c#d@e%f:g+h"):
            url = cluster.url.replace("://", f"://{url.partition('://')[2].partition('@')[0]}@")
            client = opened(api, url)
    else:
        client = opened(api, url)
    assert told(client)["username"] == "m@e"
    assert told(client)["password"] == "a/b?c#d@e%f:g+h"


@APIS
@pytest.mark.parametrize("kind", KINDS)
def test_an_option_with_an_at_sign(api: str, kind: str) -> None:
    """A name with an @ would be refused; or, of half a password, be shown as an option's."""
    url = f"{url_of(kind)}?hush=me@home"
    with pytest.raises(InvalidArgument, match="%40") as caught:
        opened(api, url)
    assert "hush" not in all_of(caught.value)
    if kind != "redis+cluster":
        assert told(opened(api, f"{url_of(kind)}?client_name=me@home"))["client_name"] == "me@home"


@APIS
def test_a_url_of_another_type(api: str) -> None:
    """A password would be shown by who passes bytes."""
    with pytest.raises(InvalidArgument, match="bytes") as caught:
        opened(api, b"redis://me:hush@host")
    assert "hush" not in str(caught.value)


# Databases, hosts and options.


@APIS
@pytest.mark.parametrize("kind", ["redis", "rediss"])
@pytest.mark.parametrize(
    "path", ["abc", "primary", "1/2", "-1", "1x", "1_0", "9" * 5_000, "\u0663"]
)
def test_a_database_that_is_no_number(api: str, kind: str, path: str) -> None:
    """Database 0 would be used instead: two processes with two databases are two leaders."""
    with pytest.raises(InvalidArgument, match=r"number of a database.*\+sentinel://") as caught:
        opened(api, f"{kind}://host:26379/{path}")
    assert path == "1/2" or path not in str(caught.value), "it may be half of a password"


@APIS
@pytest.mark.parametrize(
    ("rest", "database"),
    [("", 0), ("/", 0), ("/0", 0), ("/7", 7), ("/7/", 7), ("/%37", 7), ("?db=7", 7), ("/7\n", 7)],
)
def test_databases(api: str, rest: str, database: int) -> None:
    """A database would be left out."""
    assert (told(opened(api, f"redis://host{rest}")).get("db") or 0) == database


@APIS
def test_the_path_of_a_socket(api: str) -> None:
    """The path of a socket would be taken for a database that is no number."""
    found = told(opened(api, "unix:///run/@abc%20d?db=7"))
    assert (found["path"], found["db"]) == ("/run/@abc d", 7)


@APIS
@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("redis://", None, None),
        ("redis://:7", None, 7),
        ("redis://one", "one", None),
        ("REDIS://one:7/0", "one", 7),
        (" redis://one:/0\n", "one", None),
        ("redis://o%6Ee:7", "one", 7),
        ("redis://[::1]:7/0", "::1", 7),
        ("redis://[fe80::1%25eth0]", "fe80::1%eth0", None),
    ],
)
def test_hosts(api: str, url: str, host: str | None, port: int | None) -> None:
    """An address that the driver reads would be refused, or lead elsewhere."""
    found = told(opened(api, url))
    assert (found.get("host"), found.get("port")) == (host, port)


MALFORMED = {
    "redis://one,two/0": "several sentinels",
    "redis://one:0": "address of the server",
    "redis://one:70000": "address of the server",
    "redis://one:many": "address of the server",
    "redis://one?db": "NAME=VALUE",
    "redis://one#2": "# has no meaning",
    "redis://one?password=a#b": "# has no meaning",
    "redis://one?retry=3": "retry",
    "redis+sentinel://one/primary?retry=3": "retry",
    "redis+cluster://one?x=1&retry=3": "retry",
    "redis://one?protocol=9": "cannot be used",
    "rediss://one?ssl_cert_reqs=x": "cannot be used",
    "unix://run/redis.sock": "unix:///run/redis.sock",
    "unix://": "unix:///run/redis.sock",
    "valkey://one": r"schemes redis://.*, redis\+cluster://",
    "me:hush@one:6379": "schemes",
    "redis+cluster://one,": "node 2",
    "redis+cluster://one:0": "node 1",
    "redis+cluster://one/3": "database 0 only",
    "redis+cluster://one?db=3": "database 0 only",
    " REDIS+CLUSTER://one/3\n": "database 0 only",
    " REDIS+SENTINEL://one\n": "names no service",
    "redis+cluster://one/primary": "database 0 only",
}


@APIS
@pytest.mark.parametrize("url", MALFORMED)
def test_a_malformed_url(api: str, url: str) -> None:
    """A slip would come out later, as something else, or lead to another server."""
    with pytest.raises(InvalidArgument, match=MALFORMED[url]) as caught:
        opened(api, url)
    assert "hush" not in str(caught.value)


# What goes before what.


@APIS
@pytest.mark.parametrize("kind", KINDS)
def test_the_url_goes_before_options(api: str, kind: str, request: pytest.FixtureRequest) -> None:
    """Whoever writes the URL could not change what a program, or we, have as defaults."""
    url = url_of(kind)
    if kind == "redis+cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        url = cluster.url
    options = {"socket_timeout": 1.0, "client_name": "program"}
    found = told(opened(api, f"{url}?socket_timeout=9", **options))
    assert (found["socket_timeout"], found["client_name"]) == (9.0, "program")


@APIS
def test_the_logins_go_by_the_same_rule(api: str) -> None:
    """A password that is kept out of URLs could not be given, or another one be used."""
    url = "redis+sentinel://one/primary"
    options = {"sentinel_password": "a", "password": "b", "db": 3}
    for query, first, second, db in (("", "a", "b", 3), ("?sentinel_password=c", "c", "b", 3)):
        client = opened(api, f"{url}{query}", **options)
        [sentinel] = client.connection_pool.sentinel_manager.sentinels
        assert told(sentinel)["password"] == first
        assert (told(client)["password"], told(client)["db"]) == (second, db)
    assert told(opened(api, f"{url}/5", db=3))["db"] == 5
    assert told(opened(api, "redis://:c@one/5", password="b", db=3))["password"] == "c"
    assert told(opened(api, "redis://one", password="b", db=3))["db"] == 3


# What a Cluster's nodes refuse.


@contextlib.contextmanager
def user(cluster: Cluster, name: str, password: str, *rules: str) -> Iterator[None]:
    """A user of all nodes of a cluster, who may do all but what the rules take away."""
    for node in cluster.living:
        node.do("ACL", "SETUSER", name, "on", f">{password}", "~*", "&*", "+@all", *rules)
    yield
    for node in cluster.living:
        node.do("ACL", "DELUSER", name)


@pytest.fixture
def refused(connect: Connect) -> Callable[[str], StoreError]:
    """How a Cluster's URL is refused, when it is connected to or at the first call."""

    def get(url: str) -> StoreError:
        with pytest.raises(StoreError) as caught:
            connect(url).acquire("orders", wait=20)
        assert not isinstance(caught.value, StoreUnavailable), caught.value
        assert "hush" not in str(caught.value)
        return caught.value

    return get


def test_a_login_that_nodes_refuse(
    make_server: MakeServer, refused: Callable[[str], StoreError]
) -> None:
    """A wrong password would look like an outage, which whoever waits or campaigns sits out."""
    server = make_server(persistence="none", settings={"requirepass": "secret"})
    error = refused(f"redis+cluster://:hush@127.0.0.1:{server.port}")
    assert error.code == "WRONGPASS"
    assert "check the URL" in str(error)
    assert refused(f"redis+cluster://127.0.0.1:{server.port}").code == "NOAUTH"
    assert refused(f"redis+cluster://127.0.0.1:{server.port}?protocol=2").code == "NOAUTH"


def test_a_server_that_is_no_node(
    make_server: MakeServer, refused: Callable[[str], StoreError]
) -> None:
    """Who put +cluster into the URL of a single server would be told that it is away."""
    server = make_server(persistence="none")
    assert "redis://host:port" in str(refused(f"redis+cluster://127.0.0.1:{server.port}"))


@pytest.mark.parametrize("command", ["cluster", "command"])
def test_a_command_that_nodes_do_not_allow(
    cluster: Cluster, refused: Callable[[str], StoreError], command: str
) -> None:
    """A permission that lacks would look like an outage, or come out as the driver's error."""
    with user(cluster, "poor", "x", f"-{command}"):
        error = refused(cluster.url.replace("://", "://poor:x@"))
    assert error.code == "NOPERM"


def test_a_node_without_slots(make_server: MakeServer, connect: Connect) -> None:
    """A cluster that is being set up would be told as a refusal, and nobody would try on."""
    server = make_server(persistence="none", settings={"cluster-enabled": "yes"})
    with pytest.raises(StoreUnavailable) as caught:
        connect(f"redis+cluster://127.0.0.1:{server.port}").acquire("orders")
    assert not caught.value.maybe_applied
