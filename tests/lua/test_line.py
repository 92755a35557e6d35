"""The line of waiters: who is served, and what they hear, by raw scripts and real subscribers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import redis
from redis.exceptions import ResponseError

from fencer.embedded import Server
from tests.lua.scenarios import (
    HISTORY,
    HOLDER,
    INFO,
    LOCK,
    OTHER,
    QUEUE,
    RIVAL,
    SILENT,
    TOKEN,
    TTL,
    WAITERS,
    Store,
    acquire,
    advance,
    inspect,
    join,
    release,
    renew,
    revoke,
    stay,
)
from tests.lua.test_calls import counted

CLAIM, LINE = 1_000, 60_000
A, B, C, NEW = (letter * 32 for letter in "1234")


def of(grant: str) -> str:
    """The holder that `join` gives to a grant."""
    return f"of {grant[:4]}"


def line_up(store: Store, *grants: str, channel: str = "", ttl: int = TTL) -> int:
    """Let a rival hold the name while others wait for it; return the rival's token."""
    token = store.acquire(holder=RIVAL, grant=OTHER)
    for grant in grants:
        request = join(grant, ttl=ttl, channel=channel) if channel else join(grant, ttl=ttl)
        assert store.send(request)[0] == "QUEUED"
    return token


def let_go(store: Store, token: int) -> None:
    assert store.send(release(token, OTHER, RIVAL)) == ["RELEASED", token]


def end_in_silence(store: Store) -> None:
    """What the end of a ttl leaves behind."""
    store.do("DEL", LOCK, INFO)


def events(store: Store) -> list[tuple[str, str, str]]:
    entries = store.do("XRANGE", HISTORY, "-", "+")
    return [(entry["event"], entry["token"], entry["grant"]) for _, entry in entries]


# Who is served, and what that writes.


def test_first_come_first_served(store: Store) -> None:
    """If this fails, somebody overtakes those who have waited longer."""
    token, served = line_up(store, C, A, B), []
    grant, holder = OTHER, RIVAL
    for _ in range(3):
        assert store.send(release(token, grant, holder))[0] == "RELEASED"
        heard = [words for words in store.heard() if words[0] == "GRANT"]
        assert len(heard) == 1
        grant, token = heard[0][1], int(heard[0][2])
        holder = of(grant)
        served.append(grant)
    assert served == [C, A, B]


def test_release_hands_over_in_one_step(store: Store) -> None:
    """If this fails, a newcomer can take what the first in line was told that it has."""
    old = line_up(store, A, B)
    let_go(store, old)
    token = int(store.do("GET", TOKEN))
    info = json.loads(store.do("GET", INFO))
    assert token > old + 1
    assert store.do("GET", LOCK) == info["holder"] == of(A)
    assert (info["grant"], info["token"], info["ttl"]) == (A, token, TTL / 1000)
    assert CLAIM - 500 < store.do("PTTL", LOCK) <= CLAIM
    assert store.do("PTTL", INFO) > TTL - 5_000
    assert events(store)[1:] == [("release", str(old), OTHER), ("grant", str(token), A)]
    grant, head = store.heard()
    assert grant == ["GRANT", A, str(token), f"{info['since'] * 1000:.0f}"]
    assert head == ["HEAD", B, str(CLAIM), "0"]
    assert store.queue() == [B]
    assert store.do("HKEYS", WAITERS) == [B]


def test_the_first_two_are_told(store: Store) -> None:
    """If this fails, a first in line that stands still keeps all behind it waiting."""
    let_go(store, line_up(store, A, B, C, NEW))
    assert store.heard()[1:] == [["HEAD", B, str(CLAIM), "0"], ["HEAD", C, str(CLAIM), "1"]]


def test_claim_is_no_longer_than_the_ttl(store: Store) -> None:
    """If this fails, a dead waiter holds a lease of 100 ms for a second."""
    let_go(store, line_up(store, A, ttl=100))
    assert store.do("PTTL", LOCK) <= 100


def test_token_outlives_the_lease_that_was_handed_over(store: Store) -> None:
    """If this fails, a client that keeps tokens briefly costs the waiter it serves its lease."""
    token = line_up(store, A)
    assert store.send(release(token, OTHER, RIVAL).but(4, "1"))[0] == "RELEASED"
    assert store.do("PTTL", TOKEN) > TTL - 5_000


def test_waiter_claims_by_renewing(store: Store) -> None:
    """If this fails, a waiter that was served loses the lease a second later."""
    let_go(store, line_up(store, A))
    token = int(store.heard()[0][2])
    assert store.send(renew(token, holder=of(A))) == ["RENEWED", 1]
    assert store.do("PTTL", LOCK) > TTL - 5_000
    assert store.send(release(token, A, of(A))) == ["RELEASED", token]


