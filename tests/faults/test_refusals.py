"""What a server refuses becomes one clear error, and nothing is left half done.

Each refusal is a real one, by a real server in that state.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

import fencer
from fencer import ScriptError, StoreError, StoreUnavailable
from fencer.drill.proxy import Proxy
from fencer.embedded import Server
from fencer.guards import RedisGuard
from tests.faults import bugs, bugs_guards
from tests.faults.planted import twin
from tests.fix_api import Connect, on_threads, plain
from tests.fix_servers import MakeServer

KEYS = {key: f"fencer:{{orders}}:{key}" for key in ("lock", "token", "info", "history", "guard")}


@pytest.fixture
def store(server: Server) -> Iterator[redis.Redis]:
    """The driver's client on the server that gets into trouble."""
    with redis.Redis.from_url(server.unix_url) as store:
        yield store


@pytest.fixture
def ours(server: Server, connect: Connect) -> fencer.Fencer:
    """Our client there."""
    return connect(server.unix_url)


def everything(store: redis.Redis) -> dict[bytes, object]:
    """All keys with their values, and whether they end."""
    keys: list[bytes] = list(store.scan_iter())
    return {key: (store.dump(key), store.pttl(key) == -1) for key in keys}


@contextmanager
def refused(store: redis.Redis, code: str, says: str, *, passing: bool = False) -> Iterator[None]:
    """The check: it is an error with the server's word and some advice, and nothing changed.

    Only what belongs to a failover, and so passes, counts as an outage.
    """
    before = everything(store)
    with pytest.raises(StoreError, match=says) as caught:
        yield
    assert caught.value.code == code
    assert isinstance(caught.value, StoreUnavailable) is passing
    assert not getattr(caught.value, "maybe_applied", False), "the server did answer"
    assert isinstance(caught.value.__cause__, redis.RedisError)
    assert everything(store) == before


@contextmanager
def unavailable(*, maybe_applied: bool, says: str) -> Iterator[None]:
    """The check: no answer came, and the error says whether anything may have changed."""
    with pytest.raises(StoreUnavailable, match=says) as caught:
        yield
    assert caught.value.maybe_applied is maybe_applied
    assert ("Nothing was changed" in str(caught.value)) is not maybe_applied


# States of the server.


@twin(bugs_guards.outages_are_for_good)
def test_a_replica(make_server: MakeServer, connect: Connect) -> None:
    """A client that is led to a replica would not be told to look for the primary."""
    at_once = {"repl-diskless-sync-delay": "0"}
    primary = make_server(persistence="none", settings=at_once)
    replica = make_server(persistence="none")
    lease = connect(primary.unix_url).acquire("orders", ttl=60)
    wrong = connect(replica.unix_url)
    with redis.Redis.from_url(replica.unix_url) as store:
        store.replicaof("127.0.0.1", primary.port)
        await_true(lambda: bool(store.exists(KEYS["token"])))
        with refused(store, "READONLY", "primary", passing=True):
            wrong.acquire("invoices")
        with refused(store, "READONLY", "primary", passing=True):
            wrong.revoke("orders", lease.token)
        with refused(store, "READONLY", "primary", passing=True):
            RedisGuard(store, "orders").execute(plain(lease), "SET", "balance", "1")
    assert wrong.inspect("orders").token == lease.token


@twin(bugs_guards.gives_no_advice)
def test_a_replica_without_its_primary(server: Server, ours: fencer.Fencer) -> None:
    """Data of unknown age would be taken for the truth."""
    with redis.Redis.from_url(server.unix_url) as store:
        store.config_set("replica-serve-stale-data", "no")
        store.replicaof("127.0.0.1", free_port())
        for call in (ours.acquire, ours.inspect):
            with pytest.raises(StoreError, match="primary") as caught:
                call("orders")
            assert caught.value.code == "MASTERDOWN"


@twin(bugs_guards.outages_are_for_good)
def test_too_few_replicas(ours: fencer.Fencer, store: redis.Redis) -> None:
    """A server that must not write alone would seem to be broken."""
    store.config_set("min-replicas-to-write", 1)
    with refused(store, "NOREPLICAS", "min-replicas-to-write", passing=True):
        ours.acquire("orders")


