"""Many leases in one call of renew: each has its own outcome, and an error is about all of them."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from tests.lua.scenarios import (
    HOLDER,
    KEEP,
    TTL,
    Request,
    State,
    Store,
    acquire,
    of_name,
    renew,
    together,
)
from tests.lua.test_calls import counted

MOST = 100


def granted(store: Store, count: int) -> list[Request]:
    """Leases on so many names that are half over; for each the request that renews it."""
    names = [f"n{number}" for number in range(count)]
    tokens = [store.send(of_name(name, acquire()))[1] for name in names]
    for key in store.do("KEYS", "*"):
        store.do("PEXPIRE", key, TTL // 2)
    return [of_name(name, renew(token)) for name, token in zip(names, tokens, strict=True)]


def prolonged(store: Store, request: Request) -> list[bool]:
    """Which keys of a lease have their full time again."""
    return [store.do("PTTL", key) > TTL * 3 // 4 for key in request.keys]


def test_all_are_renewed(store: Store) -> None:
    """If this fails, who keeps many leases loses some of them."""
    each = granted(store, MOST)
    assert store.send(together(*each)) == ["RENEWED", 1] * MOST
    assert all(prolonged(store, one) == [True] * 3 for one in each)
    assert store.do("PTTL", each[-1].keys[1]) > KEEP * 3 // 4


def test_each_has_its_own_outcome(store: Store) -> None:
    """If this fails, what became of one lease is told of another, or costs it its renewal."""
    good, stale, foreign, free, bare, told = granted(store, 6)
    store.do("INCR", stale.keys[1])
    store.do("SET", foreign.keys[0], "somebody", "PX", TTL // 2)
    store.do("DEL", free.keys[0])
    store.do("DEL", bare.keys[2])
    info = store.do("GET", told.keys[2]).replace("{", '{"port":1,', 1)
    issued = int(stale.arguments[1]) + 1
    reply = store.send(together(good, stale, foreign, free, bare, told.but(5, info)))
    assert reply == [
        *("RENEWED", 1),
        *("STALE", issued),
        *("FOREIGN", "somebody"),
        *("RENEWED", 1),
        *("RENEWED", 0),
        *("RENEWED", 1),
    ]
    for one in (good, free, told):
        assert prolonged(store, one) == [True] * 3
    for one in (stale, foreign):
        assert prolonged(store, one) == [False] * 3
    assert prolonged(store, bare) == [True, True, False]
    assert store.do("GET", free.keys[0]) == HOLDER
    assert store.do("GET", told.keys[2]) == info


BROKEN = [(0, "hash"), (1, "hash"), (2, "hash"), (1, "007")]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("key", "holds"), BROKEN)
def test_an_error_is_about_all(store: Store, place: int, key: int, holds: str) -> None:
    """If this fails, one broken key leaves it open which leases of a call were renewed."""
    each = granted(store, 3)
    broken = each[place].keys[key]
    store.do("DEL", broken)
    if holds == "hash":
        store.do("HSET", broken, "token", "1")
    else:
        store.do("SET", broken, holds)
    before = store.state()
    with pytest.raises(ResponseError, match=r"WRONGTYPE|CORRUPT"):
        store.send(together(*each))
    assert store.state() == before
    assert all(not any(prolonged(store, one)) for one in each)


def test_most_of_them(store: Store) -> None:
    """If this fails, one call keeps the server busy for as long as a client likes."""
    each = granted(store, MOST + 1)
    with pytest.raises(ResponseError, match="BADCALL"):
        store.send(together(*each))
    assert not any(prolonged(store, each[0]))


def test_the_cost_of_many(store: Store) -> None:
    """If this fails, many leases in one call cost more than one read and their writes."""
    status, counts = counted(store, together(*granted(store, 50)))
    assert status == "RENEWED"
    assert counts == {"mget": 1, "pexpire": 150}


def bad(request: Request, state: str) -> Request:
    keys, arguments = request.keys, request.arguments
    match state:
        case "a key too few":
            return Request("renew", keys[:-1], arguments)
        case "a lease without arguments":
            return Request("renew", (*keys, "a", "b", "c"), arguments)
        case "arguments without a lease":
            return Request("renew", keys, (*arguments, "7", ""))
        case "a token of a later lease":
            return Request("renew", keys, (*arguments[:-2], "07", ""))
        case _:
            return Request("renew", keys, (*arguments[:-1], '{"token":8,"since":1.0}'))


@pytest.mark.parametrize(
    "state",
    [
        "a key too few",
        "a lease without arguments",
        "arguments without a lease",
        "a token of a later lease",
        "info of another token",
    ],
)
def test_bad_calls(store: Store, state: str) -> None:
    """If this fails, a call that is put together wrongly renews some leases, or the wrong ones."""
    each = granted(store, 3)
    before: State = store.state()
    with pytest.raises(ResponseError, match="BADCALL"):
        store.send(bad(together(*each), state))
    assert store.state() == before
    assert not any(prolonged(store, each[0]))


def test_full_memory_restores_all_locks(own_store: Store) -> None:
    """If this fails, full memory costs a holder the leases whose lock keys were evicted."""
    each = granted(own_store, 3)
    own_store.do("DEL", *(one.keys[0] for one in each))
    own_store.do("CONFIG", "SET", "maxmemory", "1")
    assert own_store.send(together(*each)) == ["RENEWED", 1] * 3
    assert all(own_store.do("GET", one.keys[0]) == HOLDER for one in each)


# The tests above must be able to fail.


def test_planted_mix_up_is_seen(store: Store) -> None:
    """If this fails, the tests do not look at which lease an outcome belongs to."""
    broken = store.planted("renew", r"unpack\(found, 3 \* i - 2, 3 \* i\)", "unpack(found, 1, 3)")
    with pytest.raises(AssertionError):
        test_each_has_its_own_outcome(broken)


def test_planted_haste_is_seen(store: Store) -> None:
    """If this fails, errors may come after some leases have been renewed."""
    broken = store.planted(
        "renew",
        r"prolonged\[n\], ends\[n\] = token, keep_ms",
        "prolonged[n], ends[n] = token, keep_ms redis.call('PEXPIRE', lock, ttl_ms)",
    )
    with pytest.raises(AssertionError):
        test_an_error_is_about_all(broken, 2, 0, "hash")
