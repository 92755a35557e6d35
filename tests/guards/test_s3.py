"""The guard of an object on S3."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fencer.errors import InvalidArgument, StaleToken, StoreError, StoreUnavailable
from fencer.guards import Guard
from fencer.guards._base import Token
from fencer.guards.s3 import STAMP_BYTES, S3Guard
from fencer.guards.testing import conform
from fencer.sequencer import Sequencer
from tests.faults.planted import twin
from tests.faults.processes import Worker
from tests.fix_s3 import BUCKET, s3_client
from tests.guards import bugs

recorded = pytest.mark.usefixtures("history")

WRITER = """
from fencer.errors import StaleToken
from fencer.guards.s3 import S3Guard
from tests.fix_s3 import BUCKET, s3_client
guard = S3Guard(s3_client(args[0]), BUCKET, args[1])
def handle(tokens):
    accepted = []
    for token in tokens:
        try:
            guard.put(token, str(token))
            accepted.append(token)
        except StaleToken:
            pass
    return accepted
"""


@pytest.fixture
def key() -> str:
    return f"orders-{secrets.token_hex(4)}.json"


@pytest.fixture
def guard(s3: Any, key: str) -> S3Guard:
    return S3Guard(s3, BUCKET, key)


class Object:
    """An object behind its guard, as the suite wants it."""

    def __init__(self, client: Any, resource: str) -> None:
        self.guard = S3Guard(client, BUCKET, resource)

    def write(self, token: Token, value: str) -> None:
        self.guard.put(token, value)

    def read(self) -> str | None:
        found = self.guard.get()
        return None if found is None else found.decode()

    def check(self, token: Token) -> None:
        self.guard.check(token)

    def highest(self) -> int:
        return self.guard.highest()


class Requests:
    """Counts what boto3 sends."""

    def __init__(self, client: Any) -> None:
        self.seen: Counter[str] = Counter()
        client.meta.events.register("before-call.s3", self._count)

    def _count(self, model: Any, **rest: Any) -> None:
        self.seen[model.name] += 1

    def since(self) -> dict[str, int]:
        seen, self.seen = dict(self.seen), Counter()
        return seen


@twin(bugs.s3_in_two_steps)
@pytest.mark.slow
def test_it_conforms(s3: Any) -> None:
    """A rule of the family would be broken on S3."""
    conform(lambda resource: Object(s3, resource), rounds=12)
    assert isinstance(S3Guard(s3, BUCKET, "x"), Guard)


def test_a_guarded_put_is_one_request(guard: S3Guard, s3: Any) -> None:
    """The guard would double the cost of each write."""
    requests = Requests(s3)
    guard.put(1, "first")
    assert requests.since() == {"HeadObject": 1, "PutObject": 1}
    for token in (1, 1, 2, 3):
        guard.put(token, "more")
        assert requests.since() == {"PutObject": 1}
    with pytest.raises(StaleToken):
        guard.put(2, "late")
    assert requests.since() == {"HeadObject": 1}
    guard.check(4)
    assert requests.since() == {"HeadObject": 1, "GetObject": 1, "PutObject": 1}
    guard.check(4)
    assert requests.since() == {"HeadObject": 1}
    guard.put(4, "announced")
    assert requests.since() == {"PutObject": 1}


@twin(bugs.s3_in_two_steps)
@recorded
def test_another_writer_in_between_is_seen(guard: S3Guard, s3: Any, key: str) -> None:
    """What was remembered of the object would let a stale put through, or refuse a fresh one."""
    other = S3Guard(s3, BUCKET, key)
    guard.put(1, "a")
    other.put(2, "b")
    with pytest.raises(StaleToken) as caught:
        guard.put(1, "late")
    assert (caught.value.token, caught.value.highest) == (1, 2)
    guard.put(3, "c")
    other.put(3, "d")
    assert guard.get() == b"d"


@twin(bugs.s3_stamps_alike)
@recorded
def test_the_same_content_under_a_newer_token_is_another_object(
    guard: S3Guard, s3: Any, key: str
) -> None:
    """An older holder's condition would still hold: an ETag tells nothing of the metadata."""
    other = S3Guard(s3, BUCKET, key)
    guard.put(5, "same")
    other.check(6)
    with pytest.raises(StaleToken):
        guard.put(5, "late")
    other.put(7, "same")
    other.put(8, "same")
    with pytest.raises(StaleToken):
        guard.put(5, "late")
    assert guard.get() == b"same"


def test_etags_are_the_digest_of_the_content(s3: Any, key: str) -> None:
    """If they were not, the stamp would be for nothing, and objects could stay as they are."""
    put = {"Bucket": BUCKET, "Key": key, "Body": b"same"}
    first = s3.put_object(**put, Metadata={"fencing-token": "5"})
    second = s3.put_object(**put, Metadata={"fencing-token": "6"})
    assert first["ETag"] == second["ETag"]


def test_the_stamp_is_blank_space(guard: S3Guard, s3: Any, key: str) -> None:
    """Readers that know nothing of the guard could not read the object."""
    guard.put(5, json.dumps({"stock": 3}), ContentType="application/json")
    raw = s3.get_object(Bucket=BUCKET, Key=key)
    body = raw["Body"].read()
    assert json.loads(body) == {"stock": 3}
    assert body[:-STAMP_BYTES] == b'{"stock": 3}'
    assert not body[-STAMP_BYTES:].strip(b" \n")
    assert raw["ContentType"] == "application/json"


