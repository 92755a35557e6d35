"""The command ``drill``: what it prints and writes, how it ends, and what it leaves behind."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import redis

from fencer.cli.drill import Name
from fencer.cli.exits import Exit
from fencer.drill import play
from fencer.drill.judge import RULES, Finding
from fencer.drill.play import Result, Run
from fencer.drill.record import Event, Record
from fencer.drill.report import page
from fencer.drill.scenarios import SCENARIOS
from fencer.drill.stage import Settings
from fencer.embedded import Server
from tests.cli.runs import Cli, alive, children, eventually, run, start

FAST = ("--ttl", "1s", "--seed", "3")


def rows(out: str) -> dict[str, list[str]]:
    """The cells of the table, by scenario."""
    lines = [line.split("\t") for line in out.splitlines() if "\t" in line]
    assert lines[0][0] == "scenario"
    return {name: cells for name, *cells in lines[1:]}


def test_it_tells_what_it_saw(tmp_path: Path) -> None:
    """If this fails, a drill that went well does not say so, or hides its figures."""
    told, page_file = tmp_path / "drill.json", tmp_path / "drill.html"
    shown = run("drill", "crash", *FAST, "--json", str(told), "--report", str(page_file))
    assert (shown.code, shown.err) == (Exit.DONE, "")
    assert "\x1b" not in shown.out
    assert "seed 3" in shown.out
    (cells,) = rows(shown.out).values()
    assert cells[0] == "1"
    assert cells[4:6] == ["0.7–1.1 s", "5–8 s"]
    assert cells[6] in ("good", "slow")
    seen = json.loads(told.read_text())
    assert (seen["held"], seen["seed"]) == (True, 3)
    (crash,) = seen["scenarios"]
    assert crash["scenario"] == "crash"
    (only,) = crash["runs"]
    assert crash["seconds"] == [only["seconds"][0]] * 3
    assert {"elected", "kill", "job"} <= {event["what"] for event in only["events"]}
    assert only["writes"]
    assert "SIGKILL" in page_file.read_text()


def test_the_page_needs_nothing_else() -> None:
    """If this fails, the report loads something from elsewhere, or is broken markup."""
    html = page([some_result(bad=True)], {"ttl": "1 s", "<seed>": 3})
    assert not re.search(r"https?:|<script|<link|@import|url\((?!#)", html)
    assert "&lt;seed&gt;" in html
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) > 2
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert "one believer" in html
    assert "prefers-color-scheme: dark" in html


def test_a_bad_verdict_is_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a script that runs drills takes a broken promise for success."""

    def perform(*_: Any) -> Iterator[Result]:
        yield some_result(bad=False)
        yield some_result(bad=True)

    monkeypatch.setattr(play, "perform", perform)
    shown = Cli(None)("drill", "crash", *FAST)
    assert shown.code == Exit.BROKEN
    assert "crash, run 1, at 0.50 s: one believer: a and b" in shown.out
    assert "are in somewhere" in shown.out
    assert "1 of 2 scenarios held" in shown.out


def test_what_would_harm_a_server_is_skipped(
    shared_server: Server, redis_client: redis.Redis
) -> None:
    """If this fails, a drill kills somebody's server, calls that good, or leaves keys there."""
    redis_client.set("precious", "1")
    shown = Cli(None)(
        "drill", "graceful", "server-down", "skew", "data-loss", *FAST, "--url", shared_server.url
    )
    assert shown.code == Exit.DONE, shown.err
    table = rows(shown.out)
    for name in ("server-down", "skew", "data-loss"):
        assert table[name][6] == "skipped: it would harm the server that --url names"
    assert table["graceful"][6] in ("good", "slow")
    assert redis_client.keys() == [b"precious"]


def test_without_a_compiler_skew_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a machine without a C compiler passes a drill that was never played."""
    monkeypatch.setattr("fencer.drill.clock.shutil.which", lambda name: None)
    shown = Cli(None)("drill", "skew", *FAST)
    assert shown.code == Exit.DONE
    assert rows(shown.out)["skew"][6] == "skipped: needs cc: install gcc or clang"
    assert "0 of 0 scenarios held, 1 skipped" in shown.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--ttl", "5"], "--ttl is written as 500ms, 5s or 1m30s"),
        (["--ttl", "100ms"], "too short for a drill"),
        (["--ttl", "1s", "--retry-interval", "2s"], "retry_interval=2 is longer than the ttl"),
        (["--json", "/nowhere/file"], "/nowhere/file cannot be written"),
        (["crash", "--url", "rediss://localhost"], "not for rediss://"),
    ],
    ids=repr,
)
def test_wrong_usage(arguments: list[str], told: str) -> None:
    """If this fails, a mistake is found only after minutes of drilling."""
    shown = Cli(None)("drill", *arguments)
    assert shown.code == Exit.USAGE
    assert told in shown.err


def test_a_server_that_is_not_there() -> None:
    """If this fails, a drill on a server that is down looks like a broken election."""
    shown = Cli(None)("drill", "crash", *FAST, "--url", "redis://127.0.0.1:1/0")
    assert shown.code == Exit.SERVER


def test_names() -> None:
    """If this fails, a scenario exists that nobody can ask for."""
    assert [name.value for name in Name] == list(SCENARIOS)
    assert {each.name for each in play.chosen([])} == SCENARIOS.keys() - {"chaos"}
    assert [each.name for each in play.chosen(["pause", "crash"])] == ["crash", "pause"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_in_the_middle_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """If this fails, a drill that is ended leaves instances that campaign for ever, or files."""
    with start("drill", "crash", "--ttl", "5s", env={"TMPDIR": str(tmp_path)}) as process:
        # Three instances, two servers with a watchdog each, and the watchdog of the instances.
        assert eventually(lambda: len(children(process.pid)) == 8)
        family = children(process.pid)
        process.send_signal(number)
        process.communicate(timeout=20)
    assert eventually(lambda: not alive(family))
    assert eventually(lambda: not list(tmp_path.iterdir()))
    codes = {signal.SIGINT: Exit.INTERRUPTED, signal.SIGTERM: 128 + number, signal.SIGKILL: -number}
    assert process.returncode == codes[number]


def test_verdicts() -> None:
    """If this fails, good, slow, bad and skipped are confused."""
    scenario = SCENARIOS["crash"]
    good, bad = some_result(bad=False), some_result(bad=True)
    assert (good.verdict, bad.verdict) == ("good", "BAD")
    assert Result(scenario, Settings(ttl=0.5), good.runs).verdict == "slow"
    assert Result(scenario, Settings(), skipped="why").verdict == "skipped"
    assert good.spread == (0.9, 0.9, 0.9)
    assert Result(scenario, Settings()).spread is None
    assert (good.old, Result(scenario, Settings(ttl=10.0)).old) == ((5, 8), (10, 15))


def some_result(*, bad: bool) -> Result:
    """What came of a crash, made up."""
    assert "one believer" in RULES
    events = [
        Event("server", "start", 0.0, 0.0),
        Event("a", "started", 0.0, 0.0),
        Event("a", "elected", 0.1, 0.1, token=7),
        Event("a", "job", 0.2, 0.3, "refused", token=7),
        Event("a", "freeze", 0.4, 0.4),
    ]
    finding = Finding("one believer", "a and b <both>", 0.5)
    run = Run(
        1,
        3,
        (0.9,),
        Record.of(events, (), 1.0),
        (finding,) * bad,
        Path("somewhere") if bad else None,
    )
    return Result(SCENARIOS["crash"], Settings(ttl=1.0), (run,))
