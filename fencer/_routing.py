"""The map of a Cluster's slots: to which node a call goes, and what happens when slots move.

Nothing here touches a socket: a way is a generator that yields what to send where, and
`fencer._cluster` has that done. Its rules:

- One map per client, learned by ``CLUSTER SLOTS`` from any node that answers.
- ``MOVED``, ``ASK`` and ``TRYAGAIN`` say that nothing was done. Such a call is sent on, for a short
  while at most.
- Any other fault of a node is a reason to learn the map anew, and is then told to the protocol.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from redis.crc import key_slot
from redis.exceptions import AskError

from fencer._steps import Batch, Call, Command, Sleep, text
from fencer.errors import InvalidArgument, StoreError, StoreUnavailable

Address: TypeAlias = tuple[str, int]
T = TypeVar("T")

SLOTS = 16_384

_PATIENCE = 1.0
"""Seconds for which a call that is sent on from node to node, or told to try again, is sent."""

_PAUSE = 0.02
"""Seconds before a call is sent on for a second time: the nodes do not agree yet."""

_RELEARN = 0.1
"""Seconds at least between two lessons about the map."""

_ROUNDS = 4
"""How often the calls of one batch that were sent on are put together anew."""

_PASSING = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "READONLY"})
"""Refusals that say nothing about the lease, and pass by themselves."""

_ASTRAY = frozenset({"MOVED", "ASK", "TRYAGAIN"})
"""Those that say where a slot is."""


@dataclass(frozen=True, slots=True)
class Send:
    """Have a node do a step. With ``asking`` it is one to which the slot is being moved."""

    where: Address
    step: Call | Command
    asking: bool = False


@dataclass(frozen=True, slots=True)
class Scatter:
    """Have several nodes do a batch each, at once. Answered with each one's outcomes."""

    batches: Mapping[Address, Batch]


Route: TypeAlias = Generator[Send | Scatter | Sleep, Any, T]


