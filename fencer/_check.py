"""What callers may pass. Everything is checked here, before anything is sent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from fencer.errors import InvalidArgument

MAX_TOKEN = 2**53 - 1
"""The largest token: doubles, JSON and BIGINT hold it exactly."""

MAX_BEYOND = 2**53 - 2**32
"""The largest number to advance a name beyond: it leaves room for four billion grants."""

MIN_TTL = 0.01
MAX_TTL = 7 * 86_400.0
MAX_KEEP = 10 * 365 * 86_400.0
MAX_HISTORY = 1_000_000
MAX_NAME_BYTES = 512
MAX_HOLDER_BYTES = 255
MAX_INFO_BYTES = 8_192
MAX_INFO_DEPTH = 32

_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))

RESERVED_INFO = frozenset({"holder", "host", "pid", "grant", "ttl", "token", "since"})
"""The fields of the info key that Fencer writes itself."""


def text(what: str, value: object, max_bytes: int) -> str:
    """Return ``value`` if it is printable text of at most ``max_bytes`` in UTF-8."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{what} must be a str, not {type(value).__name__}")
    if not value:
        raise InvalidArgument(f"{what} must not be empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{what} cannot be encoded as UTF-8: {error.reason}") from None
    if size > max_bytes:
        raise InvalidArgument(f"{what} has {size} bytes in UTF-8; at most {max_bytes} are allowed")
    if not value.isprintable() and any(
        ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in value
    ):
        raise InvalidArgument(f"{what} {value!r} must not have control characters")
    return value


def name(value: object, what: str = "name") -> str:
    """Return ``value`` if it can be a part of a key: braces are kept for the hash tag."""
    checked = text(what, value, MAX_NAME_BYTES)
    if "{" in checked or "}" in checked:
        raise InvalidArgument(
            f"{what} {checked!r} must not have braces: they mark the part of a key "
            "that Redis Cluster hashes"
        )
    return checked


def holder(value: object) -> str:
    """Return ``value`` if it can be the readable id of a holder."""
    return text("holder", value, MAX_HOLDER_BYTES)


def number(what: str, value: object, low: float, high: float) -> float:
    """Return ``value`` as a float if it is a finite number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgument(f"{what} must be a number of seconds, not {value!r}")
    if not low <= value <= high:  # NaN is not, either
        raise InvalidArgument(
            f"{what} must be from {low:g} to {high:.10g} seconds, not {_shown(value)}"
        )
    return float(value)


def ttl_ms(value: object) -> int:
    """Return a ttl in whole milliseconds, never longer than was asked for."""
    return math.floor(number("ttl", value, MIN_TTL, MAX_TTL) * 1000 + 1e-6)


def wait(value: object) -> float:
    """Return a time to wait in seconds; ``None``, for ever, becomes infinity."""
    return math.inf if value is None else number("wait", value, 0.0, MAX_KEEP)


def integer(what: str, value: object, low: int, high: int) -> int:
    """Return ``value`` if it is an int from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(f"{what} must be an int, not {value!r}")
    if not low <= value <= high:
        raise InvalidArgument(f"{what} must be from {low} to {high}, not {_shown(value)}")
    return value


def token(value: object) -> int:
    """Return ``value`` if it can be a fencing token."""
    return integer("token", value, 1, MAX_TOKEN)


def info(value: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the caller's own fields for the info key, if they are JSON of a bounded size."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidArgument("info must be a mapping with str keys")
    taken = sorted(RESERVED_INFO & value.keys())
    if taken:
        raise InvalidArgument(f"info must not have {', '.join(taken)}: Fencer writes them itself")
    fields = dict(value)
    try:
        encoded = json_text(fields).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"info must be JSON: {error}") from None
    if len(encoded) > MAX_INFO_BYTES:
        raise InvalidArgument(
            f"info has {len(encoded)} bytes as JSON; at most {MAX_INFO_BYTES} are allowed"
        )
    if _depth(fields) > MAX_INFO_DEPTH:
        raise InvalidArgument(f"info is nested deeper than {MAX_INFO_DEPTH} levels")
    return fields


def json_text(value: object) -> str:
    """Return ``value`` as compact JSON, readable in ``redis-cli``."""
    return _JSON.encode(value)


def _shown(value: float) -> str:
    """A number for a message: Python refuses to print very long ones."""
    return repr(value) if -1e300 < value < 1e300 else "a number beyond all bounds"


def _depth(value: object) -> int:
    if isinstance(value, Mapping):
        return 1 + max((_depth(item) for item in value.values()), default=0)
    if isinstance(value, list | tuple):
        return 1 + max((_depth(item) for item in value), default=0)
    return 0
