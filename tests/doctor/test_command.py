"""The command ``doctor``: what it prints, and how it ends."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

import pytest
import redis

import fencer
from fencer.acl import rules
from fencer.cli.exits import Exit
from fencer.doctor import Report, Severity
from fencer.embedded import Server
from tests.cli.runs import PROGRAM, Cli
from tests.doctor.places import findings, look
from tests.fix_servers import MakeServer

COLUMNS = ["SEVERITY", "CHECK", "WHERE", "DANGER", "CONSEQUENCE", "CURE"]


@pytest.fixture
def new_enough(good: str) -> bool:
    """Whether the server has no note about its age."""
    return len(look(good).findings) == len(findings(look(good)))


def test_a_good_server(good: str, new_enough: bool) -> None:
    """A script that asks whether all is well would never hear it."""
    shown = Cli(good)("doctor")
    assert (shown.code, shown.err) == (Exit.DONE, "")
    last = shown.out.splitlines()[-1]
    if new_enough:
        assert shown.out == last + "\n"
        assert last == "All is well: nothing is wrong with 1 server and 0 leases."
    else:
        assert last.startswith("1 note on 1 server")


def test_exit_codes(good: str, store: redis.Redis) -> None:
    """A script could not tell a danger from a note."""
    cli = Cli(good)
    store.config_set("appendfsync", "everysec")
    assert cli("doctor").code == Exit.DONE, "a note"
    store.config_set("appendfsync", "no")
    assert cli("doctor").code == Exit.WARNING
    store.set("fencer:{orders}:lock", "cron")
    shown = cli("doctor")
    assert shown.code == Exit.DANGER
    header, *rows, last = shown.rows
    assert header == COLUMNS
    assert [row[:2] for row in rows][:2] == [
        ["danger", "endless-lock"],
        ["warning", "persistence"],
    ], "the worst first"
    assert all(len(row) == 6 for row in rows)
    assert last[0].startswith("1 danger, 1 warning")


def test_what_could_not_be_seen(good: str, store: redis.Redis) -> None:
    """What nobody looked at would count as good."""
    store.acl_deluser("app")
    store.execute_command("ACL", "SETUSER", "app", ">secret", *rules().words())
    shown = Cli(good.replace("unix://", "unix://app:secret@"))("doctor")
    assert shown.code == Exit.WARNING
    _, *rows, last = shown.rows
    assert {row[0] for row in rows} == {"unseen"}
    assert last[0].startswith("Nothing bad on 1 server and 0 leases; ")
    assert "secret" not in shown.out
    shown = Cli(good)("doctor", "--user", "nobody")
    assert shown.code in (Exit.WARNING, Exit.DANGER)


def test_a_server_that_is_down(make_server: MakeServer) -> None:
    """A server that is down would end in a traceback, or in another code than everywhere."""
    server = make_server()
    server.kill()
    shown = Cli(server.url)("doctor")
    assert shown.code == Exit.SERVER
    assert shown.complaint
    assert Cli(None)("doctor").code == Exit.USAGE


def test_a_server_that_hangs(good: str, make_server: MakeServer) -> None:
    """Of several servers nobody would know which one does not answer."""
    server = make_server()
    server.pause()
    shown = Cli(None)("doctor", "--url", good, "--url", server.url)
    server.resume()
    assert shown.code == Exit.SERVER
    assert f"127.0.0.1:{server.port} (" in shown.complaint


def test_a_prefix(good: str) -> None:
    """What concerns others would be told to somebody who asks about some names."""
    with fencer.connect(good) as f:
        for name in ("orders-1", "bills"):
            f.acquire(name, ttl=30)
            f.client.persist(f"fencer:{{{name}}}:lock")
    shown = Cli(good)("doctor", "--prefix", "orders", "--json")
    assert [each["names"] for each in shown.json["findings"] if each["names"]] == [["orders-1"]]
    assert Cli(good)("doctor", "--prefix", "{").code == Exit.USAGE


def test_several_urls(good: str, make_server: MakeServer) -> None:
    """An operator could not ask whether two instances talk to the same server."""
    other = make_server(persistence="aof-always").unix_url
    for url in (good, other):
        with fencer.connect(url) as f:
            f.acquire("orders", ttl=30)
    shown = Cli(None)("doctor", "--url", good, "--url", other, "--json")
    assert shown.code == Exit.DANGER
    (split,) = (each for each in shown.json["findings"] if each["check"] == "split")
    assert (split["severity"], split["names"]) == ("danger", ["orders"])
    assert len(shown.json["machines"]) == 2


def test_json_is_stable(good: str, store: redis.Redis) -> None:
    """A monitor that reads it would break."""
    store.set("fencer:{orders}:lock", "cron", ex=1_000)
    store.persist("fencer:{orders}:lock")
    told = Cli(good)("doctor", "--json").json
    assert list(told) == [
        *("verdict", "machines", "names", "held", "shortest_ttl", "findings", "unseen"),
    ]
    assert told["verdict"] == "danger"
    assert list(told["machines"][0]) == ["address", "role", "product", "round_trip", "clock"]
    assert list(told["findings"][0]) == [
        *("check", "severity", "where", "danger", "consequence", "cure", "names"),
    ]
    assert (told["names"], told["held"], told["shortest_ttl"]) == (1, 1, None)
    told = Cli(good)("doctor", "--json", "--user", "nobody").json
    for each in told["unseen"]:
        assert list(each) == ["check", "where", "why"]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_picture_for_people(good: str, store: redis.Redis, columns: int) -> None:
    """On a terminal lines would run over, or something of a finding be cut off."""
    store.config_set("appendfsync", "no")
    store.set("fencer:{orders}:lock", "cron\x1b[2J")
    shown = on_a_terminal(columns, "doctor", "--url", good)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= min(columns, 110)
    flat = re.sub(r"\s+", " ", shown)
    report = look(good)
    for finding in findings(report):
        for word in (*finding.cure.split(), *finding.consequence.split()):
            assert word in flat
        assert f" {finding.severity.upper()} " in flat
    assert "\x1b" not in shown
    assert flat.rstrip().endswith(" and 1 lease.")


def on_a_terminal(columns: int, *arguments: str) -> str:
    """What the command shows there, but for the colours."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    with subprocess.Popen([*PROGRAM, *arguments], stdout=its, stderr=its, env=environment):
        os.close(its)
        shown = b""
        try:
            while some := os.read(ours, 65_536):
                shown += some
        except OSError:
            pass  # Linux's way to say that the other end has been closed
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())  # colours


def test_severities_come_in_order() -> None:
    """The worst would not come first, or the verdict not be that of the worst."""
    assert list(Severity) == ["danger", "warning", "note"]
    assert Report((), 0, 0, None, (), ()).verdict == "good"


def test_a_server_that_is_not_ours_to_judge(good_server: Server) -> None:
    """A user whose URL has a password would see it in reports that are passed around."""
    with redis.Redis.from_url(good_server.unix_url) as store:
        store.execute_command("ACL", "SETUSER", "chief", "on", ">hush", "~*", "&*", "+@all")
    url = good_server.url.replace("redis://", "redis://chief:hush@")
    for options in ((), ("--json",)):
        assert "hush" not in Cli(url)("doctor", *options).out
