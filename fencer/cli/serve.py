"""The command ``serve``: a real server in the foreground, for development."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from fencer.cli import show
from fencer.cli.options import AsJson
from fencer.embedded import Server
from fencer.errors import InvalidArgument, ServerFailed

DEFAULT_PORT = 7370

_POLL_SECONDS = 0.1


def serve(
    port: Annotated[
        int, typer.Option(metavar="N", help="The port on 127.0.0.1; 0 takes a free one.")
    ] = DEFAULT_PORT,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Where the data is kept; by default fencer in XDG_STATE_HOME (~/.local/state).",
        ),
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Keep nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a server on this machine until Ctrl-C. For development, not for production."""
    if memory and folder is not None:
        raise InvalidArgument("--memory keeps nothing, so it needs no --folder: leave one out")
    kept = None if memory else folder or _default_folder()
    with (
        _stopped_by_signals() as stopped,
        _started(
            Server(kept, persistence="none" if memory else "aof", port=port or None)
        ) as server,
    ):
        _announce(server, kept, as_json)
        while not stopped():
            if not server.running:
                raise ServerFailed("the server has ended by itself", _tail(kept))
            time.sleep(_POLL_SECONDS)


def _default_folder() -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    # The XDG specification wants a relative path to be ignored.
    return (state if state.is_absolute() else Path.home() / ".local" / "state") / "fencer"


@contextlib.contextmanager
def _started(server: Server) -> Iterator[Server]:
    try:
        server.start()
    except ServerFailed as error:
        if "Address already in use" not in error.log:
            raise
        raise ServerFailed(
            f"port {server.port} of 127.0.0.1 is in use, perhaps by another `fencer serve`: "
            "use that one, or choose another port with --port"
        ) from error
    with server:
        yield server


def _announce(server: Server, folder: Path | None, as_json: bool) -> None:
    if as_json:
        kept = None if folder is None else str(server.folder)
        show.as_json({"url": server.url, "folder": kept, "pid": server.pid})
        return
    where = "Nothing is kept" if folder is None else f"Its data is in {server.folder}"
    show.line(f"The server runs at {server.url}. {where}. Ctrl-C stops it.")
    show.line(f"export FENCER_URL={server.url}")


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """Turn the signals that ask for an end into an answer, so that the server can save."""
    heard: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: heard.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield lambda: bool(heard)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tail(folder: Path | None) -> str:
    with contextlib.suppress(OSError):
        if folder is not None:
            return "\n".join((folder / "server.log").read_text(errors="replace").splitlines()[-1:])
    return ""
