"""The two APIs are the same but for `await`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import fencer

TWINS = [(fencer.Fencer, fencer.AsyncFencer), (fencer.Lease, fencer.AsyncLease)]
ON_ASYNCIO = [
    ("AsyncExitStack", "ExitStack"),
    ("AsyncIterator", "Iterator"),
    ("AsyncFencer", "Fencer"),
    ("AsyncLease", "Lease"),
    ("redis.asyncio.Redis", "redis.Redis"),
    ("asyncio.Event", "threading.Event"),
    # A guard for threads serves both; one for asyncio can only be awaited there.
    ("Guard | AsyncGuard", "Guard"),
    ("AsyncClient", "Client"),
]
SPECIAL = {"__aenter__": "__enter__", "__aexit__": "__exit__"}


def public(kind: type) -> set[str]:
    """The names that a caller may use, with those of the base classes."""
    names = {SPECIAL.get(name, name) for name in dir(kind)}
    return {name for name in names if not name.startswith("_") or name in SPECIAL.values()}


def annotated(kind: type) -> set[str]:
    found = {name for base in kind.__mro__ for name in vars(base).get("__annotations__", {})}
    return {name for name in found if not name.startswith("_")}


def plain(annotation: object) -> str:
    """An annotation as the twin for threads would write it."""
    shown = annotation if isinstance(annotation, str) else repr(annotation)
    for theirs, ours in ON_ASYNCIO:
        shown = shown.replace(theirs, ours)
    return shown


def signature(function: Callable[..., Any]) -> list[tuple[Any, ...]]:
    found = inspect.signature(function)
    parameters = [
        (parameter.name, parameter.kind, parameter.default, plain(parameter.annotation))
        for parameter in found.parameters.values()
    ]
    return [*parameters, ("return", None, None, plain(found.return_annotation))]


def methods() -> list[Any]:
    theirs = {ours: theirs for theirs, ours in SPECIAL.items()}
    return [
        pytest.param(sync, other, name, theirs.get(name, name), id=f"{sync.__name__}.{name}")
        for sync, other in TWINS
        for name, found in sorted(vars(sync).items())
        if callable(found)
        and (name in public(sync) or (name == "__init__" and sync is not fencer.Lease))
    ]


@pytest.mark.parametrize(("sync", "other"), TWINS)
def test_the_same_public_names(sync: type, other: type) -> None:
    """What one API has would be missing in the other."""
    assert public(sync) == public(other)
    assert annotated(sync) == annotated(other)


@pytest.mark.parametrize(("sync", "other", "name", "their_name"), methods())
def test_the_same_signatures(sync: type, other: type, name: str, their_name: str) -> None:
    """A name, a kind, a default or a type would differ between the two APIs."""
    assert signature(getattr(sync, name)) == signature(getattr(other, their_name))


def test_connect_is_the_same() -> None:
    """An option of one connect would be missing in the other, or mean another default."""
    assert signature(fencer.connect) == signature(fencer.connect_async)


@pytest.mark.parametrize(("sync", "other"), TWINS)
def test_what_sends_is_awaited(sync: type, other: type) -> None:
    """A method that blocks the event loop would look like one that does not, or the reverse."""
    quick = {"on_lost", "__init__"}
    for name in public(other) - quick:
        found = vars(other).get(name)
        if inspect.isfunction(found):
            assert inspect.iscoroutinefunction(found) or inspect.isasyncgenfunction(found), name


@pytest.mark.parametrize(
    "twin", [fencer.Fencer, fencer.AsyncFencer, fencer.Lease, fencer.AsyncLease]
)
def test_properties_are_the_same_ones(twin: type) -> None:
    """A property that both have would be written twice, and drift."""
    own = {name for name, found in vars(twin).items() if isinstance(found, property)}
    assert own <= {"client"}
