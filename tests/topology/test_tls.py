"""Servers that speak TLS themselves: one, one by way of a sentinel, and a Cluster.

Debian's Redis is built with it; the servers that come as Python packages are not.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

import fencer
from fencer.embedded import Server
from fencer.guards import AsyncRedisGuard, RedisGuard
from tests.cli.runs import Cli
from tests.fix_cluster import until
from tests.fix_sentinel import SERVICE, sentinel_program
from tests.servers import SERVERS
from tests.topology.certificates import Authority

WAYS = ["one", "sentinel", "cluster"]


class Place:
    """Servers that take nothing but TLS, from clients with a certificate. Made when asked for."""

    def __init__(self, folder: Path, binary: Path, opened: ExitStack) -> None:
        self._folder, self._binary, self._opened = folder, binary, opened
        self._authority = Authority(folder, "authority")
        self._files = self._authority.issue("server")
        self._own = self._authority.issue("client")
        self._urls: dict[str, str] = {}

    def url(self, way: str) -> str:
        """The URL of a way."""
        if way not in self._urls:
            scheme, where = getattr(self, f"_{way}")()
            files = {
                "ssl_ca_certs": self._authority.file,
                "ssl_certfile": self._own[0],
                "ssl_keyfile": self._own[1],
            }
            query = "&".join(f"{name}={quote(str(file))}" for name, file in files.items())
            self._urls[way] = f"{scheme}://{where}?{query}"
        return self._urls[way]

    def _one(self) -> tuple[str, str]:
        return "rediss", f"127.0.0.1:{self._serve()[1]}/0"

    def _sentinel(self) -> tuple[str, str]:
        _, port = self._serve()
        program = sentinel_program(self._folder, port, quorum=1, binary=self._binary)
        _, sentinel = self._serve(program)
        return "rediss+sentinel", f"127.0.0.1:{sentinel}/{SERVICE}"

    def _cluster(self) -> tuple[str, str]:
        first, port = self._serve(cluster=True)
        second, other = self._serve(cluster=True)
        first.execute_command("CLUSTER", "ADDSLOTS", *range(8192))
        second.execute_command("CLUSTER", "ADDSLOTS", *range(8192, 16384))
        second.execute_command("CLUSTER", "SET-CONFIG-EPOCH", 2)
        second.execute_command("CLUSTER", "MEET", "127.0.0.1", port)
        until(lambda: _serves(first) and _serves(second), "the nodes do not agree")
        return "rediss+cluster", f"127.0.0.1:{port},127.0.0.1:{other}"

    def _serve(
        self, binary: Path | None = None, *, cluster: bool = False
    ) -> tuple[redis.Redis, int]:
        """A server and its TLS port; it has no other."""
        port = _free_port(cluster)
        settings = {
            "tls-port": str(port),
            "tls-cert-file": str(self._files[0]),
            "tls-key-file": str(self._files[1]),
            "tls-ca-cert-file": str(self._authority.file),
            "tls-replication": "yes",
        }
        if cluster:
            settings |= {
                "tls-cluster": "yes",
                "cluster-enabled": "yes",
                "cluster-node-timeout": "5000",
            }
        server = Server(
            persistence="none", port=0, binary=binary or self._binary, settings=settings
        )
        self._opened.callback(server.stop, timeout=0)
        server.start()
        client = redis.Redis.from_url(server.unix_url, decode_responses=True)
        self._opened.callback(client.close)
        return client, port


def _serves(node: redis.Redis) -> bool:
    return "cluster_state:ok" in str(node.execute_command("CLUSTER", "INFO"))


def _free_port(cluster: bool) -> int:
    """A free one, below those of which the system makes its own choice; a node has a bus, too."""
    for port in range(12_000 + os.getpid() % 5_000, 20_000):
        with ExitStack() as probes:
            try:
                for each in (port, port + 10_000) if cluster else (port,):
                    probe = probes.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", each))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """All ways; a server without TLS is a reason to skip, but not in CI."""
    find, cure = SERVERS["Redis 7.0"]
    binary = find()
    if binary is None:
        assert not os.environ.get("CI"), cure
        pytest.skip(f"no server with TLS is installed: {cure}")
    with ExitStack() as opened:
        yield Place(tmp_path_factory.mktemp("tls"), binary, opened)


@pytest.mark.parametrize("way", WAYS)
def test_threads(place: Place, way: str) -> None:
    """What worked by way of a relay would not work with a server that speaks TLS itself."""
    url = place.url(way)
    with fencer.connect(url, holder="a") as one, fencer.connect(url, holder="b") as two:
        guard = RedisGuard(one.client, "balance", tag="balance")
        first = one.acquire("balance", ttl=30, keep_alive=0.05, guards=[guard])
        end = time.monotonic() + first.remaining()
        assert guard.execute(first, "INCRBY", "{balance}:sum", "5") == 5
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(two.acquire, "balance", ttl=30, wait=10)
            until(lambda: one.inspect("balance").waiters == 1, "nobody waits")
            until(lambda: time.monotonic() + first.remaining() > end + 0.04, "it is not kept")
            first.release()
            second = waiting.result(20)  # Whoever is not woken looks after 15 s at the earliest.
        guard.check(second)
        with pytest.raises(fencer.StaleToken):
            guard.execute(first, "INCRBY", "{balance}:sum", "5")
        second.renew()
        assert second.release()


@pytest.mark.parametrize("way", WAYS)
def test_asyncio(place: Place, way: str) -> None:
    """The same, for services that are written with asyncio."""

    async def use() -> None:
        url = place.url(way)
        async with (
            fencer.connect_async(url, holder="a") as one,
            fencer.connect_async(url, holder="b") as two,
        ):
            guard = AsyncRedisGuard(one.client, "balance", tag="balance")
            first = await one.acquire("balance", ttl=30, keep_alive=0.05, guards=[guard])
            waiting = asyncio.create_task(two.acquire("balance", ttl=30, wait=10))
            async with asyncio.timeout(20):
                while (await one.inspect("balance")).waiters == 0:
                    await asyncio.sleep(0.01)
                await first.release()
                second = await waiting
            await guard.check(second)
            with pytest.raises(fencer.StaleToken):
                await guard.execute(first, "INCRBY", "{balance}:sum", "5")
            await second.renew()
            assert await second.release()

    asyncio.run(use())


@pytest.mark.parametrize("way", WAYS)
def test_the_doctor(place: Place, way: str) -> None:
    """It makes connections of its own, to each server that it hears of."""
    told = Cli(place.url(way))("doctor", "--json").json
    assert told["machines"]
    assert told["unseen"] == []


@pytest.mark.parametrize("way", WAYS)
def test_a_client_without_a_certificate(place: Place, way: str) -> None:
    """The tests above would pass though nobody looks at certificates."""
    url = place.url(way).partition("&")[0]
    with pytest.raises(fencer.StoreUnavailable), fencer.connect(url) as f:
        f.acquire("balance")
