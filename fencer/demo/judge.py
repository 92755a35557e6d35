"""Which promises held. Every verdict is computed from what was observed, and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """A `StaleToken` that a worker got: its two tokens and its message."""

    token: int
    highest: int
    message: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What was observed.

    Attributes:
        first_token_seconds: from the start of the server to the first token.
        token_a, token_b: the tokens of the two workers.
        sure: whether A's lease was valid when A looked, just before its write.
        sure_for: for how many seconds it was to stay valid, as A saw it.
        stopped_after: at most so many seconds later A was stopped.
        late_write: how A's write was refused; ``None`` if it was accepted.
        written_by_b, value: what B wrote, and what the store had after A's write.
        keys_left: how many keys the server had after it was killed and started again.
        token_after: the token that A got then.
        late_write_after: how B's write was refused then.
        written_after, value_after: what A wrote then, and what the store had after B's write.
        counter_before, counter_after: what ``INCR`` gave for the last grant before, and the first
            grant after.
    """

    first_token_seconds: float
    token_a: int
    sure: bool
    sure_for: float
    stopped_after: float
    token_b: int
    late_write: Refusal | None
    written_by_b: str
    value: str | None
    keys_left: int
    token_after: int
    late_write_after: Refusal | None
    written_after: str
    value_after: str | None
    counter_before: int
    counter_after: int


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, what was seen of it, and whether it held."""

    promise: str
    evidence: str
    held: bool


def judge(seen: Seen) -> list[Check]:
    """Compare what was seen with what is promised."""
    return [
        Check(
            "A was sure of its lease when it was stopped",
            f"{seen.sure_for:.2f} s were left; stopped within {seen.stopped_after * 1000:.1f} ms",
            seen.sure and seen.stopped_after < seen.sure_for,
        ),
        Check(
            "B's token is larger than A's",
            _compared(seen.token_b, seen.token_a),
            seen.token_b > seen.token_a,
        ),
        Check(
            "A's late write was refused, both tokens named",
            _told(seen.late_write),
            _names(seen.late_write, seen.token_a, seen.token_b),
        ),
        Check(
            "The store has what B wrote",
            f"it has {seen.value!r}; B wrote {seen.written_by_b!r}",
            seen.value == seen.written_by_b,
        ),
        Check(
            "The server lost everything; the next token is larger",
            f"{seen.keys_left} keys left; {_compared(seen.token_after, seen.token_b)}",
            seen.keys_left == 0 and seen.token_after > max(seen.token_a, seen.token_b),
        ),
        Check(
            "After that, B's late write was refused too",
            f"{_told(seen.late_write_after)}; the store has {seen.value_after!r}",
            _names(seen.late_write_after, seen.token_b, seen.token_after)
            and seen.value_after == seen.written_after,
        ),
        Check(
            "A plain counter, as other locks use, went back",
            f"{seen.counter_before} before the loss, {seen.counter_after} after it",
            seen.counter_after <= seen.counter_before,
        ),
    ]


def _names(refusal: Refusal | None, token: int, highest: int) -> bool:
    return (
        refusal is not None
        and (refusal.token, refusal.highest) == (token, highest)
        and str(token) in refusal.message
        and str(highest) in refusal.message
    )


def _told(refusal: Refusal | None) -> str:
    if refusal is None:
        return "the write was accepted"
    return f"{refusal.token} refused, for {refusal.highest} was seen"


def _compared(one: int, other: int) -> str:
    sign = ">" if one > other else "<" if one < other else "="
    return f"{one} {sign} {other}"
