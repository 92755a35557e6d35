"""What cannot be meant is refused before anything is sent; what is just allowed works.

The refusals are tried where nobody listens: whatever was sent would raise `StoreUnavailable`. All
of it is tried on threads; asyncio shares the checks, and is tried once for each method.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fencer
from fencer import InvalidArgument
from fencer.guards import RedisGuard
from tests.fix_api import Connect

Use = Callable[[fencer.Fencer, Any], object]


@pytest.fixture
def connect(connect_threads: Connect) -> Connect:
    """Threads alone, for all tests of this module."""
    return connect_threads


@pytest.fixture
def nowhere() -> Iterator[str]:
    """The URL of a port on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}/0"


@pytest.fixture
def nobody(connect: Connect, nowhere: str) -> fencer.Fencer:
    """A client of nobody."""
    return connect(nowhere)


NAMES = [
    pytest.param("", id="empty"),
    pytest.param("a" * 513, id="too long"),
    pytest.param("ü" * 257, id="too long in UTF-8"),
    pytest.param("\ud800", id="lone surrogate"),
    pytest.param("a\udc80b", id="undecodable byte"),
    pytest.param("{", id="opening brace"),
    pytest.param("}", id="closing brace"),
    pytest.param("a{b}c", id="braces"),
    pytest.param("a\nb", id="line feed"),
    pytest.param("a\r", id="carriage return"),
    pytest.param("\x00", id="NUL"),
    pytest.param("\x7f", id="DEL"),
    pytest.param("\x85", id="C1 control"),
    pytest.param(b"orders", id="bytes"),
    pytest.param(5, id="int"),
    pytest.param(None, id="None"),
    pytest.param(["orders"], id="list"),
]
WITH_A_NAME: dict[str, Use] = {
    "acquire": lambda client, name: client.acquire(name),
    "inspect": lambda client, name: client.inspect(name),
    "revoke": lambda client, name: client.revoke(name),
    "advance": lambda client, name: client.advance(name, 5),
    "history": lambda client, name: client.history(name),
    "guard": lambda client, name: RedisGuard(client.client, name),
    "namespace": lambda client, name: fencer.Fencer(client.client, namespace=name),
}


@pytest.mark.parametrize("use", WITH_A_NAME)
@pytest.mark.parametrize("name", NAMES)
def test_names(nobody: fencer.Fencer, use: str, name: Any) -> None:
    """A name would fall into another slot, end a line of a log, or be cut."""
    with pytest.raises(InvalidArgument) as caught:
        WITH_A_NAME[use](nobody, name)
    assert isinstance(caught.value, ValueError)


TTLS = [
    pytest.param(0, id="zero"),
    pytest.param(-1, id="negative"),
    pytest.param(-0.0, id="minus zero"),
    pytest.param(math.nan, id="NaN"),
    pytest.param(math.inf, id="infinite"),
    pytest.param(-math.inf, id="minus infinite"),
    pytest.param(0.0009, id="below a millisecond"),
    pytest.param(0.0099, id="below the least"),
    pytest.param(604_800.001, id="above the top"),
    pytest.param(10**400, id="above every float"),
    pytest.param(True, id="bool"),
    pytest.param("10", id="str"),
    pytest.param(None, id="None"),
    pytest.param(10j, id="complex"),
]


@pytest.mark.parametrize("ttl", TTLS)
def test_ttls(nobody: fencer.Fencer, ttl: Any) -> None:
    """A lease would end at once, or never."""
    with pytest.raises(InvalidArgument, match="ttl"):
        nobody.acquire("orders", ttl=ttl)


@pytest.mark.parametrize("ttl", [ttl for ttl in TTLS if ttl.id != "None"])
def test_ttls_of_a_renewal(client: fencer.Fencer, ttl: Any) -> None:
    """A slip in renew would cost the holder its lease."""
    lease = client.acquire("orders", ttl=30)
    with pytest.raises(InvalidArgument, match="ttl"):
        lease.renew(ttl=ttl)
    assert lease.valid
    assert lease.ttl == 30


@pytest.mark.parametrize(
    "wait", [-1, -0.001, math.nan, math.inf, pytest.param(10**400, id="huge"), True, "5"]
)
def test_waits(nobody: fencer.Fencer, wait: Any) -> None:
    """A caller would wait for ever, or not at all."""
    with pytest.raises(InvalidArgument, match="wait"):
        nobody.acquire("orders", wait=wait)


