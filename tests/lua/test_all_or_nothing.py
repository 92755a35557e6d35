"""A script does all that its reply says, or nothing, whatever the server refuses or the keys hold.

One part for each cause: a denied command, full memory, a key of another type, a foreign value, a
replica, numbers near their limits, arguments that are out of range.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import redis
from redis.exceptions import (
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from fencer.embedded import Server
from tests.lua.header import Argument
from tests.lua.scenarios import (
    ALL,
    BALANCE,
    GRANT,
    HEADERS,
    HISTORY,
    HOLDER,
    INFO,
    KEEP,
    LOCK,
    MARK,
    OTHER,
    QUEUE,
    RIVAL,
    ROWS,
    SCENARIOS,
    TOKEN,
    TTL,
    VISITS,
    WAITERS,
    WAITING,
    WRITES,
    WRITING,
    Name,
    Reply,
    Request,
    State,
    Store,
    acquire,
    advance,
    effect,
    guard,
    inspect,
    label,
    release,
    renew,
    revoke,
)

IN_TWO_STEPS = [
    ("release", "RELEASED", "hands over"),
    ("acquire", "QUEUED", "the line is first"),
]
"""Rows whose first step stands, whole, if the second is refused; they have tests of their own."""

Outcome = Reply | str
"""The reply of a script, or what the server's error says."""

LIMIT = 2**53

CODES = {NoPermissionError: "NOPERM ", OutOfMemoryError: "OOM ", ReadOnlyError: "READONLY "}
"""What the driver takes away from the messages that it knows."""

DENIED = ("ACL failure in script", "The user executing the script can't run")
"""What Valkey and Redis from 7.2 on, and older ones, say instead of NOPERM inside a script."""


def attempt(store: Store, request: Request) -> Outcome:
    try:
        return store.send(request)
    except ResponseError as error:
        message = str(error)
        denied = any(words in message for words in DENIED)
        return ("NOPERM " if denied else CODES.get(type(error), "")) + message


def usual(store: Store, name: Name, *without: str) -> Any:
    """What the script of a row does when nothing is in its way."""
    request = SCENARIOS[name](store)
    before = store.state()
    store.send(request)
    done = effect(before, store.state(), *without)
    store.do("FLUSHALL")
    return done


def optional(name: Name, command: str = "") -> list[str]:
    """The keys that a row may leave as they were.

    A record in the history, where it is only a record: a CANCELLED whose promise (acquire will not
    make that grant) is the record itself needs it. And what was written of a waiter that has left.
    """
    left = [] if name[1:] == ("CANCELLED", "as a rule") else [HISTORY]
    return [*left, WAITERS] if command == "hdel" else left


def check_all_or_nothing(
    name: Name,
    outcome: Outcome,
    before: State,
    after: State,
    whole: Any,
    code: str,
    command: str = "",
) -> None:
    if isinstance(outcome, str):
        assert code in outcome
        assert after == before
    else:
        assert outcome[0] == name[1]
        assert effect(before, after, *optional(name, command)) == whole


# A command that the user may not run.


@pytest.fixture(scope="session")
def limited_client(lasting_server: Server) -> Iterator[redis.Redis]:
    """A connection as a user who may do less from test to test."""
    with redis.Redis.from_url(lasting_server.unix_url) as client:
        client.execute_command("ACL", "SETUSER", "limited", "on", "nopass", "~*", "&*", "+@all")
        url = f"{lasting_server.unix_url}&username=limited&password=any"
        with redis.Redis.from_url(url, decode_responses=True) as limited:
            yield limited
        client.execute_command("ACL", "DELUSER", "limited")


WHOLE = [name for name in WRITING if name not in IN_TWO_STEPS]


def deny(store: Store, limited: redis.Redis, command: str) -> Store:
    store.do("ACL", "SETUSER", "limited", "+@all")
    as_limited = store.over(limited)
    store.do("ACL", "SETUSER", "limited", "-" + command)
    return as_limited


