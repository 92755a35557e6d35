"""Sequencers: only what was packed, and sealed by one of us, can be unpacked."""

from __future__ import annotations

import os
from typing import Any

import msgpack
import pytest
import redis
from hypothesis import example, given
from hypothesis import strategies as st

import fencer
from fencer import InvalidArgument, Sequencer
from fencer.guards import RedisGuard

KEY, OLD_KEY, OTHER_KEY = (letter * 32 for letter in (b"k", b"o", b"x"))
GRANT = "0123456789abcdef" * 2

names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="{}"),
    min_size=1,
    max_size=60,
)
sequencers = st.builds(
    Sequencer,
    name=names,
    token=st.integers(1, 2**53 - 1),
    grant=st.binary(min_size=16, max_size=16).map(bytes.hex),
    holder=names,
)
one = Sequencer("orders", 1_763_870_400_123_456, GRANT, "host:1:abc")


def unpacked(data: Any, keys: Any = None) -> Sequencer | None:
    """What it unpacks to; ``None`` if it is refused. Any other exception is a failure."""
    try:
        return Sequencer.unpack(data, keys)
    except InvalidArgument:
        return None


@given(sequencers)
def test_round_trip(sequencer: Sequencer) -> None:
    """A token would be lost on its way through a queue."""
    assert Sequencer.unpack(sequencer.pack()) == sequencer
    assert Sequencer.unpack(sequencer.pack(KEY), [KEY]) == sequencer


def test_the_longest_one() -> None:
    """A name that can be leased could not be sent."""
    longest = Sequencer("ü" * 256, 2**53 - 1, GRANT, "h" * 255)
    data = longest.pack(KEY)
    assert len(data) <= 1024
    assert Sequencer.unpack(data, [KEY]) == longest


def test_of_a_lease(client: fencer.Fencer) -> None:
    """It would speak for another grant than the lease."""
    lease = client.acquire("orders")
    sequencer = lease.sequencer()
    assert sequencer == Sequencer("orders", lease.token, lease.grant, lease.holder)
    assert hash(sequencer) == hash(lease.sequencer())


def test_rotation() -> None:
    """Keys could only be changed everywhere at once."""
    assert Sequencer.unpack(one.pack(OLD_KEY), [KEY, OLD_KEY]) == one
    assert Sequencer.unpack(one.pack(KEY), [KEY, OLD_KEY]) == one
    with pytest.raises(InvalidArgument, match="any of the keys"):
        Sequencer.unpack(one.pack(OLD_KEY), [KEY])


def test_a_missing_seal() -> None:
    """Anybody could send bytes without a seal, and lock the real holder out."""
    with pytest.raises(InvalidArgument, match="not sealed"):
        Sequencer.unpack(one.pack(), [KEY])
    with pytest.raises(InvalidArgument, match="not sealed"):
        Sequencer.unpack(one.pack(KEY), [])


def test_a_seal_that_nobody_looks_at() -> None:
    """A reader that forgot its keys would take every seal for good."""
    with pytest.raises(InvalidArgument, match="pass the keys"):
        Sequencer.unpack(one.pack(KEY))


@pytest.mark.parametrize(
    "key",
    [b"", b"k" * 15, "k" * 32, 5, bytearray(32)],
    ids=["empty", "short", "str", "int", "bytearray"],
)
def test_a_key_that_is_none(key: Any) -> None:
    """A seal could be guessed."""
    with pytest.raises(InvalidArgument, match="16 bytes"):
        one.pack(key)
    with pytest.raises(InvalidArgument, match="16 bytes"):
        Sequencer.unpack(one.pack(KEY), [key])


@given(sequencers, st.data())
def test_a_flipped_bit(sequencer: Sequencer, data: st.DataObject) -> None:
    """A forger could raise the token of a sealed sequencer."""
    packed = bytearray(sequencer.pack(KEY))
    bit = data.draw(st.integers(0, len(packed) * 8 - 1))
    packed[bit // 8] ^= 1 << bit % 8
    assert unpacked(bytes(packed), [KEY]) is None


@given(sequencers, st.data())
def test_a_flipped_bit_without_a_seal(sequencer: Sequencer, data: st.DataObject) -> None:
    """Damage would come out as another exception, or as a value of another form."""
    packed = bytearray(sequencer.pack())
    bit = data.draw(st.integers(0, len(packed) * 8 - 1))
    packed[bit // 8] ^= 1 << bit % 8
    found = unpacked(bytes(packed))
    assert found is None or found.pack() == packed


@given(sequencers, st.booleans(), st.data())
def test_truncated_or_with_more_behind(
    sequencer: Sequencer, sealed: bool, data: st.DataObject
) -> None:
    """A part of a sequencer, or one with something hidden behind it, would be taken for one."""
    key = KEY if sealed else None
    packed = sequencer.pack(key)
    keys = [KEY] if sealed else None
    assert unpacked(packed[: data.draw(st.integers(0, len(packed) - 1))], keys) is None
    assert unpacked(packed + data.draw(st.binary(min_size=1, max_size=20)), keys) is None


@given(sequencers, st.binary(min_size=16, max_size=64))
def test_the_wrong_key(sequencer: Sequencer, key: bytes) -> None:
    """A seal would be good with any key."""
    assert unpacked(sequencer.pack(key), [OTHER_KEY]) is None


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.builds(msgpack.Timestamp, st.integers(0, 2**34), st.integers(0, 999_999_999))
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8)),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
fields = st.tuples(
    st.just(1) | values,
    st.just("orders") | values,
    st.just(5) | values,
    st.just(GRANT) | values,
    st.just("me") | values,
).map(list)


