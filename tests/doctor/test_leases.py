"""What can be wrong with the leases on a server: each danger is made on a real one, and named."""

from __future__ import annotations

import threading
import time

import pytest
import redis

import fencer
from fencer import embedded
from fencer._keys import Keyspace
from fencer.doctor import Severity, Verdict, _leases, _survey
from fencer.doctor._nodes import Node
from fencer.drill.proxy import Proxy
from fencer.guards import RedisGuard
from tests.cli.runs import eventually
from tests.doctor.places import checks, findings, look, only, open_client
from tests.faults.clock import ServerClock
from tests.faults.processes import Worker
from tests.fix_servers import MakeServer

STEM = "fencer:{orders}:"

WAITER = """
import threading
import fencer

def wait():
    with fencer.connect(args[0], holder="waiter") as f:
        f.acquire("orders", ttl=30, wait=None)

threading.Thread(target=wait, daemon=True).start()

def handle():
    return None
"""


@pytest.mark.parametrize("kind", ["lock", "token", "info", "queue", "waiters", "history"])
def test_a_key_of_another_type(good: str, store: redis.Redis, kind: str) -> None:
    """A name that nobody can ever be granted would look like a free one."""
    store.sadd(STEM + kind, "somebody else's")
    finding = only(look(good))
    assert (finding.check, finding.severity) == ("key-type", Severity.DANGER)
    assert (finding.names, kind in finding.danger) == (("orders",), True)
    if kind in ("lock", "token", "info"):
        with fencer.connect(good) as f, pytest.raises(fencer.ScriptError):
            f.acquire("orders")


@pytest.mark.parametrize(
    ("kind", "value"), [("token", "x"), ("token", "007"), ("info", "x"), ("info", "{}")]
)
def test_a_value_that_is_not_ours(good: str, store: redis.Redis, kind: str, value: str) -> None:
    """The same, with a key of the right type."""
    store.set(STEM + kind, value)
    finding = only(look(good))
    assert (finding.check, finding.severity) == ("key-value", Severity.DANGER)
    assert kind in finding.danger
    with fencer.connect(good) as f, pytest.raises(fencer.ScriptError):
        f.acquire("orders")


def test_a_lock_without_an_end(good: str, store: redis.Redis) -> None:
    """A lease whose holder died would be held for ever, and nobody be told why."""
    with fencer.connect(good, holder="me") as f:
        for name in ("orders", "bills"):
            f.acquire(name, ttl=30)
            store.persist(f"fencer:{{{name}}}:lock")
    store.set("fencer:{theirs}:lock", "cron")
    finding = only(look(good))
    assert (finding.check, finding.severity) == ("endless-lock", Severity.DANGER)
    assert finding.names == ("bills", "orders", "theirs")
    assert "3 names" in finding.danger
    assert "'me'" in finding.danger


def test_a_lock_that_somebody_else_wrote(good: str, store: redis.Redis) -> None:
    """Two programs that use the same keys would never be noticed."""
    with fencer.connect(good, holder="me") as f:
        f.acquire("orders", ttl=60)
        store.set(STEM + "lock", "cron", keepttl=True)
        finding = only(look(good))
        assert (finding.check, finding.severity) == ("foreign-lock", Severity.WARNING)
        assert "'cron'" in finding.danger
        store.delete(STEM + "lock")
        assert findings(look(good)) == [], "its holder will heal it"
    store.flushall()
    store.set(STEM + "lock", "cron", ex=60)
    assert checks(look(good)) == {("foreign-lock", "warning")}


def test_a_token_that_is_ahead(make_server: MakeServer, server_clock: ServerClock) -> None:
    """The first promise would hang on one key, and nobody would have been told."""
    program = server_clock.program(embedded._find_binary(None))
    server = make_server(persistence="aof-always", binary=program)
    server_clock.jump(100)
    with fencer.connect(server.unix_url) as f:
        f.acquire("orders", ttl=30).release()
        server_clock.jump(-90)  # still ahead of this machine, which says nothing of tokens
        f.acquire("bills", ttl=30).release()
    report = look(server.unix_url)
    assert checks(report) == {("tokens-ahead", "warning"), ("own-clock", "note")}
    (finding,) = (each for each in report.findings if each.check == "tokens-ahead")
    assert finding.names == ("orders",)
    assert "90" in finding.danger or "89" in finding.danger