class Routing:
    """The map of the slots, and the way of each call. Any thread may use it.

    Args:
        seeds: the nodes that the driver knows to begin with.
        remap: the address at which a client reaches a node that names itself so.
    """

    def __init__(
        self,
        seeds: Callable[[], Iterable[Address]],
        remap: Callable[[str, int], Address],
    ) -> None:
        self._seeds = seeds
        self._remap = remap
        self._owners: list[Address | None] = [None] * SLOTS
        self._known: set[Address] = set()
        self._suspects: set[Address] = set()
        self._learned = -1.0
        self.on_change: list[Callable[[], None]] = []
        """Called when a slot has another owner than before; must not block."""

    def owner(self, slot: int) -> Address | None:
        """The node that serves a slot, as far as is known."""
        return self._owners[slot]

    def primaries(self) -> list[Address]:
        """The nodes that serve slots, in the order of these."""
        return list(dict.fromkeys(owner for owner in self._owners if owner))

    def find(self, slot: int) -> Route[Address]:
        """The node that serves a slot; asks for it if it is not known."""
        if self._owners[slot] is None:
            yield from self.learn(always=True)
        found = self._owners[slot]
        if found is None:
            raise StoreUnavailable(
                f"no node of the cluster serves slot {slot}: see CLUSTER SLOTS there",
                maybe_applied=False,
                code="CLUSTERDOWN",
            )
        return found

    def call(self, call: Call) -> Route[Any]:
        """Run a script on the node that has its keys."""
        return self._sent(slot_of(call.keys), call)

    def command(self, words: tuple[str | int, ...]) -> Route[Any]:
        """Run a command on the node that has its key; a ``SCAN`` on one node after the other."""
        if words[0] == "SCAN":
            return self._scanned(str(words[1]), words[2:])
        return self._sent(slot_of([str(words[1])]), Command(words))

    def _sent(self, slot: int, step: Call | Command) -> Route[Any]:
        where, asking = (yield from self.find(slot)), False
        until, times = time.monotonic() + _PATIENCE, 0
        while True:
            try:
                return (yield Send(where, step, asking))
            except StoreError as error:
                if error.code not in _ASTRAY:
                    yield from self.doubt(where, error)
                    raise passing(error) from error.__cause__
                if time.monotonic() > until:
                    raise passing(error) from error.__cause__
                times += 1
                where, asking = yield from self._directed(where, slot, error)
                if error.code == "TRYAGAIN" or times > 2:
                    yield Sleep(_PAUSE)

    def _directed(
        self, where: Address, slot: int, error: StoreError
    ) -> Route[tuple[Address, bool]]:
        """Where to send a call that a node would not do."""
        if error.code == "TRYAGAIN":  # Half of its keys are elsewhere: the owner knows by then.
            return (yield from self.find(slot)), False
        there = self.pointed(error.__cause__, where)
        if error.code == "ASK":
            return there, True
        self.moved(slot, there)
        yield from self._learn_quietly(there)
        return there, False

    def pointed(self, error: BaseException | None, where: Address) -> Address:
        """The node that a ``MOVED`` or ``ASK`` of the node ``where`` points at."""
        assert isinstance(error, AskError)
        return self._remap(error.host or where[0], error.port)

    def moved(self, slot: int, owner: Address) -> None:
        """Take note that a slot has another owner."""
        self._known.add(owner)
        if self._owners[slot] != owner:
            self._owners[slot] = owner
            self._tell()

    def _scanned(self, cursor: str, rest: tuple[str | int, ...]) -> Route[list[Any]]:
        """A cursor is the current node's, and the nodes that were visited, that one last."""
        at, _, path = cursor.partition("@")
        if not path:
            yield from self.learn(always=True)
            path = _shown(self.primaries()[0])
        where = _address(path.rpartition(",")[2])
        try:
            following, keys = yield Send(where, Command(("SCAN", at, *rest)))
        except StoreError as error:
            yield from self.doubt(where, error)
            raise passing(error) from error.__cause__
        if text(following) != "0":
            return [f"{text(following)}@{path}", keys]
        visited = path.split(",")
        left = [node for node in map(_shown, self.primaries()) if node not in visited]
        return [f"0@{path},{left[0]}" if left else "0", keys]

    def batch(self, batch: Batch) -> Route[list[Any]]:
        """Run scripts, on all nodes at once; for each its reply, or the `StoreError` it met."""
        outcomes: list[Any] = [None] * len(batch.calls)
        left = list(range(len(outcomes)))
        for times in range(_ROUNDS):
            groups: dict[Address, list[int]] = {}
            for place in left:
                try:
                    where = yield from self.find(slot_of(batch.calls[place].keys))
                except StoreError as error:
                    outcomes[place] = error
                else:
                    groups.setdefault(where, []).append(place)
            batches = {
                where: Batch(tuple(batch.calls[place] for place in places), batch.timeout)
                for where, places in groups.items()
            }
            answers = yield Scatter(batches)
            for where, places in groups.items():
                for place, outcome in zip(places, answers[where], strict=True):
                    outcomes[place] = outcome
            left = [place for place in left if _code(outcomes[place]) in ("MOVED", "TRYAGAIN")]
            if not left:
                break
            if times:
                yield Sleep(_PAUSE)
        return [passing(item) if isinstance(item, StoreError) else item for item in outcomes]

    def followed(self, where: Address, batch: Batch, outcomes: list[Any]) -> Route[list[Any]]:
        """What is done at once about the outcomes of one node, while others may still be at it."""
        faults = [error for error in outcomes if isinstance(error, StoreError)]
        if faults:
            yield from self.doubt(where, faults[0])
        for place, outcome in enumerate(outcomes):
            if _code(outcome) == "ASK":
                try:
                    outcomes[place] = yield from self.call(batch.calls[place])
                except StoreError as error:
                    outcomes[place] = error
        return outcomes

    def doubt(self, where: Address, error: StoreError) -> Route[None]:
        """Learn the map anew if the fault may be one of a node that has lost its slots."""
        if isinstance(error, StoreUnavailable) and not error.code:
            self._suspects.add(where)
        if isinstance(error, StoreUnavailable) or error.code in _PASSING:
            yield from self._learn_quietly()

    def _learn_quietly(self, first: Address | None = None) -> Route[None]:
        try:
            yield from self.learn(first)
        except StoreError:
            pass  # The fault that led here is told.

    def learn(self, first: Address | None = None, *, always: bool = False) -> Route[None]:
        """Ask a node for the map, unless that was done just now.

        Raises:
            StoreError: no node has told it.
        """
        now = time.monotonic()
        if not always and now - self._learned < _RELEARN:
            return
        self._learned = now
        failure: StoreError | None = None
        for where in self._informants(first):
            try:
                reply = yield Send(where, Command(("CLUSTER", "SLOTS")))
            except StoreError as error:
                self._suspects.add(where)
                failure = error
            else:
                self._suspects.discard(where)
                return self._take_in(reply, where)
        if failure is not None and not isinstance(failure, StoreUnavailable):
            raise failure
        raise StoreUnavailable("no node of the cluster answers", maybe_applied=False) from failure

    def _informants(self, first: Address | None) -> list[Address]:
        """Whom to ask for the map: at random, but those last who have failed before."""
        nodes = list(self._known | set(self._seeds()))
        random.shuffle(nodes)
        nodes.sort(key=lambda node: (node in self._suspects, node != first))
        return nodes

    def _take_in(self, reply: Sequence[Any], teller: Address) -> None:
        owners: list[Address | None] = [None] * SLOTS
        known = set()
        for begin, end, *nodes in reply:
            # A node that does not know its own host is at the one where it was asked.
            addresses = [
                self._remap(host if host not in ("", "?") else teller[0], port)
                for host, port in ((text(node[0] or ""), int(node[1])) for node in nodes)
            ]
            owners[begin : end + 1] = [addresses[0]] * (end + 1 - begin)
            known.update(addresses)
        changed, self._owners, self._known = owners != self._owners, owners, known
        if changed:
            self._tell()

    def _tell(self) -> None:
        for listener in self.on_change:
            listener()


def slot_of(keys: Sequence[str | bytes]) -> int:
    """The slot of all these keys.

    Raises:
        InvalidArgument: they are in several; nothing was sent.
    """
    slots = {key_slot(key.encode() if isinstance(key, str) else key): key for key in keys}
    if len(slots) > 1:
        one, other, *_ = slots.values()
        raise InvalidArgument(
            f"the keys {one!r} and {other!r} are in different slots of the cluster, so no script "
            "can use both: give them the same {hash tag}, and name it to the guard as tag="
        )
    return next(iter(slots))


def passing(error: StoreError) -> StoreError:
    """What an error comes to: a refusal that passes by itself is an outage, and undid nothing."""
    if error.code not in _PASSING or isinstance(error, StoreUnavailable):
        return error
    message = str(error)
    if error.code in _ASTRAY:
        message = f"the slot is being moved between nodes ({error.__cause__}): ask again later"
    outage = StoreUnavailable(message, maybe_applied=False, code=error.code)
    outage.__cause__ = error.__cause__
    return outage


def _code(outcome: Any) -> str:
    return outcome.code if isinstance(outcome, StoreError) else ""


def _shown(where: Address) -> str:
    return f"{where[0]}:{where[1]}"


def _address(shown: str) -> Address:
    host, _, port = shown.rpartition(":")
    return host, int(port)
