"""A user with the rules of `fencer acl` can do everything that the library does, and nothing else.

The server is the judge: it keeps a log of what it denied.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import redis

import fencer
from fencer import _scripts
from fencer.acl import Rules, rules
from fencer.embedded import Server
from fencer.guards import RedisGuard
from tests.cli.runs import Cli, eventually
from tests.fix_api import Connect, connecting, plain
from tests.fix_servers import MakeServer

ALL = rules(guards=True)
CLIENTS_OWN = {"client|setinfo", "client|maint_notifications", "client"}
"""What the driver tries at each login, and does without."""


@pytest.fixture(scope="module")
def place() -> Iterator[Server]:
    """A server for this module, since a user belongs to a whole server."""
    with Server(persistence="none") as server:
        yield server


@pytest.fixture
def root(place: Server) -> Iterator[redis.Redis]:
    """Who may do everything there."""
    with redis.Redis.from_url(place.unix_url, decode_responses=True) as root:
        root.flushall()
        root.script_flush()
        yield root
        root.acl_deluser("app")


def allow(root: redis.Redis, words: list[str]) -> None:
    """Make the user anew."""
    root.acl_deluser("app")
    root.execute_command("ACL", "SETUSER", "app", ">secret", *words)
    root.acl_log_reset()


def url_of(place: Server) -> str:
    """Where the user logs in."""
    return place.unix_url.replace("unix://", "unix://app:secret@")


def denied(root: redis.Redis) -> set[str]:
    """What the server denied."""
    log: Any = root.acl_log(128)
    return {entry["object"] for entry in log} - CLIENTS_OWN


def everything(connect: Connect, url: str) -> None:
    """Use the library: each script in each of its cases, as far as they differ in their calls."""
    first, second = connect(url, holder="first"), connect(url, holder="second")
    lease = first.acquire("orders", ttl=30)
    with pytest.raises(fencer.NotAcquired):
        second.acquire("orders")
    lease.renew(20)
    assert first.inspect("orders").holder == "first"
    assert list(first.names()) == ["orders"]
    assert lease.release()

    lease = first.acquire("orders", ttl=1, keep_alive=True)
    with pytest.raises(fencer.AcquireTimeout):
        second.acquire("orders", ttl=30, wait=0.05)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(second.acquire, "orders", ttl=30, wait=2)
        try:
            assert eventually(lambda: waiting.done() or first.inspect("orders").waiters == 1)
        finally:
            lease.release()
        handed = waiting.result()
    assert first.history("orders")[-1].event == "grant"
    assert first.revoke("orders") == handed.token
    assert first.advance("orders", handed.token + 1_000_000)

    lease = first.acquire("orders", ttl=30)
    with redis.Redis.from_url(url) as client:
        for tag in (None, "42"):
            guard = RedisGuard(client, "till", name="orders", tag=tag)
            guard.check(plain(lease))
            assert guard.highest() == lease.token
    assert lease.release()


def stands_in_line(root: redis.Redis, place: Server) -> None:
    """The calls that the line needs only now and then, by the scripts themselves."""
    with redis.Redis.from_url(url_of(place)) as app, app.pubsub() as listener:
        listener.subscribe("fencer:wake:here")
        assert listener.get_message(timeout=10)
        stem = "fencer:{line}:"
        keys = [stem + kind for kind in ("lock", "token", "info", "history", "queue", "waiters")]

        def acquire(grant: str, waiting: str) -> Any:
            words = ("me", grant * 32, 60_000, 60_000, '{"holder":"me"}', "time", 10, waiting)
            body = _scripts.load("acquire").body
            return app.eval(body.decode(), 6, *keys, *words, "fencer:wake:here")

        assert acquire("a", "no")[0] == b"GRANTED"
        assert acquire("b", "join")[0] == b"QUEUED"
        assert acquire("c", "join")[0] == b"QUEUED"
        assert acquire("c", "stay")[0] == b"QUEUED"
        root.delete(keys[0])
        assert acquire("b", "stay")[0] == b"GRANTED"
        root.delete(keys[0])
        assert acquire("d", "no")[0] == b"HELD", "the line is served first"
        assert listener.get_message(timeout=10)


@pytest.mark.parametrize("api", ["threads", "asyncio"])
def test_everything_works(place: Server, root: redis.Redis, api: str) -> None:
    """A team that confines its user as we say would meet NOPERM, perhaps months later."""
    allow(root, ALL.words())
    with connecting(api, place) as connect:
        everything(connect, url_of(place))
    stands_in_line(root, place)
    assert denied(root) == set()


def test_elections_work(place: Server, root: redis.Redis) -> None:
    """A service whose user is confined as we say would never have a leader."""
    allow(root, rules().words())
    led: list[str] = []
    with (
        fencer.connect(url_of(place), holder="first") as first,
        fencer.connect(url_of(place), holder="second") as second,
    ):
        both = [
            fencer.Election(f, "leader", ttl=10, on_elected=lambda lease: led.append(lease.holder))
            for f in (first, second)
        ]
        with both[1]:
            with both[0]:
                assert eventually(lambda: len(led) == 1, 20)
                assert eventually(lambda: first.inspect("leader").waiters == 1, 20)
                winner = both[0] if led == ["first"] else both[1]
            if winner is both[0]:
                assert eventually(lambda: led == ["first", "second"], 20)
    assert denied(root) == set()


def parts(found: Rules) -> list[str]:
    """The rules that allow something."""
    return [word for word in found.words() if word[0] in "~&+"]


@pytest.mark.parametrize("left_out", parts(ALL))
def test_no_rule_is_too_many(place: Server, root: redis.Redis, left_out: str) -> None:
    """Users would be allowed something that they never need."""
    allow(root, [word for word in ALL.words() if word != left_out])
    with connecting("threads", place) as connect:
        try:
            everything(connect, url_of(place))
            stands_in_line(root, place)
        except (fencer.FencerError, AssertionError, IndexError, redis.RedisError):
            pass  # what matters is what the server says
    missed = denied(root)
    if left_out[0] == "+":
        assert left_out[1:] in missed
    else:
        assert any(fnmatchcase(each, left_out[1:]) for each in missed)


@pytest.mark.parametrize(
    "words",
    [
        ("GET", "other"),
        ("SET", "other", "1"),
        ("DEL", "other"),
        ("GET", "fencer:{orders}:other"),
        ("GET", "fencer:lock"),
        ("HMGET", "fencer:{orders}:guard", "token"),
        ("GET", "fencers:{orders}:lock"),
        ("PUBLISH", "other", "1"),
        ("PUBLISH", "fencer:other", "1"),
        ("SUBSCRIBE", "other"),
        ("PSUBSCRIBE", "*"),
        ("EVAL", "return redis.call('GET', KEYS[1])", "1", "other"),
        ("EVAL", "return redis.call('GET', 'other')", "0"),
        ("EVAL", "return redis.call('CONFIG', 'GET', 'dir')", "0"),
        ("EVAL", "return redis.call('FLUSHALL')", "0"),
        ("EVAL", "return redis.call('PUBLISH', 'other', '1')", "0"),
        ("SELECT", "1"),
        ("KEYS", "*"),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("CONFIG", "GET", "*"),
        ("CONFIG", "SET", "dir", "/"),
        ("ACL", "LIST"),
        ("ACL", "SETUSER", "app", "+@all"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("CLIENT", "PAUSE", "1000"),
        ("SCRIPT", "FLUSH"),
        ("SCRIPT", "KILL"),
        ("REPLICAOF", "127.0.0.1", "1"),
        ("DEBUG", "SLEEP", "0"),
        ("MIGRATE", "127.0.0.1", "1", "other", "0", "1"),
        ("MONITOR",),
        ("RENAME", "fencer:{a}:lock", "fencer:{b}:lock"),
        ("SAVE",),
        ("SHUTDOWN",),
        ("INFO",),
    ],
    ids=" ".join,
)
def test_nothing_else_can_be_touched(
    place: Server, root: redis.Redis, words: tuple[str, ...]
) -> None:
    """A service that was broken into could read or harm what is not its leases."""
    allow(root, rules().words())
    root.set("other", "kept")
    with redis.Redis.from_url(url_of(place)) as app, pytest.raises(redis.ResponseError) as refused:
        app.execute_command(*words)
    # Some are kept from everybody, whatever the rules are.
    assert re.search("permission|ACL|not allowed|executing the script can't", str(refused.value))
    assert root.get("other") == "kept"


def test_the_names_can_be_narrowed(place: Server, root: redis.Redis) -> None:
    """Two teams with one namespace could take each other's leases."""
    allow(root, rules(prefix="team[1]-", listing=False).words())
    with fencer.connect(url_of(place)) as ours:
        ours.acquire("team[1]-orders").release()
        for other in ("orders", "team1-orders"):
            with pytest.raises(fencer.StoreError) as refused:
                ours.acquire(other)
            assert refused.value.code == "NOPERM"
        with pytest.raises(fencer.StoreError):
            list(ours.names())


