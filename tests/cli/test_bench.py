"""The command ``bench``: that it measures what it says. No figure is asserted here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from fencer.bench import (
    CALLS,
    FLOOR,
    NAMES,
    OURS,
    Contender,
    handover,
    keeping_costs,
    open_cases,
    open_place,
)
from fencer.bench.core import CaseResult, Figures, summed_up
from fencer.bench.helper import helper
from fencer.bench.players import KINDS, Kind
from fencer.cli.bench import What
from fencer.cli.exits import Exit
from fencer.embedded import Server
from fencer.errors import StoreError
from tests.cli.runs import Cli

TINY = ("--rounds", "3", "--calls", "5")


def test_the_json_of_a_run(shared_server: Server, redis_client: redis.Redis) -> None:
    """Would fail if a contender were left out, or a ratio were not that of the medians shown."""
    ran = Cli(None)("bench", "--json", "--url", shared_server.url, *TINY)
    assert ran.code == 0
    assert [case["name"] for case in ran.json["cases"]] == list(CALLS)
    for case in ran.json["cases"]:
        shown: dict[str, dict[str, Any]] = case["contenders"]
        reference = "set" if case["name"] == "guard" else "lock"
        assert case["reference"] == reference
        assert case["calls"] == 5
        assert shown.keys() == {"ping", FLOOR, OURS, reference}
        for figures in shown.values():
            assert 0 < figures["p50_us"] <= figures["p90_us"] <= figures["p99_us"]
            assert figures["per_second"] > 0
            assert figures["noise"] >= 0
            assert len(figures["rounds_p50_us"]) == case["rounds"] == 3
            p50 = figures["p50_us"]
            assert figures["to_floor"] == pytest.approx(p50 / shown[FLOOR]["p50_us"])
            assert figures["to_reference"] == pytest.approx(p50 / shown[reference]["p50_us"])
    place = ran.json["place"]
    assert place["server"].split()[0] in ("valkey", "redis")
    assert (place["transport"], place["embedded"]) == ("tcp", False)
    assert {"machine", "python", "redis_py", "hiredis"} <= place.keys()
    assert redis_client.dbsize() == 0, "a run leaves no key behind"


def test_a_run_for_people() -> None:
    """Would fail if the private server did not start, or the table had no line about the place."""
    ran = Cli("redis://127.0.0.1:1/0")("bench", "renew", *TINY)
    assert ran.code == 0
    header, *rows = ran.rows
    assert header[0] == "renew"
    assert [row[0] for row in rows[:4]] == ["ping", FLOOR, OURS, "lock"]
    assert all(len(row) == len(header) for row in rows[:4])
    assert "redis-py" in ran.out
    assert "without persistence over tcp" in ran.out


def test_the_json_of_hand_overs(shared_server: Server, redis_client: redis.Redis) -> None:
    """Would fail if a hand-over did not reach the other process, or a cost were not counted."""
    tiny = ("--rounds", "3", "--calls", "1", "--seconds", "0.3", "--waiters", "1", "--waiters", "3")
    ran = Cli(None)("bench", "handover", "--json", "--url", shared_server.url, *tiny)
    assert ran.code == 0
    (case,) = ran.json["cases"]
    peers = {"python-redis-lock", "redis-fifo-lock"} - set(case["missing"])
    assert case["contenders"].keys() == {"ping", FLOOR, OURS, "lock"} | peers
    for figures in case["contenders"].values():
        assert 0 < figures["p50_us"] <= figures["p90_us"] <= figures["p99_us"]
    assert [cost["waiters"] for cost in ran.json["line"]] == [1, 3]
    for cost in ran.json["line"]:
        assert cost["handovers"] > 0
        # One releases, one claims, one joins.
        assert cost["requests"] >= 2
        assert cost["requests"] + cost["inside"] == pytest.approx(sum(cost["commands"].values()))
        assert cost["commands"]["evalsha"] <= cost["requests"]
    assert redis_client.dbsize() == 0, "a run leaves no key behind"


def test_a_peer_that_is_not_installed(
    shared_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would fail if a missing peer ended the run, or were left out without a word."""
    absent = Kind("absent", "not there", "fencer_absent")
    monkeypatch.setattr(handover, "KINDS", (*KINDS[:3], absent))
    ran = Cli(None)(
        *("bench", "handover", "--url", shared_server.url, "--rounds", "3", "--calls", "1"),
        *("--seconds", "0.2", "--waiters", "2"),
    )
    assert ran.code == 0
    header, *rows = ran.rows
    assert header[-1] == "× lock"
    assert [row[0] for row in rows[:4]] == ["ping", FLOOR, OURS, "lock"]
    assert rows[4] == ["Left out, because not installed: absent."]
    assert rows[6][0] == "waiters"
    assert rows[7][0] == "2"


