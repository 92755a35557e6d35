"""The command ``demo``: the story on real processes, and the judgement of what was seen."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from typing import Any

import pytest
import typer

from fencer.cli.demo import report
from fencer.cli.exits import Exit
from fencer.demo.judge import Refusal, Seen, judge
from fencer.demo.story import BrokeOff, Story
from tests.cli.runs import Cli, alive, children, eventually, run, start

GOOD = Seen(
    first_token_seconds=0.05,
    token_a=100,
    sure=True,
    sure_for=1.9,
    stopped_after=0.001,
    token_b=200,
    late_write=Refusal(100, 200, "refused 100, for 200 was here"),
    written_by_b="B",
    value="B",
    keys_left=0,
    token_after=300,
    late_write_after=Refusal(200, 300, "refused 200, for 300 was here"),
    written_after="A again",
    value_after="A again",
    counter_before=2,
    counter_after=1,
)


def test_it_shows_what_is_promised() -> None:
    """Would fail if a promise did not hold on a real server, or the demo told less than all."""
    shown = run("demo", "--json")
    assert (shown.code, shown.err) == (0, "")
    told = shown.json
    assert told["held"] is True
    assert [check["promise"] for check in told["checks"]] == [
        check.promise for check in judge(GOOD)
    ]
    assert all(check["held"] is True and check["evidence"] for check in told["checks"])
    assert {event["who"] for event in told["events"]} == {"A", "B", "guard", "server"}
    times = [event["at"] for event in told["events"]]
    assert times == sorted(times)
    assert 0 < told["first_token_seconds"] <= told["seconds"]


def test_text() -> None:
    """Would fail if a piped demo were coloured or cut, or did not end with the verdict."""
    shown = run("demo")
    assert (shown.code, shown.err) == (0, "")
    assert "\x1b" not in shown.out
    assert shown.out.count("✓\t") == len(judge(GOOD))
    assert f"All {len(judge(GOOD))} held." in shown.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (0, {"sure": False}),
        (0, {"stopped_after": 1.9}),
        (1, {"token_b": 100, "late_write": Refusal(100, 100, "100 100")}),
        (2, {"late_write": None}),
        (2, {"late_write": Refusal(100, 201, "refused 100, for 201 was here")}),
        (2, {"late_write": Refusal(100, 200, "refused 100")}),
        (3, {"value": "A late"}),
        (3, {"value": None}),
        (4, {"keys_left": 3}),
        (4, {"token_after": 200}),
        (4, {"token_after": 1}),
        (5, {"late_write_after": None}),
        (5, {"value_after": "B late"}),
        (6, {"counter_after": 3}),
    ],
    ids=repr,
)
def test_what_did_not_hold_is_told(
    number: int, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Would fail if a verdict did not depend on what was seen, so that a broken promise passed."""
    seen = replace(GOOD, **changes)
    assert not judge(seen)[number].held
    with pytest.raises(typer.Exit) as ended:
        report([], seen, 3.0, as_json=True)
    assert ended.value.exit_code == Exit.BROKEN
    assert json.loads(capsys.readouterr().out)["held"] is False
    with pytest.raises(typer.Exit):
        report([], seen, 3.0, as_json=False)
    assert "✗\t" in capsys.readouterr().out


def test_what_held_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Would fail if the judge refused a story in which all went well."""
    report([], GOOD, 3.0, as_json=False)
    assert "✗" not in capsys.readouterr().out


def test_a_story_that_breaks_off_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would fail if a demo that could show nothing exited as if all were well."""

    def break_off(story: Story) -> Seen:
        raise BrokeOff("worker A has ended")

    monkeypatch.setattr(Story, "play", break_off)
    shown = Cli(None)("demo", "--json")
    assert shown.code == Exit.BROKEN
    assert "worker A has ended" in shown.complaint


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, Exit.INTERRUPTED),
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
    ids=["SIGINT", "SIGTERM", "SIGKILL"],
)
def test_an_end_in_the_middle_leaves_nothing(number: int, code: int) -> None:
    """Would fail if a demo that is ended left a server, or a worker that is stopped for ever."""
    with start("demo") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if "SIGSTOP" in line:
                break
        family = children(process.pid)
        assert len(family) == 4  # two workers, the server, and its watchdog
        process.send_signal(number)
        assert process.wait(20) == code
        assert process.stderr.read() == ""
    assert eventually(lambda: not alive(family))