@twin(bugs_guards.renew_needs_memory, raises=(StoreError,))
def test_out_of_memory(ours: fencer.Fencer, store: redis.Redis) -> None:
    """A full server would take new leases in part, or end those that are held."""
    lease = ours.acquire("orders", ttl=60)
    guard = RedisGuard(store, "orders")
    guard.execute(plain(lease), "SET", "balance", "1")
    store.config_set("maxmemory", 1)
    with refused(store, "OOM", "maxmemory"):
        ours.acquire("invoices")
    with refused(store, "OOM", "maxmemory"):
        guard.execute(lease.token + 1, "SET", "balance", "2")
    lease.renew()
    store.delete(KEYS["lock"], KEYS["info"])
    lease.renew()
    assert ours.inspect("orders").token == lease.token, "it heals in spite of it"
    assert lease.release()
    status = ours.inspect("orders")
    assert (status.held, status.issued) == (False, lease.token + 1)
    store.config_set("maxmemory", 0)
    assert ours.acquire("orders").token > lease.token


@twin(bugs_guards.guard_tells_no_code)
def test_out_of_memory_in_a_guarded_command(store: redis.Redis) -> None:
    """The writer would not learn that the server is full: the same fault, another error."""
    guard = RedisGuard(store, "orders")
    guard.check(5)
    store.config_set("maxmemory", 1)
    with pytest.raises(StoreError, match="OOM") as caught:
        guard.execute(5, "SET", "balance", "2")
    assert caught.value.code == "OOM"
    assert not store.exists("balance")


@twin(bugs_guards.refusals_are_outages)
def test_a_disk_that_cannot_be_written(make_server: MakeServer, connect: Connect) -> None:
    """A server that refuses writes for its disk's sake would seem to be broken."""
    server = make_server(persistence="rdb")
    ours = connect(server.unix_url)
    lease = ours.acquire("orders", ttl=60)
    (server.folder / "dump.rdb").mkdir()  # no file can take this place
    with redis.Redis.from_url(server.unix_url) as store:
        with pytest.raises(redis.ResponseError):
            store.save()
        store.bgsave()
        await_true(lambda: persistence(store)["rdb_last_bgsave_status"] == "err")
        with refused(store, "MISCONF", "disk"):
            ours.acquire("invoices")
        with refused(store, "MISCONF", "disk"):
            lease.renew()
    (server.folder / "dump.rdb").rmdir()
    assert lease.valid


def persistence(store: redis.Redis) -> Any:
    """What INFO says of saving."""
    return store.info("persistence")


@twin(bugs_guards.always_maybe_applied)
def test_loading(make_server: MakeServer, connect: Connect, tmp_path: Path) -> None:
    """A server that has just been restarted would look like a broken one, or like a free name."""
    folder = tmp_path / "data"
    server = make_server(folder, persistence="rdb", settings={"key-load-delay": "3000"})
    ours = connect(server.unix_url)
    ours.acquire("orders", ttl=60)
    with redis.Redis.from_url(server.unix_url) as store:
        for number in range(800):  # the server looks up from loading every 2 MB
            store.set(f"other:{number}", os.urandom(50_000))
        store.save()
    server.kill()
    starting = threading.Thread(target=server.start)
    starting.start()
    seen: list[StoreUnavailable] = []
    while starting.is_alive():
        try:
            ours.inspect("orders")
        except StoreUnavailable as error:
            seen.append(error)
    starting.join()
    loading = [error for error in seen if error.code == "LOADING"]
    assert loading
    assert not loading[0].maybe_applied
    assert "loading" in str(loading[0])
    with pytest.raises(fencer.NotAcquired):
        ours.acquire("orders")