def test_claim_that_is_not_renewed_ends(store: Store) -> None:
    """If this fails, a waiter that died while it was served blocks the name, or skips the next."""
    let_go(store, line_up(store, A, B, ttl=50))
    token = int(store.do("GET", TOKEN))
    time.sleep(0.06)
    assert store.send(stay(B))[0] == "GRANTED"
    assert [event[0] for event in events(store)[-3:]] == ["grant", "loss", "grant"]
    assert store.send(renew(token, holder=of(A)))[0] == "STALE"


def test_late_claim_of_a_free_name(store: Store) -> None:
    """If this fails, a slow waiter loses a lease that nobody else wanted."""
    let_go(store, line_up(store, A))
    token = int(store.do("GET", TOKEN))
    store.do("DEL", LOCK)
    assert store.send(renew(token, holder=of(A))) == ["RENEWED", 1]


@pytest.mark.parametrize("dead", [1, 50])
def test_unreachable_waiters_are_skipped(store: Store, dead: int) -> None:
    """If this fails, each waiter that has died costs the living a second, or stops the line."""
    gone = [f"{number:032x}" for number in range(dead)]
    token = line_up(store, *gone, channel=SILENT)
    assert store.send(join(A))[3] == dead
    let_go(store, token)
    assert store.do("GET", LOCK) == of(A)
    assert not {QUEUE, WAITERS} & store.state().keys()


def test_nobody_can_be_reached(store: Store) -> None:
    """If this fails, a line of the dead keeps a name from everybody."""
    let_go(store, line_up(store, A, B, channel=SILENT))
    assert LOCK not in store.state()
    assert store.send(acquire())[0] == "GRANTED"


@pytest.mark.parametrize("waiting", ["no", "join"])
def test_newcomer_does_not_overtake(store: Store, waiting: str) -> None:
    """If this fails, a newcomer that comes right after a lease's end takes it from the first."""
    lost = line_up(store, A, B)
    end_in_silence(store)
    reply = store.send(acquire(grant=NEW) if waiting == "no" else join(NEW, HOLDER))
    expected = ["HELD", of(A), CLAIM] if waiting == "no" else ["QUEUED", of(A), CLAIM, 1]
    assert reply == expected
    assert [words[:2] for words in store.heard()] == [["GRANT", A], ["HEAD", B]]
    assert [event[0] for event in events(store)] == ["grant", "loss", "grant"]
    assert events(store)[1] == ("loss", str(lost), OTHER)


def test_second_in_line_serves_the_first(store: Store) -> None:
    """If this fails, who looks first gets a lease, not who came first."""
    line_up(store, A, B)
    end_in_silence(store)
    assert store.send(stay(B)) == ["QUEUED", of(A), CLAIM, 0]
    assert store.heard()[0][:2] == ["GRANT", A]


def test_second_in_line_passes_the_dead(store: Store) -> None:
    """If this fails, a dead head keeps a living waiter from a free name."""
    line_up(store, A, channel=SILENT)
    store.send(join(B))
    end_in_silence(store)
    assert store.send(stay(B))[0] == "GRANTED"
    assert store.queue() == []


def test_first_in_line_tells_the_next(store: Store) -> None:
    """If this fails, nobody watches for the end of a lease that a look has given."""
    line_up(store, A, B)
    end_in_silence(store)
    assert store.send(stay(A))[0] == "GRANTED"
    assert store.heard() == [["HEAD", B, str(TTL), "0"]]
    assert store.do("PTTL", LOCK) > TTL - 5_000


# Places.


def test_repeated_join_keeps_the_place(store: Store) -> None:
    """If this fails, a lost reply sends a waiter to the end of the line."""
    line_up(store, A, B)
    assert store.send(join(A))[3] == 0
    assert store.queue() == [A, B]


def test_stay_refreshes(store: Store) -> None:
    """If this fails, a line at which all still look is forgotten after a minute."""
    line_up(store, A)
    for key in (QUEUE, WAITERS):
        assert LINE - 5_000 < store.do("PTTL", key) <= LINE
        store.do("PEXPIRE", key, 5_000)
    assert store.send(stay(A))[0] == "QUEUED"
    assert min(store.do("PTTL", QUEUE), store.do("PTTL", WAITERS)) > LINE - 5_000


def test_stay_does_not_join(store: Store) -> None:
    """If this fails, a late look of a waiter that has left puts it into the line again."""
    line_up(store, A)
    before = store.state()
    assert store.send(stay(B))[0] == "GONE"
    assert store.state() == before