def test_the_json_of_leases_kept(shared_server: Server, redis_client: redis.Redis) -> None:
    """Would fail if a batch were not renewed whole, or what a process pays were not told."""
    tiny = ("--rounds", "3", "--calls", "1", "--seconds", "0.2", "--leases", "1", "--leases", "7")
    ran = Cli(None)("bench", "keepalive", "--json", "--url", shared_server.url, *tiny)
    assert ran.code == 0
    (case,) = ran.json["cases"]
    assert case["title"] == "renew 7 at once, each"
    assert case["contenders"].keys() == {"one", FLOOR, OURS}
    assert [cost["leases"] for cost in ran.json["kept"]] == [1, 7]
    assert redis_client.dbsize() == 0, "a run leaves no key behind"


def test_what_keeping_costs(shared_server: Server, redis_client: redis.Redis) -> None:
    """Would fail if renewals were not counted, or not each lease were renewed."""
    one, several = keeping_costs(shared_server.url, (1, 5), seconds=1.5, ttl=1.5)
    assert several.requests > one.requests > 0
    assert 0 < several.trips <= several.requests
    assert several.cpu_seconds > 0
    assert redis_client.dbsize() == 0, "a run leaves no key behind"


def test_another_process_that_ends(capfd: pytest.CaptureFixture[str]) -> None:
    """Would fail if a run waited for ever for a process that is gone."""
    with helper("bogus") as gone, pytest.raises(StoreError, match="ended by itself, with code 1"):
        gone.hear()
    assert "bogus" in capfd.readouterr().err


def test_choices_are_the_cases() -> None:
    """Would fail if a case could not be chosen."""
    assert [each.value for each in What] == [*NAMES, "all"]


@pytest.mark.parametrize(
    "arguments", [("bogus",), ("--rounds", "2"), ("--calls", "0"), ("--seconds", "0")]
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    """Would fail if an argument that cannot be meant started a run."""
    assert Cli(None)("bench", *arguments).code == Exit.USAGE


def test_a_server_that_cannot_be_reached() -> None:
    """Would fail if the driver's exception came out as a traceback."""
    ran = Cli(None)("bench", "--url", "redis://127.0.0.1:1/0", *TINY)
    assert ran.code == Exit.SERVER
    assert "no answer" in ran.complaint


@pytest.mark.parametrize("name", CALLS)
def test_the_floor_asks_what_ours_asks(
    name: str, shared_server: Server, redis_client: redis.Redis
) -> None:
    """Would fail if the floor were another request than ours, with other work for the server."""
    with open_cases(shared_server.unix_url, [name]) as (case,):
        contenders = {each.name: each for each in case.contenders}
        ours, floor = (
            [_arrived(redis_client, contenders[who], contenders["ping"]) for _ in range(2)]
            for who in (OURS, FLOOR)
        )
    requests = 2 if name == "acquire" else 1
    assert len(ours[0]) == requests
    if name == "acquire":
        grants = {_grant_and_token_left_out(each)[1] for each in ours + floor}
        assert len(grants) == 4, "each acquire has a grant of its own"
        ours, floor = (
            [_grant_and_token_left_out(run)[0] for run in runs] for runs in (ours, floor)
        )
    assert ours[0] == ours[1] == floor[0] == floor[1]


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
    figures = summed_up("x", [[1_000 * n for n in range(1, 101)], [2_000] * 100, [4_000] * 100])
    assert figures.rounds_p50_us == (50, 2, 4)
    assert (figures.p50_us, figures.p90_us, figures.p99_us) == (4, 4, 4)
    assert figures.per_second == pytest.approx(250_000)
    assert figures.noise == pytest.approx((27 - 3) / 4)


def test_noise_above_the_difference_is_told() -> None:
    """Would fail if a run on a busy machine were taken for a result."""

    def result(noise: float) -> CaseResult:
        floor, ours, lock = (
            Figures("x", p50, p50, p50, 1.0, noise, (p50,)) for p50 in (10.0, 20.0, 22.0)
        )
        return CaseResult(
            "renew", "renew", "lock", (), 3, 9, {FLOOR: floor, OURS: ours, "lock": lock}
        )

    assert result(0.05).doubts() == []
    (doubt,) = result(0.15).doubts()
    assert doubt.startswith("renew: the rounds lie 15% apart, and ours and lock only 9%")
    assert len(result(2.0).doubts()) == 2


def test_importing_fencer_leaves_the_benchmarks_alone() -> None:
    """Would fail if every user paid for importing the benchmarks."""
    code = "import sys, fencer, fencer.cli.app; print('fencer.bench' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def _arrived(client: redis.Redis, contender: Contender, ping: Contender) -> list[list[str]]:
    """The words of the requests that reach the server while a contender does its work once."""
    with client.monitor() as monitor:
        contender.operation()
        ping.operation()
        told: Iterator[dict[str, str]] = iter(monitor.next_command, None)
        sent = (each["command"].split(" ") for each in told if each["client_type"] != "lua")
        return list(iter(lambda: next(sent), ["PING"]))


def _grant_and_token_left_out(run: list[list[str]]) -> tuple[list[list[str]], str]:
    acquire, release = run
    # EVALSHA, sha, 6 and six keys; then the holder, and the grant as second, the token as third.
    grant = acquire[10]
    assert release[10] == grant
    assert release[11].isdecimal()
    return [acquire[:10] + acquire[11:], release[:10] + release[12:]], grant
