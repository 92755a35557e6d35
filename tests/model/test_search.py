"""The whole of the queue protocol: what its model can come to, and what planted bugs make of it."""

from __future__ import annotations

import re

import pytest

from tests.model import bugs
from tests.model.search import search
from tests.model.world import LATEST, Faults, World

ALL = {
    "all that ends without a word": Faults(deaths=True, deafness=True, plain=True),
    "answers that never come": Faults(deaths=True, silence=True),
    "late renews": Faults(late=("renew",)),
    "late releases": Faults(late=("release",)),
    "loss of data": Faults(deaths=True, loss=True),
    "an operator": Faults(deafness=True, plain=True, revoke=True),
}


@pytest.mark.parametrize("faults", ALL.values(), ids=ALL.keys())
def test_two_clients(faults: Faults) -> None:
    """Some order of steps would break an invariant, or leave somebody waiting for ever."""
    found = search(World(2, faults))
    print(found)
    assert found.wrong is None, found


@pytest.mark.slow
def test_late_acquires_of_two_clients() -> None:
    """A copy of an acquire would be granted beside, or after, the one that was answered."""
    found = search(World(2, Faults(late=("acquire",))))
    print(found)
    assert found.wrong is None, found


@pytest.mark.slow
def test_three_clients() -> None:
    """What goes well with two goes wrong with one more in line."""
    found = search(World(3, Faults()))
    print(found)
    assert found.wrong is None, found


def test_the_search_is_not_empty() -> None:
    """The searches would end early, and find nothing."""
    found = search(World(2, Faults()))
    assert (found.states, found.steps) > (1_000, 4_000)
    assert search(World(1, Faults())).states < found.states


def clock() -> int:
    return LATEST + 1


PLANTED = {
    "a release that does not retire": (
        bugs.NoRetire,
        Faults(late=("renew",)),
        "renewed that has ended",
    ),
    "a plain counter": (bugs.PlainCounter, Faults(loss=True), "the token falls: 1 after 2"),
    "a renew without a compare": (bugs.NoCompare, Faults(), "believe at once"),
    "no grant id": (bugs.NoGrantId, Faults(silence=True), "second token for one grant"),
    "a cancel that gives nothing back": (
        bugs.CancelsNothing,
        Faults(silence=True),
        "has ended its grant, and still holds the name",
    ),
    "a cancel that is forgotten": (
        bugs.ForgetsCancels,
        Faults(late=("acquire",)),
        "a token for a grant that has ended",
    ),
    "newcomers overtake": (bugs.NewcomersOvertake, Faults(), "overtakes"),
    "last come, first served": (bugs.LastFirst, Faults(), "the line .* became"),
    "no end of the claim time": (bugs.ClaimsForEver, Faults(deaths=True), "waits for ever"),
    "a line that nobody hears": (bugs.DropsTheLine, Faults(), "overtakes"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_in_the_scripts(bug: str) -> None:
    """The search would pass whatever the scripts do."""
    scripts, faults, wrong = PLANTED[bug]
    found = search(World(3 if bug.startswith("last") else 2, faults, scripts(clock)))
    print(found)
    assert re.search(wrong, found.wrong or "")
    assert found.trace


@pytest.mark.parametrize(
    ("world", "wrong"),
    [(bugs.NeverLooks, "waits for ever"), (bugs.BelievesAtOnce, "believe at once")],
)
def test_a_planted_bug_in_the_clients(world: type[World], wrong: str) -> None:
    """The search would pass whatever the clients do."""
    found = search(world(2, Faults()))
    print(found)
    assert wrong in (found.wrong or "")


def test_the_limit_of_a_cancel() -> None:
    """The limit that the header of release tells would be wider than it says, or gone."""
    found = search(bugs.CopiesCount(2, Faults(late=("acquire",))))
    print(found)
    assert found.wrong == "0 gets a token for a grant that has ended"
    assert any("QUEUED" in label for label in found.trace), "the copied join was answered"
