"""The command ``serve``: a real server in the foreground."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fencer
from fencer.cli.exits import Exit
from fencer.embedded import Server
from tests.cli.runs import Cli, alive, children, eventually, run, start


@contextmanager
def serving(*arguments: str, **options: Any) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """Run ``serve --json`` on a free port; yields the process and what it printed."""
    with start("serve", "--port", "0", "--json", *arguments, **options) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.stderr and process.stderr.read()
            yield process, json.loads(line)
        finally:
            process.kill()


def end(process: subprocess.Popen[str], number: int) -> None:
    """End a server by a signal: with exit code 0, in silence, and with all its processes."""
    family = children(process.pid)
    assert family
    process.send_signal(number)
    assert process.wait(20) == 0
    assert process.stdout is not None
    assert process.stderr is not None
    assert (process.stdout.read(), process.stderr.read()) == ("", "")
    assert eventually(lambda: not alive(family))


def test_data_outlives_a_restart(tmp_path: Path) -> None:
    """Would fail if serve lost its data, ignored XDG_STATE_HOME, or did not stop on SIGTERM."""
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    with serving(env=environment) as (process, printed):
        assert printed["folder"] == str(tmp_path / "fencer")
        with fencer.connect(printed["url"]) as store:
            token = store.acquire("orders", ttl=600).token
        end(process, signal.SIGTERM)
    with serving(env=environment) as (process, printed):
        with fencer.connect(printed["url"]) as store:
            assert store.inspect("orders").token == token
        end(process, signal.SIGINT)


def test_memory_keeps_nothing(tmp_path: Path) -> None:
    """Would fail if --memory wrote to the default folder."""
    with serving("--memory", env={"XDG_STATE_HOME": str(tmp_path)}) as (process, printed):
        assert printed["folder"] is None
        with fencer.connect(printed["url"]) as store:
            store.acquire("orders")
        end(process, signal.SIGTERM)
    assert list(tmp_path.iterdir()) == []


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    """Would fail if two servers could mix their files in one folder."""
    with serving("--folder", str(tmp_path)):
        second = run("serve", "--port", "0", "--folder", str(tmp_path))
    assert second.code == Exit.SERVER
    assert str(tmp_path) in second.complaint


def test_a_taken_port_is_one_line(shared_server: Server) -> None:
    """Would fail if a port that is in use ended in the server's log instead of one clear line."""
    shown = run("serve", "--memory", "--port", str(shared_server.port), "--json")
    assert shown.code == Exit.SERVER
    assert f"port {shared_server.port}" in shown.complaint
    assert "--port" in shown.complaint


def test_a_server_that_dies_is_told(tmp_path: Path) -> None:
    """Would fail if serve went on as if nothing were wrong when its server has died."""
    with serving("--folder", str(tmp_path)) as (process, printed):
        subprocess.run(["kill", "-KILL", str(printed["pid"])], check=True)
        assert process.wait(20) == Exit.SERVER
        assert process.stderr is not None
        assert process.stderr.read().startswith("fencer: the server has ended by itself")


def test_text_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    """Would fail if serve did not print its URL at once, and as a line for a shell."""
    with start("serve", "--port", "0", "--folder", str(tmp_path)) as process:
        assert process.stdout is not None
        told, exported = process.stdout.readline(), process.stdout.readline()
        url = exported.removeprefix("export FENCER_URL=").strip()
        assert url in told
        assert str(tmp_path) in told
        assert Cli(url)("ls", "--json").json == []
        end(process, signal.SIGTERM)


@pytest.mark.parametrize(
    "arguments", [["--memory", "--folder", "x"], ["--port", "70000"], ["--port", "-1"]], ids=repr
)
def test_options_that_cannot_be(arguments: list[str]) -> None:
    """Would fail if options that contradict each other started a server all the same."""
    assert Cli(None)("serve", *arguments).code == Exit.USAGE
