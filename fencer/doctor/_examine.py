"""Looks at everything, in order, and gathers what was found and what could not be seen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import redis
from redis.cluster import RedisCluster

from fencer._keys import Keyspace
from fencer.acl import rules
from fencer.doctor import _access, _groups, _leases, _servers
from fencer.doctor._leases import DEFAULT_TTL
from fencer.doctor._nodes import Group, Node, found_by, group_of, pairs, replicas_of
from fencer.doctor._records import Finding, NotSeen, Report, Severity, Unseen
from fencer.doctor._survey import Survey, second_look, survey
from fencer.errors import InvalidArgument, StoreUnavailable

_WORST_FIRST = list(Severity)


def examine(
    *clients: redis.Redis | RedisCluster,
    namespace: str = "fencer",
    hash_tag: bool = True,
    user: str | None = None,
    prefix: str = "",
    timeouts: bool = True,
) -> Report:
    """Look at servers and at the leases on them. Changes nothing there.

    Args:
        clients: one for a server, for a Sentinel's primary or for a Cluster; of several, as
            different instances use them, it is told whether they lead to the same place.
        namespace: how the keys begin.
        hash_tag: whether they have braces.
        user: ask whether this user of the server may use leases, in place of the one that the
            clients log in as.
        prefix: look only at names that begin so, as a user made by ``fencer acl --prefix`` has to.
        timeouts: whether these are the clients that an application works with, so that their
            timeouts matter, too.

    Raises:
        StoreUnavailable: a server that a client names does not answer, nor does any sentinel or
            node. That others do not, or it does not any more, becomes `Unseen`.
        StoreError: the sentinels refuse to answer.
        InvalidArgument: there is no client, or an argument is not allowed.

    Cost:
        Some dozens of reads per server, a ``SCAN`` of the whole database, and eight reads per name
        (of 20,000 names at most). Up to 4 s more if a line of waiters seems to stand still, and
        half a second if a slot of a Cluster is being moved.
    """
    if not clients:
        raise InvalidArgument("there is nothing to examine: pass a client")
    keyspace = Keyspace(namespace, hash_tag)
    rules(prefix=prefix)  # which says whether there can be such a user
    with contextlib.ExitStack() as opened:
        groups = [group_of(client) for client in clients]
        return _Examination(keyspace, user, prefix, timeouts, opened).run(groups)


class _Examination:
    """One run."""

    def __init__(
        self,
        keyspace: Keyspace,
        user: str | None,
        prefix: str,
        timeouts: bool,
        opened: contextlib.ExitStack,
    ) -> None:
        self._keyspace = keyspace
        self._user = user
        self._prefix = prefix
        self._timeouts = timeouts
        self._opened = opened
        self._findings: list[Finding] = []
        self._unseen: list[Unseen] = []
        self._nodes: dict[str, Node] = {}

    def run(self, groups: list[Group]) -> Report:
        # Whoever is named must answer, and is named once even if it has two URLs.
        groups = [
            each for each in map(self._answering, groups) if not each.nodes or self._any_new(each)
        ]
        seen = {id(group): self._survey(group) for group in groups}
        surveys = [_merged(found for _, found in each) for each in seen.values()]
        shortest = min((each.shortest for each in surveys if each.shortest), default=None)
        largest = max(each.largest for each in surveys)
        for group in groups:
            self._examine(group, seen[id(group)], shortest or DEFAULT_TTL, largest)
        whole = [pair for pair in zip(groups, surveys, strict=True) if pair[0].nodes]
        for (one, here), (other, there) in combinations(whole, 2):
            compare = partial(self._apart, one.nodes[0], other.nodes[0], here, there)
            self._look("split", one.nodes[0], compare)
        machines = list(self._nodes.values())
        return Report(
            machines=tuple(node.machine(machines[0]) for node in machines),
            names=sum(len(each.names) for each in surveys),
            held=sum(each.held for each in surveys),
            shortest_ttl=shortest,
            findings=tuple(
                sorted(self._findings, key=lambda each: _WORST_FIRST.index(each.severity))
            ),
            unseen=tuple(self._unseen),
        )

    def _survey(self, group: Group) -> list[tuple[Node, Survey]]:
        """The leases of a group, by the server that has them."""
        found: list[tuple[Node, Survey]] = []

        def look(node: Node) -> Iterator[Finding]:
            seen = survey(node, self._keyspace, self._prefix)
            second_look(node, self._keyspace, seen)
            found.append((node, seen))
            for why in seen.missed():
                self._miss("leases", node, why)
            yield from ()

        for node in group.nodes:
            if group.kind == "cluster" and _follows(node):
                continue
            self._look("leases", node, partial(look, node))
        return found

    def _examine(
        self, group: Group, seen: list[tuple[Node, Survey]], ttl: float, largest: int
    ) -> None:
        if group.nodes:
            self._served(group, seen, ttl, largest)
        if group.kind == "sentinel":
            self._watched(group, ttl)

    def _served(
        self, group: Group, seen: list[tuple[Node, Survey]], ttl: float, largest: int
    ) -> None:
        """What is wrong with the servers that have the data, and with the leases there."""
        first = group.nodes[0]
        members = list(self._members(group))
        others = _servers.MEMBER if group.kind == "server" else _servers.IN_GROUP
        checks = _servers.ALONE if group.kind == "server" else others
        for node in members:
            for check in others if node is not first else checks:
                self._look(check.__name__, node, partial(check, node))
        for node in members[1:]:
            self._look("clocks", node, partial(_groups.clocks, first, node, ttl))
        self._look("own-clock", first, partial(_groups.own_clock, first, ttl))
        for node, found in seen:
            judge = partial(_leases.judge, found, node, self._keyspace)
            self._look("leases", node, judge)
            short = partial(_leases.short_ttl, found, node, self._keyspace)
            self._look("short-ttl", node, short)
            early = partial(_leases.marks_ahead, found, node, self._keyspace, largest)
            self._look("leases", node, early)
            small = [name for name, each in found.names.items() if each.dense]
            self._look("dense-tokens", node, partial(_servers.dense, node, group.kind, small))
        known = sorted(name for _, survey in seen for name in survey.names)
        who = (self._keyspace, self._user, self._prefix, known)
        in_cluster = group.kind == "cluster"
        may = partial(_access.permissions, first, *who, cluster=in_cluster)
        self._look("permissions", first, may)
        if self._timeouts:
            self._look("timeout", first, partial(_leases.client_timeout, first, ttl))
        if in_cluster:
            granting = [node for node in group.nodes if not _follows(node)]
            self._look("slots", first, partial(_groups.open_slots, granting))
            tagged = self._keyspace.hash_tag
            self._look("cluster", first, partial(_groups.cluster, first, ttl, hash_tag=tagged))

    def _watched(self, group: Group, ttl: float) -> None:
        """What the sentinels of a service say."""
        watching = list(self._sentinels(group))
        for node in watching[:1]:
            self._look("sentinels", node, partial(_groups.sentinels, group, watching, ttl))

    def _members(self, group: Group) -> Iterator[Node]:
        """The servers that have the group's data: those that are named, and those they lead to."""
        yield from group.nodes
        found: list[Node] = []
        known = {node.address for node in group.nodes}

        def look(node: Node) -> Iterator[Finding]:
            found.extend(replicas_of(node, self._open))
            yield from ()

        for node in group.nodes:
            # A cluster's list lacks replicas that have not got anything yet.
            if group.kind != "cluster" or not _follows(node):
                self._look("replicas", node, partial(look, node))
        for node in found:
            if node.address in known:
                continue
            if self._answers("replicas", node) and self._new(node):
                yield node

    def _sentinels(self, group: Group) -> Iterator[Node]:
        """The sentinels that watch a service: those that the client knows, and those they know."""
        answering = [each for each in group.sentinels if self._answers("sentinels", each)]
        known = {each.address for each in group.sentinels}
        for node in answering:
            if self._new(node):
                yield node
        found: list[Node] = []

        def look(node: Node) -> Iterator[Finding]:
            for other in node.ask("SENTINEL", "SENTINELS", group.service):
                facts = pairs(other)
                found.append(
                    found_by(node, facts["ip"], int(facts["port"]), self._open, "sentinel")
                )
            yield from ()

        for node in answering[:1]:
            self._look("sentinels", node, partial(look, node))
        for node in found:
            if node.address in known:
                continue
            if self._answers("sentinels", node) and self._new(node):
                yield node

    def _apart(self, one: Node, other: Node, here: Survey, there: Survey) -> Iterator[Finding]:
        if not _groups.same(one, other):
            yield from _groups.apart(one, other, here, there)

    def _look(self, check: str, node: Node, look: Callable[[], Iterable[Finding]]) -> None:
        """Carry out a check; what it cannot see is told, and is no reason to stop."""
        try:
            self._findings += look()
        except NotSeen as reason:
            self._miss(check, node, str(reason))
        except StoreUnavailable as error:
            self._miss(check, node, str(error))

    def _miss(self, check: str, node: Node, why: str) -> None:
        missed = Unseen(check, node.address, why)
        if missed not in self._unseen:
            self._unseen.append(missed)

    def _answers(self, check: str, node: Node) -> bool:
        answered = False

        def look() -> Iterator[Finding]:
            nonlocal answered
            node.ask("PING" if node.part == "sentinel" else "TIME")
            answered = True
            yield from ()

        self._look(check, node, look)
        return answered

    def _answering(self, group: Group) -> Group:
        """The group without those that are down; of a cluster, those that grant come first."""
        if group.kind != "cluster":
            return self._reached(group)
        nodes = [node for node in group.nodes if self._answers("cluster", node)]
        if not nodes:
            asked = ", ".join(node.address for node in group.nodes)
            raise StoreUnavailable(f"no node of the cluster answers: {asked}", maybe_applied=False)
        return replace(group, nodes=tuple(sorted(nodes, key=_follows)))

    def _reached(self, group: Group) -> Group:
        """The group if its server or primary answers; else what is left of it, the sentinels."""
        (node,) = group.nodes
        try:
            node.ask("TIME")
        except NotSeen:
            pass  # That is an answer, too.
        except StoreUnavailable as error:
            if group.kind == "server":
                raise _named(node, error) from error
            self._findings += _groups.silent(node, group.service, error)
            return replace(group, nodes=())
        return group

    def _any_new(self, group: Group) -> bool:
        new = [self._new(node) for node in group.nodes]  # of all of them, not up to the first
        return any(new)

    def _new(self, node: Node) -> bool:
        """Whether a server is met for the first time: it may have several addresses."""
        try:
            key = node.info("server").get("run_id", node.address)
        except NotSeen:
            key = node.address
        if key in self._nodes:
            return False
        self._nodes[key] = node
        return True

    def _open(self, client: Any) -> None:
        self._opened.callback(client.close)


def _follows(node: Node) -> bool:
    try:
        return node.replica
    except NotSeen:
        return False


def _named(node: Node, error: StoreUnavailable) -> StoreUnavailable:
    """The error with the server's address in it, which the driver leaves out of a time-out."""
    if node.address in str(error) or error.code:
        return error
    return StoreUnavailable(
        f"no answer from the server at {node.address} ({error.__cause__ or error})",
        maybe_applied=False,
    )


def _merged(surveys: Iterable[Survey]) -> Survey:
    whole = Survey()
    for each in surveys:
        whole.names |= each.names
        whole.marks |= each.marks
    return whole
