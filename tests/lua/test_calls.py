"""CALLS in the headers, against what a real server counts."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.lua.scenarios import (
    FILLER,
    HISTORY,
    NAMES,
    ROWS,
    SCENARIOS,
    WRITING,
    Name,
    Request,
    Store,
    label,
    own_commands,
)

READING = [name for name, row in ROWS.items() if name not in WRITING and not row.caller]
OUTER = {"evalsha", "info", "config", "config|resetstat"}


def counted(store: Store, request: Request) -> tuple[str, Counter[str]]:
    """Run a script; return its status, and how often it called which command."""
    store.do("CONFIG", "RESETSTAT")
    status = store.send(request)[0]
    counts: Counter[str] = Counter()
    for entry, figures in store.do("INFO", "commandstats").items():
        command = entry.removeprefix("cmdstat_")
        if command not in OUTER and figures["calls"]:
            counts[command] = figures["calls"]
    return status, counts


def fill_history(store: Store, entries: int) -> None:
    store.do(
        "EVAL",
        "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'event', 'grant', 'token', i,"
        " 'holder', 'x', 'grant', ARGV[2]) end",
        1,
        HISTORY,
        entries,
        FILLER,
    )


def test_there_is_a_scenario_for_each_row() -> None:
    """If this fails, a row of CALLS is held by nobody, or a scenario is left over."""
    assert set(SCENARIOS) == set(ROWS)


def test_every_script_is_in_there() -> None:
    """If this fails, a script has no row at all, and so no test here."""
    assert {script for script, _, _ in SCENARIOS} == set(NAMES)


@pytest.mark.parametrize("entries", [0, 1_000])
@pytest.mark.parametrize("name", ROWS, ids=label)
def test_calls_are_what_the_server_counts(store: Store, name: Name, entries: int) -> None:
    """If this fails, a script costs the server more than its header says, or grows with history."""
    fill_history(store, entries)
    request = SCENARIOS[name](store)
    status, counts = counted(store, request)
    assert status == name[1]
    assert counts == ROWS[name].counts + own_commands(request)
    assert bool(own_commands(request)) == ROWS[name].caller


@pytest.mark.parametrize("name", READING, ids=label)
def test_row_without_a_write_changes_nothing(store: Store, name: Name) -> None:
    """If this fails, a script that only answers has changed a key or given one an end."""
    request = SCENARIOS[name](store)
    before = store.state()
    store.send(request)
    assert store.state() == before


def test_a_wrong_count_is_seen(store: Store) -> None:
    """If this fails, the comparison above holds whatever the server counts."""
    name = ("acquire", "GRANTED", "fresh")
    _, counts = counted(store, SCENARIOS[name](store))
    assert counts != ROWS[name].counts - Counter(["xrevrange"])
    assert counts != ROWS[name].counts + Counter(["get"])
