"""Fixtures: a primary with two replicas and three sentinels, all of them real processes.

The primary is known to everybody by the address of a proxy, the `Group.road`: while that drops what
comes, the primary is cut off from replicas, sentinels and clients, and yet it runs, and can be
reached by its own address.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fencer import embedded
from fencer.drill.proxy import Proxy
from fencer.embedded import Server

SERVICE = "primary"
DOWN_AFTER = 1.0
"""Seconds of silence after which a sentinel takes a server for dead."""


class Group:
    """The group. A context manager.

    Args:
        folder: for the sentinels' program.
        programs: what the two replicas run.

    Attributes:
        primary: the first one.
        replicas: its two replicas.
        sentinels: as servers.
        road: the only way to the primary that the others know.
    """

    def __init__(self, folder: Path, programs: Sequence[Path | None] = (None, None)) -> None:
        self._opened = contextlib.ExitStack()
        self._folder = folder
        self._programs = programs

    def __enter__(self) -> Group:
        with contextlib.ExitStack() as opened:
            at_once = {"repl-diskless-sync-delay": "0"}
            self.primary = self._serve(opened, settings=at_once)
            self.road = opened.enter_context(Proxy(("127.0.0.1", self.primary.port)))
            follow = {**at_once, "replicaof": f"127.0.0.1 {self.road.port}"}
            self.replicas = [
                self._serve(opened, binary=program, settings=follow) for program in self._programs
            ]
            await_true(self.in_sync)
            sentinel = sentinel_program(self._folder, self.road.port)
            self.sentinels = [self._serve(opened, binary=sentinel) for _ in range(3)]
            self._asked = [self.client(opened, server) for server in self.sentinels]
            for asked in self._asked:
                with contextlib.suppress(redis.ResponseError):  # Redis 6.2 knows no such haste.
                    periods = "INFO-PERIOD", 200, "PUBLISH-PERIOD", 200, "ASK-PERIOD", 200
                    # After two seconds without a turn, on a busy machine, they do nothing for 30.
                    tilt = "TILT-PERIOD", 1_000
                    asked.execute_command("SENTINEL", "DEBUG", *periods, *tilt)
            await_true(lambda: all(self._sees_all(asked) for asked in self._asked))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.close()

    @property
    def url(self) -> str:
        """For `fencer.connect`."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """For the driver's own ``Sentinel``."""
        return [("127.0.0.1", server.port) for server in self.sentinels]

    def in_sync(self) -> bool:
        """Whether both replicas have all that the primary has written."""
        with redis.Redis.from_url(self.primary.unix_url) as primary:
            told: dict[str, Any] = primary.info("replication")
        each = [told.get(f"slave{number}") for number in range(2)]
        return all(
            replica
            and replica["state"] == "online"
            # The servers ping their replicas now and then, which counts, too.
            and replica["offset"] == told["master_repl_offset"]
            for replica in each
        )

    def fail_over(self) -> Server:
        """Kill the primary, and wait until all sentinels name another, which is returned."""
        self.primary.kill()
        return self.failed_over()

    def failed_over(self) -> Server:
        """Wait until all sentinels name another primary, and it says that it is one."""
        await_true(lambda: len({self.named(asked) for asked in self._asked}) == 1 and self.chosen())
        chosen = self.chosen()
        assert chosen is not None
        return chosen

    def chosen(self) -> Server | None:
        """The replica that is the primary now."""
        port = self.named(self._asked[0])
        for replica in self.replicas:
            with redis.Redis.from_url(replica.unix_url, decode_responses=True) as client:
                if replica.port == port and role(client) == "master":
                    return replica
        return None

    def demote(self) -> Server:
        """Have the sentinels make another server the primary; the one before then follows it."""
        self._asked[0].execute_command("SENTINEL", "FAILOVER", SERVICE)
        return self.failed_over()

    @staticmethod
    def named(asked: redis.Redis) -> int:
        """The port of the primary that a sentinel names."""
        address: Any = asked.sentinel_get_master_addr_by_name(SERVICE)
        return int(address[1])

    @staticmethod
    def _sees_all(asked: redis.Redis) -> bool:
        known: Any = asked.sentinel_master(SERVICE)
        replicas: Any = asked.sentinel_slaves(SERVICE)
        return (
            known.get("num-other-sentinels") == 2
            and known.get("flags") == "master"
            and len(replicas) == 2
            and all(
                replica["flags"] == "slave" and replica["master-link-status"] == "ok"
                for replica in replicas
            )
        )

    @staticmethod
    def client(opened: contextlib.ExitStack, server: Server) -> redis.Redis:
        """The driver's client, closed with the rest."""
        client = redis.Redis.from_url(server.unix_url, retry=Retry(NoBackoff(), 0))
        opened.callback(client.close)
        return client

    @staticmethod
    def _serve(opened: contextlib.ExitStack, **options: Any) -> Server:
        server = Server(persistence="none", **options)
        opened.callback(server.stop, timeout=0)
        return server.start()


def sentinel_program(
    folder: Path,
    port: int,
    *,
    quorum: int = 2,
    more: Sequence[str] = (),
    binary: Path | None = None,
) -> Path:
    """A program for `Server` that is a sentinel of the server at a port."""
    lines = [
        f"monitor {SERVICE} 127.0.0.1 {port} {quorum}",
        f"down-after-milliseconds {SERVICE} {DOWN_AFTER * 1000:.0f}",
        # When their votes were split, they vote again after twice this time.
        f"failover-timeout {SERVICE} 3000",
        f"parallel-syncs {SERVICE} 2",
        *more,
    ]
    configuration = "".join(f"sentinel {line}\n" for line in lines)
    command = shlex.quote(str(embedded._find_binary(binary)))
    program = folder / "sentinel"
    program.write_text(
        f'#!/bin/sh\ncat >>"$1" <<END\n{configuration}END\nexec {command} "$1" --sentinel\n'
    )
    program.chmod(0o700)
    return program


class MakeGroup(Protocol):
    """Starts a group; it ends with the test."""

    def __call__(self, programs: Sequence[Path | None] = (None, None)) -> Group: ...


@pytest.fixture
def make_group(tmp_path: Path) -> Iterator[MakeGroup]:
    """A maker of groups."""
    with contextlib.ExitStack() as opened:

        def make(programs: Sequence[Path | None] = (None, None)) -> Group:
            return opened.enter_context(Group(tmp_path, programs))

        yield make


@pytest.fixture
def group(make_group: MakeGroup) -> Group:
    """A group whose servers run what the other tests run."""
    return make_group()


def role(client: redis.Redis) -> str:
    """What a server says that it is; "" while it says nothing. Its client decodes replies."""
    with contextlib.suppress(redis.ConnectionError):  # It cuts connections when it is demoted.
        return str(client.role()[0])
    return ""


def await_true(condition: Callable[[], bool | object], seconds: float = 60.0) -> None:
    """For what happens in other processes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {seconds:g} s"
        time.sleep(0.02)
