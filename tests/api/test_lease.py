"""The lease itself: granted to one, renewed, released, told about."""

from __future__ import annotations

import os
import pickle
import threading
import time

import pytest
import redis

import fencer
from fencer import AcquireTimeout, LeaseLost, NotAcquired
from tests.fix_api import Connect


def test_a_lease_is_granted_to_one(client: fencer.Fencer) -> None:
    """Two holders at once would both write."""
    lease = client.acquire("orders")
    with pytest.raises(NotAcquired) as caught:
        client.acquire("orders")
    assert caught.value.holder == lease.holder
    assert 9 < (caught.value.remaining or 0) <= 10


def test_a_later_grant_has_a_larger_token(client: fencer.Fencer) -> None:
    """A guard could not tell the newer holder from the older one."""
    first = client.acquire("orders")
    first.release()
    assert client.acquire("orders").token > first.token


def test_dense_tokens_rise_and_stay_small(connect: Connect, redis_client: redis.Redis) -> None:
    """The option for small numbers would not do what it says."""
    client = connect(tokens="dense")
    tokens = []
    for _ in range(3):
        with client.acquire("orders") as lease:
            tokens.append(lease.token)
    assert tokens == sorted(set(tokens))
    assert tokens[-1] < 10


def test_release_tells_whether_it_ended_the_lease(client: fencer.Fencer) -> None:
    """A holder that overran would believe that it had been alone to the end."""
    lease = client.acquire("orders")
    assert lease.release()
    assert lease.release(), "asking twice is asking once"
    late = client.acquire("orders", ttl=0.05)
    time.sleep(0.06)
    assert not late.release()


def test_after_release_nothing_speaks_for_the_token(client: fencer.Fencer) -> None:
    """A late renew would bring a released lease back."""
    lease = client.acquire("orders")
    lease.release()
    assert not lease.valid
    assert lease.remaining() == 0
    with pytest.raises(LeaseLost, match="released"):
        lease.renew()
    assert not client.inspect("orders").held


def test_renew_gives_the_full_ttl_again(client: fencer.Fencer) -> None:
    """A lease could not be kept."""
    lease = client.acquire("orders", ttl=1)
    time.sleep(0.3)
    lease.renew()
    assert lease.remaining() > 0.75
    assert (client.inspect("orders").remaining or 0) > 0.75


def test_renew_can_change_the_ttl(client: fencer.Fencer) -> None:
    """A holder could not shorten or lengthen its lease, or would believe longer than the store."""
    lease = client.acquire("orders", ttl=10)
    for ttl in (20.0, 2.0):
        lease.renew(ttl=ttl)
        status = client.inspect("orders")
        assert lease.ttl == status.info["ttl"] == ttl
        assert ttl - 1 < lease.remaining() < (status.remaining or 0) <= ttl


def test_with_releases(client: fencer.Fencer) -> None:
    """A block that ends would keep others waiting."""
    with client.acquire("orders") as lease:
        assert lease.valid
    assert not client.inspect("orders").held


def test_with_tells_of_a_loss_inside(client: fencer.Fencer) -> None:
    """A body that ran on without its lease would look like a success."""
    with pytest.raises(LeaseLost, match="ran out"), client.acquire("orders", ttl=0.05) as lease:
        time.sleep(0.06)
    assert lease.lost.is_set()


def test_with_does_not_hide_the_error_of_its_body(client: fencer.Fencer) -> None:
    """The loss would be reported instead of its cause."""

    def overrun_and_fail() -> None:
        time.sleep(0.06)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), client.acquire("orders", ttl=0.05):
        overrun_and_fail()


def test_a_lost_lease_stays_lost(client: fencer.Fencer) -> None:
    """A holder that was told of its loss would come back to life behind its own back."""
    lease = client.acquire("orders", ttl=0.05)
    time.sleep(0.06)
    assert not lease.valid
    assert lease.lost.is_set()
    with pytest.raises(LeaseLost):
        lease.renew()
    assert not client.inspect("orders").held


def test_check_raises_once_the_time_is_over(client: fencer.Fencer) -> None:
    """Work would go on under a lease that has ended."""
    lease = client.acquire("orders", ttl=0.05)
    lease.check()
    time.sleep(0.06)
    with pytest.raises(LeaseLost) as caught:
        lease.check()
    assert caught.value.token == lease.token