def test_waiters_data_that_was_evicted_comes_back(store: Store) -> None:
    """If this fails, an eviction makes a living waiter unreachable for ever."""
    token = line_up(store, A)
    store.do("DEL", WAITERS)
    store.send(stay(A))
    let_go(store, token)
    assert store.do("GET", LOCK) == of(A)


@pytest.mark.parametrize("key", [QUEUE, WAITERS])
def test_half_of_the_line_is_lost(store: Store, key: str) -> None:
    """If this fails, an eviction of one of the two keys blocks the name or the waiters."""
    token = line_up(store, A, B)
    store.do("DEL", key)
    let_go(store, token)
    assert LOCK not in store.state()
    assert store.send(stay(A))[0] == "GONE"
    assert store.send(join(NEW))[0] == "GRANTED"


def test_waiter_in_the_middle_gives_up(store: Store) -> None:
    """If this fails, who has given up is served, or those behind lose their places."""
    line_up(store, A, B, C)
    assert store.send(release(0, B))[0] == "CANCELLED"
    assert store.queue() == [A, C]
    assert store.heard() == []


def test_head_gives_up(store: Store) -> None:
    """If this fails, nobody watches for the end of the lease any more."""
    line_up(store, A, B)
    assert store.send(release(0, A))[0] == "CANCELLED"
    (head,) = store.heard()
    assert head[:2] == ["HEAD", B]
    assert TTL - 5_000 < int(head[2]) <= TTL


def test_line_vanishes_with_its_last_waiter(store: Store) -> None:
    """If this fails, names leave keys behind."""
    line_up(store, A, B)
    for grant in (A, B):
        store.send(release(0, grant))
    assert not {QUEUE, WAITERS} & store.state().keys()


@pytest.mark.parametrize("ahead", [10**10, 2**53 - 1_795_000_000_000_000 - 10**13])
def test_tickets_stay_in_order_when_the_clock_goes_back(store: Store, ahead: int) -> None:
    """If this fails, a step of the server's clock lets newcomers overtake."""
    line_up(store, A)
    store.do("ZINCRBY", QUEUE, ahead, A)
    for place, grant in enumerate((C, B), 1):
        assert store.send(join(grant))[3] == place
    assert store.queue() == [A, C, B]


@pytest.mark.parametrize("end", ["revoke", "advance"])
def test_others_who_end_a_lease_tell_the_first(store: Store, end: str) -> None:
    """If this fails, waiters learn of a revoked lease only at the end of its ttl."""
    token = line_up(store, A, channel=SILENT)
    store.send(join(B))
    request = revoke(token) if end == "revoke" else advance(token + 10**9)
    assert store.send(request)[0] in ("REVOKED", "ADVANCED")
    assert store.heard() == [["HEAD", B, "0", "0"]]


def test_inspect_shows_the_line(store: Store) -> None:
    """If this fails, an operator does not see who waits."""
    line_up(store, A, B)
    _, _, count, line, *_ = store.send(inspect())
    assert (count, line[::2]) == (2, [of(A), of(B)])
    assert all(0 <= age < 5_000 for age in line[1::2])


# The cost.


def costs(store: Store, waiters: int) -> dict[str, int]:
    token = line_up(store, *(f"{number:032x}" for number in range(waiters)))
    status, counts = counted(store, release(token, OTHER, RIVAL))
    assert status == "RELEASED"
    return dict(counts)


def test_hand_over_costs_the_same_with_a_thousand_waiters(store: Store) -> None:
    """If this fails, a long line slows down the server at each hand-over."""
    few = costs(store, 4)
    store.do("FLUSHALL")
    assert costs(store, 1_000) == few


# Copies of calls that come late.


def test_cancel_overtakes_the_join(store: Store) -> None:
    """If this fails, a waiter that was interrupted stands in line for ever, and is served."""
    line_up(store, A)
    assert store.send(release(0, NEW))[0] == "CANCELLED"
    assert store.send(join(NEW)) == ["ENDED", 0]
    assert store.queue() == [A]


def test_late_copy_of_a_join_that_was_served(store: Store) -> None:
    """If this fails, one grant gets two tokens: the second is held by nobody."""
    let_go(store, line_up(store, A))
    token = int(store.do("GET", TOKEN))
    store.send(release(token, A, of(A)))
    store.acquire(holder=RIVAL, grant=NEW)
    assert store.send(join(A)) == ["ENDED", token]
    assert store.queue() == []


