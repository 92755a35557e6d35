"""Ways to a server: unix sockets, TCP, TLS, mutual TLS, users and passwords, RESP2 and RESP3.

Over each of them leases, waits, guards and keep-alive do what they do over the first.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

import fencer
from fencer.acl import rules
from fencer.embedded import Server
from fencer.guards import AsyncRedisGuard, RedisGuard
from tests.cli.runs import Cli, eventually
from tests.faults.planted import twin
from tests.topology import bugs
from tests.topology.certificates import Authority
from tests.topology.relay import Relay

PASSWORD = "p@ss/w:örd"
WAYS = ["unix", "tcp", "tls", "mutual-tls", "password", "user", "user-tls", "resp2", "resp3"]


class Place:
    """One server, and every way to it."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self.server = opened.enter_context(Server(persistence="none"))
        self.authority = Authority(folder, "authority")
        self.stranger = Authority(folder, "stranger")
        certificate = self.authority.issue("server")
        path = self.server.unix_url.removeprefix("unix://").partition("?")[0]
        self.relays = {}
        for way in ("tls", "mutual-tls"):
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(*certificate)
            if way == "mutual-tls":
                tls.verify_mode = ssl.CERT_REQUIRED
                tls.load_verify_locations(self.authority.file)
            self.relays[way] = opened.enter_context(Relay(path, tls))
        self.own = self.authority.issue("client")

    def tls_url(self, way: str, user: str = "", **more: Path) -> str:
        """The URL of one of the two relays."""
        files = {"ssl_ca_certs": self.authority.file} | more
        query = "&".join(f"{name}={quote(str(file))}" for name, file in files.items())
        return f"rediss://{user}127.0.0.1:{self.relays[way].port}/0?{query}"

    def url(self, way: str) -> str:
        """The URL of a way."""
        password = quote(PASSWORD, safe="")
        match way:
            case "unix":
                return self.server.unix_url
            case "tls":
                return self.tls_url("tls")
            case "mutual-tls":
                certificate, key = self.own
                return self.tls_url("mutual-tls", ssl_certfile=certificate, ssl_keyfile=key)
            case "password":
                return self.server.url.replace("redis://", f"redis://:{password}@")
            case "user":
                return self.server.url.replace("redis://", f"redis://app:{password}@")
            case "user-tls":
                return self.tls_url("tls", f"app:{password}@")
            case "resp2" | "resp3":
                return f"{self.server.url}?protocol={way[-1]}"
            case _:
                return self.server.url


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One server for all ways."""
    with ExitStack() as opened:
        yield Place(tmp_path_factory.mktemp("certificates"), opened)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, place: Place) -> Iterator[str]:
    """Each way in turn, to a server that is empty."""
    chosen: str = request.param
    with redis.Redis.from_url(place.server.unix_url) as root:
        root.flushall()
        words = rules(guards=True).words()
        root.execute_command("ACL", "SETUSER", "app", f">{PASSWORD}", *words, "~balance", "+incrby")
        if chosen == "password":
            root.config_set("requirepass", PASSWORD)
        yield chosen
        root.config_set("requirepass", "")


def ends(lease: fencer.Lease | fencer.AsyncLease) -> float:
    """When a lease ends unless it is renewed."""
    return time.monotonic() + lease.remaining()


def test_threads(place: Place, way: str) -> None:
    """Fencer would not work over this way to the server, or only as long as nobody waits."""
    url = place.url(way)
    served = {name: relay.served for name, relay in place.relays.items()}
    with fencer.connect(url, holder="a") as one, fencer.connect(url, holder="b") as two:
        guard = RedisGuard(one.client, "balance")
        with one.acquire("balance", ttl=30, guards=[guard]) as first:
            assert guard.execute(first, "INCRBY", "balance", "5") == 5
            with pytest.raises(fencer.NotAcquired):
                two.acquire("balance")
            first.renew()
        lease = one.acquire("balance", ttl=30, keep_alive=0.05)
        end = ends(lease)
        assert eventually(lambda: ends(lease) > end + 0.04), "it is kept alive"
        timer = threading.Timer(0.1, lease.release)
        timer.start()
        handed = two.acquire("balance", ttl=30, wait=30)
        timer.join()
        assert handed.token > lease.token
        guard.check(handed)
        with pytest.raises(fencer.StaleToken):
            guard.execute(first, "INCRBY", "balance", "5")
        assert [each.event for each in one.history("balance")][-1] == "grant"
        assert list(one.names()) == ["balance"]
        if way.startswith("resp"):
            spoken = one.client.client_info().get("resp", way[-1])  # from Redis 7 on
            assert str(spoken) == way[-1]
    if "tls" in way:
        name = way.removeprefix("user-")
        assert place.relays[name].served > served[name]


def test_asyncio(place: Place, way: str) -> None:
    """The same, for services that are written with asyncio."""

    async def use() -> None:
        url = place.url(way)
        async with (
            fencer.connect_async(url, holder="a") as one,
            fencer.connect_async(url, holder="b") as two,
        ):
            guard = AsyncRedisGuard(one.client, "balance")
            async with await one.acquire("balance", ttl=30, guards=[guard]) as first:
                assert await guard.execute(first, "INCRBY", "balance", "5") == 5
                with pytest.raises(fencer.NotAcquired):
                    await two.acquire("balance")
                await first.renew()
            lease = await one.acquire("balance", ttl=30, keep_alive=0.05)
            end = ends(lease)
            async with asyncio.timeout(10):
                while ends(lease) < end + 0.04:  # it is kept alive
                    await asyncio.sleep(0.01)
            waiting = asyncio.create_task(two.acquire("balance", ttl=30, wait=30))
            await asyncio.sleep(0.1)
            await lease.release()
            handed = await waiting
            assert handed.token > lease.token
            await guard.check(handed)
            with pytest.raises(fencer.StaleToken):
                await guard.execute(first, "INCRBY", "balance", "5")

    asyncio.run(use())


def test_a_hand_over_takes_no_poll(place: Place, way: str) -> None:
    """Over this way wake-ups would be lost, and each hand-over take until somebody looks."""
    url = place.url(way)
    with fencer.connect(url) as one, fencer.connect(url) as two:
        lease = one.acquire("orders", ttl=60)

        def release() -> None:
            assert eventually(lambda: one.inspect("orders").waiters == 1)
            lease.release()

        releasing = threading.Thread(target=release)
        releasing.start()
        # Whoever is not woken looks after 15 s at the earliest.
        assert two.acquire("orders", ttl=30, wait=10)
        releasing.join()


def test_the_command_line(place: Place, way: str) -> None:
    """An operator could not reach the server that the services use."""
    cli = Cli(place.url(way))
    assert cli("status", "orders").code == 1
    assert cli("ls").code == 0
    assert cli("doctor", "--json").json["machines"]


@twin(bugs.trusts_everybody)
@pytest.mark.usefixtures("history")
def test_a_server_that_nobody_vouches_for(place: Place) -> None:
    """A client would give its tokens, and its password, to an impostor."""
    url = place.tls_url("tls", ssl_ca_certs=place.stranger.file)
    with fencer.connect(url) as f, pytest.raises(fencer.StoreUnavailable) as refused:
        f.acquire("orders")
    assert not refused.value.maybe_applied
    assert "certificate" in str(refused.value).lower()


def test_a_client_that_nobody_vouches_for(place: Place) -> None:
    """Mutual TLS in our tests would be TLS, and nothing would show that it works."""
    certificate, key = place.stranger.issue("intruder")
    anonymous = place.tls_url("mutual-tls")
    intruder = place.tls_url("mutual-tls", ssl_certfile=certificate, ssl_keyfile=key)
    for url in (anonymous, intruder):
        with fencer.connect(url) as f, pytest.raises(fencer.StoreUnavailable):
            f.acquire("orders")
    assert place.relays["mutual-tls"].refused > 0


@twin(bugs.wrong_logins_pass)
@pytest.mark.usefixtures("history")
@pytest.mark.parametrize("way", ["password", "user"], indirect=True)
def test_a_wrong_password(place: Place, way: str) -> None:
    """A login that fails would look like a server that is down, or like a name that is held."""
    url = place.url(way).replace(quote(PASSWORD, safe=""), "wrong")
    with fencer.connect(url) as f, pytest.raises(fencer.StoreError) as refused:
        f.acquire("orders", wait=5)
    assert refused.value.code == "WRONGPASS"
    assert not isinstance(refused.value, fencer.StoreUnavailable)