@pytest.mark.parametrize("namespace", ["a*b", "a?b", "a[bc]", "a\\b", "ä'\"b"])
@pytest.mark.parametrize("hash_tag", [True, False])
def test_a_namespace_is_no_pattern(
    place: Server, root: redis.Redis, namespace: str, hash_tag: bool
) -> None:
    """A namespace with a letter that patterns use would open more than itself, or nothing."""
    allow(root, rules(namespace, hash_tag=hash_tag).words())
    with fencer.connect(url_of(place), namespace=namespace, hash_tag=hash_tag) as ours:
        ours.acquire("orders").release()
    other = "axb" if "*" in namespace or "?" in namespace else "ab"
    with (
        fencer.connect(url_of(place), namespace=other, hash_tag=hash_tag) as theirs,
        pytest.raises(fencer.StoreError),
    ):
        theirs.acquire("orders")


def test_another_database(place: Server, root: redis.Redis) -> None:
    """A client whose URL names a database could not log in."""
    with fencer.connect(url_of(place).replace("db=0", "db=2")) as ours:
        allow(root, rules().words())
        with pytest.raises(fencer.StoreError):
            ours.acquire("orders")
        allow(root, rules(db=2).words())
        ours.acquire("orders").release()


def test_a_space_is_refused() -> None:
    """A rule would be read as two, and open what nobody meant."""
    for options in ({"namespace": "a b"}, {"prefix": "a b"}):
        with pytest.raises(fencer.InvalidArgument, match="space"):
            rules(**options)  # type: ignore[arg-type]