def test_a_name_that_was_advanced(good: str) -> None:
    """The same, made by hand."""
    with fencer.connect(good) as f:
        f.advance("orders", round((time.time() + 3_600) * 1e6))
        f.acquire("dense", ttl=30).release()
    with fencer.connect(good, tokens="dense") as f:
        f.acquire("small", ttl=30).release()
    finding = only(look(good))
    assert (finding.check, finding.names) == ("tokens-ahead", ("orders",))


def test_marks_that_end(good: str, store: redis.Redis) -> None:
    """A guard would forget what it has seen, and take a stale write."""
    for tag in (None, "42"):
        RedisGuard(open_client(good), "till", tag=tag).check(5)
    assert findings(look(good)) == []
    store.expire("fencer:{42}:guard:till", 1_000)
    finding = only(look(good))
    assert (finding.check, finding.severity) == ("mark-ends", Severity.DANGER)
    assert finding.names == ("fencer:{42}:guard:till",)


def test_a_mark_that_is_ahead(good: str) -> None:
    """Every holder would be refused for two centuries, and the doctor say that all is well."""
    seen = 8_999_999_999_999_995
    with fencer.connect(good) as f:
        guard = RedisGuard(f.client, "till", name="orders")
        guard.check(seen)
        RedisGuard(f.client, "soon").check(round((time.time() + 60) * 1e6))
        with pytest.raises(fencer.StaleToken):
            guard.check(f.acquire("orders", ttl=30))
        finding = only(look(good))
        assert (finding.check, finding.severity) == ("mark-ahead", Severity.DANGER)
        assert finding.names == ("fencer:{till}:guard",)
        assert f"fencer advance NAME {seen}" in finding.cure
        f.advance("orders", seen)
        guard.check(f.acquire("orders", ttl=30))
        assert checks(look(good)) == {("tokens-ahead", "warning")}, "which the cure foretells"


def test_a_mark_of_leases_elsewhere(good: str, make_server: MakeServer) -> None:
    """A guard whose leases are on another server would be called ahead of them."""
    seen = 8_999_999_999_999_995
    other = make_server(persistence="aof-always")
    with fencer.connect(good) as f, fencer.connect(other.unix_url) as leases:
        RedisGuard(f.client, "till").check(seen)
        leases.advance("till", seen)
    found = {each.check for each in look(good, other.unix_url).findings}
    assert "mark-ahead" not in found
    assert "mark-ahead" in {each.check for each in look(good).findings}


def test_marks_with_a_prefix(good: str, store: redis.Redis) -> None:
    """Guards of others would be told of, or one's own be missed, by whoever asks for some names."""
    with fencer.connect(good) as f:
        RedisGuard(f.client, "orders-till").check(5)
        RedisGuard(f.client, "orders-safe", tag="42").check(5)
        RedisGuard(f.client, "till", tag="orders-1").check(5)
    for key in store.scan_iter():
        store.expire(key, 1_000)
    assert set(only(look(good, prefix="orders")).names) == {
        "fencer:{orders-till}:guard",
        "fencer:{42}:guard:orders-safe",
    }


def test_a_mark_beyond_all_tokens(good: str) -> None:
    """The cure would be a command that is refused."""
    with fencer.connect(good) as f:
        RedisGuard(f.client, "till").check(2**53 - 1)
        finding = only(look(good))
        assert (finding.check, finding.severity) == ("mark-ahead", Severity.DANGER)
        assert "fencer advance" not in finding.cure
        assert "DEL fencer:{till}:guard" in finding.cure
        with pytest.raises(fencer.InvalidArgument):
            f.advance("till", 2**53 - 1)


@pytest.mark.parametrize("wrong", ["type", "token"])
def test_marks_that_are_no_marks(good: str, store: redis.Redis, wrong: str) -> None:
    """A guard would refuse every write, and nobody know why."""
    if wrong == "type":
        store.set("fencer:{till}:guard", "5")
    else:
        store.hset("fencer:{till}:guard", "token", "many")
    finding = only(look(good))
    assert (finding.check, finding.severity) == ("mark-value", Severity.DANGER)


def test_a_ttl_shorter_than_three_round_trips(good: str, store: redis.Redis) -> None:
    """A lease that its holder loses again and again would count as one that is held."""
    with fencer.connect(good) as f:
        f.acquire("orders", ttl=0.05)
        f.acquire("bills", ttl=5)
    # As a keeper nearby would: the lease is there whenever somebody looks.
    store.eval(
        """
        redis.call('SET', KEYS[1], ARGV[1], 'PX', 60000)
        redis.call('SET', KEYS[2], ARGV[2], 'PX', 60000)
        """,
        2,
        STEM + "lock",
        STEM + "info",
        *_told(good),
    )
    assert findings(look(good, timeouts=False)) == []
    path = good.removeprefix("unix://").partition("?")[0]
    with Proxy(path) as far:
        far.delay(replies=0.02)
        finding = only(look(far.url, timeouts=False))
    assert (finding.check, finding.severity) == ("short-ttl", Severity.WARNING)
    assert finding.names == ("orders",)
    assert "50 ms" in finding.danger