def test_wait_gets_the_lease_when_it_ends(client: fencer.Fencer, connect: Connect) -> None:
    """A waiter would miss a lease that ended in silence."""
    first = client.acquire("orders", ttl=0.2)
    second = connect().acquire("orders", wait=10)
    assert second.token > first.token


def test_wait_ends_in_a_timeout_that_leaves_nothing(client: fencer.Fencer) -> None:
    """A waiter that gave up would block the name, or would have to guess why."""
    lease = client.acquire("orders")
    with pytest.raises(AcquireTimeout) as caught:
        client.acquire("orders", wait=0.1)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.waited >= 0.1
    assert client.inspect("orders").token == lease.token


def test_a_fraction_of_a_second_is_not_for_ever(client: fencer.Fencer) -> None:
    """A wait of half a second that is cut to 0 would mean something else."""
    client.acquire("orders")
    begun = time.monotonic()
    with pytest.raises(AcquireTimeout):
        client.acquire("orders", wait=0.5)
    assert time.monotonic() - begun >= 0.5


def test_any_thread_may_use_a_lease(client: fencer.Fencer) -> None:
    """A lease that is renewed by several threads at once would be torn."""
    lease = client.acquire("orders", ttl=2)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                lease.renew()
                lease.check()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert lease.release()


def test_the_info_key_shows_the_holder(client: fencer.Fencer, redis_client: redis.Redis) -> None:
    """An operator with redis-cli would not know whom to call."""
    lease = client.acquire("orders", ttl=3, info={"instance_id": "instance-2", "ümlaut": [1, None]})
    assert redis_client.get("fencer:{orders}:lock") == lease.holder.encode()
    shown = redis_client.get("fencer:{orders}:info")
    assert isinstance(shown, bytes)
    assert shown.startswith('{"instance_id":"instance-2","ümlaut":[1,null],"holder":'.encode())
    info = client.inspect("orders").info
    assert info["token"] == lease.token
    assert info["grant"] == lease.grant
    assert info["pid"] == os.getpid()
    assert info["ttl"] == 3
    assert abs(info["since"] - time.time()) < 60


def test_every_key_of_a_name_ends_by_itself(
    client: fencer.Fencer, redis_client: redis.Redis
) -> None:
    """A store would fill up with the counters of names that nobody uses any more."""
    with client.acquire("orders"):
        keys = redis_client.keys("*")
        assert isinstance(keys, list)
        assert len(keys) == 4
        assert all(redis_client.pttl(key) > 0 for key in keys)


def test_an_idle_name_may_be_forgotten(connect: Connect, redis_client: redis.Redis) -> None:
    """Tokens would fall when the counter of an idle name has ended."""
    client = connect(keep=1.0)
    first = client.acquire("orders", ttl=0.05)
    first.release()
    while redis_client.exists("fencer:{orders}:token"):
        time.sleep(0.05)
    assert client.acquire("orders").token > first.token


def test_inspect_of_a_free_name(client: fencer.Fencer) -> None:
    """Free would look like held, or an ended lease like a live one."""
    assert client.inspect("orders") == fencer.Status("orders", False, None, None, None, 0)
    lease = client.acquire("orders")
    lease.release()
    status = client.inspect("orders")
    assert (status.held, status.token, status.issued) == (False, None, lease.token + 1)


def test_revoke_ends_a_lease_for_good(client: fencer.Fencer) -> None:
    """An operator could not take a lease away from a holder that hangs."""
    lease = client.acquire("orders")
    assert client.revoke("orders", token=lease.token - 1) is None
    assert client.revoke("orders") == lease.token
    assert client.revoke("orders") is None
    with pytest.raises(LeaseLost, match="retired"):
        lease.renew()
    assert lease.lost.is_set()
    assert client.acquire("orders").token > lease.token


def test_advance_lifts_the_next_token(client: fencer.Fencer) -> None:
    """A resource that has seen a larger token could never be written again."""
    lease = client.acquire("orders")
    beyond = lease.token + 10**12
    assert client.advance("orders", beyond)
    assert client.advance("orders", beyond), "asking twice is asking once"
    assert not client.advance("orders", beyond - 1)
    with pytest.raises(LeaseLost):
        lease.renew()
    assert client.acquire("orders").token > beyond
    assert not client.advance("orders", beyond)


