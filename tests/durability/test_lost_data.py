"""A server that has lost data: tokens rise, and a lease heals or is lost loudly.

Each loss is met by a holder that believes in its lease, by a rival, and by a guard outside of the
server. The record tells whether tokens rise, and whether there ever is more than one live token;
the guard takes no stale write. Where tokens are lost, the record of the same story with dense
tokens must tell of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import redis
from redis.exceptions import OutOfMemoryError

import fencer
from fencer import LeaseLost, NotAcquired, StaleToken, StoreError
from fencer.drill.proxy import Proxy
from fencer.embedded import Persistence, Server
from fencer.guards import MemoryGuard
from tests.durability import bugs
from tests.faults import bugs as common
from tests.faults.planted import no_twin, twin
from tests.fix_replicas import Group
from tests.fix_servers import MakeServer

LOCK = "fencer:{orders}:lock"
TOKEN = "fencer:{orders}:token"
TTL = 600.0


class Store:
    """What a story is played on.

    Attributes:
        server: answers now.
        proxy: the address that clients know; it can be moved to another server.
        redis: the driver's client of the server itself.
        full: whether the memory has been full, so that any key may go at any time.
    """

    def __init__(self, server: Server, opened: ExitStack) -> None:
        self._opened = opened
        self.server = server
        self.proxy = opened.enter_context(Proxy(("127.0.0.1", server.port)))
        self.full = False
        self.redis = self._direct()

    def _direct(self) -> redis.Redis:
        client: redis.Redis = redis.Redis.from_url(self.server.unix_url)
        self._opened.callback(client.close)
        return client

    def client(self, holder: str, tokens: Any) -> fencer.Fencer:
        """A client that comes by way of the address."""
        client = fencer.connect(self.proxy.url, holder=holder, tokens=tokens)
        return self._opened.enter_context(client)

    def move(self, server: Server) -> None:
        """Have another server answer at the address."""
        self.server = server
        self.proxy._target = ("127.0.0.1", server.port)
        self.proxy.reset()
        self.redis = self._direct()

    def issued(self) -> int:
        return int(self.redis.get(TOKEN) or 0)


Loss = Callable[[Store], None]
"""A loss. It comes right after the last grant; what must be done before, `before` does."""

Before = Callable[[Store], None]


def nothing(store: Store) -> None:
    """No preparation is needed."""


def save(store: Store) -> None:
    """A snapshot, which will miss what comes later."""
    store.redis.save()


def crash(store: Store) -> None:
    """SIGKILL, and a start on what is left."""
    store.server.kill()
    store.server.start()


def flushall(store: Store) -> None:
    """Everything is gone."""
    store.redis.flushall()


def reload(store: Store) -> None:
    """The server writes all of its data to a file and reads it again."""
    store.redis.execute_command("DEBUG", "RELOAD")


def reload_without_saving(store: Store) -> None:
    """The server reads its last snapshot again, in place of what it has."""
    store.redis.execute_command("DEBUG", "RELOAD", "NOSAVE")


def keep_a_copy(store: Store) -> None:
    """An operator keeps a snapshot..."""
    store.redis.save()
    shutil.copy(store.server.folder / "dump.rdb", store.server.folder / "old.rdb")


def put_the_copy_back(store: Store) -> None:
    """... and starts the server on it, later."""
    store.server.kill()
    shutil.copy(store.server.folder / "old.rdb", store.server.folder / "dump.rdb")
    store.server.start()


def dump_the_token(store: Store) -> None:
    """An operator dumps the token key..."""
    store.redis.set("old", store.redis.dump(TOKEN) or b"")


def restore_the_token(store: Store) -> None:
    """... and restores it, later."""
    dumped = store.redis.get("old")
    assert dumped
    store.redis.execute_command("RESTORE", TOKEN, 0, dumped, "REPLACE")


def fill(store: Store, policy: str, gone: str, ttl: int | None = None) -> None:
    """Fill the memory until a key of ours has been evicted; it stays full."""
    store.full = True
    store.redis.config_set("maxmemory-policy", policy)
    store.redis.config_set("maxmemory-samples", 20)
    memory: Any = store.redis.info("memory")
    store.redis.config_set("maxmemory", memory["used_memory"] + 300_000)
    for number in range(20_000):
        try:
            # Without a ttl these stay under volatile policies: only the lease's keys can go.
            store.redis.set(f"other:{number}", bytes(10_000), ex=ttl)
        except OutOfMemoryError:
            pass
        if not store.redis.exists(gone):
            break
    statistics: Any = store.redis.info("stats")
    assert statistics["evicted_keys"] > 0
    assert not store.redis.exists(gone)


def evict_allkeys(store: Store) -> None:
    fill(store, "allkeys-lru", TOKEN)


def evict_volatile(store: Store) -> None:
    fill(store, "volatile-lru", TOKEN)


def evict_the_lock(store: Store) -> None:
    """The key that would end first goes first: the lock, long before the token."""
    fill(store, "volatile-ttl", LOCK, ttl=86_400)


class Story:
    """A holder that believes, a rival that comes, and a guard that both write through."""

    def __init__(self, store: Store, before: Before, lose: Loss, tokens: str = "time") -> None:
        self.store = store
        self.holder = store.client("holder", tokens)
        self.rival = store.client("rival", tokens)
        self.guard = MemoryGuard("orders")
        self._use()
        before(store)
        self._use()
        self.lease = self.holder.acquire("orders", ttl=TTL)
        self.guard.check(self.lease)
        lose(store)

    def _use(self) -> None:
        for _ in range(3):
            assert self.holder.acquire("orders", ttl=TTL).release()

    def holder_first(self) -> bool:
        """The holder renews, and then the rival comes; whether the lease lived on."""
        lives = self._renewed(self.lease)
        if lives:
            try:
                other = self.rival.acquire("orders", ttl=TTL)
            except NotAcquired:
                assert self.lease.release()
            else:  # Where the memory is full, the lock that the renew wrote can go again at once.
                self._succeeded(other)
                return False
        self._succeeded(self._rival_gets_it())
        return lives

    def rival_first(self) -> bool:
        """The rival comes while the holder believes, and then that one renews."""
        try:
            other = self.rival.acquire("orders", ttl=TTL)
        except NotAcquired:
            return self.holder_first()
        except StoreError as error:
            if error.code != "OOM":
                raise
            return self.holder_first()
        self._succeeded(other)
        return False

    def _succeeded(self, other: fencer.Lease) -> None:
        """The rival has it, and nobody else."""
        self.guard.check(other)
        with pytest.raises(StaleToken):
            self.guard.check(self.lease)
        assert not (self.lease.valid and self._renewed(self.lease)), "two live tokens"
        if self._renewed(other):
            assert other.release()
        else:
            assert self.store.full, "the rival has lost it, too, for no reason"

    def _rival_gets_it(self) -> fencer.Lease:
        self.store.redis.config_set("maxmemory", 0)  # An operator makes room.
        try:
            return self.rival.acquire("orders", ttl=TTL)
        except NotAcquired:
            # The token is gone, and the lock is left: it would end with its ttl.
            assert not self.lease.valid
            assert self.store.redis.delete(LOCK)
            return self.rival.acquire("orders", ttl=TTL)

    @staticmethod
    def _renewed(lease: fencer.Lease) -> bool:
        """Whether the lease lives on. Its holder hears of it if not."""
        try:
            lease.renew()
        except LeaseLost:
            assert lease.lost.is_set()
            assert not lease.valid
            return False
        return True


def case(
    name: str,
    persistence: Persistence,
    before: Before,
    lose: Loss,
    *,
    lives: bool | None,
    marks: Any = (),
) -> Any:
    """A loss; whether the lease lives on, ``None`` if the server decides which key goes."""
    return pytest.param(persistence, before, lose, lives, id=name, marks=marks)


LOSSES = [
    case("flushall", "none", nothing, flushall, lives=False),
    case("sigkill-none", "none", nothing, crash, lives=False),
    case("sigkill-rdb", "rdb", save, crash, lives=False),
    case("reload-old", "rdb", save, reload_without_saving, lives=False),
    case("old-snapshot", "none", keep_a_copy, put_the_copy_back, lives=False),
    case("restored-key", "none", dump_the_token, restore_the_token, lives=False),
    case("allkeys-lru", "none", nothing, evict_allkeys, lives=False),
    case("volatile-lru", "none", nothing, evict_volatile, lives=False),
]
"""Tokens are lost by these."""

NO_LOSSES = [
    case("sigkill-rdb-just-saved", "rdb", nothing, lambda store: crash(saved(store)), lives=True),
    # It loses something if it comes while a sync is under way: see test_fsynced.
    case("sigkill-everysec", "aof", nothing, crash, lives=None),
    case("sigkill-always", "aof-always", nothing, crash, lives=True),
    case("reload", "rdb", nothing, reload, lives=True),
    case("reload-aof", "aof", nothing, reload, lives=True),
    case(
        "volatile-ttl",
        "none",
        nothing,
        evict_the_lock,
        lives=None,
        marks=pytest.mark.may_break("S4", why="the memory is still full: the lock can go again"),
    ),
]
"""Tokens are kept by these, or only the lock is lost."""


def saved(store: Store) -> Store:
    store.redis.save()
    return store


@pytest.fixture(scope="module")
def debugging(lasting_server: Server) -> dict[str, str]:
    """The setting that allows ``DEBUG``; Redis 6.2 always does, and does not know it."""
    with redis.Redis.from_url(lasting_server.unix_url) as client:
        version = str(client.info("server")["redis_version"])
    return {} if version.startswith("6.") else {"enable-debug-command": "yes"}


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


both_orders = pytest.mark.parametrize(
    "order",
    [
        Story.holder_first,
        pytest.param(
            Story.rival_first,
            marks=pytest.mark.may_break("S4", why="the holder hears of the loss after the rival"),
        ),
    ],
)


@twin(common.plain_counter)
@both_orders
@pytest.mark.parametrize(("persistence", "before", "lose", "lives"), [*LOSSES, *NO_LOSSES])
def test_a_loss(
    make_server: MakeServer,
    opened: ExitStack,
    debugging: dict[str, str],
    persistence: Persistence,
    before: Before,
    lose: Loss,
    lives: bool | None,
    order: Callable[[Story], bool],
) -> None:
    """Two would hold the lease, a guard would take a stale write, or nobody hear of the loss."""
    server = make_server(persistence=persistence, settings=debugging)
    story = Story(Store(server, opened), before, lose)
    assert order(story) in ((True, False) if lives is None else (lives,))


@no_twin("it is one")
@pytest.mark.must_break("S1", "S2")
@pytest.mark.parametrize(("persistence", "before", "lose", "lives"), LOSSES)
def test_a_loss_fails_dense_tokens(
    make_server: MakeServer,
    opened: ExitStack,
    debugging: dict[str, str],
    persistence: Persistence,
    before: Before,
    lose: Loss,
    lives: bool,
) -> None:
    """The losses above would not be any, and every lock's counter would pass them."""
    server = make_server(persistence=persistence, settings=debugging)
    story = Story(Store(server, opened), before, lose, tokens="dense")
    with pytest.raises(StaleToken):
        story.holder_first()


@twin(bugs.heals_no_lock)
def test_eviction_of_the_lock_alone_heals(make_server: MakeServer, opened: ExitStack) -> None:
    """A holder would lose a lease that nobody else has been granted."""
    store = Store(make_server(persistence="none"), opened)
    story = Story(store, nothing, evict_the_lock)
    assert store.issued() == story.lease.token, "more than the lock was evicted"
    store.redis.config_set("maxmemory", 0)
    assert story.holder_first()


@contextmanager
def failing_over(group: Group) -> Iterator[tuple[Before, Loss]]:
    """A replica misses the last grants, and becomes the primary when that one dies."""

    def cut(store: Store) -> None:
        group.caught_up()
        group.cut()

    def promote(store: Store) -> None:
        group.promote(group.far)
        store.move(group.far)

    yield cut, promote


@twin(common.plain_counter)
@both_orders
def test_a_replica_that_missed_grants(
    group: Group, opened: ExitStack, order: Callable[[Story], bool]
) -> None:
    """The new primary would issue a token again that it has not heard of."""
    with failing_over(group) as (before, lose):
        story = Story(Store(group.primary, opened), before, lose)
        assert not order(story)
