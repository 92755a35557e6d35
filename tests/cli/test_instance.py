"""The command ``instance``: one replica of a service."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

import fencer
from fencer import _durations
from fencer.cli.exits import Exit
from fencer.embedded import Server
from fencer.guards import RedisGuard
from tests.cli.runs import Cli, eventually, start

ID = "LEADER_ELECTION_INSTANCE_ID"


@contextmanager
def instance(who: str, url: str, events: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """Run one replica with short times; it is killed in the end."""
    times = ("--ttl", "1500ms", "--retry-interval", "500ms", "--every", "100ms")
    with start(
        "instance", "--url", url, "--events", str(events), *times, *more, env={ID: who}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def told(events: Path, event: str, **fields: Any) -> list[dict[str, Any]]:
    """The events of a kind, with these fields."""
    lines = events.read_text().splitlines() if events.exists() else []
    found = [json.loads(line) for line in lines]
    return [
        each
        for each in found
        if each["event"] == event and all(each.get(key) == fields[key] for key in fields)
    ]


def ended(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
    """End a replica by a signal, with exit code 0; returns its log."""
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, ""), err
    return err


def test_a_replica_leads_works_and_stops(server: Server, tmp_path: Path) -> None:
    """An operator would grep in vain, or find lines that say something else than was done."""
    events = tmp_path / "events"
    with (
        instance("instance-1", server.unix_url, events) as first,
        instance("instance-2", server.unix_url, tmp_path / "2") as second,
    ):
        assert eventually(lambda: bool(told(events, "job") or told(tmp_path / "2", "job")))
        assert eventually(lambda: bool(told(events, "started") and told(tmp_path / "2", "started")))
        leader, follower = (first, second) if told(events, "job") else (second, first)
        led, followed = (events, tmp_path / "2") if leader is first else (tmp_path / "2", events)
        assert eventually(lambda: bool(told(followed, "leader_change")))
        time.sleep(0.3)
        log = ended(leader)
        assert eventually(lambda: bool(told(followed, "job", outcome="ok")))
        other = ended(follower, signal.SIGINT)
    who = told(led, "started")[0]["instance"]
    for line in (
        "Became the leader!",
        "Leader executing scheduled task task=CleanupJob",
        "Scheduler stopped successfully",
        "Releasing leadership voluntarily",
    ):
        assert f"{line} instance_id={who}" in log
    assert "Another instance is the leader instance_id=" in other
    assert "Skipping task execution - not the leader instance_id=" in other
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING) ", line)
               for line in (log + other).splitlines())  # fmt: skip
    (believed,), (lost,) = told(led, "believed"), told(led, "lost")
    (elected,) = told(followed, "elected")
    assert believed["begun"] < believed["ended"] <= lost["at"] < elected["at"]
    assert elected["token"] > believed["token"]
    assert [told(each, "stopped")[0]["at"] > 0 for each in (led, followed)] == [True, True]


def test_redis_cli_answers_an_operator(server: Server, tmp_path: Path) -> None:
    """The keys would not be those of the runbook, or a hand-typed DEL would end the election."""
    names = ("--namespace", "maplefile", "--name", "leader", "--no-hash-tag")
    events = tmp_path / "events"
    with (
        redis.Redis.from_url(server.unix_url, decode_responses=True) as client,
        instance("instance-2", server.unix_url, events, *names) as process,
    ):
        assert eventually(lambda: len(told(events, "job")) > 1)
        token = told(events, "elected")[0]["token"]
        assert client.get("maplefile:leader:lock") == "instance-2"
        assert client.ttl("maplefile:leader:lock") in (0, 1, 2)
        info = str(client.get("maplefile:leader:info"))
        assert info.startswith('{"instance_id":"instance-2","hostname":"')
        assert list(json.loads(info))[:3] == ["instance_id", "hostname", "started_at"]
        client.delete("maplefile:leader:lock", "maplefile:leader:info")
        assert eventually(lambda: client.get("maplefile:leader:lock") == "instance-2")
        assert eventually(lambda: bool(client.get("maplefile:leader:info")))
        ended(process)
        assert not client.get("maplefile:leader:lock")
        assert told(events, "lost")[0]["token"] == token
        events.unlink()
        with instance("instance-3", server.unix_url, events, *names) as process:
            assert eventually(lambda: bool(told(events, "elected")))
            assert told(events, "elected")[0]["token"] > token
            ended(process)


def test_what_landed_can_be_judged(server: Server, tmp_path: Path) -> None:
    """A drill could not tell which writes landed, and in which order."""
    events = tmp_path / "events"
    with (
        redis.Redis.from_url(server.unix_url, decode_responses=True) as client,
        instance("a", server.unix_url, events) as process,
    ):
        assert eventually(lambda: len(told(events, "job", outcome="ok")) > 2)
        ended(process)
        jobs = told(events, "job", outcome="ok")
        landed: Any = client.xrange("fencer:{leader}:writes")
        assert client.get("fencer:{leader}:runs") == str(len(landed)) == str(len(jobs))
    for job, (_, write) in zip(jobs, landed, strict=True):
        assert (write["instance"], int(write["token"])) == ("a", job["token"])
        assert job["begun"] <= float(write["at"]) + 1e-6 <= job["at"] + 1e-5


def test_a_paused_replica_is_refused(server: Server, tmp_path: Path) -> None:
    """A write by one who was paused between its look at the lead and its write would land."""
    events = tmp_path / "events"
    with (
        redis.Redis.from_url(server.unix_url) as client,
        fencer.connect(server.unix_url) as store,
        instance("a", server.unix_url, events, "--work", "300ms", "--every", "1ms") as process,
    ):
        assert eventually(lambda: len(told(events, "job", outcome="ok")) > 1)
        process.send_signal(signal.SIGSTOP)  # nearly always within the 300 ms
        try:
            with store.acquire("leader", wait=20) as lease:
                guard = RedisGuard(client, "CleanupJob", name="leader", tag="leader")
                guard.check(lease)
                process.send_signal(signal.SIGCONT)
                assert eventually(lambda: bool(told(events, "lost")))
                assert eventually(lambda: bool(told(events, "job", outcome="refused")))
        finally:
            process.send_signal(signal.SIGCONT)
        (refused,) = told(events, "job", outcome="refused")
        assert refused["highest"] == lease.token > refused["token"]
        (believed,), (lost,) = told(events, "believed"), told(events, "lost")
        assert believed["ended"] < lost["at"]
        assert "lost leadership instance_id=a" in ended(process)


def test_the_environment_sets_it_up(server: Server, tmp_path: Path) -> None:
    """A container that is set up by its environment alone would not start, or with other times."""
    events = tmp_path / "events"
    environment = {
        ID: "from-env",
        "LEADER_ELECTION_LOCK_TTL": "5s",
        "LEADER_ELECTION_RETRY_INTERVAL": "1s",
        "LEADER_ELECTION_HEARTBEAT_INTERVAL": "500ms",
        "CACHE_HOST": "127.0.0.1",
        "CACHE_PORT": str(server.port),
    }
    with start("instance", "--events", str(events), env=environment) as process:
        try:
            assert eventually(lambda: bool(told(events, "elected")))
            with fencer.connect(server.unix_url) as store:
                assert store.inspect("leader").info["ttl"] == 5
            ended(process)
        finally:
            process.kill()
    (started,) = told(events, "started")
    assert (started["instance"], started["ttl"], started["retry_interval"]) == ("from-env", 5, 1)


def test_a_server_that_is_away_does_not_end_it(server: Server, tmp_path: Path) -> None:
    """A replica that starts before its server would have to be started again by hand."""
    events = tmp_path / "events"
    server.kill()
    with instance("a", server.url, events) as process:
        assert eventually(lambda: bool(told(events, "started")))
        time.sleep(0.5)
        server.restart()
        assert eventually(lambda: bool(told(events, "elected")))
        assert ended(process).count("The store cannot be used") == 1


def test_the_data_can_be_on_another_server(
    make_server: Any, server: Server, tmp_path: Path
) -> None:
    """A drill that loses the leases' server would lose the evidence with it."""
    data = make_server(persistence="none")
    events = tmp_path / "events"
    with (
        redis.Redis.from_url(data.unix_url) as client,
        instance("a", server.unix_url, events, "--data-url", data.unix_url) as process,
    ):
        assert eventually(lambda: bool(told(events, "job", outcome="ok")))
        assert client.exists("fencer:{leader}:writes")
        ended(process)
    with redis.Redis.from_url(server.unix_url) as client:
        assert not client.exists("fencer:{leader}:writes")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--ttl", "5"), "--ttl is written as 500ms, 5s or 1m30s, not '5'"),
        (("--every", "0s"), "--every must be from 0.001"),
        (("--retry-interval", "11s"), "retry_interval=11 is longer than the ttl"),
        (("--heartbeat", "6s"), "renew at least twice per ttl"),
        (("--id", "a\nb"), "control characters"),
        (("--events", "/nowhere/at/all"), "--events /nowhere/at/all: No such file"),
        (("--url", ""), "set FENCER_URL or CACHE_HOST"),
    ],
)
def test_wrong_settings_are_one_line(
    arguments: tuple[str, ...], complaint: str, shared_server: Server
) -> None:
    """A typing error would end in a traceback, or be taken for something else."""
    ran = Cli(shared_server.unix_url)("instance", *arguments)
    assert ran.code == Exit.USAGE
    assert complaint in ran.complaint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("5s", 5), ("1m30s", 90), ("1.5s", 1.5), ("1h1m1s1ms", 3661.001), ("0s", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    """A setting would mean something else than it says."""
    assert _durations.seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "s", "5S", "-5s", "+5s", "5s5s", "30s1m", "5 s", "1e3s", "５s", ".5s", "nan"]
)
def test_what_is_no_duration(text: str) -> None:
    """A setting with a typing error would be used all the same."""
    with pytest.raises(fencer.InvalidArgument, match="500ms, 5s or 1m30s"):
        _durations.seconds(text)