def test_history_tells_what_happened(client: fencer.Fencer) -> None:
    """Nobody could find out later who held what when."""
    first = client.acquire("orders", ttl=0.05)
    time.sleep(0.06)
    second = client.acquire("orders")
    second.release()
    third = client.acquire("orders")
    client.revoke("orders")
    events = [(event.event, event.token) for event in client.history("orders")]
    assert events == [
        ("grant", first.token),
        ("loss", first.token),
        ("grant", second.token),
        ("release", second.token),
        ("grant", third.token),
        ("revoke", third.token),
    ]
    assert client.history("orders", count=1)[0].event == "revoke"


def test_history_is_capped(connect: Connect, redis_client: redis.Redis) -> None:
    """The record of a busy name would grow without end."""
    client = connect(history=10)
    for _ in range(300):
        client.acquire("orders").release()
    length = redis_client.xlen("fencer:{orders}:history")
    assert isinstance(length, int)
    assert length < 250


def test_names_lists_held_and_free_names(client: fencer.Fencer) -> None:
    """An operator could not see what there is; or odd names would be lost."""
    odd = ["a*b", "[x]", "a:b", "ümlaut", "a b", "?", "\\", "^"]
    for name in odd:
        client.acquire(name)
    client.acquire("free").release()
    assert sorted(client.names()) == sorted([*odd, "free"])


def test_namespaces_and_plain_keys_do_not_meet(connect: Connect, redis_client: redis.Redis) -> None:
    """Two services on one server would take each other's leases."""
    tagged = connect()
    plain = connect(namespace="maplefile", hash_tag=False, holder="instance-2")
    tagged.acquire("leader")
    plain.acquire("leader")
    assert redis_client.get("maplefile:leader:lock") == b"instance-2"
    assert list(plain.names()) == list(tagged.names()) == ["leader"]
    assert list(connect(namespace="other").names()) == []


def test_decoded_responses_make_no_difference(connect: Connect, redis_client: redis.Redis) -> None:
    """A client with decode_responses=True would read every status wrongly."""
    client = connect(decode_responses=True)
    with client.acquire("orders", info={"a": "ü"}) as lease:
        with pytest.raises(NotAcquired) as caught:
            client.acquire("orders")
        assert caught.value.holder == lease.holder
        assert client.inspect("orders").info["a"] == "ü"
        lease.renew()
        assert list(client.names()) == ["orders"]
    assert [event.event for event in client.history("orders")] == ["grant", "release"]


def test_a_child_has_no_part_in_its_parents_leases(
    shared_server: fencer.embedded.Server, redis_client: redis.Redis
) -> None:
    """A forked worker that exits would release, or keep, what its parent holds."""
    client = fencer.connect(shared_server.unix_url)
    lease = client.acquire("orders")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert not lease.valid
            assert not lease.release()
            with pytest.raises(LeaseLost, match="fork"):
                lease.renew()
            assert str(os.getpid()) in client.holder
            with pytest.raises(NotAcquired):
                client.acquire("orders")
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert lease.valid
    lease.renew()
    assert lease.release()
    client.close()


def test_errors_can_be_pickled(client: fencer.Fencer) -> None:
    """An error of a worker process would be lost on its way to the pool."""
    client.acquire("orders")
    with pytest.raises(NotAcquired) as caught:
        client.acquire("orders", wait=0.01)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy), vars(copy)) == (
        AcquireTimeout,
        str(caught.value),
        vars(caught.value),
    )


def test_connect_wants_a_server(monkeypatch: pytest.MonkeyPatch, connect: Connect) -> None:
    """Two processes that each got a silent private server would be two leaders."""
    monkeypatch.delenv("FENCER_URL", raising=False)
    with pytest.raises(fencer.InvalidArgument, match="FENCER_URL"):
        fencer.connect()


def test_connect_reads_the_environment(
    monkeypatch: pytest.MonkeyPatch, client: fencer.Fencer, shared_server: fencer.embedded.Server
) -> None:
    """FENCER_URL would be named in the documents and not be read."""
    monkeypatch.setenv("FENCER_URL", shared_server.unix_url)
    with fencer.connect() as other:
        other.acquire("orders")
    assert client.inspect("orders").held


def test_embedded_is_a_server_of_its_own() -> None:
    """The first line of every tutorial would not run."""
    with fencer.connect("embedded:") as client, client.acquire("orders") as lease:
        assert lease.valid


def test_an_interrupt_between_grant_and_lease_leaves_nothing(
    connect_threads: Connect, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C would leave a name taken for its ttl, by nobody."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    client = connect_threads()
    monkeypatch.setattr(fencer.Lease, "__init__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        client.acquire("orders", ttl=60)
    assert redis_client.get("fencer:{orders}:lock") is None