@pytest.mark.parametrize(
    ("name", "command"),
    [(name, command) for name in WHOLE for command in ROWS[name].counts],
    ids=lambda value: value if isinstance(value, str) else label(value),
)
def test_denied_command(
    store: Store, limited_client: redis.Redis, name: Name, command: str
) -> None:
    """If this fails, a missing permission leaves a script half done, or done and denied."""
    whole = usual(store, name, *optional(name, command))
    request = SCENARIOS[name](store)
    before = store.state()
    outcome = attempt(deny(store, limited_client, command), request)
    if command == "publish" and name == ("acquire", "HELD", "the line is first"):
        assert outcome[0] == "GRANTED"  # Nobody in line can be told.
        assert store.state()[QUEUE] == before[QUEUE]
        return
    check_all_or_nothing(name, outcome, before, store.state(), whole, "NOPERM", command)


@pytest.mark.parametrize("command", ["exists", "time", "zrange", "hget", "zrem", "publish"])
def test_denied_hand_over(store: Store, limited_client: redis.Redis, command: str) -> None:
    """If this fails, a release that cannot serve the line fails, or leaves the line half served."""
    request = SCENARIOS["release", "RELEASED", "hands over"](store)
    before = store.state()
    assert attempt(deny(store, limited_client, command), request)[0] == "RELEASED"
    after = store.state()
    assert LOCK not in after
    assert (after[QUEUE], after[WAITERS]) == (before[QUEUE], before[WAITERS])
    assert "GRANT" not in [words[0] for words in store.heard()]


@pytest.mark.parametrize("command", ["zcard", "zrevrange", "hset", "zadd"])
def test_denied_join_behind_a_line_that_is_served(
    store: Store, limited_client: redis.Redis, command: str
) -> None:
    """If this fails, who cannot join stops the first in line from being served, or half joins."""
    request = SCENARIOS["acquire", "QUEUED", "the line is first"](store)
    assert "NOPERM" in attempt(deny(store, limited_client, command), request)
    assert store.do("GET", LOCK) == HOLDER
    assert [heard[:2] for heard in store.heard() if heard[0] == "GRANT"] == [["GRANT", WAITING]]
    assert not {QUEUE, WAITERS} & store.state().keys()


def test_denied_del_without_a_token_key(store: Store, limited_client: redis.Redis) -> None:
    """If this fails, an advance that was refused has advanced a name whose token was evicted."""
    request = advance(store.acquire() + 10**6)
    store.do("DEL", TOKEN)
    before = store.state()
    outcome = attempt(deny(store, limited_client, "del"), request)
    assert "NOPERM" in outcome
    assert store.state() == before


def test_denied_command_of_the_caller(store: Store, limited_client: redis.Redis) -> None:
    """If this fails, a guard hides that the caller's own command was denied, or half runs it."""
    outcome = attempt(deny(store, limited_client, "incr"), guard(7, ("INCR", VISITS)))
    assert outcome[:3] == ["FAILED", 7, []]
    assert VISITS not in store.state()


# Memory that is full.


def first_write(name: Name) -> str:
    return next(command for command in ROWS[name].counts if command in WRITES)


NEEDS_MEMORY = [name for name in WRITING if first_write(name) in ("set", "hset")]


def test_what_lets_go_or_keeps_needs_no_memory() -> None:
    """If this fails, full memory costs holders their leases, or waiters their places."""
    assert {name[0] for name in NEEDS_MEMORY} == {"acquire", "advance", "guard"}
    assert ("acquire", "QUEUED", "stays") not in NEEDS_MEMORY


@pytest.mark.parametrize("name", NEEDS_MEMORY, ids=label)
def test_full_memory_refuses_what_is_new(own_store: Store, name: Name) -> None:
    """If this fails, full memory leaves a grant, an advance or a guard's mark half written."""
    request = SCENARIOS[name](own_store)
    before = own_store.state()
    own_store.do("CONFIG", "SET", "maxmemory", "1")
    outcome = attempt(own_store, request)
    assert "OOM" in outcome
    assert own_store.state() == before