@twin(bugs_guards.refusals_are_outages)
def test_a_busy_script(server: Server, ours: fencer.Fencer, store: redis.Redis) -> None:
    """A server that is blocked by somebody's script would seem to be down."""
    lease = ours.acquire("orders", ttl=60)
    store.config_set("lua-time-limit", 10)
    before = everything(store)
    with endless_script(server) as ended:
        calls: list[Callable[[], object]] = [
            lambda: ours.acquire("invoices"),
            lambda: RedisGuard(store, "orders").execute(plain(lease), "SET", "balance", "1"),
            lease.renew,
        ]
        for call in calls:
            with pytest.raises(StoreError, match="SCRIPT KILL") as caught:
                call()
            assert caught.value.code == "BUSY"
            assert not isinstance(caught.value, StoreUnavailable)
        store.script_kill()
        ended.wait(10)
    assert everything(store) == before
    lease.renew()
    assert ours.acquire("invoices").token > 0


@contextmanager
def endless_script(server: Server) -> Iterator[threading.Event]:
    """Another client runs one; the event tells that it has been killed."""
    ended = threading.Event()

    def run() -> None:
        with (
            redis.Redis.from_url(server.unix_url, retry=Retry(NoBackoff(), 0)) as other,
            pytest.raises(redis.ResponseError),
        ):
            other.eval("while true do end", 0)
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    with redis.Redis.from_url(server.unix_url, retry=Retry(NoBackoff(), 0)) as probe:
        await_true(lambda: is_busy(probe))
    try:
        yield ended
    finally:
        with (
            redis.Redis.from_url(server.unix_url) as other,
            suppress(redis.ResponseError),  # It has been killed before.
        ):
            other.script_kill()
        thread.join()


def is_busy(store: redis.Redis) -> bool:
    """Whether the server is blocked."""
    try:
        store.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


# Permissions.


@twin(bugs_guards.refusals_are_outages)
def test_a_wrong_password(make_server: MakeServer, connect: Connect) -> None:
    """A typing error in the URL would look like an outage."""
    server = make_server(persistence="none", settings={"requirepass": "secret"})
    with pytest.raises(StoreError, match="URL") as caught:
        connect(f"redis://:wrong@127.0.0.1:{server.port}/0").acquire("orders")
    assert caught.value.code == "WRONGPASS"
    assert not isinstance(caught.value, StoreUnavailable)
    assert "wrong@" not in str(caught.value)
    with pytest.raises(StoreError, match="URL") as caught:
        connect(server.url).acquire("orders")
    assert caught.value.code == "NOAUTH"
    assert connect(f"redis://:secret@127.0.0.1:{server.port}/0").acquire("orders").token


OPERATIONS = [
    "acquire",
    "acquire over a lost one",
    "renew",
    "heal",
    "release",
    "revoke",
    "advance",
    "guard",
]


def operate(
    operation: str, client: fencer.Fencer, store: redis.Redis, guarded: redis.Redis
) -> Callable[[], object]:
    """Set the scene in the store, and return what is to be tried, with the client or a guard."""
    if operation == "acquire":
        return lambda: client.acquire("orders")
    lease = client.acquire("orders")
    if operation == "acquire over a lost one":
        store.delete(KEYS["lock"])
    if operation == "heal":
        store.delete(KEYS["lock"], KEYS["info"])
    calls: dict[str, Callable[[], object]] = {
        "acquire over a lost one": lambda: client.acquire("orders"),
        "renew": lease.renew,
        "heal": lease.renew,
        "release": lease.release,
        "revoke": lambda: client.revoke("orders", lease.token),
        "advance": lambda: client.advance("orders", lease.token + 5),
        "guard": lambda: RedisGuard(guarded, "orders").execute(plain(lease), "SET", "balance", "1"),
    }
    return calls[operation]


READS_BY = {"renew": "mget", "heal": "mget", "release": "mget", "guard": "evalsha"}
"""The command without which an operation cannot even look, where that is not GET."""


