"""Twins: a fault test that a broken Fencer would pass as well proves nothing.

``@twin(bugs.plain_counter)`` has a fault test run once more with that bug planted, in
the test's process and in those that it starts. The twin passes if the test fails: by a check of its
own, by an error of ours that it does not expect, or by its record. Of a parametrized test the first
item has a twin, or the first with ``of`` in its id. A test that can have none says why:
``@no_twin("it looks at the tools")``.

A bug is a function that is given a `pytest.MonkeyPatch`; it stands at the top of a module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from importlib import import_module
from typing import Any

import pytest

from fencer import LeaseLost, NotAcquired, StaleToken, StoreUnavailable, _scripts

Bug = Callable[[pytest.MonkeyPatch], None]

VARIABLE = "FENCER_TEST_BUG"
"""Where the processes of a test find the bug that is planted."""

FAILURES = (
    AssertionError,
    pytest.fail.Exception,
    LeaseLost,
    NotAcquired,
    StaleToken,
    StoreUnavailable,
)
"""How a twin may fail; the mark's ``raises`` adds to it. Any other error is the bug's own."""

TWIN = pytest.StashKey[pytest.Mark]()
_FOUND = pytest.StashKey[bool]()


def twin(
    bug: Bug, *, of: str = "", raises: tuple[type[Exception], ...] = ()
) -> pytest.MarkDecorator:
    """Have the test run once more with a bug, and fail."""
    return pytest.mark.twin.with_args(bug, of=of, raises=raises)


def no_twin(why: str) -> pytest.MarkDecorator:
    """Have no twin."""
    return pytest.mark.no_twin(why)


class _Edited:
    """The folder of the scripts, with another body for one of them."""

    def __init__(self, folder: Any, name: str, body: str) -> None:
        self._folder, self._name, self._body = folder, name, body

    def __truediv__(self, file: str) -> Any:
        return self if file == f"{self._name}.lua" else self._folder / file

    def read_bytes(self) -> bytes:
        return self._body.encode()


def in_script(patch: pytest.MonkeyPatch, name: str, piece: str, by: str) -> None:
    """Replace a piece of ``lua/<name>.lua``, which must be there once."""
    folder: Any = _scripts.folder()
    good = (folder / f"{name}.lua").read_bytes().decode()
    assert good.count(piece) == 1, f"lua/{name}.lua has changed: {piece!r}"
    edited = _Edited(folder, name, good.replace(piece, by))
    patch.setattr(_scripts, "folder", lambda: edited)
    _scripts.load.cache_clear()


def begin(patch: pytest.MonkeyPatch | None = None) -> None:
    """Plant the bug in a process that a twin has started."""
    if VARIABLE in os.environ:
        module, name = os.environ[VARIABLE].split(":")
        getattr(import_module(module), name)(patch or pytest.MonkeyPatch())


def pytest_configure(config: pytest.Config) -> None:
    """The marks; see the module."""
    config.addinivalue_line("markers", "twin(bug, of, raises): with this bug it must fail")
    config.addinivalue_line("markers", "no_twin(why): it has no twin, for this reason")


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem() -> Generator[None, Any, Any]:
    """Put the twins of a test beside it."""
    found = yield
    if not isinstance(found, list):
        return found
    return [*found, *_twins([item for item in found if isinstance(item, pytest.Function)])]


def _twins(items: list[pytest.Function]) -> list[pytest.Function]:
    if not items or items[0].function.__module__ != items[0].module.__name__:
        return []  # It is imported: its twins are where it is written.
    made = []
    for mark in items[0].iter_markers("twin"):
        bug, of = mark.args[0], mark.kwargs["of"]
        item = next(item for item in items if of in item.name)
        callspec = getattr(item, "callspec", None)
        name = f"{item.originalname}__with_{bug.__name__}"
        twin = pytest.Function.from_parent(
            item.parent,
            name=f"{name}[{callspec.id}]" if callspec else name,
            callspec=callspec,
            callobj=item.obj,
            fixtureinfo=item._fixtureinfo,
            originalname=name,
        )
        twin.stash[TWIN] = mark
        made.append(twin)
    return made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a fault test, one that leaves a record, without a twin or a reason."""
    bare = {
        f"{item.location[0]}::{item.originalname}"
        for item in items
        if isinstance(item, pytest.Function)
        and "history" in item.fixturenames
        and TWIN not in item.stash
        and not any(item.get_closest_marker(name) for name in ("twin", "no_twin"))
    }
    if bare:
        raise pytest.UsageError(f"these have neither a twin nor no_twin(why): {sorted(bare)}")


@pytest.fixture(autouse=True)
def planted(request: pytest.FixtureRequest) -> Iterator[None]:
    """Plant the bug, if this is a twin; not in what outlives the test, which is set up before."""
    if TWIN not in request.node.stash:
        yield
        return
    bug: Bug = request.node.stash[TWIN].args[0]
    try:
        with pytest.MonkeyPatch.context() as patch:
            bug(patch)
            patch.setenv(VARIABLE, f"{bug.__module__}:{bug.__name__}")
            yield
    finally:
        _scripts.load.cache_clear()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the outcome of a twin round."""
    report = yield
    if TWIN not in item.stash:
        return report
    if report.skipped:  # as its test is, on this server
        item.stash[_FOUND] = True
    if call.when == "setup":
        return report
    if call.excinfo is not None and _is_found(call.excinfo, item.stash[TWIN]):
        item.stash[_FOUND] = True
        report.outcome, report.longrepr = "passed", None
    elif call.when == "teardown" and report.passed and not item.stash.get(_FOUND, False):
        bug = item.stash[TWIN].args[0].__name__
        report.outcome, report.longrepr = "failed", f"the test passes with {bug} planted"
    return report


def _is_found(error: pytest.ExceptionInfo[BaseException], mark: pytest.Mark) -> bool:
    if "Timeout (>" in str(error.value):  # of pytest-timeout: it hangs, and nothing was found
        return False
    return isinstance(error.value, (*FAILURES, *mark.kwargs["raises"]))