@pytest.mark.parametrize("call", [join, stay])
def test_look_of_a_waiter_that_has_been_served(store: Store, call: type) -> None:
    """If this fails, a waiter whose message was lost loses what it was given."""
    let_go(store, line_up(store, A, B))
    token, since = map(int, store.heard()[0][2:])
    assert store.send(call(A)) == ["GRANTED", token, since]
    assert store.do("PTTL", LOCK) > TTL - 5_000
    assert store.queue() == [B]


@pytest.mark.parametrize("lost", [INFO, LOCK])
def test_look_of_the_holder_after_an_eviction(store: Store, lost: str) -> None:
    """If this fails, a holder stands in line for its own lease."""
    token = store.acquire(holder=of(A), grant=A)
    store.do("DEL", lost)
    assert store.send(join(A))[:2] == ["GRANTED", token]
    assert store.queue() == []


def test_cancel_crosses_the_hand_over(store: Store) -> None:
    """If this fails, a waiter that gave up holds the lease, or the next is not served."""
    let_go(store, line_up(store, A, B))
    token = int(store.do("GET", TOKEN))
    assert store.send(release(0, A, of(A))) == ["RELEASED", token]
    assert store.do("GET", LOCK) == of(B)


def test_cancel_after_the_claim_has_ended(store: Store) -> None:
    """If this fails, giving up late frees nothing for those who wait, or ends another's lease."""
    let_go(store, line_up(store, A, B))
    token = int(store.do("GET", TOKEN))
    store.do("DEL", LOCK)
    assert store.send(release(0, A, of(A))) == ["RELEASED", token]
    assert store.do("GET", LOCK) == of(B)


def test_cancel_after_the_next_was_served(store: Store) -> None:
    """If this fails, a waiter that gave up late ends the lease of the next."""
    let_go(store, line_up(store, A, B))
    store.do("DEL", LOCK)
    assert store.send(stay(B))[0] == "GRANTED"
    assert store.send(release(0, A, of(A)))[0] == "CANCELLED"
    assert store.do("GET", LOCK) == of(B)


def test_release_of_a_claim_that_ended_serves_the_next(store: Store) -> None:
    """If this fails, a lease that is given back too late leaves the line asleep."""
    let_go(store, line_up(store, A, B))
    token = int(store.do("GET", TOKEN))
    store.do("DEL", LOCK, INFO)
    assert store.send(release(token, A, of(A))) == ["RELEASED", token]
    assert store.do("GET", LOCK) == of(B)


def test_repeated_release_serves_nobody_twice(store: Store) -> None:
    """If this fails, a copy of a release takes the lease from the waiter that was served."""
    token = line_up(store, A, B)
    let_go(store, token)
    before = store.state()
    let_go(store, token)
    assert store.state() == before


# What does not belong there.

GARBAGE = [b"", b"\x00", b"\xc1", b"\x94", b"\x91\xa1a", b"\xff\xff", b"x" * 100, b"\x80"]
GARBAGE += [b"\x94\xa1a\xa1b\xa1c\xa1d", b"\x94\x01\x02\x03\x04", b"\x94\xa1a\xa1b\xa3100\xa1d"]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: garbage[:12].hex() or "empty")
@pytest.mark.parametrize("who", ["release", "newcomer", "stay", "cancel", "revoke", "advance"])
def test_garbage_instead_of_a_waiter(store: Store, garbage: bytes, who: str) -> None:
    """If this fails, one entry that no script of ours wrote stops the line, or half of a script."""
    token = line_up(store, A, B)
    store.do("HSET", WAITERS, A, garbage)
    if who in ("newcomer", "stay"):
        end_in_silence(store)
    request, status = {
        "release": (release(token, OTHER, RIVAL), "RELEASED"),
        "newcomer": (acquire(grant=NEW), "HELD"),
        "stay": (stay(B), "GRANTED"),
        "cancel": (release(0, A), "CANCELLED"),
        "revoke": (revoke(token), "REVOKED"),
        "advance": (advance(token + 10**9), "ADVANCED"),
    }[who]
    assert store.send(inspect())[3][::2][1] == of(B)
    assert store.send(request)[0] == status
    served = who in ("release", "newcomer", "stay")
    assert store.do("GET", LOCK) == (of(B) if served else RIVAL if who == "cancel" else None)
    if who != "stay":
        assert store.heard()[0][:2] == ["GRANT" if served else "HEAD", B]


