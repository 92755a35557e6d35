"""Planted bugs: what others do, or what a slip would make of Fencer. See `tests.faults.planted`.

Those that several folders use are here; a folder's own are in its ``bugs.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fencer import _clock, _protocol
from fencer._lease import BaseLease, State
from fencer._protocol import Protocol
from tests.faults.planted import in_script

MINT = "minting == 'dense' and after + 1 or math.max(after + 1, now_us)"


def plain_counter(patch: pytest.MonkeyPatch) -> None:
    """Tokens are counted: they begin again where the server has lost its data."""
    for script in ("acquire", "release"):
        in_script(patch, script, MINT, "after + 1")


def clock_alone(patch: pytest.MonkeyPatch) -> None:
    """A token is the server's time, without a look at the last one."""
    for script in ("acquire", "release"):
        in_script(patch, script, MINT, "now_us")


def one_token_for_all(patch: pytest.MonkeyPatch) -> None:
    """Neither a grant nor a release raises the token."""
    for script in ("acquire", "release"):
        in_script(patch, script, MINT, "math.max(after, 1)")
    retires_nothing(patch)


def renews_without_compare(patch: pytest.MonkeyPatch) -> None:
    """A renew prolongs the lease, whoever's it is by now."""
    in_script(patch, "renew", "if issued ~= mine then\n    answer", "if false then\n    answer")
    in_script(patch, "renew", "elseif held_by and held_by ~= holder then", "elseif false then")


def releases_without_compare(patch: pytest.MonkeyPatch) -> None:
    """A release deletes the lock, whoever's it is by now."""
    in_script(
        patch,
        "release",
        "if mine == '0' and not ours or mine ~= '0' and issued ~= mine then",
        "held_by, ours = holder, true\nif false then",
    )


def retires_nothing(patch: pytest.MonkeyPatch) -> None:
    """After a release its token is still the last one, and a late renew finds it so."""
    in_script(patch, "release", "string.format('%.0f', issued + 1)", "issued")


def knows_no_grant_again(patch: pytest.MonkeyPatch) -> None:
    """An acquire that is asked again is a new one, and the rival of the first."""
    in_script(
        patch,
        "acquire",
        "local again = last_grant == grant and last_token == issued",
        "local again = false",
    )
    in_script(patch, "acquire", "own = own or (fields[8] == grant and fields)", "")


def gives_nothing_back(patch: pytest.MonkeyPatch) -> None:
    """An acquire that failed, and may have been granted, is left as it is."""

    def cancel(core: Protocol, release: Any) -> Iterator[Any]:
        yield from ()

    patch.setattr(Protocol, "_cancel", cancel)


def tries_once(patch: pytest.MonkeyPatch) -> None:
    """A call that got no answer is not tried again."""
    patch.setattr(_protocol, "_PAUSES", ())


def believes_too_long(patch: pytest.MonkeyPatch) -> None:
    """A holder believes for a second more than the server keeps its lease."""
    patch.setattr(Protocol, "belief", lambda core, ttl_ms: ttl_ms / 1000 + 1.0)


def believes_from_the_reply(patch: pytest.MonkeyPatch) -> None:
    """A holder counts its time from the reply, not from before the request."""
    plain = Protocol.belief

    class Belief(float):
        def __radd__(self, started: float) -> float:
            return _clock.now() + float(self)

    patch.setattr(Protocol, "belief", lambda core, ttl_ms: Belief(plain(core, ttl_ms)))


def guards_nothing(patch: pytest.MonkeyPatch) -> None:
    """The guard on Redis accepts every token."""
    in_script(
        patch,
        "guard",
        "if offered < highest or (offered == highest and rival) then",
        "if false then",
    )


def nobody_is_served(patch: pytest.MonkeyPatch) -> None:
    """A release hands the lease to nobody in line."""
    in_script(patch, "release", "serve(mint(issued + 1))", "")


def newcomers_overtake(patch: pytest.MonkeyPatch) -> None:
    """Whoever asks in the right moment gets it, whoever waits."""
    in_script(patch, "acquire", "held_by, remaining_ms = serve(number, since_ms, grant, lost)", "")


def same_grant_id(patch: pytest.MonkeyPatch) -> None:
    """All acquires of a process have one grant id."""
    patch.setattr(_protocol, "_new_grant", lambda: "0" * 32)


def a_renewal_brings_back(patch: pytest.MonkeyPatch) -> None:
    """A lease that was lost lives again when a renewal is confirmed."""
    plain = BaseLease._settle

    def settle(lease: BaseLease, reply: list[Any], started: float, ttl_ms: int) -> bool:
        if reply[0] == "RENEWED":
            lease._state = State.LIVE
        return plain(lease, reply, started, ttl_ms)

    patch.setattr(BaseLease, "_settle", settle)
