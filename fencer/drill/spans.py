"""Sets of time spans: what was so from when to when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

Span: TypeAlias = tuple[float, float]


class Spans:
    """Spans of time, in order, none of which touch."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._spans: list[Span] = []
        for begun, ended in sorted(spans):
            if ended <= begun:
                continue
            if self._spans and begun <= self._spans[-1][1]:
                before = self._spans.pop()
                begun, ended = before[0], max(before[1], ended)
            self._spans.append((begun, ended))

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    def __bool__(self) -> bool:
        return bool(self._spans)

    def __or__(self, other: Spans) -> Spans:
        """When either was so."""
        return Spans([*self, *other])

    def __and__(self, other: Spans) -> Spans:
        """When both were so."""
        return Spans((max(a, c), min(b, d)) for a, b in self for c, d in other)

    def __sub__(self, other: Spans) -> Spans:
        """When this was so and the other was not."""
        left = list(self)
        for begun, ended in other:
            left = [piece for a, b in left for piece in ((a, min(b, begun)), (max(a, ended), b))]
            left = [piece for piece in left if piece[0] < piece[1]]
        return Spans(left)

    def holds(self, moment: float) -> bool:
        """Whether it was so at that moment."""
        return any(begun <= moment <= ended for begun, ended in self)

    def meets(self, span: Span) -> bool:
        """Whether it was so at some moment of the span."""
        return any(begun <= span[1] and span[0] <= ended for begun, ended in self)

    def longest(self) -> float:
        """The length of the longest, in seconds; 0 if there is none."""
        return max((ended - begun for begun, ended in self), default=0.0)
