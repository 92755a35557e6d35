"""The command ``watch``: follows a name live."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

import fencer
from fencer.cli.exits import Exit
from fencer.embedded import Server
from tests.cli.runs import PROGRAM, Cli, start


@contextmanager
def watching(server: Server, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with start("watch", "orders", "--url", server.url, "--interval", "50ms", *arguments) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def test_each_change_is_a_line(server: Server) -> None:
    """A script that follows a name would miss a change of leader, or see changes that are none."""
    with (
        fencer.connect(server.unix_url, holder="a") as a,
        fencer.connect(server.unix_url, holder="b") as b,
        watching(server) as process,
    ):
        told = lambda: line(process).split("\t")[1]  # noqa: E731
        assert told() == "nobody leads; the last token was none"
        first = a.acquire("orders", keep_alive=True)
        assert told() == f"a leads with token {first.token}"
        waiter = threading.Thread(target=lambda: b.acquire("orders", wait=20, keep_alive=True))
        waiter.start()
        assert told() == "in line: b"
        time.sleep(0.3)  # nothing changes
        first.release()
        waiter.join()
        second = b.inspect("orders").token
        assert told() == f"b leads with token {second}"
        b.revoke("orders")
        assert told().startswith("nobody leads; the last token was ")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_each_change_is_a_line_of_json(server: Server) -> None:
    """A program could not follow a name."""
    with (
        fencer.connect(server.unix_url, holder="a") as a,
        watching(server, "--json") as process,
    ):
        first = json.loads(line(process))
        assert (first["change"], first["held"], first["name"]) == ("first", False, "orders")
        lease = a.acquire("orders", info={"zone": "b"})
        then = json.loads(line(process))
        assert (then["change"], then["token"], then["holder"]) == ("leader", lease.token, "a")
        assert then["info"]["zone"] == "b"
        assert then["line"] == []
        assert abs(then["at"] - time.time()) < 60
        lease.release()
        assert json.loads(line(process))["change"] == "free"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_it_outlives_the_server(server: Server) -> None:
    """Who watches a failover would lose sight of it in its middle."""
    with watching(server, "--json") as process:
        assert json.loads(line(process))["change"] == "first"
        server.kill()
        away = json.loads(line(process))
        assert away["change"] == "unreachable"
        assert "no answer" in away["error"]
        server.restart()
        assert json.loads(line(process))["change"] == "reachable"
        with fencer.connect(server.unix_url, holder="a") as client:
            client.acquire("orders")
            assert json.loads(line(process))["change"] == "leader"


def test_it_can_begin_before_the_server(server: Server) -> None:
    """A person would have to start it again and again until the server is there."""
    server.kill()
    with watching(server) as process:
        assert "the server cannot be used: no answer" in line(process)
        server.restart()
        assert "the server answers again" in line(process)
        assert "nobody leads" in line(process)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("watch", "{orders}"), Exit.USAGE),
        (("watch", "orders", "--interval", "5"), Exit.USAGE),
        (("watch", "orders", "--interval", "1ms"), Exit.USAGE),
        (("watch", "broken"), Exit.SERVER),
    ],
)
def test_what_cannot_be_watched_is_one_line(
    arguments: tuple[str, ...], code: Exit, shared_server: Server, redis_client: redis.Redis
) -> None:
    """It would retry for ever what can never succeed."""
    redis_client.rpush("fencer:{broken}:lock", "x")
    ran = Cli(shared_server.unix_url)(*arguments)
    assert ran.code == code
    assert ran.complaint


def test_a_terminal_shows_who_leads_and_who_waits(server: Server) -> None:
    """A person would not see the line, the time that is left, or the changes."""
    with (
        fencer.connect(server.unix_url, holder="a") as a,
        fencer.connect(server.unix_url, holder="b") as b,
    ):
        lease = a.acquire("orders", ttl=30)
        waiter = threading.Thread(target=lambda: b.acquire("orders", wait=20))
        waiter.start()
        shown = _on_a_terminal(server, until=b"1. b for ")
        lease.release()
        waiter.join()
    for part in ("leader", "a", str(lease.token), "left", "in line", "a leads with token"):
        assert part in shown


def test_status_shows_the_line(server: Server) -> None:
    """An operator would not see who waits."""
    with (
        fencer.connect(server.unix_url, holder="a") as a,
        fencer.connect(server.unix_url, holder="b") as b,
    ):
        lease = a.acquire("orders", ttl=30)
        waiter = threading.Thread(target=lambda: b.acquire("orders", wait=20))
        waiter.start()
        while not a.inspect("orders").waiters:
            time.sleep(0.01)
        rows = Cli(server.url)("status", "orders").rows
        lease.release()
        waiter.join()
    (value,) = [row[1] for row in rows if row[0] == "in line"]
    assert value.startswith("1. b, for ")


def _on_a_terminal(server: Server, until: bytes) -> str:
    """What it draws on a terminal of 80 columns, until some text is there."""
    ours, theirs = pty.openpty()
    command = [*PROGRAM, "watch", "orders", "--url", server.url, "--interval", "100ms"]
    environment: dict[str, Any] = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    with subprocess.Popen(command, stdout=theirs, stderr=sys.stderr, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while until not in shown:
                assert select.select([ours], [], [], 20)[0], shown
                shown += os.read(ours, 65536)
            process.send_signal(signal.SIGINT)
            while select.select([ours], [], [], 20)[0]:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # how Linux tells that nobody has the terminal any more
                    break
                shown += piece
                if not piece:
                    break
            assert process.wait(20) == 0
        finally:
            process.kill()
            os.close(ours)
    return shown.decode()
