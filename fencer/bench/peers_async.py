"""The peers for asyncio: the twins of those in `peers` that have one, and two more."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
from typing import Any, ClassVar

from fencer.bench.peers import Kind, imported, quiet_mithril
from fencer.bench.ready import TTL, async_client, kept


class AsyncPeer(Kind):
    """One lock of a peer."""

    @classmethod
    async def made(cls, url: str, key: str, opened: contextlib.AsyncExitStack) -> AsyncPeer:
        """Make ready; what is to be closed goes into ``opened``."""
        raise NotImplementedError

    async def acquire(self, wait: float = 0.0) -> None:
        """Get it, waiting for so many seconds."""
        raise NotImplementedError

    async def renew(self) -> None:
        """Have the full ttl again."""
        raise NotImplementedError

    async def release(self) -> None:
        """Give it back."""
        raise NotImplementedError


class _OfRedisPy(AsyncPeer):
    """What peers have in common that are given a client of redis-py."""

    def __init__(self, client: Any, url: str, key: str) -> None:
        raise NotImplementedError

    @classmethod
    async def made(cls, url: str, key: str, opened: contextlib.AsyncExitStack) -> AsyncPeer:
        client = async_client(url)
        opened.push_async_callback(client.aclose)
        return cls(client, url, key)


class AsyncRedisPy(_OfRedisPy):
    name = "lock"
    distribution = module = "redis"
    labels: ClassVar = {
        "renew": "redis.asyncio Lock.reacquire()",
        "acquire": "redis.asyncio Lock.acquire(), release()",
    }

    def __init__(self, client: Any, url: str, key: str) -> None:
        self._lock = client.lock(key, timeout=TTL)

    async def acquire(self, wait: float = 0.0) -> None:
        held = await self._lock.acquire(blocking=wait > 0, blocking_timeout=wait or None)
        kept(held, "acquire")

    async def renew(self) -> None:
        await self._lock.reacquire()

    async def release(self) -> None:
        await self._lock.release()


class AsyncPottery(_OfRedisPy):
    name = distribution = module = "pottery"
    labels: ClassVar = {
        "renew": "pottery AIORedlock.extend()",
        "acquire": "pottery AIORedlock.acquire(), release()",
    }

    def __init__(self, client: Any, url: str, key: str) -> None:
        self._lock = imported(self).AIORedlock(
            key=key, masters={client}, auto_release_time=TTL, num_extensions=sys.maxsize
        )

    async def acquire(self, wait: float = 0.0) -> None:
        kept(await self._lock.acquire(blocking=wait > 0, timeout=wait or -1), "acquire")

    async def renew(self) -> None:
        await self._lock.extend()

    async def release(self) -> None:
        await self._lock.release()


class AsyncRedlockNg(AsyncPeer):
    name = distribution = "redlock-ng"
    module = "redlock"
    labels: ClassVar = {"acquire": "redlock-ng AsyncRedlock.acquire(), release()"}
    longest = 0.3
    note = "it wants redis-py below 6"

    def __init__(self, url: str, key: str) -> None:
        self._locks = imported(self).AsyncRedlock([url])
        self._key, self._lock = key, None

    @classmethod
    async def made(cls, url: str, key: str, opened: contextlib.AsyncExitStack) -> AsyncRedlockNg:
        made = cls(url, key)
        for instance in made._locks.client.instances:
            opened.push_async_callback(instance.aclose)
        return made

    async def acquire(self, wait: float = 0.0) -> None:
        self._lock = await self._locks.acquire(self._key, int(TTL * 1_000), blocking=wait > 0)
        kept(self._lock is not None, "acquire")

    async def renew(self) -> None:
        raise NotImplementedError("its class for asyncio cannot extend")

    async def release(self) -> None:
        await self._locks.release(self._lock)


class Coredis(AsyncPeer):
    name = distribution = "coredis"
    module = "coredis.patterns.lock"
    labels: ClassVar = {
        "renew": "coredis Lock.extend()",
        "acquire": "coredis Lock.acquire(), release()",
        "handover": "coredis Lock, asyncio, polls",
    }
    longest = 0.1

    def __init__(self, client: Any, key: str) -> None:
        self._lock = imported(self).Lock(client, key, timeout=TTL)

    @classmethod
    async def made(cls, url: str, key: str, opened: contextlib.AsyncExitStack) -> Coredis:
        coredis: Any = importlib.import_module("coredis")
        retry: Any = importlib.import_module("coredis.retry")
        client = coredis.Redis.from_url(url, retry_policy=retry.NoRetryPolicy())
        # The client is a block that one task must enter and leave.
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done = asyncio.Event()

        async def block() -> None:
            try:
                async with client:
                    ready.set_result(None)
                    await done.wait()
            except Exception as error:
                if ready.done():
                    raise
                ready.set_exception(error)

        task = asyncio.create_task(block())
        await ready

        async def leave() -> None:
            done.set()
            await task

        opened.push_async_callback(leave)
        return cls(client, key)

    async def acquire(self, wait: float = 0.0) -> None:
        self._lock.blocking, self._lock.blocking_timeout = wait > 0, wait or None
        kept(await self._lock.acquire(), "acquire")

    async def renew(self) -> None:
        await self._lock.extend(TTL)

    async def release(self) -> None:
        await self._lock.release()


class RedisFifoLock(_OfRedisPy):
    name = distribution = "redis-fifo-lock"
    module = "redis_fifo_lock"
    labels: ClassVar = {
        "renew": "redis-fifo-lock, its heartbeat's call",
        "acquire": "redis-fifo-lock FifoLock.acquire(), release()",
        "handover": "redis-fifo-lock FifoLock, asyncio, BLPOP",
    }

    def __init__(self, client: Any, url: str, key: str) -> None:
        self._lock = imported(self).FifoLock(
            client, key, lease_ms=int(TTL * 1_000), max_hold_ms=int(TTL * 2_000)
        )
        self._lease: Any = None

    async def acquire(self, wait: float = 0.0) -> None:
        self._lease = await self._lock.acquire(timeout=wait or TTL)

    async def renew(self) -> None:
        # It has no verb for it; this is what its own renewing does each time.
        lock, lease = self._lock, self._lease
        kept(await lock._call(lock._beat, lease.owner, str(lease.fence)) == 1, "heartbeat")

    async def release(self) -> None:
        await self._lock.release(self._lease)


class AsyncMithril(_OfRedisPy):
    name = distribution = "mithril-locks"
    module = "mithril"
    labels: ClassVar = {
        "renew": "mithril-locks AsyncLock.renew()",
        "acquire": "mithril-locks AsyncLock.acquire(), release()",
    }
    note = "it wants redis-py below 8"

    def __init__(self, client: Any, url: str, key: str) -> None:
        quiet_mithril(self)
        self._module: Any = importlib.import_module("mithril.aio")
        self._backend = importlib.import_module("mithril.backends.aio").AsyncRedisBackend(client)
        self._key = key
        self._lock: Any = None

    async def acquire(self, wait: float = 0.0) -> None:
        lock = self._module.AsyncLock(self._key, backend=self._backend, ttl=TTL, timeout=wait)
        await lock.acquire(blocking=wait > 0)
        self._lock = lock

    async def renew(self) -> None:
        await self._lock.renew()

    async def release(self) -> None:
        await self._lock.release()


ASYNC_PEERS: tuple[type[AsyncPeer], ...] = (
    AsyncRedisPy,
    AsyncPottery,
    AsyncRedlockNg,
    Coredis,
    RedisFifoLock,
    AsyncMithril,
)
