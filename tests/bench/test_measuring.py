"""How benchmarks measure: what is sent, what is computed, and what is said about it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
import redis

from fencer.bench import (
    FLOOR,
    LIMITS,
    OURS,
    PING,
    Case,
    CaseResult,
    Contender,
    Figures,
    checked,
    keeping_costs,
    open_cases,
    open_place,
    run,
)
from fencer.bench.figures import CURVE, summed_up
from fencer.bench.helper import helper
from fencer.bench.peers import PEERS, absent
from fencer.bench.peers_async import ASYNC_PEERS
from fencer.bench.ready import client
from fencer.bench.requests import packed, sent_by
from fencer.embedded import Server
from fencer.errors import StoreError


@pytest.mark.parametrize(("name", "api"), [each for each in LIMITS if each[0] != "keepalive"])
@pytest.mark.parametrize("contender", [FLOOR, "evalsha"])
def test_the_floor_asks_what_ours_asks(
    contender: str, name: str, api: str, shared_server: Server, redis_client: redis.Redis
) -> None:
    """Would fail if the floor were another request than ours, with other work for the server."""
    with open_cases([shared_server.unix_url], [name], apis=[api], all_peers=False) as (case,):
        ping = next(each for each in case.contenders if each.name == PING)
        ours, theirs = (
            [_arrived(redis_client, case.contender(who), ping) for _ in range(2)]
            for who in (OURS, contender)
        )
    assert len(ours[0]) == (2 if name == "acquire" else 1)
    if name == "acquire":
        assert len({_grant(each) for each in ours + theirs}) == 4, "each has a grant of its own"
        ours, theirs = (list(map(_without_grant, runs)) for runs in (ours, theirs))
    assert ours[0] == ours[1] == theirs[0] == theirs[1]


def test_what_is_overheard(shared_server: Server, redis_client: redis.Redis) -> None:
    """Would fail if a request were not replayed byte by byte, or somebody else's were."""
    strange = b'ns:\x00\xff"quoted\\" \r\n\t] "x" {}'
    with client(shared_server.url) as other:

        def operation() -> None:
            other.set(strange, b"")
            other.set("somebody else's", "1")

        (words,) = sent_by(redis_client, "ns:", operation)
    assert words == (b"SET", strange, b"")
    assert packed((b"GET", b"a\r\n")) == b"*2\r\n$3\r\nGET\r\n$3\r\na\r\n\r\n"


@pytest.mark.parametrize("api", ["threads", "asyncio"])
@pytest.mark.parametrize("name", ["renew", "acquire"])
def test_peers_that_are_installed_take_part(name: str, api: str, shared_server: Server) -> None:
    """Would fail if a peer were called in a way that it does not understand."""
    kinds = PEERS if api == "threads" else ASYNC_PEERS
    able = {kind.name for kind in kinds if not absent(kind) and name in kind.labels}
    with open_cases([shared_server.url], [name], apis=[api]) as (case,):
        assert able == {each.name for each in case.contenders} & {kind.name for kind in kinds}
        for each in case.contenders:
            assert min(each.times(3)) > 0


def test_an_import_of_a_peer_changes_nothing_else() -> None:
    """Would fail if one peer's import made the calls of others slower."""
    before = json.dumps
    for kind in PEERS:
        if not absent(kind):
            from fencer.bench.peers import imported

            imported(kind.__new__(kind))
    assert json.dumps is before


def test_what_keeping_costs(shared_server: Server, redis_client: redis.Redis) -> None:
    """Would fail if renewals were not counted, or not each lease were renewed."""
    one, several = keeping_costs(shared_server.url, (1, 5), seconds=1.5, ttl=1.5)
    assert several.requests > 0 < one.requests
    assert several.inside > one.inside > 0
    assert several.cpu_seconds > 0
    assert redis_client.dbsize() == 0, "a run leaves no key behind"


def test_another_process_that_ends(capfd: pytest.CaptureFixture[str]) -> None:
    """Would fail if a run waited for ever for a process that is gone."""
    with helper("bogus") as gone, pytest.raises(StoreError, match="ended by itself, with code 1"):
        gone.hear()
    assert "bogus" in capfd.readouterr().err


def test_another_process_that_fails(shared_server: Server) -> None:
    """Would fail if a peer that fails on the other side were taken for one that did its work."""
    with helper("handover", url=shared_server.url, namespace="x") as other:
        with pytest.raises(StoreError, match="nobody is called bogus"):
            other.ask("open bogus")
        assert other.ask("open floor") == "ready"


def test_the_core_is_given_back() -> None:
    """Would fail if a run left this process on one core, or --no-pin pinned it."""
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system does not keep a process on a core")
    before = os.sched_getaffinity(0)
    with open_place() as place:
        assert os.sched_getaffinity(0) == {place.core}
    assert os.sched_getaffinity(0) == before
    with open_place(pin=False) as place:
        assert place.core is None
        assert os.sched_getaffinity(0) == before


