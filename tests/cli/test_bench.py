"""The command ``bench``: that it measures what it says. No figure is asserted here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from fencer.bench import APIS, CALLS, FLOOR, LIMITS, NAMES, OURS, PING, Missing
from fencer.cli.bench import What
from fencer.cli.exits import Exit
from fencer.embedded import Server
from tests.cli.runs import Cli

TINY = ("--rounds", "3", "--calls", "5")


def test_the_json_of_a_run(shared_server: Server, redis_client: redis.Redis) -> None:
    """Would fail if a contender were left out, or a ratio were not that of the rounds shown."""
    ran = Cli(None)("bench", "--json", "--url", shared_server.url, *TINY)
    assert ran.code == 0, ran.err
    twins = [(name, api) for name in CALLS for api in APIS if (name, api) != ("guard", "asyncio")]
    assert [(case["name"], case["api"]) for case in ran.json["cases"]] == twins
    for case in ran.json["cases"]:
        shown: dict[str, dict[str, Any]] = case["contenders"]
        reference = "set" if case["name"] == "guard" else "lock"
        assert (case["reference"], case["transport"]) == (reference, "tcp")
        assert {PING, FLOOR, "evalsha", OURS, reference} <= shown.keys()
        assert shown.keys().isdisjoint(gone["name"] for gone in case["missing"])
        for figures in shown.values():
            assert 0 < figures["p50_us"] <= figures["p90_us"] <= figures["p99_us"]
            assert figures["p999_us"] is None, "there were too few calls to tell"
            assert figures["per_second"] > 0
            assert figures["calls"] == 5
            assert len(figures["rounds_p50_us"]) == case["rounds"] == 3
            assert len(figures["curve_us"]) == len(ran.json["curve"])
            for other, key in ((FLOOR, "to_floor"), (reference, "to_reference")):
                both = figures["rounds_p50_us"], shown[other]["rounds_p50_us"]
                ratios = sorted(mine / theirs for mine, theirs in zip(*both, strict=True))
                assert figures[key]["median"] == pytest.approx(ratios[1])
                assert ratios[0] <= figures[key]["low"] <= figures[key]["high"] <= ratios[2]
    place = ran.json["place"]
    assert place["server"].split()[0] in ("valkey", "redis")
    assert (place["transports"], place["embedded"]) == (["tcp"], False)
    assert {"machine", "python", "redis_py", "hiredis", "peers", "fencer"} <= place.keys()
    assert redis_client.dbsize() == 0, "a run leaves no key behind"


def test_a_run_for_people_over_both_transports() -> None:
    """Would fail if the private server did not start, or a way to it were not measured or told."""
    ran = Cli("redis://127.0.0.1:1/0")(
        *("bench", "renew", "--api", "threads", "--transport", "both", *TINY)
    )
    assert ran.code == 0, ran.err
    headers = [row for row in ran.rows if row[0].startswith("renew, ")]
    assert [header[0] for header in headers] == ["renew, tcp", "renew, unix"]
    assert [row[0] for row in ran.rows].count(OURS) == 2
    assert all(len(row) == len(headers[0]) for row in ran.rows if row[0] == OURS)
    assert "without persistence over tcp and unix" in ran.out


@pytest.mark.slow
def test_the_json_of_hand_overs(shared_server: Server, redis_client: redis.Redis) -> None:
    """Would fail if a hand-over did not reach the other process, or a cost were not counted."""
    tiny = ("--rounds", "3", "--calls", "1", "--seconds", "0.3", "--waiters", "1", "--waiters", "3")
    ran = Cli(None)("bench", "handover", "--json", "--url", shared_server.url, *tiny)
    assert ran.code == 0, ran.err
    (case,) = ran.json["cases"]
    peers = {"python-redis-lock", "redis-fifo-lock"} - {gone["name"] for gone in case["missing"]}
    assert {PING, FLOOR, OURS, "ours-asyncio", "lock"} | peers <= case["contenders"].keys()
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


@pytest.mark.slow
def test_the_json_of_growth(shared_server: Server, redis_client: redis.Redis) -> None:
    """Would fail if a batch were not renewed whole, or a kind of growth were not measured."""
    tiny = ("--rounds", "3", "--calls", "1", "--seconds", "0.2", "--leases", "1", "--leases", "7")
    numbers = ("--names", "1", "--names", "1200", "--workers", "1", "--workers", "3")
    ran = Cli(None)(
        *("bench", "keepalive", "names", "together", "--json", "--url", shared_server.url),
        *(*tiny, *numbers),
    )
    assert ran.code == 0, ran.err
    (case,) = ran.json["cases"]
    assert case["title"] == "renew 7 at once, each"
    assert case["contenders"].keys() == {"one", FLOOR, OURS}
    assert [cost["leases"] for cost in ran.json["kept"]] == [1, 7]
    few, many = ran.json["names"]
    assert (few["names"], many["names"]) == (1, 1_200)
    for cost in (few, many):
        assert 0 < cost["released"] < cost["held"]
    assert few["held_whole"] is None
    assert many["held_whole"] > 0
    together = [(each["workers"], each["api"], each["contender"]) for each in ran.json["together"]]
    assert sorted(together) == sorted(
        (workers, api, contender)
        for workers in (1, 3)
        for api in APIS
        for contender in (OURS, "lock")
    )
    assert all(each["per_second"] > 0 for each in ran.json["together"])
    assert redis_client.dbsize() == 0, "a run leaves no key behind"


def test_a_peer_that_is_left_out_is_named(
    shared_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would fail if a peer that is missing, or whose API fails, were left out without a word."""
    from fencer.bench import cases
    from fencer.bench.peers import PEERS, Peer, RedisPy

    class Absent(RedisPy):
        name = distribution = "fencer-absent"
        note = "it wants the moon"

    class Failing(RedisPy):
        name = "failing"

        def renew(self) -> None:
            raise AttributeError("no such verb")

    chosen: tuple[type[Peer], ...] = (PEERS[0], Absent, Failing)
    monkeypatch.setattr(cases, "PEERS", chosen)
    ran = Cli(None)(
        *("bench", "renew", "--api", "threads", "--url", shared_server.url, *TINY),
    )
    assert ran.code == 0, ran.err
    assert "Left out, because not installed (it wants the moon): fencer-absent." in ran.out
    assert "Left out, because AttributeError: no such verb: failing." in ran.out
    assert {row[0] for row in ran.rows} >= {PING, FLOOR, "evalsha", OURS, "lock"}
    assert Missing("failing", "x").name not in {row[0] for row in ran.rows}