@given(st.binary(max_size=1100) | values.map(msgpack.packb) | fields.map(msgpack.packb))
@example(b"")
@example(b"\xc1")
@example(bytes(1025))
@example(b"\x91" * 1024)
def test_what_is_no_sequencer(data: bytes) -> None:
    """Bytes from outside would raise what no caller catches, or be let in in another spelling."""
    for keys in (None, [KEY]):
        found = unpacked(data, keys)
        assert found is None or found.pack() == data


@given(fields, st.binary(min_size=32, max_size=32) | values)
@example([1, "orders", 5, GRANT, "me"], b"")
def test_what_is_wrongly_sealed(forged: list[Any], seal: Any) -> None:
    """A forger would be told more than that the seal is wrong, or be let in."""
    assert unpacked(msgpack.packb([*forged, seal]), [KEY]) is None


@pytest.mark.parametrize("depth", [100, 510, 520, 600, 900])
@pytest.mark.parametrize("sealed", [False, True])
def test_deeply_nested(depth: int, sealed: bool) -> None:
    """A few hundred bytes would bring a server down by an exception that nobody expects."""
    nested = b"\x91" * depth + b"\x90"
    rest = [msgpack.packb(value) for value in (5, GRANT, "me")]
    data = (b"\x96" if sealed else b"\x95") + b"\x01" + nested + b"".join(rest)
    data += msgpack.packb(bytes(32)) if sealed else b""
    assert len(data) <= 1024
    assert unpacked(data, [KEY] if sealed else None) is None


@pytest.mark.parametrize(
    "data",
    [None, 5, "text", ["a"], bytearray(one.pack()), memoryview(one.pack())],
    ids=lambda data: type(data).__name__,
)
def test_what_is_not_even_bytes(data: Any) -> None:
    """A wrong variable would raise something else."""
    assert unpacked(data) is None


@pytest.mark.parametrize("version", [0, 2, True, 1.0, None, "1"], ids=lambda version: repr(version))
def test_another_version(version: Any) -> None:
    """A later format would be read as this one."""
    assert unpacked(msgpack.packb([version, "orders", 5, GRANT, "me"])) is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xdc\x00\x05" + one.pack()[1:], id="long array"),
        pytest.param(one.pack().replace(b"\xa6orders", b"\xd9\x06orders"), id="long str"),
        pytest.param(one.pack().replace(b"\xa6orders", b"\xc4\x06orders"), id="bytes"),
        pytest.param(b"\x95\xcc\x01" + one.pack()[2:], id="long int"),
    ],
)
def test_one_value_has_one_encoding(data: bytes) -> None:
    """Two spellings of one sequencer would pass for two in logs, caches and comparisons."""
    assert data != one.pack()
    assert unpacked(data) is None


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "a{b}"},
        {"name": 5},
        {"name": "a\x00"},
        {"name": "\ud800"},
        pytest.param({"name": "a" * 513}, id="long name"),
        {"token": 0},
        {"token": -1},
        {"token": 2**53},
        {"token": 1.5},
        {"token": True},
        {"token": "5"},
        {"grant": ""},
        {"grant": "A" * 32},
        {"grant": "g" * 32},
        {"grant": "a" * 31},
        {"grant": "a" * 32 + "\n"},
        {"grant": None},
        {"holder": ""},
        pytest.param({"holder": "h" * 256}, id="long holder"),
    ],
    ids=repr,
)
def test_fields_out_of_range(change: Any) -> None:
    """A sequencer could say what no lease ever was."""
    good: dict[str, Any] = {"name": "orders", "token": 5, "grant": GRANT, "holder": "me"}
    Sequencer(**good)
    with pytest.raises(InvalidArgument):
        Sequencer(**{**good, **change})


def test_a_guard_refuses_another_name(redis_client: redis.Redis) -> None:
    """The huge token of one name would shut out the holders of another."""
    guard = RedisGuard(redis_client, "orders")
    with pytest.raises(InvalidArgument, match="invoices"):
        guard.check(Sequencer("invoices", 2**53 - 1, GRANT, "me"))
    assert guard.highest() == 0


def test_a_random_key() -> None:
    """Keys from os.urandom, as the documents tell, would not do."""
    key = os.urandom(32)
    assert Sequencer.unpack(one.pack(key), [key]) == one