@twin(bugs_guards.release_undoes_nothing, of="release-del")
@on_threads
@pytest.mark.parametrize(
    "missing",
    ["set", "del", "pexpire", "get", "mget", "exists", "hset", "hmget", "evalsha"],
)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.may_break("S4", why="one case deletes the lock key while its holder believes")
def test_a_missing_permission(
    server: Server, store: redis.Redis, connect: Connect, operation: str, missing: str
) -> None:
    """A script that is refused in the middle would leave half of its writes behind."""
    acl(store)
    with redis.Redis.from_url(poor_url(server)) as poor:
        call = operate(operation, connect(poor_url(server)), store, poor)
        acl(store, f"-{missing}")
        before = everything(store)
        error = outcome(call)
    if error is not None:
        assert isinstance(error, StoreError)
        assert error.code == "NOPERM"
        if operation != "guard":  # it may be the caller's own command that was refused
            assert "ACL LOG" in str(error)
        after = everything(store)
        if operation == "guard":  # the token may have been accepted before its command failed
            after.pop(KEYS["guard"].encode(), None)
        assert after == before
    else:
        assert missing not in ("evalsha", READS_BY.get(operation, "get"))


@twin(bugs_guards.needs_its_history, of="xadd")
@pytest.mark.parametrize("missing", ["xadd", "xrevrange"])
def test_history_without_its_permissions(
    server: Server, store: redis.Redis, connect: Connect, missing: str
) -> None:
    """What is only for operators to read would be needed to hold a lease; or half be done."""
    acl(store, f"-{missing}")
    before = everything(store)
    poor = connect(poor_url(server))
    error = outcome(lambda: poor.acquire("orders").release())
    if error is not None:
        assert missing == "xrevrange"
        assert isinstance(error, StoreError)
        assert error.code == "NOPERM"
        assert everything(store) == before


@twin(bugs_guards.refusals_are_outages)
def test_keys_of_others(server: Server, store: redis.Redis, connect: Connect) -> None:
    """A user who may not touch our keys would hear something else."""
    acl(store, "resetkeys", "~other:*")
    with refused(store, "NOPERM", "permission"):
        connect(poor_url(server)).acquire("orders")


def acl(store: redis.Redis, *rules: str) -> None:
    """Make a user that may do everything but these."""
    store.execute_command("ACL", "SETUSER", "poor", "on", ">secret", "~*", "&*", "+@all", *rules)


def poor_url(server: Server) -> str:
    """That user's URL."""
    return f"redis://poor:secret@127.0.0.1:{server.port}/0"


# Somebody else's data under one of our keys.

FOREIGN: dict[str, Callable[[redis.Redis, str], object]] = {
    "list": lambda store, key: store.rpush(key, "theirs"),
    "hash": lambda store, key: store.hset(key, "theirs", "1"),
    "text": lambda store, key: store.set(key, "theirs"),
    "text with a time": lambda store, key: store.set(key, "theirs", ex=60),
    "number": lambda store, key: store.set(key, "-5"),
    "huge": lambda store, key: store.set(key, "9" * 30),
    "fraction": lambda store, key: store.set(key, "1.5"),
    "json": lambda store, key: store.set(key, '{"token":5,"grant":"x","holder":"me"}'),
}


