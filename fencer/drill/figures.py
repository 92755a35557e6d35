"""Seconds as people read them."""

from __future__ import annotations


def as_seconds(seconds: float) -> str:
    """Such as ``7 ms``, ``0.88 s``, ``12.3 s``."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.00095 else "<1 ms"
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"


def as_range(bounds: tuple[float, float] | None) -> str:
    """Such as ``≤ 0.1 s``, ``3.3–5.1 s``; a dash for nothing."""
    if bounds is None:
        return "–"
    low, high = (f"{bound:.1f}".removesuffix(".0") for bound in bounds)
    return f"{low}–{high} s" if bounds[0] else f"≤ {high} s"