def test_an_announcement_keeps_content_and_headers(guard: S3Guard, s3: Any, key: str) -> None:
    """A new holder that only announces itself would change what others read."""
    about = {"ContentType": "text/csv", "CacheControl": "no-store", "Metadata": {"origin": "test"}}
    guard.put(5, b"\0\xff", **about)
    guard.check(Sequencer(key, 6, "ab" * 16, "host"))
    found = s3.get_object(Bucket=BUCKET, Key=key)
    found["Body"].close()
    assert guard.get() == b"\0\xff"
    assert (found["ContentType"], found["CacheControl"]) == ("text/csv", "no-store")
    assert found["Metadata"] == {
        "origin": "test",
        "fencing-token": "6",
        "fencing-grant": "ab" * 16,
    }


def test_an_announcement_where_nothing_is_writes_nothing_to_read(guard: S3Guard) -> None:
    """A reader would take the announcement for an empty document."""
    assert guard.get() is None
    guard.check(5)
    assert guard.get() is None
    with pytest.raises(StaleToken):
        guard.put(4, "late")
    guard.put(5, "")
    assert guard.get() == b""


def test_an_object_that_was_there_before_is_taken_over(guard: S3Guard, s3: Any, key: str) -> None:
    """A bucket in use could not be put behind a guard."""
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"old")
    assert guard.get() == b"old"
    assert guard.highest() == 0
    guard.check(5)
    assert guard.get() == b"old"
    assert guard.highest() == 5


def test_a_mark_that_is_none_is_told(guard: S3Guard, s3: Any, key: str) -> None:
    """It would count as no mark, and every old holder could write."""
    for wrong in ("five", "-5", "0", str(2**53)):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"x", Metadata={"fencing-token": wrong})
        with pytest.raises(StoreError, match="no token") as caught:
            guard.put(6, "new")
        assert caught.value.code == "CORRUPT"


def test_what_the_guard_sets_itself_is_refused(guard: S3Guard) -> None:
    """An option of the caller's would switch the condition off, or forge a mark."""
    for options in (
        {"IfMatch": "x"},
        {"IfNoneMatch": "*"},
        {"Key": "other"},
        {"Metadata": {"Fencing-Token": "9"}},
    ):
        with pytest.raises(InvalidArgument, match="the guard sets these itself"):
            guard.put(1, "x", **options)
    with pytest.raises(InvalidArgument, match="boto3 does not take this"):
        guard.put(1, "x", NoSuchOption=1)
    with pytest.raises(InvalidArgument, match="body must be"):
        guard.put(1, 5)  # type: ignore[arg-type]
    assert guard.get() is None


def test_what_s3_refuses_is_told(s3: Any, key: str) -> None:
    """A caller would have to know which of boto3's exceptions mean that nothing changed."""
    with pytest.raises(StoreError, match="NoSuchBucket") as caught:
        S3Guard(s3, "missing", key).put(1, "x")
    assert caught.value.code == "NoSuchBucket"
    assert not isinstance(caught.value, StoreUnavailable)


@twin(bugs.s3_may_always_have_written)
@recorded
def test_no_answer_is_told(key: str) -> None:
    """A caller would take silence for a refusal, and write once more elsewhere."""
    client = s3_client("http://127.0.0.1:1")
    with pytest.raises(StoreUnavailable) as caught:
        S3Guard(client, BUCKET, key).put(1, "x")
    assert not caught.value.maybe_applied, "only looked"
    client.close()


@twin(bugs.s3_in_two_steps)
@recorded
def test_an_object_that_changes_all_the_time_is_given_up(
    guard: S3Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put would try for ever."""
    monkeypatch.setattr("fencer.guards.s3._PAUSE", 0)
    put = guard._put

    def overtaken(*args: Any) -> str:
        put(*args)
        return put(*args)

    monkeypatch.setattr(guard, "_put", overtaken)
    guard.put(1, "x")  # the same content under the same token is the same object
    count = iter(range(1_000))

    def changed(seen: Any, mark: Any, content: bytes, options: Any) -> str:
        put(seen, mark, f"{next(count)}".encode(), options)
        return put(seen, mark, content, options)

    monkeypatch.setattr(guard, "_put", changed)
    with pytest.raises(StoreUnavailable, match="during each of 20 tries"):
        guard.put(1, "y")


@twin(bugs.s3_in_two_steps)
@recorded
@pytest.mark.slow
def test_writers_in_processes_never_go_back(s3_url: str, guard: S3Guard, key: str) -> None:
    """Writers in different processes would not see each other's marks."""
    writers = [Worker(WRITER, s3_url, key) for _ in range(3)]
    try:
        for writer in writers:
            writer.ask(tokens=[])  # so that all begin at once
        for number, writer in enumerate(writers):
            writer.tell(tokens=[*range(number + 1, 61, 3), 2])
        newest = 0
        with ThreadPoolExecutor(1) as pool:
            hearing = pool.submit(lambda: [writer.hear(timeout=60) for writer in writers])
            while not hearing.done():
                highest = guard.highest()
                assert highest >= newest
                content = int(guard.get() or b"0")
                assert content >= highest, "the content is older than a mark seen before it"
                newest = content
        accepted = hearing.result()
    finally:
        for writer in writers:
            writer.close()
    assert guard.get() == b"60"
    assert 60 in accepted[2]
    assert all(share == sorted(share) for share in accepted)