@pytest.mark.parametrize("name", [name for name in WRITING if name not in NEEDS_MEMORY], ids=label)
def test_full_memory_lets_a_lease_be_kept_and_ended(own_store: Store, name: Name) -> None:
    """If this fails, full memory costs holders their leases, or nobody can end one."""
    whole = usual(own_store, name)
    request = SCENARIOS[name](own_store)
    before = own_store.state()
    own_store.do("CONFIG", "SET", "maxmemory", "1")
    outcome = attempt(own_store, request)
    assert outcome[0] == name[1]
    assert effect(before, own_store.state()) == whole


# A key of another type.

WITH_LINE = {row[2] for row in ROWS if ROWS[row].counts.keys() & {"zadd", "zrem", "hget"}}
"""Rows about a line; `test_line` puts other types under it."""


def put_other_type(store: Store, key: str, kind: str) -> None:
    store.do("DEL", key)
    if kind == "hash":
        store.do("HSET", key, "token", "1")
    elif kind == "list":
        store.do("RPUSH", key, "x")
    else:
        store.do("SET", key, "x")


@pytest.mark.parametrize(
    ("name", "key", "kind", "ends"),
    [
        (name, key, kind, ends)
        for name in WRITING
        for key in ([MARK] if name[0] == "guard" else ALL)
        for kind, ends in (("string" if key in (MARK, WAITERS) else "hash", True), ("list", False))
        if not (name[0] == "renew" and key in (HISTORY, QUEUE, WAITERS))
        and not (key in (QUEUE, WAITERS) and name[2] in WITH_LINE)
    ],
    ids=lambda value: label(value) if isinstance(value, tuple) else str(value),
)
def test_key_of_another_type(store: Store, name: Name, key: str, kind: str, ends: bool) -> None:
    """If this fails, a key that somebody else uses is overwritten, or a script is half done."""
    line = [key] if key in (QUEUE, WAITERS) else []
    whole = usual(store, name, *optional(name), *line)
    request = SCENARIOS[name](store)
    put_other_type(store, key, kind)
    if ends:
        store.do("PEXPIRE", key, 777_000)
    before = store.state()
    outcome = attempt(store, request)
    after = store.state()
    if isinstance(outcome, str):
        assert "WRONGTYPE" in outcome
        assert after == before
    else:
        assert key in (HISTORY, QUEUE, WAITERS)
        assert outcome[0] == name[1]
        assert effect(before, after, *optional(name), *line) == whole
    assert store.state()[key] == before[key]
    assert 770_000 < store.do("PTTL", key) <= 777_000 if ends else store.do("PTTL", key) == -1


@pytest.mark.parametrize("kind", ["hash", "list"])
def test_inspect_of_another_type(store: Store, kind: str) -> None:
    """If this fails, inspect calls a name free whose lock key holds what is no lease."""
    for key in (LOCK, TOKEN, INFO):
        store.do("FLUSHALL")
        store.acquire()
        put_other_type(store, key, kind)
        assert "WRONGTYPE" in attempt(store, inspect())


# A foreign value.

FOREIGN_TOKENS = [
    "",
    "abc",
    "-5",
    "007",
    "1e3",
    "1.5",
    " 7",
    "nan",
    "0x10",
    str(LIMIT + 1),
    str(LIMIT + 2),
    str(2**63 - 2),
    "9" * 400,
]
FOREIGN = [
    *((TOKEN, value, "endless") for value in FOREIGN_TOKENS),
    *((INFO, value, "endless") for value in ("", "not json", "{}", '{"holder":"host-1:1"}')),
    *((LOCK, value, "endless") for value in ("", "somebody")),
    *((TOKEN, "abc", "ending"), (INFO, "not json", "ending"), (LOCK, "somebody", "ending")),
]
BY_VALUE = {"9" * 400: "400 digits", "": "empty"}


