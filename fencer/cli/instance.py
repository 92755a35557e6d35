"""The command ``instance``: one replica of a service, to try elections and failovers with."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Annotated, TextIO

import redis
import redis.cluster
import typer
from redis.backoff import NoBackoff
from redis.retry import Retry

from fencer import _check, _durations
from fencer._urls import from_url, sentinels_of
from fencer.cli import show
from fencer.cli.options import HashTag, Namespace, Url
from fencer.client import connect
from fencer.errors import InvalidArgument

_TIMES = "Times, as 500ms, 5s or 1m30s"


def instance(
    instance_id: Annotated[
        str | None,
        typer.Option(
            "--id",
            envvar="LEADER_ELECTION_INSTANCE_ID",
            metavar="TEXT",
            help="Its name in logs and keys; by default host, process and a random part.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(metavar="TEXT", help="What is led.")] = "leader",
    events: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Append what happens as lines of JSON; /dev/fd/3 is an open descriptor.",
        ),
    ] = None,
    ttl: Annotated[
        str,
        typer.Option(
            envvar="LEADER_ELECTION_LOCK_TTL",
            metavar="TIME",
            help="After this a silent leader is replaced.",
            rich_help_panel=_TIMES,
        ),
    ] = "10s",
    retry_interval: Annotated[
        str,
        typer.Option(
            envvar="LEADER_ELECTION_RETRY_INTERVAL",
            metavar="TIME",
            help="Between two looks at the leader; at most the ttl.",
            rich_help_panel=_TIMES,
        ),
    ] = "2s",
    heartbeat: Annotated[
        str | None,
        typer.Option(
            "--heartbeat",
            envvar="LEADER_ELECTION_HEARTBEAT_INTERVAL",
            metavar="TIME",
            help="Between two renewals; at most ttl/2, by default ttl/3.",
            rich_help_panel=_TIMES,
        ),
    ] = None,
    every: Annotated[
        str,
        typer.Option(metavar="TIME", help="How often the job is due.", rich_help_panel=_TIMES),
    ] = "1s",
    work: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long the job works before it writes.",
            rich_help_panel=_TIMES,
        ),
    ] = "0s",
    url: Url = None,
    host: Annotated[
        str | None,
        typer.Option(envvar="CACHE_HOST", metavar="TEXT", help="The server, where no URL is."),
    ] = None,
    port: Annotated[
        int, typer.Option(envvar="CACHE_PORT", metavar="N", help="Its port.", min=1, max=65535)
    ] = 6379,
    data_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where the job writes; by default the same server."),
    ] = None,
    namespace: Namespace = "fencer",
    hash_tag: HashTag = True,
) -> None:
    """Run one replica of a service, whose CleanupJob only the leader does. Ctrl-C stops it."""
    # Nothing else needs it, and the other commands shall start fast.
    from fencer._instance import Instance, Settings

    settings = Settings(
        name=name,
        namespace=namespace,
        hash_tag=hash_tag,
        ttl=_durations.seconds(ttl, "--ttl"),
        heartbeat=None if heartbeat is None else _durations.seconds(heartbeat, "--heartbeat"),
        retry_interval=_durations.seconds(retry_interval, "--retry-interval"),
        every=_check.number("--every", _durations.seconds(every, "--every"), 0.001, 86_400.0),
        work=_durations.seconds(work, "--work"),
    )
    server = url or _server(host, port)
    # A call that hangs for longer than a ttl is of no use to anybody.
    patience = max(0.5, min(5.0, settings.ttl))
    with (
        connect(
            server,
            namespace=namespace,
            hash_tag=hash_tag,
            holder=instance_id,
            socket_timeout=patience,
        ) as store,
        contextlib.ExitStack() as opened,
    ):
        data = store.client
        if data_url is not None:
            options = {"retry": Retry(NoBackoff(), 0), "socket_timeout": patience}
            data = from_url(redis, data_url, options)
            for each in (data, *sentinels_of(data)):
                opened.callback(each.close)
        record = None if events is None else opened.enter_context(_appending(events))
        _log_to_stderr()
        Instance(store, data, settings, record).run()


def _server(host: str | None, port: int) -> str:
    if not host:
        raise InvalidArgument(
            "no server is named: pass --url redis://HOST:6379/0 or --host HOST, or set FENCER_URL "
            "or CACHE_HOST; `fencer serve` starts a server on this machine"
        )
    bracketed = f"[{host}]" if ":" in host else host
    return f"redis://{bracketed}:{port}/0"


@contextlib.contextmanager
def _appending(path: str) -> Iterator[TextIO]:
    try:
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115, PTH123
    except OSError as error:
        raise InvalidArgument(f"--events {path}: {error.strerror}") from error
    with file:
        yield file


class _Lines(logging.Formatter):
    """One line each, whatever is logged."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.exc_info else show.readable(text)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    formatter = _Lines("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("fencer")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