def nested(depth: int) -> dict[str, Any]:
    """An info so many levels deep."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def endless() -> dict[str, Any]:
    """An info that contains itself."""
    value: dict[str, Any] = {}
    value["a"] = value
    return value


@pytest.mark.parametrize(
    "info",
    [
        pytest.param({"a": {1, 2}}, id="set"),
        pytest.param({"a": b"bytes"}, id="bytes"),
        pytest.param({"a": object()}, id="object"),
        pytest.param({"a": math.nan}, id="NaN"),
        pytest.param({"a": [{"b": math.inf}]}, id="infinite, deep inside"),
        pytest.param({"a": "\ud800"}, id="lone surrogate"),
        pytest.param({"\ud800": 1}, id="lone surrogate in a key"),
        pytest.param({5: "a"}, id="int key"),
        pytest.param({None: "a"}, id="None key"),
        pytest.param({"a": "x" * 8192}, id="too large"),
        pytest.param({"a": "ü" * 4093}, id="too large in UTF-8"),
        pytest.param({"a": 10**5000}, id="a number beyond all bounds"),
        pytest.param(nested(33), id="too deep"),
        pytest.param(nested(20_000), id="far too deep"),
        pytest.param({"a": [[[[]]] * 9] * 9, "b": [nested(33)]}, id="too deep in a list"),
        pytest.param(endless(), id="endless"),
        pytest.param([("a", 1)], id="list"),
        pytest.param("{}", id="str"),
        *[
            pytest.param({field: 1}, id=field)
            for field in ("holder", "host", "pid", "grant", "ttl", "token", "since")
        ],
    ],
)
def test_infos(nobody: fencer.Fencer, info: Any) -> None:
    """The info key would not be JSON, not ours, or of any size."""
    with pytest.raises(InvalidArgument, match="info"):
        nobody.acquire("orders", info=info)


NUMBERS = [
    pytest.param(0, id="zero"),
    pytest.param(-5, id="negative"),
    pytest.param(1.5, id="fraction"),
    pytest.param(5.0, id="float"),
    pytest.param(math.nan, id="NaN"),
    pytest.param(2**53, id="2^53"),
    pytest.param(2**63, id="2^63"),
    pytest.param(10**5000, id="beyond all bounds"),
    pytest.param(True, id="bool"),
    pytest.param("5", id="str"),
]


@pytest.mark.parametrize("number", NUMBERS)
def test_tokens(nobody: fencer.Fencer, number: Any) -> None:
    """A token that nobody issued would end a lease, or lock every holder out."""
    with pytest.raises(InvalidArgument):
        nobody.revoke("orders", number)
    with pytest.raises(InvalidArgument):
        nobody.advance("orders", number)
    with pytest.raises(InvalidArgument):
        RedisGuard(nobody.client, "orders").check(number)
    with pytest.raises(InvalidArgument):
        fencer.Sequencer("orders", number, "a" * 32, "me")


@pytest.mark.parametrize("beyond", [2**53 - 2**32 + 1, 2**53 - 1, None])
def test_advance_leaves_room(nobody: fencer.Fencer, beyond: Any) -> None:
    """A name would have no token left after one slip."""
    with pytest.raises(InvalidArgument):
        nobody.advance("orders", beyond)


@pytest.mark.parametrize("count", [0, -1, 1.5, 1_000_001, True, "5"])
def test_history_counts(nobody: fencer.Fencer, count: Any) -> None:
    """A count of 0 or less would be read as another one."""
    with pytest.raises(InvalidArgument, match="count"):
        nobody.history("orders", count=count)


@pytest.mark.parametrize(
    "options",
    [
        {"holder": ""},
        pytest.param({"holder": "h" * 256}, id="long holder"),
        pytest.param({"holder": "ü" * 128}, id="long holder in UTF-8"),
        {"holder": "a\nb"},
        {"holder": "\ud800"},
        {"holder": 5},
        {"holder": b"me"},
        {"tokens": "random"},
        {"tokens": None},
        {"keep": 0},
        {"keep": 0.5},
        {"keep": -1},
        {"keep": math.nan},
        {"keep": math.inf},
        {"keep": "5"},
        {"keep": 11 * 365 * 86_400},
        {"history": 0},
        {"history": -1},
        {"history": 1.5},
        {"history": 1_000_001},
    ],
    ids=repr,
)
def test_options(nobody: fencer.Fencer, options: Any) -> None:
    """A client would work with settings that mean something else."""
    with pytest.raises(InvalidArgument, match=next(iter(options))):
        fencer.Fencer(nobody.client, **options)
    with pytest.raises(InvalidArgument):
        fencer.connect("redis://localhost:1/0", **options)


@pytest.mark.parametrize("client", ["redis://localhost", None, 5, redis.Redis], ids=repr)
def test_what_is_no_client(client: Any) -> None:
    """A URL in the place of a client would fail much later."""
    with pytest.raises(InvalidArgument, match=r"fencer\.connect"):
        fencer.Fencer(client)


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "localhost:6379",
        "http://localhost",
        "redis:/localhost",
        "://",
        "redis://localhost:port/0",
        "redis://localhost:70000/0",
        "redis://[::1/0",
        "redis://localhost?socket_timeout=soon",
        "embedded",
        5,
        b"redis://localhost",
    ],
    ids=repr,
)
def test_urls(url: Any) -> None:
    """A slip in the URL would end in a traceback of the driver, or in another server."""
    with pytest.raises(InvalidArgument):
        fencer.connect(url)


def test_driver_options() -> None:
    """A slip in an option would come out at the first use, as a TypeError."""
    with pytest.raises(InvalidArgument, match="no_such_option"):
        fencer.connect("redis://localhost:1/0", no_such_option=1)


# The same checks on asyncio.

SLIPS: dict[str, Callable[[fencer.Fencer], object]] = {
    "acquire, name": lambda client: client.acquire(""),
    "acquire, ttl": lambda client: client.acquire("orders", ttl=0),
    "acquire, wait": lambda client: client.acquire("orders", wait=-1),
    "acquire, keep_alive": lambda client: client.acquire("orders", ttl=10, keep_alive=6),
    "acquire, info": lambda client: client.acquire("orders", info={"holder": 1}),
    "inspect": lambda client: client.inspect("{"),
    "revoke, name": lambda client: client.revoke("a\nb"),
    "revoke, token": lambda client: client.revoke("orders", 0),
    "advance, name": lambda client: client.advance("", 5),
    "advance, beyond": lambda client: client.advance("orders", 0),
    "history, name": lambda client: client.history(""),
    "history, count": lambda client: client.history("orders", count=0),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_asyncio_checks_as_well(connect_asyncio: Connect, nowhere: str, slip: str) -> None:
    """A method of the twin would pass on what it was given."""
    with pytest.raises(InvalidArgument):
        SLIPS[slip](connect_asyncio(nowhere))


@pytest.mark.parametrize("ttl", TTLS[:2])
def test_asyncio_checks_the_ttl_of_a_renewal(
    connect_asyncio: Connect, redis_client: redis.Redis, ttl: Any
) -> None:
    """A slip in renew would cost the holder its lease."""
    lease = connect_asyncio().acquire("orders", ttl=30)
    with pytest.raises(InvalidArgument, match="ttl"):
        lease.renew(ttl=ttl)
    assert lease.valid


@pytest.mark.parametrize(
    "options", [{"holder": ""}, {"tokens": "random"}, {"keep": 0}, {"no_such_option": 1}], ids=repr
)
def test_asyncio_checks_its_options(options: Any) -> None:
    """A client would work with settings that mean something else."""
    with pytest.raises(InvalidArgument, match=next(iter(options))):
        fencer.connect_async("redis://localhost:1/0", **options)


@pytest.mark.parametrize("url", ["localhost", "redis://localhost:port/0", 5], ids=repr)
def test_asyncio_checks_the_url(url: Any) -> None:
    """A slip in the URL would end in a traceback of the driver."""
    with pytest.raises(InvalidArgument):
        fencer.connect_async(url)


@pytest.mark.parametrize("kind", [None, redis.Redis], ids=["None", "redis.Redis"])
def test_asyncio_wants_a_client_of_asyncio(kind: Any) -> None:
    """A client for threads would fail much later."""
    with pytest.raises(InvalidArgument, match=r"fencer\.connect_async"):
        fencer.AsyncFencer(kind and kind())


# What is just allowed.


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a" * 512, id="long"),
        pytest.param("ü" * 256, id="long-2"),
        pytest.param("🦭" * 128, id="long-4"),
        "a b",
        "a:b",
        "*",
        "[a]?",
        "\\",
        '"',
        "'",
        "%s",
        "\u2028",
        "\u200b",
        " ",
        "lock",
        "-1",
    ],
    ids=ascii,
)
def test_names_that_are_allowed(
    client: fencer.Fencer, redis_client: redis.Redis, name: str
) -> None:
    """A name that the documents allow would not work everywhere."""
    guard = RedisGuard(redis_client, name)
    with client.acquire(name) as lease:
        lease.renew()
        guard.check(lease)
        assert guard.execute(lease.sequencer(), "PING") == b"PONG"
        assert client.inspect(name).token == lease.token
        assert list(client.names()) == [name]
    assert client.acquire(name).token > lease.token
    assert client.revoke(name)
    assert client.history(name)[-1].event == "revoke"


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="{}"),
        min_size=1,
        max_size=128,
    ),
    info=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=9).filter(
            lambda key: key not in ("holder", "host", "pid", "grant", "ttl", "token", "since")
        ),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters(codec="utf-8"), max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.text(st.characters(codec="utf-8"), max_size=9), inner, max_size=3
                )
            ),
            max_leaves=8,
        ),
        max_size=4,
    ),
)
def test_whatever_is_allowed_works(
    client: fencer.Fencer, redis_client: redis.Redis, name: str, info: dict[str, Any]
) -> None:
    """Some letter, number or nesting would break a key, the JSON or a pattern in a script."""
    lease = client.acquire(name, info=info)
    shown = client.inspect(name).info
    assert {key: shown[key] for key in info} == info
    lease.renew(ttl=20)
    assert {key: client.inspect(name).info[key] for key in info} == info
    assert client.revoke(name) == lease.token
    assert client.acquire(name, info=info).release()
    assert not client.inspect(name).held
    assert not redis_client.exists(f"fencer:{{{name}}}:info", f"fencer:{{{name}}}:lock")


@pytest.mark.parametrize("ttl", [0.01, 0.0105])
def test_the_shortest_ttls(client: fencer.Fencer, redis_client: redis.Redis, ttl: float) -> None:
    """The documented bound would not be the real one; or the store would keep it for longer."""
    with suppress(fencer.StoreUnavailable):  # a busy machine may be too slow for it
        client.acquire("orders", ttl=ttl)
    assert redis_client.pttl("fencer:{orders}:lock") <= 10
    assert client.history("orders")[0].event == "grant"


@pytest.mark.parametrize("ttl", [1, 604_800, 604_800.0])
def test_ttls_that_are_allowed(
    client: fencer.Fencer, redis_client: redis.Redis, ttl: float
) -> None:
    """The documented bounds would not be the real ones; or a ttl be longer than asked for."""
    lease = client.acquire("orders", ttl=ttl)
    assert lease.ttl <= ttl
    left = redis_client.pttl("fencer:{orders}:lock")
    assert left <= ttl * 1000


def test_infos_that_are_allowed(client: fencer.Fencer) -> None:
    """The documented bounds would not be the real ones."""
    for info in ({"a": "x" * 8184}, {"a": "ü" * 4092}, nested(32), {}, {"": None}):
        lease = client.acquire("orders", info=info)
        assert {key: client.inspect("orders").info[key] for key in info} == info
        lease.renew(ttl=20)
        assert lease.release()


@pytest.mark.parametrize("way", ["release", "revoke", "advance", "loss"])
def test_the_info_of_another_lease_as_info(
    client: fencer.Fencer, redis_client: redis.Redis, way: str
) -> None:
    """A lease that tells which one it came after would be taken for that one."""
    before = client.acquire("invoices")
    lease = client.acquire("orders", info={"after": client.inspect("invoices").info})
    lease.renew()
    assert client.inspect("orders").token == lease.token
    if way == "release":
        assert lease.release()
    elif way == "revoke":
        assert client.revoke("orders") == lease.token
    elif way == "advance":
        assert client.advance("orders", lease.token + 5)
    else:
        redis_client.delete("fencer:{orders}:lock")
        lease.renew()
        assert lease.release()
    assert not redis_client.exists("fencer:{orders}:lock", "fencer:{orders}:info")
    assert client.history("orders")[-1].grant == lease.grant
    before.renew()


@pytest.mark.parametrize("token", [1, 2**53 - 1])
def test_tokens_that_are_allowed(
    client: fencer.Fencer, redis_client: redis.Redis, token: int
) -> None:
    """The documented bounds would not be the real ones."""
    RedisGuard(redis_client, "orders").check(token)
    assert client.revoke("orders", token) is None


def test_advance_to_the_top(client: fencer.Fencer) -> None:
    """The last numbers would be rounded."""
    top = 2**53 - 2**32
    assert client.advance("orders", top)
    assert [client.acquire("orders").token, client.revoke("orders")] == [top + 2, top + 2]
    assert client.acquire("orders").token == top + 4


def test_holders_that_are_allowed(connect: Connect, redis_client: redis.Redis) -> None:
    """A readable id in somebody's own letters would not be one."""
    for holder in ("h" * 255, "ü" * 127, "a b", '"', "🦭"):
        client = connect(holder=holder)
        lease = client.acquire("orders")
        lease.renew()
        assert client.inspect("orders").holder == holder
        assert client.revoke("orders") == lease.token