@pytest.mark.parametrize(
    ("key", "value", "end"),
    FOREIGN,
    ids=lambda value: BY_VALUE.get(value, str(value).removeprefix("fencer:{orders}:")),
)
@pytest.mark.parametrize("name", [name for name in WRITING if name[0] != "guard"], ids=label)
def test_foreign_value(store: Store, name: Name, key: str, value: str, end: str) -> None:
    """If this fails, what somebody else wrote is overwritten, deleted or given another end."""
    request = SCENARIOS[name](store)
    store.do("SET", key, value, *(("PX", 777_000) if end == "ending" else ()))
    before = store.state()
    outcome = attempt(store, request)
    after = store.state()
    assert after.get(key) == before[key]
    assert (
        770_000 < store.do("PTTL", key) <= 777_000
        if end == "ending"
        else store.do("PTTL", key) == -1
    )
    if isinstance(outcome, str) or key == TOKEN:
        assert after == before


@pytest.mark.parametrize("value", FOREIGN_TOKENS, ids=lambda value: BY_VALUE.get(value, value))
@pytest.mark.parametrize(
    "request_",
    [renew(7), release(7), revoke(7), advance(7), inspect(), acquire()],
    ids=lambda request: request.script,
)
def test_foreign_token_is_never_told_as_another_number(
    store: Store, request_: Request, value: str
) -> None:
    """If this fails, a caller is told of an issued token that is not what the key holds."""
    store.do("SET", TOKEN, value)
    outcome = attempt(store, request_)
    if isinstance(outcome, str):
        assert outcome.startswith(("CORRUPT", "EXHAUSTED"))
    else:
        assert outcome[0] not in ("GRANTED", "RELEASED", "REVOKED", "ADVANCED")
        assert outcome[1] == 0 or Decimal(outcome[1]) == Decimal(value.strip())


@pytest.mark.parametrize("value", FOREIGN_TOKENS, ids=lambda value: BY_VALUE.get(value, value))
def test_foreign_mark(store: Store, value: str) -> None:
    """If this fails, a guard takes a number that it did not write for the highest token."""
    store.do("HSET", MARK, "token", value, "grant", OTHER)
    before = store.state()
    outcome = attempt(store, guard(LIMIT - 1, ("SET", BALANCE, "1")))
    assert "CORRUPT" in outcome
    assert store.state() == before


def test_foreign_hash_under_the_mark(store: Store) -> None:
    """If this fails, a guard writes its fields into somebody else's hash."""
    store.do("HSET", MARK, "colour", "blue")
    before = store.state()
    outcome = attempt(store, guard(7, ("SET", BALANCE, "1")))
    assert "CORRUPT" in outcome
    assert store.state() == before


# A replica.


@pytest.mark.parametrize("name", WRITING, ids=label)
def test_replica(own_store: Store, name: Name) -> None:
    """If this fails, a replica answers as if it had done what it cannot do."""
    request = SCENARIOS[name](own_store)
    before = own_store.state()
    own_store.do("REPLICAOF", "127.0.0.1", "1")
    outcome = attempt(own_store, request)
    assert "READONLY" in outcome
    assert own_store.state() == before


# Numbers near their limits.

EDGES = [10**14 - 1, 10**14, 10**14 + 1, 10**15 + 1, *range(LIMIT - 3, LIMIT + 1)]


