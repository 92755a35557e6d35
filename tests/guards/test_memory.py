"""The guard of what lives in one process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import fencer
from fencer.errors import InvalidArgument, StaleToken
from fencer.guards import Guard, MemoryGuard
from fencer.sequencer import Sequencer
from tests.faults.planted import twin
from tests.guards import bugs

recorded = pytest.mark.usefixtures("history")


@pytest.fixture
def guard() -> MemoryGuard:
    return MemoryGuard("stock")


def test_it_is_a_guard(guard: MemoryGuard) -> None:
    """It could not be announced to, nor keep the mark for others."""
    assert isinstance(guard, Guard)
    assert (guard.resource, guard.name, guard.highest()) == ("stock", "stock", 0)


def test_a_block_of_an_older_holder_is_not_entered(guard: MemoryGuard) -> None:
    """A stale holder would write."""
    with guard.begin(2):
        pass
    with pytest.raises(StaleToken) as caught, guard.begin(1):
        pytest.fail("entered")
    assert (caught.value.token, caught.value.highest) == (1, 2)


@twin(bugs.memory_in_two_steps)
@recorded
def test_others_wait_until_the_block_ends(guard: MemoryGuard) -> None:
    """A newer holder would write in the middle of an older one's block."""
    order: list[str] = []

    def newer() -> None:
        with guard.begin(2):
            order.append("newer")

    with guard.begin(1):
        thread = threading.Thread(target=newer)
        thread.start()
        thread.join(0.2)
        order.append("older")
    thread.join()
    assert order == ["older", "newer"]


def test_a_block_may_use_the_guard_again(guard: MemoryGuard) -> None:
    """A function called within a block would wait for itself."""
    with guard.begin(1):
        guard.check(1)
        with guard.begin(2):
            assert guard.highest() == 2


def test_a_block_that_fails_keeps_the_mark_and_lets_others_in(guard: MemoryGuard) -> None:
    """One exception would end all writing, or open the door to older holders."""
    with pytest.raises(ZeroDivisionError), guard.begin(2):
        raise ZeroDivisionError
    with guard.begin(2):
        pass
    with pytest.raises(StaleToken):
        guard.check(1)


@twin(bugs.memory_in_two_steps)
@recorded
def test_many_threads_leave_the_newest(guard: MemoryGuard) -> None:
    """Threads would overtake each other between check and write."""
    value = [0]

    def write(tokens: range) -> None:
        for token in tokens:
            try:
                with guard.begin(token):
                    assert value[0] <= token
                    value[0] = token
            except StaleToken:
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, [range(n, 2_000, 4) for n in range(1, 5)]))
    assert value == [guard.highest()] == [1_999]


def test_a_lease_of_another_name_is_refused(client: fencer.Fencer) -> None:
    """Tokens of two names would be compared, which says nothing."""
    guard = MemoryGuard("stock", name="orders")
    shown = client.acquire("orders").sequencer()
    guard.check(shown)
    assert guard.highest() == shown.token
    with pytest.raises(InvalidArgument, match="tokens of 'orders', not of 'stock'"):
        guard.check(Sequencer("stock", 1, "ab" * 16, "host"))
