"""The commands about leases: ``status``, ``ls``, ``history``, ``revoke``, ``advance``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from fencer import _check
from fencer.cli import show
from fencer.cli.exits import Exit, line_of
from fencer.cli.options import AsJson, HashTag, Name, Namespace, Url, open_store
from fencer.client import Fencer
from fencer.errors import InvalidArgument, ScriptError
from fencer.records import Status


def status(
    name: Name,
    as_json: AsJson = False,
    url: Url = None,
    namespace: Namespace = "fencer",
    hash_tag: HashTag = True,
) -> None:
    """Tell who has the lease on a name. Exit code 1 if nobody has it."""
    with open_store(url, namespace, hash_tag) as store:
        found = store.inspect(name)
    if as_json:
        show.as_json(found.as_dict())
    else:
        show.pairs(list(_described(found)))
    if not found.held:
        raise typer.Exit(Exit.NO)


def ls(
    as_json: AsJson = False,
    url: Url = None,
    namespace: Namespace = "fencer",
    hash_tag: HashTag = True,
) -> None:
    """List all names that the server knows, held or free."""
    with open_store(url, namespace, hash_tag) as store:
        found, unreadable = _all(store)
    if as_json:
        show.as_json([each.as_dict() for each in found])
    else:
        show.table(("NAME", "STATE", "TOKEN", "LEFT", "HOLDER"), [_row(each) for each in found])
    for complaint in unreadable:
        show.complain(complaint)
    if unreadable:
        raise typer.Exit(Exit.SERVER)


def history(
    name: Name,
    count: Annotated[
        int, typer.Option("--count", "-n", metavar="N", help="At most so many events.")
    ] = 20,
    as_json: AsJson = False,
    url: Url = None,
    namespace: Namespace = "fencer",
    hash_tag: HashTag = True,
) -> None:
    """Show the latest events of a name, oldest first, in local time."""
    with open_store(url, namespace, hash_tag) as store:
        events = store.history(name, count)
    if as_json:
        show.as_json([event.as_dict() for event in events])
        return
    show.table(
        ("TIME", "EVENT", "TOKEN", "HOLDER"),
        [
            (show.moment(event.at), event.event, str(event.token or "-"), event.holder or "-")
            for event in events
        ],
    )


def revoke(
    name: Name,
    token: Annotated[
        int | None,
        typer.Option(metavar="N", help="End the lease with this token only."),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    namespace: Namespace = "fencer",
    hash_tag: HashTag = True,
) -> None:
    """End somebody's lease. Exit code 1 if there was none to end."""
    with open_store(url, namespace, hash_tag) as store:
        before = store.inspect(name)
        ended = store.revoke(name, token)
    holder = before.holder if ended is not None and before.token == ended else None
    if as_json:
        show.as_json({"name": name, "revoked": ended, "holder": holder})
    elif ended is not None:
        whose = "the lease" if holder is None else f"the lease of {show.readable(holder)}"
        show.line(f"{name}: ended {whose}, token {ended}")
    elif token is not None:
        show.line(f"{name}: nothing to revoke, token {token} is not the last one issued")
    else:
        show.line(f"{name}: nothing to revoke, nobody has the lease")
    if ended is None:
        raise typer.Exit(Exit.NO)


def advance(
    name: Name,
    token: Annotated[int, typer.Argument(metavar="TOKEN", help="What the resource has seen.")],
    as_json: AsJson = False,
    url: Url = None,
    namespace: Namespace = "fencer",
    hash_tag: HashTag = True,
) -> None:
    """Make the next token larger than TOKEN. A lease with a smaller token ends."""
    _check.integer("TOKEN", token, 1, _check.MAX_BEYOND)
    with open_store(url, namespace, hash_tag) as store:
        changed = store.advance(name, token)
    if as_json:
        show.as_json({"name": name, "beyond": token, "changed": changed})
    elif changed:
        show.line(f"{name}: the next token will be larger than {token}")
    else:
        show.line(f"{name}: nothing to change, {token} or a larger number was issued before")


def _all(store: Fencer) -> tuple[list[Status], list[str]]:
    """The state of every name, and a complaint about each whose keys cannot be read."""
    found, unreadable = [], []
    for name in sorted(store.names()):
        try:
            # A key that only looks like one of ours can have a name that is not allowed.
            with contextlib.suppress(InvalidArgument):
                found.append(store.inspect(name))
        except ScriptError as error:
            unreadable.append(f"{show.readable(name)}: {line_of(error)}")
    return found, unreadable


def _row(found: Status) -> tuple[str, ...]:
    if not found.held:
        return found.name, "free", "-", "-", "-"
    token = "unknown" if found.token is None else str(found.token)
    return found.name, "held", token, show.left(found.remaining), found.holder or "-"


def _described(found: Status) -> Iterator[tuple[str, str]]:
    yield "name", found.name
    yield "state", "held" if found.held else "free"
    if found.held:
        yield "holder", found.holder or "-"
        yield "token", "unknown" if found.token is None else str(found.token)
        yield "left", show.left(found.remaining)
    for place, waiter in enumerate(found.line, 1):
        yield "in line", f"{place}. {waiter.holder}, for {waiter.age:.1f} s"
    if found.waiters > len(found.line):
        yield "in line", f"and {found.waiters - len(found.line)} more"
    about = found.info
    if "since" in about:
        yield "since", show.moment(about["since"])
    if "ttl" in about:
        yield "ttl", f"{about['ttl']:g} s"
    for label in ("host", "pid"):
        if label in about:
            yield label, _value(about[label])
    for label in (label for label in about if label not in _check.RESERVED_INFO):
        yield f"info.{label}", _value(about[label])
    yield "last issued", str(found.issued or "none")


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