@pytest.mark.parametrize("minting", ["dense", "time"])
@pytest.mark.parametrize("issued", EDGES)
def test_numbers_are_exact_or_exhausted(store: Store, issued: int, minting: str) -> None:
    """If this fails, a token is rounded: two grants may then have the same one."""
    store.do("SET", TOKEN, issued)
    before = store.state()
    outcome = attempt(store, acquire(minting=minting))
    if isinstance(outcome, str):
        assert issued + 1 >= LIMIT
        assert "EXHAUSTED" in outcome
        assert store.state() == before
        return
    assert outcome[0] == "GRANTED"
    token = outcome[1]
    assert token == issued + 1 or (minting == "time" and token > issued)
    assert store.do("GET", TOKEN) == str(token)
    assert f'"token":{token},' in store.do("GET", INFO)
    assert store.do("XREVRANGE", HISTORY, "+", "-")[0][1]["token"] == str(token)
    assert store.send(inspect())[1] == token
    assert store.send(renew(token)) == ["RENEWED", 1]
    assert store.send(release(token)) == ["RELEASED", token]
    assert store.do("GET", TOKEN) == str(token + 1)
    assert store.send(release(token)) == ["RELEASED", token]
    assert store.send(inspect()) == ["FREE", token + 1, 0, []]


@pytest.mark.parametrize("issued", EDGES)
def test_revoked_numbers_are_exact(store: Store, issued: int) -> None:
    """If this fails, revoking rounds the number that it retires."""
    store.do("SET", TOKEN, issued)
    if issued == LIMIT:
        assert store.send(revoke(issued - 1)) == ["STALE", issued]
        return
    assert store.send(revoke(issued)) == ["REVOKED", issued]
    assert store.do("GET", TOKEN) == str(issued + 1)
    assert store.send(revoke(issued)) == ["REVOKED", issued]


@pytest.mark.parametrize("beyond", [10**14, 10**14 + 1, LIMIT - 2**32 - 1, LIMIT - 2**32])
def test_advanced_numbers_are_exact(store: Store, beyond: int) -> None:
    """If this fails, a name is advanced to less than a resource has seen."""
    assert store.send(advance(beyond)) == ["ADVANCED", beyond]
    assert store.do("GET", TOKEN) == str(beyond + 1)
    assert store.send(advance(beyond)) == ["ADVANCED", beyond]
    assert store.send(advance(beyond - 1)) == ["AHEAD", beyond + 1]
    assert store.acquire(minting="dense") == beyond + 2


@pytest.mark.parametrize("token", [10**14 + 1, LIMIT - 2, LIMIT - 1])
def test_guarded_numbers_are_exact(store: Store, token: int) -> None:
    """If this fails, a guard takes two tokens for one, and an older holder gets in."""
    assert store.send(guard(token)) == ["ACCEPTED", token, []]
    assert store.do("HGET", MARK, "token") == str(token)
    assert store.send(guard(token - 1)) == ["STALE", token, GRANT]
    assert store.send(guard(token)) == ["ACCEPTED", token, []]


# Arguments that are out of range.


def numbers(script: str) -> list[Argument]:
    return [
        argument
        for argument in HEADERS[script].arguments
        if argument.index and argument.text.startswith("integer")
    ]


SAMPLES = [
    acquire(),
    renew(7),
    release(7),
    revoke(7),
    advance(10**15),
    guard(7, ("SET", BALANCE, "1")),
]
NUMBERS = [(request, argument) for request in SAMPLES for argument in numbers(request.script)]


def number_label(value: object) -> str:
    if isinstance(value, Request):
        return value.script
    return value.name if isinstance(value, Argument) else str(value)


def test_each_script_with_numbers_has_a_sample() -> None:
    """If this fails, the arguments of a new script are held by no test."""
    assert {request.script for request in SAMPLES} == {name for name in HEADERS if numbers(name)}


def occupied(store: Store) -> State:
    """A name that is held by somebody else, and a mark."""
    store.acquire(holder=RIVAL, grant=OTHER)
    store.do("HSET", MARK, "token", "6", "grant", OTHER)
    return store.state()


@pytest.mark.parametrize("value", ["", "x", "-1", "0.5", "nan", "inf"])
@pytest.mark.parametrize(("request_", "argument"), NUMBERS, ids=number_label)
def test_no_number(store: Store, request_: Request, argument: Argument, value: str) -> None:
    """If this fails, a script works with an argument that is no whole number."""
    before = occupied(store)
    assert "BADCALL" in attempt(store, request_.but(argument.index, value))
    assert store.state() == before