@pytest.mark.parametrize("key", [QUEUE, WAITERS])
@pytest.mark.parametrize("who", ["newcomer", "join", "stay", "cancel"])
def test_line_of_another_type(store: Store, key: str, who: str) -> None:
    """If this fails, what somebody else keeps under these keys leaves a script half done."""
    line_up(store, A, B)
    if who == "newcomer":
        end_in_silence(store)
    store.do("DEL", key)
    store.do("SET", key, "x")
    before = store.state()
    request = {
        "newcomer": acquire(grant=NEW),
        "join": join(NEW),
        "stay": stay(A),
        "cancel": release(0, A),
    }[who]
    if who == "cancel" and key == WAITERS:
        assert store.send(request)[0] == "CANCELLED"
        assert store.queue() == [B]
        return
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        store.send(request)
    assert store.state() == before


@pytest.mark.parametrize("key", [QUEUE, WAITERS])
@pytest.mark.parametrize("end", ["release", "revoke", "advance"])
def test_lease_ends_whatever_the_line_is(store: Store, key: str, end: str) -> None:
    """If this fails, a foreign value under the line keeps a lease from being ended."""
    token = line_up(store, A)
    store.do("DEL", key)
    store.do("SET", key, "x")
    request = {
        "release": release(token, OTHER, RIVAL),
        "revoke": revoke(token),
        "advance": advance(token + 10**9),
    }[end]
    assert store.send(request)[0] in ("RELEASED", "REVOKED", "ADVANCED")
    assert LOCK not in store.state()
    assert store.do("GET", key) == "x"


def test_line_with_no_tokens_left(store: Store) -> None:
    """If this fails, the last token below 2^53 empties the line without a word."""
    line_up(store, A)
    last = 2**53 - 1
    store.do("SET", TOKEN, last)
    let_go(store, last)
    assert store.queue() == [A]
    with pytest.raises(ResponseError, match="EXHAUSTED"):
        store.send(stay(A))


# What the server refuses.


@pytest.fixture(scope="module")
def silenced_client(lasting_server: Server) -> Iterator[redis.Redis]:
    """A connection as a user who may not publish."""
    with redis.Redis.from_url(lasting_server.unix_url) as client:
        rules = ("on", "nopass", "~*", "&*", "+@all", "-publish")
        client.execute_command("ACL", "SETUSER", "silenced", *rules)
        url = f"{lasting_server.unix_url}&username=silenced&password=any"
        with redis.Redis.from_url(url, decode_responses=True) as silenced:
            yield silenced
        client.execute_command("ACL", "DELUSER", "silenced")


def test_publish_is_denied(store: Store, silenced_client: redis.Redis) -> None:
    """If this fails, a user who may not publish blocks the name, or empties the line."""
    silenced = store.over(silenced_client)
    let_go(silenced, line_up(silenced, A, B))
    assert LOCK not in store.state()
    assert store.queue() == [A, B]
    assert min(store.do("PTTL", QUEUE), store.do("PTTL", WAITERS)) > 0
    assert silenced.send(stay(B))[0] == "GRANTED"
    assert store.queue() == [A]
    end_in_silence(store)
    assert silenced.send(stay(A))[0] == "GRANTED"
    assert not {QUEUE, WAITERS} & store.state().keys()


def test_full_memory(own_store: Store) -> None:
    """If this fails, full memory stops a line that needs no more of it, or lets it grow."""
    token = line_up(own_store, A, B, C)
    own_store.do("CONFIG", "SET", "maxmemory", "1")
    before = own_store.state()
    with pytest.raises(ResponseError):
        own_store.send(join(NEW))
    assert own_store.state() == before
    assert own_store.send(stay(B))[3] == 1
    assert own_store.send(release(0, C))[0] == "CANCELLED"
    let_go(own_store, token)
    token = int(own_store.do("GET", TOKEN))
    assert own_store.do("GET", LOCK) == of(A)
    assert own_store.send(renew(token, holder=of(A))) == ["RENEWED", 1]
    end_in_silence(own_store)
    assert own_store.send(stay(B))[0] == "GRANTED"


# The tests above must be able to fail.


def test_planted_overtaking_is_seen(store: Store) -> None:
    """If this fails, the tests of the order pass whoever is served."""
    broken = store.planted("acquire", r"id ~= own and number", "id ~= own and false and number")
    with pytest.raises(AssertionError):
        test_newcomer_does_not_overtake(broken, "no")


def test_planted_deaf_hand_over_is_seen(store: Store) -> None:
    """If this fails, the tests with dead waiters have none."""
    broken = store.planted(
        "release", r"reached and reached > 0 then\n        local", "true then local"
    )
    with pytest.raises(AssertionError):
        test_unreachable_waiters_are_skipped(broken, 1)


def test_planted_short_memory_is_seen(store: Store) -> None:
    """If this fails, the tests with late copies do not send them late."""
    broken = store.planted("acquire", r"look\(10\)", "")
    with pytest.raises(AssertionError):
        test_cancel_overtakes_the_join(broken)