@twin(bugs.releases_without_compare, of="release-lock-text")
@twin(bugs.renews_without_compare, of="renew-lock-text")
@on_threads
@pytest.mark.parametrize("value", FOREIGN)
@pytest.mark.parametrize("key", ["lock", "token", "info", "history", "guard"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.may_break("S4", why="one case deletes the lock key while its holder believes")
def test_foreign_data_is_left_alone(
    client: fencer.Fencer, redis_client: redis.Redis, operation: str, key: str, value: str
) -> None:
    """Somebody else's data would be overwritten or deleted; or half of a script be done."""
    call = operate(operation, client, redis_client, redis_client)
    redis_client.delete(KEYS[key])
    FOREIGN[value](redis_client, KEYS[key])
    before = everything(redis_client)
    error = outcome(call)
    theirs = KEYS[key].encode()
    assert everything(redis_client).get(theirs) == before[theirs]
    if error is not None:
        assert everything(redis_client) == before
    if isinstance(error, ScriptError):
        assert error.code in ("WRONGTYPE", "CORRUPT")
        assert "Fencer did not write" in str(error)
    elif isinstance(error, StoreError):
        assert error.code == "FOREIGN"
        assert repr(KEYS["lock"]) in str(error)
        assert "by hand" in str(error)


@twin(bugs_guards.names_no_line)
@pytest.mark.parametrize("key", ["lock", "token", "info", "history"])
def test_a_key_of_the_wrong_type(
    client: fencer.Fencer, redis_client: redis.Redis, key: str
) -> None:
    """The error would not name what to do, nor the place in the script."""
    redis_client.rpush(KEYS[key], "theirs")
    with refused(redis_client, "WRONGTYPE", "choose another namespace"):
        client.acquire("orders")
    with pytest.raises(ScriptError) as caught:
        client.acquire("orders")
    assert caught.value.script == "acquire"
    assert caught.value.line
    assert f"lua/acquire.lua:{caught.value.line}:" in str(caught.value)


@twin(bugs_guards.gives_no_advice)
def test_inspect_of_foreign_data(client: fencer.Fencer, redis_client: redis.Redis) -> None:
    """An operator who asks who has the lease would get a traceback."""
    redis_client.set(KEYS["lock"], "theirs")
    status = client.inspect("orders")
    assert (status.held, status.holder, status.token, status.remaining) == (
        True,
        "theirs",
        None,
        None,
    )
    with pytest.raises(fencer.NotAcquired, match="by hand"):
        client.acquire("orders")
    redis_client.delete(KEYS["lock"])
    redis_client.set(KEYS["token"], "theirs")
    with refused(redis_client, "CORRUPT", "by hand"):
        client.inspect("orders")


@twin(bugs_guards.mints_beyond_the_last)
def test_no_token_is_left(client: fencer.Fencer, redis_client: redis.Redis) -> None:
    """Numbers beyond 2^53 would be rounded, and two tokens be one."""
    redis_client.set(KEYS["token"], 2**53 - 1)
    with refused(redis_client, "EXHAUSTED", "another name"):
        client.acquire("orders")


# No answer.


@twin(bugs_guards.always_maybe_applied)
def test_connection_refused(connect: Connect) -> None:
    """A caller could not know that nothing can have happened."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    nobody, guarded = connect(url), redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0))
    calls: list[Callable[[], object]] = [
        lambda: nobody.acquire("orders"),
        lambda: nobody.inspect("orders"),
        lambda: nobody.revoke("orders", 5),
        lambda: nobody.advance("orders", 5),
        lambda: RedisGuard(guarded, "orders").execute(5, "SET", "balance", "1"),
    ]
    for call in calls:
        with unavailable(maybe_applied=False, says="no answer"):
            call()
    for ask in (lambda: nobody.history("orders"), lambda: list(nobody.names())):
        with pytest.raises(StoreUnavailable):
            ask()


@twin(bugs_guards.always_maybe_applied)
def test_a_server_that_goes_away(server: Server, ours: fencer.Fencer) -> None:
    """A holder would lose its lease to a short outage, or not hear that release failed."""
    lease, other = ours.acquire("orders", ttl=60), ours.acquire("invoices", ttl=60)
    server.kill()
    with unavailable(maybe_applied=False, says="no answer"):
        lease.renew()
    assert lease.valid
    with unavailable(maybe_applied=False, says="no answer"):
        other.release()
    assert not other.valid


@twin(bugs_guards.never_maybe_applied)
def test_a_connection_that_is_cut_in_mid_call(server: Server, ours: fencer.Fencer) -> None:
    """A caller would believe that nothing happened when it may have."""
    lease = ours.acquire("orders", ttl=60)
    server.pause()
    killing = threading.Timer(0.3, server.kill)
    killing.start()
    with unavailable(maybe_applied=True, says="no answer"):
        lease.renew()
    killing.join()
    assert lease.valid


@twin(bugs_guards.grants_for_good)
def test_a_frozen_server(
    server: Server, connect: Connect, ours: fencer.Fencer, store: redis.Redis
) -> None:
    """A call that was given up runs when the server wakes: it would block the name for good."""
    ours.inspect("orders")
    before = connections(store)
    hasty = connect(server.unix_url, socket_timeout=0.2)
    hasty.acquire("invoices").release()  # so that it is connected, and its scripts are known
    server.pause()
    with unavailable(maybe_applied=True, says="no answer"):
        hasty.acquire("orders", ttl=1)
    server.resume()
    await_true(lambda: connections(store) <= before)  # all that was sent has been done
    assert ours.history("orders")[0].event == "grant", "it came late, and was granted"
    assert store.pttl(KEYS["lock"]) != -1
    lease = ours.acquire("orders", ttl=60, wait=10)
    lease.renew()


def connections(store: redis.Redis) -> set[str]:
    """The ids of all connections of the server."""
    listed: list[dict[str, str]] = store.client_list()
    return {each["id"] for each in listed}


@twin(bugs_guards.never_maybe_applied)
def test_all_replies_lost(client: fencer.Fencer, shared_server: Server, connect: Connect) -> None:
    """A caller would believe that nothing happened when it did."""
    with Proxy(("127.0.0.1", shared_server.port)) as proxy:
        far = connect(proxy.url)
        proxy.swallow_reply(10, match=b"EVALSHA")
        with unavailable(maybe_applied=True, says="no answer"):
            far.acquire("orders")


@twin(bugs_guards.never_maybe_applied)
def test_all_replies_to_a_guard_lost(redis_client: redis.Redis, shared_server: Server) -> None:
    """A writer would believe that nothing happened when it did."""
    with (
        Proxy(("127.0.0.1", shared_server.port)) as proxy,
        redis.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0)) as far,
    ):
        proxy.swallow_reply(10, match=b"EVALSHA")
        with unavailable(maybe_applied=True, says="no answer"):
            RedisGuard(far, "orders").check(5)


@twin(bugs_guards.always_maybe_applied)
def test_a_pool_that_is_exhausted(
    redis_client: redis.Redis, shared_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool that is too small would look like a server that is down."""
    monkeypatch.setattr("fencer._wire._FREE_SECONDS", 0.3)
    with redis.Redis.from_url(shared_server.unix_url, max_connections=1) as driver:
        taken = driver.connection_pool.get_connection()
        with unavailable(maybe_applied=False, says="(?i)connections"):
            fencer.Fencer(driver).acquire("orders")
        driver.connection_pool.release(taken)
        assert fencer.Fencer(driver).acquire("orders").release()


async def exhaust_and_acquire(url: str) -> None:
    """The same on asyncio."""
    async with redis.asyncio.Redis.from_url(url, max_connections=1) as driver:
        taken = await driver.connection_pool.get_connection()
        with unavailable(maybe_applied=False, says="(?i)connections"):
            await fencer.AsyncFencer(driver).acquire("orders")
        await driver.connection_pool.release(taken)
        lease = await fencer.AsyncFencer(driver).acquire("orders")
        assert await lease.release()


@twin(bugs_guards.always_maybe_applied)
def test_a_pool_of_asyncio_that_is_exhausted(
    redis_client: redis.Redis, shared_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool that is too small would look like a server that is down."""
    monkeypatch.setattr("fencer._wire._FREE_SECONDS", 0.3)
    asyncio.run(exhaust_and_acquire(shared_server.unix_url))


@twin(bugs_guards.always_maybe_applied)
def test_a_server_that_takes_no_more_clients(
    server: Server, connect: Connect, store: redis.Redis
) -> None:
    """A server at its limit would look like one that is down."""
    store.config_set("maxclients", 1)
    with unavailable(maybe_applied=False, says="no answer"):  # it may close before it says why
        connect(server.unix_url).acquire("orders")
    assert not everything(store)


def outcome(call: Callable[[], object]) -> fencer.FencerError | None:
    """The error that a call ends in, if any."""
    try:
        call()
    except fencer.FencerError as error:
        return error
    return None


def await_true(condition: Callable[[], bool]) -> None:
    """For what happens in the server."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        time.sleep(0.001)


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
