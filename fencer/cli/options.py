"""The options that commands share, and the connection that they lead to."""

from __future__ import annotations

from typing import Annotated

import typer

from fencer.client import Fencer, connect
from fencer.errors import InvalidArgument

Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of the lease.")]

AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="FENCER_URL",
        metavar="URL",
        help="The server: redis://, rediss://, unix://, redis+cluster:// or "
        "redis+sentinel://HOST:26379/SERVICE.",
    ),
]

Namespace = Annotated[str, typer.Option(metavar="TEXT", help="How the keys begin.")]

HashTag = Annotated[
    bool,
    typer.Option("--hash-tag/--no-hash-tag", help="Whether the keys have braces."),
]

_CONNECT_SECONDS = 1.5
_ANSWER_SECONDS = 2.0
# Three tries are made, so a dead server is reported after 5 to 7 seconds at the latest.


def open_store(url: str | None, namespace: str, hash_tag: bool) -> Fencer:
    """Return a client for the server that the options name; close it after use.

    Raises:
        InvalidArgument: no server is named, or an option cannot be used.
    """
    if not url:
        raise InvalidArgument(
            "no server is named: pass --url redis://HOST:6379/0, or set FENCER_URL; "
            "`fencer serve` starts a server on this machine"
        )
    return connect(
        url,
        namespace=namespace,
        hash_tag=hash_tag,
        socket_connect_timeout=_CONNECT_SECONDS,
        socket_timeout=_ANSWER_SECONDS,
    )