@pytest.mark.parametrize(("request_", "argument"), NUMBERS, ids=number_label)
def test_number_out_of_range(store: Store, request_: Request, argument: Argument) -> None:
    """If this fails, a script takes numbers that its header excludes."""
    before = occupied(store)
    assert argument.range is not None
    low, high = argument.range
    below = int(request_.arguments[2] if low == "ttl_ms" else low) - 1
    if argument.name == "mine" and request_.script == "release":
        below = -1
    for value in (below, high + 1):
        assert "BADCALL" in attempt(store, request_.but(argument.index, str(value)))
    assert store.state() == before


@pytest.mark.parametrize(("request_", "argument"), NUMBERS, ids=number_label)
def test_other_spelling_of_a_number(store: Store, request_: Request, argument: Argument) -> None:
    """If this fails, a number that Lua reads and the server does not stops a script half way."""
    taken = {}
    for spelling in ("{}.0", " {}", "0{}", "{}e0", "+{}"):
        store.do("FLUSHALL")
        if request_.script in ("renew", "release", "revoke"):
            store.do("SET", TOKEN, "7", "PX", KEEP)
        before = store.state()
        value = spelling.format(request_.arguments[argument.index - 1])
        outcome = attempt(store, request_.but(argument.index, value))
        if "BADCALL" not in outcome or store.state() != before:
            half = isinstance(outcome, str) and store.state() != before
            taken[value] = ("half done", outcome) if half else outcome
    assert not taken


@pytest.mark.parametrize("request_", [*SAMPLES, inspect()], ids=number_label)
def test_wrong_number_of_keys_or_arguments(store: Store, request_: Request) -> None:
    """If this fails, a call with an argument too few or too many does something."""
    before = occupied(store)
    more = (*request_.arguments, "x")
    for keys, arguments in (
        ((), request_.arguments),
        (request_.keys, more),
        (request_.keys, request_.arguments[:-1] if request_.arguments else more),
    ):
        changed = Request(request_.script, keys, arguments)
        assert "BADCALL" in attempt(store, changed)
    assert store.state() == before


# What the caller's own fields must not do.

NESTED = {"parent": {"grant": "c" * 32, "ttl": 1, "token": 2, "since": 3.0}}


@pytest.mark.parametrize("end", ["release", "cancel", "revoke", "advance", "renew", "inspect"])
def test_callers_fields_are_not_taken_for_the_lease(store: Store, end: str) -> None:
    """If this fails, info that describes another lease makes a lease impossible to end."""
    token = store.acquire(about=NESTED)
    request, status = {
        "release": (release(token), "RELEASED"),
        "cancel": (release(0), "RELEASED"),
        "revoke": (revoke(token), "REVOKED"),
        "advance": (advance(token + 10**6), "ADVANCED"),
        "renew": (renew(token), "RENEWED"),
        "inspect": (inspect(), "HELD"),
    }[end]
    assert store.send(request)[0] == status
    left = store.state()
    assert (INFO in left) == (LOCK in left) == (end in ("renew", "inspect"))


@pytest.mark.parametrize("about", ["{}", "{ }", '{"port":1}', '{ "port": 1 }'])
def test_info_is_json(store: Store, about: str) -> None:
    """If this fails, a name cannot be inspected, revoked or advanced any more."""
    outcome = attempt(store, acquire().but(5, about))
    if not isinstance(outcome, str):
        assert json.loads(store.do("GET", INFO))["token"] == outcome[1]


# A release whose acquire never answered.


def test_cancel_of_a_grant_that_was_never_made(store: Store) -> None:
    """If this fails, a name nobody has heard of is said to have been released."""
    assert store.send(release(0)) == ["CANCELLED", 0]
    assert TOKEN not in store.state()
    assert store.send(acquire())[0] == "ENDED"