def test_the_command_prints_what_the_server_takes(
    make_server: MakeServer, tmp_path: Path, root: redis.Redis
) -> None:
    """What an operator pastes would not be what the library means."""
    cli = Cli(None)
    shown = cli("acl", "--user", "app", "--guards", "--namespace", 'a*"ä')
    assert (shown.code, shown.err) == (0, "")
    line = shown.out.strip()
    assert line == rules('a*"ä', guards=True).line("app")
    # A file of users is read by the same rules as what is typed into redis-cli.
    users = tmp_path / "users.acl"
    users.write_text("user default on nopass ~* &* +@all\n")
    server = make_server(persistence="none", settings={"aclfile": str(users)})
    written = line.replace("ACL SETUSER", "user").replace(" on ", " on >secret ")
    users.write_text(f"user default on nopass ~* &* +@all\n{_plain(written)}\n")
    with redis.Redis.from_url(server.unix_url) as store:
        store.acl_load()
    with fencer.connect(url_of(server), namespace='a*"ä') as ours:
        ours.acquire("orders").release()


def _plain(line: str) -> str:
    """The line as that file wants it: words parted by spaces, and no quotes."""
    return " ".join(shlex.split(line))


def test_json_is_stable() -> None:
    """A script that makes users from it would break."""
    told = Cli(None)("acl", "--json", "--no-ls").json
    assert list(told) == ["user", "keys", "channels", "commands", "rules"]
    assert told["rules"] == rules(listing=False).words()
    assert "scan" not in told["commands"]
    assert told["channels"] == ["fencer:wake:*"]


def test_a_durability_asks_for_more(make_server: MakeServer, connect: Connect) -> None:
    """Who wants a durability would be denied it by the rules, or be given it without asking."""
    server = make_server(persistence="aof-always")
    with redis.Redis.from_url(server.unix_url, decode_responses=True) as root:
        replicated = fencer.Replicated(1, timeout=0.01)
        allow(root, rules().words())
        with pytest.raises(fencer.StoreError, match=r"NOPERM|no permissions"):
            connect(url_of(server), durability=replicated).acquire("orders")
        allow(root, rules(replicated=True).words())
        with pytest.raises(fencer.NotDurable):
            connect(url_of(server), durability=replicated).acquire("orders")
        if "waitaof" in known(root):
            with pytest.raises(fencer.StoreError, match=r"NOPERM|no permissions"):
                connect(url_of(server), durability=fencer.Fsynced()).acquire("orders")
            allow(root, rules(fsynced=True).words())
            lease = connect(url_of(server), durability=fencer.Fsynced()).acquire("orders")
            assert lease.release()
        assert denied(root) == set()
        assert root.get("fencer:{orders}:lock") is None


def known(root: redis.Redis) -> set[str]:
    """The commands that there are on the server."""
    commands: Any = root.execute_command("COMMAND")
    names = commands if isinstance(commands, dict) else [entry[0] for entry in commands]
    return {str(name) for name in names}


def test_commands_come_from_the_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that calls a new command would be denied it, since a list was forgotten."""
    real = _scripts.load

    def load(name: str) -> _scripts.Script:
        script = real(name)
        body = script.body.replace(b"MGET PEXPIRE*3", b"MGET GETEX PEXPIRE*3")
        return _scripts.Script(name, body, script.sha)

    assert load("renew").body != real("renew").body
    monkeypatch.setattr("fencer.acl.load", load)
    assert set(rules().commands) - {"getex"} == set(rules(guards=False).commands) - {"getex"}
    assert "getex" in rules().commands
