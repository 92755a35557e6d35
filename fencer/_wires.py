"""Which wire, and which wake-ups, a client of the driver needs."""

from __future__ import annotations

from typing import Any, TypeAlias

import redis.asyncio.cluster
import redis.cluster

from fencer._cluster import AsyncClusterWire, ClusterWire
from fencer._cluster_wakeups import TaskClusterWakeups, ThreadClusterWakeups
from fencer._keys import Keyspace
from fencer._wakeups import TaskWakeups, ThreadWakeups
from fencer._wire import AsyncWire, Wire

Client: TypeAlias = "redis.Redis | redis.cluster.RedisCluster"
AsyncClient: TypeAlias = "redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster"


def wakeups_for(client: Any, keyspace: Keyspace) -> Any:
    """What hears for the waiters of a client.

    Raises:
        InvalidArgument: the keys cannot be used on a Cluster.
    """
    if isinstance(client, redis.cluster.RedisCluster):
        return ThreadClusterWakeups(client, keyspace)
    return ThreadWakeups(client, keyspace)


def wire_for(client: Any, wakeups: Any = None) -> Wire:
    """What sends the steps of a client.

    Raises:
        InvalidArgument: it is no client of the driver.
    """
    if isinstance(client, redis.cluster.RedisCluster):
        nodes = wakeups.nodes if isinstance(wakeups, ThreadClusterWakeups) else None
        return ClusterWire(client, wakeups, nodes)
    return Wire(client, wakeups)


def async_wakeups_for(client: Any, keyspace: Keyspace) -> Any:
    """`wakeups_for` on asyncio."""
    if isinstance(client, redis.asyncio.cluster.RedisCluster):
        return TaskClusterWakeups(client, keyspace)
    return TaskWakeups(client, keyspace)


def async_wire_for(client: Any, wakeups: Any = None) -> AsyncWire:
    """`wire_for` on asyncio."""
    if isinstance(client, redis.asyncio.cluster.RedisCluster):
        nodes = wakeups.nodes if isinstance(wakeups, TaskClusterWakeups) else None
        return AsyncClusterWire(client, wakeups, nodes)
    return AsyncWire(client, wakeups)