def test_cancel_leaves_another_grant_of_the_same_holder(store: Store) -> None:
    """If this fails, one lost reply ends another lease, when the token key has been evicted."""
    store.acquire(holder=HOLDER, grant=OTHER)
    store.do("DEL", TOKEN)
    before = store.state()
    assert store.send(release(0)) == ["CANCELLED", 0]
    assert effect(before, store.state(), HISTORY) == effect(before, before, HISTORY)


def test_cancel_by_a_rival_leaves_a_repeated_acquire_the_same(store: Store) -> None:
    """If this fails, one grant gets two tokens, because a rival gave up in between."""
    token = store.acquire()
    store.send(release(0, grant=OTHER))
    store.do("DEL", LOCK, INFO)
    assert store.acquire() == token


def test_cancel_by_a_rival_leaves_an_ended_grant_ended(store: Store) -> None:
    """If this fails, a late copy of an acquire holds a lease that nobody knows of."""
    token = store.acquire()
    store.send(release(token))
    store.send(release(0, grant=OTHER))
    assert store.send(acquire()) == ["ENDED", token]


# A holder never believes longer than the store.


def longer(token: int) -> Request:
    return renew(token).but(3, str(10 * TTL))


def test_acquire_leaves_a_longer_ttl(store: Store) -> None:
    """If this fails, a rival's acquire cuts a lease that was renewed with a longer ttl."""
    token = store.acquire()
    info = store.do("GET", INFO).replace('"ttl":60,', '"ttl":600,')
    assert store.send(longer(token)) == ["RENEWED", 0]
    assert store.send(longer(token).but(5, info)) == ["RENEWED", 1]
    assert store.send(acquire(holder=RIVAL, grant=OTHER))[0] == "HELD"
    assert store.do("PTTL", LOCK) > 9 * TTL


def test_repeated_acquire_leaves_a_longer_ttl(store: Store) -> None:
    """If this fails, a late copy of an acquire cuts a lease that was renewed with a longer ttl."""
    token = store.acquire()
    info = store.do("GET", INFO).replace('"ttl":60,', '"ttl":600,')
    assert store.send(longer(token).but(5, info)) == ["RENEWED", 1]
    assert store.acquire() == token
    assert store.do("PTTL", LOCK) > 9 * TTL


# The tests above must be able to fail.


def test_planted_half_done_release_is_seen(store: Store, limited_client: redis.Redis) -> None:
    """If this fails, the tests with denied commands pass whatever a script leaves behind."""
    broken = store.planted("release", r"redis.call\('SET', token, issued, .*\)", "")
    with pytest.raises(AssertionError):
        test_denied_command(broken, limited_client, ("release", "RELEASED", "nobody waits"), "del")


def test_planted_need_of_memory_is_seen(own_store: Store) -> None:
    """If this fails, the tests with full memory do not fill it."""
    broken = own_store.planted("renew", r"for i = 1, n do .* end\n", "")
    with pytest.raises(AssertionError):
        test_full_memory_lets_a_lease_be_kept_and_ended(
            broken, ("renew", "RENEWED", "lock is gone")
        )


def test_planted_missing_compare_is_seen(store: Store) -> None:
    """If this fails, the tests with foreign values do not look at them."""
    broken = store.planted("renew", r"held_by ~= holder", "held_by == ''")
    with pytest.raises(AssertionError):
        test_foreign_value(broken, ("renew", "RENEWED", "as a rule"), LOCK, "somebody", "endless")


def test_planted_rounding_is_seen(store: Store) -> None:
    """If this fails, the tests with large numbers do not notice that Lua rounds them."""
    broken = store.planted(
        "acquire", r"local text = string.format\('%.0f', number\)", "local text = tostring(number)"
    )
    with pytest.raises(AssertionError):
        test_numbers_are_exact_or_exhausted(broken, 10**15 + 1, "dense")
