"""Permissions: those that leases need, and those that the doctor itself needs."""

from __future__ import annotations

import shlex
from contextlib import nullcontext

import pytest
import redis

import fencer
from fencer.acl import rules
from fencer.doctor import Severity, Verdict, _access
from fencer.guards import RedisGuard
from tests.cli.runs import Cli
from tests.doctor.places import checks, findings, look, only


def allow(store: redis.Redis, words: list[str]) -> None:
    """Make the user anew."""
    store.acl_deluser("app")
    store.execute_command("ACL", "SETUSER", "app", ">secret", *words)


def as_app(url: str) -> str:
    """The URL with which that user logs in."""
    return url.replace("unix://", "unix://app:secret@")


def test_the_smallest_user(good: str, store: redis.Redis) -> None:
    """A user that may do all it needs would be called a danger, or the doctor break off."""
    allow(store, rules().words())
    with fencer.connect(as_app(good)) as f:
        f.acquire("orders", ttl=30)
        store.persist("fencer:{orders}:lock")
    report = look(as_app(good))
    assert checks(report) == {("endless-lock", "danger")}, "the leases are looked at"
    assert {each.check for each in report.unseen} >= {"eviction", "persistence", "replicas"}
    assert all("permission for INFO" in each.why for each in report.unseen)
    store.flushall()
    assert look(as_app(good)).verdict == Verdict.UNSURE


@pytest.mark.parametrize(
    ("left_out", "says"),
    [
        ("+pexpire", "PEXPIRE"),
        ("+evalsha", "EVALSHA"),
        ("+hset", "HSET"),
        ("+subscribe", "SUBSCRIBE"),
        ("+publish", "PUBLISH"),
        ("&fencer:wake:*", "PUBLISH, SUBSCRIBE"),
        ("~fencer:{*}:queue", "keys *:queue"),
        ("~fencer:{*}:lock", "keys *:lock"),
        ("+get", "GET, or the keys of any name that was tried"),
    ],
)
def test_a_permission_that_lacks(good: str, store: redis.Redis, left_out: str, says: str) -> None:
    """Leases would be refused in the middle of a wait, months after somebody made the user."""
    allow(store, [word for word in rules().words() if word != left_out])
    keys = store.dbsize()
    report = look(as_app(good))
    (finding,) = (each for each in findings(report) if each.check == "permissions")
    assert finding.severity == Severity.DANGER
    assert f"is not allowed: {says}." in finding.danger
    assert store.dbsize() == keys


def test_a_user_of_some_names(good: str, store: redis.Redis) -> None:
    """A user who may use all that it needs would be called a danger, or not be looked at."""
    allow(store, rules(prefix="orders").words())
    (finding,) = findings(look(as_app(good)))
    assert "--prefix" in finding.cure, "nothing is there to try"
    assert findings(look(as_app(good), prefix="orders")) == []

    with fencer.connect(good) as f, fencer.connect(as_app(good), holder="me") as limited:
        for name in ("bills", "zebras"):
            f.acquire(name, ttl=30)
        RedisGuard(f.client, "orders-till").check(5)
        limited.acquire("orders-1", ttl=30)
        store.persist("fencer:{orders-1}:lock")
        before = {key: store.dump(key) for key in store.scan_iter()}
        report = look(as_app(good))
        assert checks(report) == {("endless-lock", "danger")}, "tried by a name that is there"
        (missed,) = (each.why for each in report.unseen if each.check == "leases")
        assert "'bills'" in missed, "what it may not read hides nothing else"
        assert "permissions" not in {each.check for each in report.unseen}
        report = look(as_app(good), prefix="orders")
        assert (checks(report), report.names) == ({("endless-lock", "danger")}, 1)
        assert {key: store.dump(key) for key in store.scan_iter()} == before
        if not look(good, user="app").unseen:  # Redis 7 can be asked about others
            assert checks(look(good, user="app")) == {("endless-lock", "danger")}

    with pytest.raises(fencer.InvalidArgument):
        look(good, prefix="no one")


def test_a_user_of_one_name(good: str, store: redis.Redis) -> None:
    """The same; or the doctor would try its commands on a lease that somebody has."""
    words = [word.replace("{*}", "{orders}") for word in rules().words()]
    allow(store, words)
    with fencer.connect(as_app(good)) as f:
        f.acquire("orders", ttl=30)
    before = {key: store.dump(key) for key in store.scan_iter()}
    report = look(as_app(good))
    assert findings(report) == []
    assert "--user" in next(each.why for each in report.unseen if each.check == "permissions")
    if not look(good, user="app").unseen:  # from Redis 7 on
        assert findings(look(good, user="app")) == []
        allow(store, [word for word in words if word != "+zadd"])
        assert "not allowed: ZADD." in only(look(good, user="app")).danger
    assert {key: store.dump(key) for key in store.scan_iter()} == before


def test_a_permission_that_lacks_for_some_names(good: str, store: redis.Redis) -> None:
    """The cure would take what the user needs away from it, or leave the danger as it is."""
    options = {"namespace": "app's", "prefix": "orders", "hash_tag": False}
    allow(store, [word for word in rules(**options).words() if word != "+zadd"])  # type: ignore[arg-type]
    (finding,) = findings(look(as_app(good), **options))
    assert "is not allowed: ZADD." in finding.danger
    command = shlex.split(finding.cure.split("`")[1].replace("USER", "app"))
    assert command[0] == "fencer"
    told = Cli(None)(*command[1:], "--json").json
    allow(store, told["rules"])
    assert findings(look(as_app(good), **options)) == []


def test_a_namespace_with_a_space(good: str) -> None:
    """The doctor would refuse a namespace that leases can have."""
    with fencer.connect(good, namespace="a b") as f:
        f.acquire("orders", ttl=30)
    report = look(good, namespace="a b")
    assert (findings(report), report.names) == ([], 1)


def test_no_listing(good: str, store: redis.Redis) -> None:
    """A user that may not list names would be called a danger, or as good as others."""
    allow(store, rules(listing=False).words())
    report = look(as_app(good))
    assert checks(report) == {("permissions", "note")}
    assert "leases" in {each.check for each in report.unseen}


def test_another_user(good: str, store: redis.Redis) -> None:
    """An operator could not ask about the user of a service without its password."""
    allow(store, rules().words())
    report = look(good, user="app")
    if report.unseen:  # before Redis 7
        (missed,) = report.unseen
        assert (missed.check, report.verdict) == ("permissions", Verdict.UNSURE)
        assert "DRYRUN" in missed.why or "ACL" in missed.why
        return
    assert findings(report) == []
    allow(store, [word for word in rules().words() if word != "+zadd"])
    finding = only(look(good, user="app"))
    assert (finding.check, finding.severity) == ("permissions", Severity.DANGER)
    assert "App is not allowed: ZADD." in finding.danger


def test_every_command_is_tried() -> None:
    """A command that a script calls since yesterday would not be tried."""
    assert set(_access.PROBES) == set(rules(guards=True).commands)


def test_trying_has_no_effect(good: str, store: redis.Redis) -> None:
    """The doctor would write to the server that it looks at."""
    for command, words in _access.PROBES.items():
        if command == "subscribe":
            continue
        errors = command in ("hset", "evalsha")
        with pytest.raises(redis.ResponseError) if errors else nullcontext():
            store.execute_command(command, *words)
    assert store.dbsize() == 0