def test_the_check(shared_server: Server, redis_client: redis.Redis) -> None:
    """Would fail if a check passed whatever the ratio, or failed whatever the ratio."""
    cli = Cli(None)
    fast = ("--url", shared_server.unix_url, "--calls", "20", "--rounds", "5", "--no-pin")
    kept = cli("bench", "renew", "acquire", "guard", "--check", "--limit", "1000", "--json", *fast)
    assert kept.code == Exit.DONE, kept.err
    checks = kept.json["checks"]
    assert [(each["name"], each["api"]) for each in checks] == [
        each for each in LIMITS if each[0] != "keepalive"
    ]
    for each in checks:
        assert each["ratio"] == pytest.approx(each["ours_us"] / each["floor_us"])
        assert (each["limit"], each["kept"], each["rounds"]) == (1000, True, 5)
    exceeded = cli("bench", "--check", "--limit", "1.0", *fast)
    assert exceeded.code == Exit.NO
    assert [row[0] for row in exceeded.rows[1:3]] == ["renew", "renew"]
    assert "EXCEEDED" in exceeded.out
    assert redis_client.dbsize() == 0, "a run leaves no key behind"


@pytest.mark.parametrize("kind", ["svg", "png", "html"])
def test_a_plot(kind: str, tmp_path: Path) -> None:
    """Would fail if a kind of picture could not be drawn, or lacked a curve or its caption."""
    pytest.importorskip("matplotlib")
    path = tmp_path / f"run.{kind}"
    ran = Cli(None)(
        *("bench", "guard", "together", "--workers", "1", "--workers", "2", "--seconds", "0.2"),
        *(*TINY, "--plot", str(path)),
    )
    assert ran.code == 0, ran.err
    assert ran.out.endswith(f"Drawn: {path}\n")
    drawn = path.read_bytes()
    if kind == "png":
        assert drawn.startswith(b"\x89PNG")
        return
    assert drawn.lstrip().startswith(b"<?xml" if kind == "svg" else b"<!doctype html>")
    shown = ("guard execute, SET", "floor · ", "ours", "evalsha · ", "renewing at once", "redis-py")
    for words in shown:
        assert words.encode() in drawn


@pytest.mark.parametrize("name", ["run.pdf", "nowhere/run.svg"])
def test_a_plot_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    """Would fail if a long run ended in an error that could be told at its start."""
    ran = Cli(None)("bench", *TINY, "--url", "redis://127.0.0.1:1", "--plot", str(tmp_path / name))
    assert ran.code == Exit.USAGE
    assert "plot" in ran.complaint


def test_a_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would fail if nobody said what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = Cli(None)(
        *("bench", *TINY, "--url", "redis://127.0.0.1:1", "--plot", str(tmp_path / "run.svg"))
    )
    assert ran.code == Exit.USAGE
    assert "pip install 'redis-fencer[bench]'" in ran.complaint


def test_choices_are_the_cases() -> None:
    """Would fail if a case could not be chosen."""
    assert [each.value for each in What] == [*NAMES, "names", "together", "all"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("bogus",),
        ("--rounds", "2"),
        ("--calls", "0"),
        ("--seconds", "0"),
        ("--api", "bogus"),
        ("--names", "1000001"),
        ("--transport", "unix", "--url", "redis://127.0.0.1:1"),
        ("--limit", "2"),
        ("handover", "--check"),
        ("--check", "--plot", "run.svg"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    """Would fail if an argument that cannot be meant started a run."""
    assert Cli(None)("bench", *arguments).code == Exit.USAGE


def test_a_server_that_cannot_be_reached() -> None:
    """Would fail if the driver's exception came out as a traceback."""
    ran = Cli(None)("bench", "--url", "redis://127.0.0.1:1/0", *TINY)
    assert ran.code == Exit.SERVER
    assert "no answer" in ran.complaint


def test_importing_fencer_leaves_the_benchmarks_alone() -> None:
    """Would fail if every user paid for importing the benchmarks, or a plotter."""
    code = (
        "import sys, fencer, fencer.cli.app; print('fencer.bench' in sys.modules); "
        "import fencer.bench; print('matplotlib' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]