def test_figures_of_known_times() -> None:
    """Would fail if a percentile, a rate or the noise were computed from the wrong numbers."""
    few = summed_up("x", [[1_000, 2_000], [3_000, 4_000], [5_000, 90_000]])
    assert (few.p50_us, few.p90_us, few.p99_us) == (3, 90, 90), "of all calls together"
    assert few.p999_us is None
    figures = summed_up("x", [[1_000 * n for n in range(1, 101)], [2_000] * 100, [4_000] * 100])
    assert figures.rounds_p50_us == (50, 2, 4)
    assert (figures.p50_us, figures.p90_us, figures.p99_us) == (4, 4, 4)
    assert figures.per_second == pytest.approx(250_000)
    assert figures.noise == pytest.approx((27 - 3) / 4)
    many = summed_up("x", [[1_000 * n for n in range(1, 1_001)]] * 3)
    assert many.p999_us == 999
    assert dict(zip(CURVE, many.curve_us, strict=True))[0.5] == 500


def test_ratios_are_taken_within_rounds() -> None:
    """Would fail if a machine that grows slower for everybody changed who is faster."""
    case = _result(floor=(10, 100, 1_000), ours=(20, 210, 1_900), lock=(20, 200, 2_000))
    ratio = case.ratio(OURS, FLOOR)
    assert ratio.median == pytest.approx(2.0)
    assert [ratio.low, ratio.high] == pytest.approx([1.95, 2.05])
    assert str(ratio) == "2.00 ± 0.05"


def test_noise_above_the_difference_is_told() -> None:
    """Would fail if a run on a busy machine were taken for a result."""
    clear = _result(floor=(10, 10, 10), ours=(20, 21, 20), lock=(40, 40, 40))
    assert clear.doubts() == []
    (doubt,) = _result(floor=(10, 10, 10), ours=(20, 24, 30), lock=(22, 22, 22)).doubts()
    assert doubt.startswith("renew (threads, tcp): the rounds differ by more than ours does from ")
    assert "lock (1.09 ± 0.11)" in doubt
    assert "floor" not in doubt


def test_a_peer_that_fails_halfway() -> None:
    """Would fail if a run of many minutes ended because of one peer, or hid that it failed."""
    turns = iter(range(10))

    def failing() -> None:
        if next(turns) > 5:
            raise ValueError("enough\nof it")

    def works() -> None:
        pass

    peer = Contender("peer", "x", failing, optional=True)
    ours, floor = (Contender(name, "x", works) for name in (OURS, FLOOR))
    case = Case("renew", "renew", FLOOR, (floor, ours, peer))
    (result,) = run([case], rounds=5, calls=1).cases
    assert result.contenders.keys() == {OURS, FLOOR}
    (gone,) = result.missing
    assert (gone.name, gone.reason) == ("peer", "ValueError: enough")
    with pytest.raises(ValueError, match="enough"):
        run([Case("renew", "renew", FLOOR, (floor, Contender(OURS, "x", failing)))], calls=1)


def test_the_check_sees_a_slow_client(shared_server: Server) -> None:
    """Would fail if a client that got much slower were let through, or ours were not."""
    with open_cases([shared_server.unix_url], ["renew"], apis=["threads"], all_peers=False) as (
        case,
    ):
        floor = case.contender(FLOOR)

        def slow() -> None:
            for _ in range(6):
                floor.operation()

        def fast() -> None:
            floor.operation()

        verdicts = {}
        for name, operation in (("slow", slow), ("fast", fast)):
            planted = Case("renew", "x", FLOOR, (floor, Contender(OURS, name, operation)))
            (verdicts[name],) = checked([planted], limit=3.0, rounds=8, calls=30)
    assert not verdicts["slow"].kept
    assert verdicts["slow"].rounds == 8, "it is given every chance"
    assert verdicts["fast"].kept
    assert verdicts["fast"].rounds < 8, "it ends early"


def _result(**medians: tuple[float, ...]) -> CaseResult:
    contenders = {
        name: Figures("x", 9, 1.0, 1.0, 1.0, None, 1.0, 0.0, rounds, ())
        for name, rounds in medians.items()
    }
    return CaseResult("renew", "renew", "threads", "tcp", "lock", (), 3, contenders)


def _arrived(observer: redis.Redis, contender: Contender, ping: Contender) -> list[list[str]]:
    """The words of the requests that reach the server while a contender does its work once."""
    contender.once()  # The first time a connection is opened.
    with observer.monitor() as monitor:
        contender.once()
        ping.once()
        told: Iterator[dict[str, str]] = iter(monitor.next_command, None)
        sent = (each["command"].split(" ") for each in told if each["client_type"] != "lua")
        return list(iter(lambda: next(sent), ["PING"]))


def _grant(requests: list[list[str]]) -> str:
    """The grant of an acquire and its release."""
    acquire, release = requests
    # EVALSHA, sha, the number of keys and the keys; then the holder, and the grant.
    grant = acquire[int(acquire[2]) + 4]
    assert grant in release
    return grant


def _without_grant(requests: list[list[str]]) -> list[list[str]]:
    """An acquire and its release without their grant and their token."""
    grant = _grant(requests)
    return [
        [word for word in words if word != grant and not (word.isdecimal() and len(word) > 14)]
        for words in requests
    ]
