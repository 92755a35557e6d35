"""Durations as operators write them: ``500ms``, ``5s``, ``1m30s``, as Go does."""

from __future__ import annotations

import re

from fencer.errors import InvalidArgument

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_FORM = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in _UNITS), re.ASCII)


def seconds(text: str, what: str = "a duration") -> float:
    """Read a duration of hours, minutes, seconds and milliseconds, each at most once, in order.

    Raises:
        InvalidArgument: it is something else, such as a number without a unit.
    """
    found = _FORM.fullmatch(text)
    if not text or found is None:
        raise InvalidArgument(f"{what} is written as 500ms, 5s or 1m30s, not {text!r}")
    parts = zip(found.groups(), _UNITS.values(), strict=True)
    return sum(float(number) * unit for number, unit in parts if number)
