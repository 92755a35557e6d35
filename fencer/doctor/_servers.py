"""What can be wrong with one server. Each check says what it reads, and yields what it finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fencer.doctor._nodes import Node
from fencer.doctor._records import Finding, Severity

OLDEST = (6, 2)
"""The oldest server that the scripts run on, as their headers say."""

_OLD = {"Redis": (7, 2), "Valkey": (8, 0)}
"""Before these, a line is old enough to ask its maker about."""

_NEARLY_FULL = 0.9

_AT_LEAST_ONE = (
    "CONFIG SET min-replicas-to-write 1 and min-replicas-max-lag to a few seconds, and in its "
    "configuration file, on every server that may become the primary. It bounds the time, and does "
    "not close the gap. Have two replicas: a primary then grants only while one follows it."
)


def version(node: Node) -> Iterator[Finding]:
    """INFO server: whether the scripts run there at all."""
    name, numbers = node.version
    shown = f"{name} {'.'.join(map(str, numbers))}"
    if numbers < OLDEST:
        yield Finding(
            "version",
            Severity.DANGER,
            node.address,
            f"This is {shown}; Fencer needs Redis 6.2 or later, or Valkey.",
            "Leases do not work here: the scripts use commands that it lacks.",
            "Upgrade the server.",
        )
    elif numbers < _OLD[name]:
        yield Finding(
            "version",
            Severity.NOTE,
            node.address,
            f"This is {shown}, an old line.",
            "It may get no security fixes any more, and cannot say whether a grant is on its disk: "
            "WAITAOF came with Redis 7.2 and Valkey.",
            "Ask its maker how long the line is maintained, and plan an upgrade.",
        )


def role(node: Node) -> Iterator[Finding]:
    """INFO server, replication and cluster: whether it is the one to grant leases."""
    facts = node.info("server")
    mode = facts.get("redis_mode", facts.get("server_mode"))  # as Redis calls it, and Valkey
    if mode == "sentinel":
        yield Finding(
            "role",
            Severity.DANGER,
            node.address,
            "This is a sentinel, which knows where the data is and has none itself.",
            "No lease can be taken here.",
            "Use a URL for Sentinel, which names the service: redis+sentinel://HOST:26379/SERVICE",
        )
    elif mode == "cluster":
        yield Finding(
            "role",
            Severity.DANGER,
            node.address,
            "This is a node of a cluster, and the URL is that of a single server.",
            "Most names belong to other nodes, and are refused with MOVED.",
            "Use a URL for Cluster: redis+cluster://HOST:PORT",
        )
    if mode != "sentinel" and node.replica:
        facts = node.info("replication")
        primary = f"{facts.get('master_host')}:{facts.get('master_port')}"
        yield Finding(
            "role",
            Severity.DANGER,
            node.address,
            f"This is a replica of {primary}.",
            "Every acquire, renew and release is refused with READONLY.",
            f"Connect to {primary}, or by way of Sentinel or Cluster, which follow a failover.",
        )


def eviction(node: Node) -> Iterator[Finding]:
    """INFO memory and stats: whether the server may delete keys of ours."""
    memory = node.info("memory")
    policy, limit = memory.get("maxmemory_policy", "noeviction"), int(memory.get("maxmemory", 0))
    if policy == "noeviction":
        return
    cure = (
        "CONFIG SET maxmemory-policy noeviction, and in its configuration file; caches that need "
        "eviction belong on a server of their own."
    )
    if not limit:
        yield Finding(
            "eviction",
            Severity.NOTE,
            node.address,
            f"maxmemory-policy is {policy}, though maxmemory sets no limit.",
            "Nothing is evicted until somebody sets maxmemory; then leases are.",
            cure,
        )
        return
    full = int(memory.get("used_memory", 0)) / limit
    evicted = int(node.info("stats").get("evicted_keys", 0))
    taken = (
        "lock and token keys and guards' marks" if policy[:3] == "all" else "lock and token keys"
    )
    marks = " A guard whose mark is gone takes stale writes again." if policy[:3] == "all" else ""
    state = "It is full" if full >= 1 else f"{full:.0%} of it is used"
    yield Finding(
        "eviction",
        Severity.DANGER,
        node.address,
        f"maxmemory-policy is {policy} with a limit of {_size(limit)}. {state}; "
        f"{evicted:,} keys have been evicted since it started.",
        f"The server may delete {taken} at any time: somebody else is then granted a lease whose "
        f"holder still believes in it.{marks}",
        cure,
    )


def memory(node: Node) -> Iterator[Finding]:
    """INFO memory: whether a server that evicts nothing is full."""
    facts = node.info("memory")
    limit = int(facts.get("maxmemory", 0))
    if not limit or facts.get("maxmemory_policy") != "noeviction":
        return
    full = int(facts.get("used_memory", 0)) / limit
    if full < _NEARLY_FULL:
        return
    yield Finding(
        "memory",
        Severity.DANGER if full >= 1 else Severity.WARNING,
        node.address,
        f"{full:.0%} of maxmemory ({_size(limit)}) is used.",
        "A full server refuses acquire with OOM; renew and release still work.",
        "Free memory, or raise maxmemory.",
    )


def persistence(node: Node) -> Iterator[Finding]:
    """INFO persistence, CONFIG save and appendfsync: what is left after a crash."""
    follows = node.replica
    if node.info("persistence").get("aof_enabled") == "1":
        match node.config("appendfsync"):
            case "no":
                yield Finding(
                    "persistence",
                    Severity.WARNING,
                    node.address,
                    "appendfsync is no: the system decides when data reaches the disk.",
                    "A power cut loses the grants of the last half minute or so, and marks of "
                    "guards here with them.",
                    "CONFIG SET appendfsync always (or everysec, which may lose two seconds), and "
                    "in its configuration file.",
                )
            case "everysec":
                yield Finding(
                    "persistence",
                    Severity.NOTE,
                    node.address,
                    "appendfsync is everysec.",
                    "A power cut loses the grants of the last second or two. Time tokens go on "
                    "rising all the same, but the holders' leases are forgotten, and marks of "
                    "guards here are set back. A crash of the server alone loses nothing.",
                    "Where that is too much: CONFIG SET appendfsync always, and in its "
                    "configuration file.",
                )
        return
    if node.config("save"):
        yield Finding(
            "persistence",
            Severity.WARNING,
            node.address,
            "Only snapshots (RDB) are kept, and no append-only file.",
            "A crash loses every grant since the last snapshot: leases that are held are granted "
            "anew, and marks of guards here are set back. Time tokens go on rising.",
            "CONFIG SET appendonly yes, and in its configuration file.",
        )
    else:
        yield Finding(
            "persistence",
            Severity.WARNING if follows else Severity.DANGER,
            node.address,
            "Nothing is kept on disk: neither snapshots nor an append-only file.",
            "A restart forgets every lease while its holder still believes in it, and every mark "
            "of guards here, which then take stale writes. Time tokens go on rising.",
            "CONFIG SET appendonly yes, and in its configuration file.",
        )


def disk(node: Node) -> Iterator[Finding]:
    """INFO persistence: whether it could save the last time that it tried."""
    facts = node.info("persistence")
    broken = [
        shown
        for key, shown in (
            ("rdb_last_bgsave_status", "the last snapshot"),
            ("aof_last_write_status", "the last write to the append-only file"),
            ("aof_last_bgrewrite_status", "the last rewrite of the append-only file"),
        )
        if facts.get(key) == "err"
    ]
    if broken:
        yield Finding(
            "disk",
            Severity.DANGER,
            node.address,
            f"The server cannot save its data: {', '.join(broken)} failed.",
            "It refuses writes with MISCONF, now or soon: no acquire, no renewal; and what it has "
            "is lost with the next restart.",
            "See its log and its disk: usually the disk is full, or a folder cannot be written.",
        )


def replicas(node: Node) -> Iterator[Finding]:
    """INFO replication, CONFIG min-replicas-to-write: whether a cut-off primary stops granting."""
    facts = node.info("replication")
    count = int(facts.get("connected_slaves", 0))
    if node.replica:
        return
    wanted = int(node.config("min-replicas-to-write") or 0)
    good = int(facts.get("min_slaves_good_slaves", count))
    if wanted > good:
        yield Finding(
            "replicas",
            Severity.DANGER,
            node.address,
            f"min-replicas-to-write is {wanted}, and {good} replicas follow closely enough.",
            "Every acquire, renew and release is refused with NOREPLICAS.",
            "Bring the replicas back; or lower min-replicas-to-write, and in its configuration "
            "file.",
        )
    elif count and not wanted:
        yield Finding(
            "replicas",
            Severity.WARNING,
            node.address,
            f"{count} replicas follow, and min-replicas-to-write is 0."
            if count > 1
            else "A replica follows, and min-replicas-to-write is 0.",
            "A primary that is cut off from its replicas goes on granting leases that a failover "
            "forgets: two holders then believe at once, and only guards tell them apart.",
            _AT_LEAST_ONE,
        )


def heir(node: Node) -> Iterator[Finding]:
    """CONFIG min-replicas-to-write of a replica that may be promoted."""
    if not node.replica or int(node.config("min-replicas-to-write") or 0):
        return
    in_cluster = node.info("cluster").get("cluster_enabled") == "1"
    if not in_cluster and node.info("replication").get("slave_priority") == "0":
        return  # Sentinel never promotes it.
    yield Finding(
        "replicas",
        Severity.WARNING,
        node.address,
        "min-replicas-to-write is 0 on this replica.",
        "After a failover to it, it grants leases even while it is cut off from its replicas, "
        "which the next failover forgets: two holders then believe at once, and only guards tell "
        "them apart.",
        _AT_LEAST_ONE,
    )


def link(node: Node) -> Iterator[Finding]:
    """INFO replication: whether a replica hears its primary."""
    facts = node.info("replication")
    if node.replica and facts.get("master_link_status") != "up":
        yield Finding(
            "link",
            Severity.WARNING,
            node.address,
            "This replica does not hear its primary.",
            "A failover to it forgets every grant since then.",
            "See the logs of both: network, password (masterauth), or a long first copy.",
        )


def dense(node: Node, kind: str, names: Sequence[str]) -> Iterator[Finding]:
    """INFO and CONFIG: whether a server on which tokens are dense can lose acknowledged writes."""
    loss = _loss(node, kind) if names else ""
    if not loss:
        return
    what = (
        f"The last token of {names[0]!r} is"
        if len(names) == 1
        else f"The last tokens of {len(names):,} names, such as {names[0]!r}, are"
    )
    yield Finding(
        "dense-tokens",
        Severity.DANGER,
        node.address,
        f'{what} too small for a time: tokens="dense", or advanced by hand. And {loss}.',
        "Dense tokens that are lost are issued again, to others: guards refuse the new holders, "
        "whose tokens have fallen, and one that has not seen the largest takes a late write of an "
        "earlier holder.",
        'Leave tokens="dense" out: the next grant then has a time token, which is larger. Dense '
        "tokens are for a single server with appendonly yes, appendfsync always and "
        "maxmemory-policy noeviction.",
        tuple(names[:10]),
    )


def _loss(node: Node, kind: str) -> str:
    """How this server can lose a write that it has acknowledged; "" if it cannot."""
    if kind in ("sentinel", "cluster"):
        return "a failover can lose the last grants"
    if node.replica or int(node.info("replication").get("connected_slaves", 0)):
        return "a failover to a replica can lose the last grants"
    facts = node.info("memory")
    if int(facts.get("maxmemory", 0)) and facts.get("maxmemory_policy") != "noeviction":
        return "the server may evict token keys"
    if node.info("persistence").get("aof_enabled") != "1":
        return "a crash can lose the last grants (appendonly is no)"
    if (synced := node.config("appendfsync")) != "always":
        return f"a power cut can lose the last grants (appendfsync is {synced})"
    return ""


ALONE = (version, role, eviction, memory, persistence, disk, replicas, link)
"""For a server that was named by a URL of its own."""

MEMBER = (version, eviction, memory, persistence, disk, replicas, link)
"""For a server that another one led to: replicas are as they should be."""

IN_GROUP = (*MEMBER, heir)
"""For a server behind Sentinel or in a Cluster, where replicas are promoted."""


def _size(count: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count = round(count / 1024, 1)  # type: ignore[assignment]
    return f"{count:.3g} GB"