def _told(good: str) -> tuple[str, str]:
    """The lock and info keys that a lease of 50 ms has."""
    with fencer.connect(good, holder="me") as f, redis.Redis.from_url(good) as store:
        lease = f.acquire("orders", ttl=0.05, wait=5)
        lease.renew(10)
        info = store.get(STEM + "info")
        assert isinstance(info, bytes)
        return "me", info.decode().replace('"ttl":10', '"ttl":0.05')


@pytest.mark.slow
def test_a_line_that_does_not_move(good: str) -> None:
    """A name would stay free while others wait for it, and nobody would know who is to blame."""
    with fencer.connect(good, holder="me") as f, Worker(WAITER, good) as waiter:
        lease = f.acquire("orders", ttl=60)
        assert eventually(lambda: f.inspect("orders").waiters == 1, 30)
        assert checks(look(good)) == set(), "a line that waits for its turn"
        waiter.stop()
        f.revoke("orders", lease.token)
        finding = only(look(good))
        assert (finding.check, finding.severity) == ("line", Severity.WARNING)
        assert finding.names == ("orders",)

        going_on = threading.Timer(0.5, waiter.cont)
        going_on.start()
        report = look(good)
        going_on.join()
        assert findings(report) == [], "it moved while the doctor looked on"


def test_too_many_names(good: str, store: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor would take a part for the whole, or never come to an end."""
    monkeypatch.setattr(_survey, "MOST", 3)
    for number in range(5):
        store.set(f"fencer:{{n{number}}}:token", 5)
    report = look(good)
    assert report.verdict == Verdict.UNSURE
    assert [each.check for each in report.unseen] == ["leases"]
    assert report.names == 5, "what was read before is told"


def test_many_names(good: str, store: redis.Redis) -> None:
    """Names beyond the first trip would not be looked at, or findings be as many as they."""
    with store.pipeline(transaction=False) as pipeline:
        for number in range(450):
            pipeline.set(f"fencer:{{n{number:03}}}:lock", "x")
        pipeline.execute()
    report = look(good)
    finding = only(report)
    assert (report.names, report.held) == (450, 450)
    assert "450 names" in finding.danger
    assert len(finding.names) == 10


@pytest.mark.parametrize("hash_tag", [True, False])
def test_only_its_own_namespace(good: str, store: redis.Redis, hash_tag: bool) -> None:
    """Somebody else's keys would be complained of, or one's own be missed."""
    options = {"namespace": "a*b", "hash_tag": hash_tag}
    with fencer.connect(good, **options) as f:  # type: ignore[arg-type]
        f.acquire("x:y", ttl=30)
    store.set("axb:{bad}:lock", "x")
    store.set("a*b:{bad}:other", "x")
    store.set("a*b:bad", "x")
    store.set(b"a*b:{\xff}:other", "x")
    report = look(good, **options)
    assert (findings(report), report.names) == ([], 1)
    stem = "a*b:{x:y}" if hash_tag else "a*b:x:y"
    store.persist(f"{stem}:lock")
    assert only(look(good, **options)).names == ("x:y",)


def test_what_would_steer_a_terminal(good: str, store: redis.Redis) -> None:
    """Keys and values that nobody but an attacker writes would break the doctor."""
    store.set(b"fencer:{\xff\x1b[2J}:lock", "no name of ours")
    store.set("fencer:{orders}:lock", b"\xfe\x1b[2J")
    report = look(good)
    assert report.names == 1
    danger = only(report).danger
    assert "\x1b" not in danger
    assert "xfe" in danger


def test_the_second_look_is_a_look(good: str, store: redis.Redis) -> None:
    """What passes by itself would be told as a danger, or what stays be forgotten."""
    store.zadd(STEM + "queue", {"a" * 32: 1})
    keyspace = Keyspace()
    with open_client(good) as client:
        node = Node(client, "here")
        found = _survey.survey(node, keyspace)

        def pause(_: float) -> None:
            store.delete(STEM + "queue")

        _survey.second_look(node, keyspace, found, pause)
        assert list(_leases.judge(found, node, keyspace)) == []
