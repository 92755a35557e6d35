"""Clients, a network and time around the scripts: every step that can come next, and what is wrong.

A state is what the store holds, what each client knows, one call that is late on its way, and
what must be remembered to judge. Every call may be answered, or carried out without an answer
being heard, or be late. Any client may stand still for as long as it likes; so a message that is
never heard is a lost one.

Where time matters it is a step: a lock ends when nobody believes in it any more (that a belief ends
first is tested on real clocks).

Numbers are told apart only as far as any decision depends on it (`_settled`), so that the states
are finite, and what is true of all of them is true of runs of any length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.model.scripts import (
    CLAIM,
    FOR_EVER,
    TTL,
    Done,
    Event,
    Grant,
    Hears,
    Info,
    Scripts,
    Store,
)

IDLE, ASKS, JOINS, WAITS, CLAIMS, HOLDS = "idle", "asks", "joins", "waits", "claims", "holds"
CANCELS, GIVES_BACK, RELEASES, DEAD = "cancels", "gives back", "releases", "dead"

STALE, LATEST = 1, 2
"""All that is to be known of a token: whether it is the last one issued."""


class Client(NamedTuple):
    """One client, as far as it matters.

    Attributes:
        phase: what it is about.
        number: of its grant id.
        token: as it was told.
        doubt: whether a call of this phase may be under way still.
        hears: whether the server has its subscription.
        inbox: the token of a GRANT that has come for its grant.
    """

    phase: str = IDLE
    number: int = 0
    token: int = 0
    doubt: bool = False
    hears: bool = False
    inbox: int = 0


class Late(NamedTuple):
    """A call that is still on its way, and how many events ago its grant was made or ended."""

    script: str
    grant: Grant
    argument: Any
    age: int = 0


class State(NamedTuple):
    """Everything at one moment.

    Attributes:
        minted: which grants have got a token.
        over: which grants have ended, as their clients were told.
    """

    store: Store
    clients: tuple[Client, ...]
    late: Late | None = None
    minted: frozenset[Grant] = frozenset()
    over: frozenset[Grant] = frozenset()


class Broken(Exception):
    """Something that must never be."""


class Step(NamedTuple):
    """What can come next.

    ``heals`` is true of what comes without a fault, and without a message, once time passes.
    """

    label: str
    state: State
    heals: bool


@dataclass(frozen=True)
class Faults:
    """Which faults are possible, beside clients that stand still.

    Attributes:
        deaths: clients die, and new ones come in their place.
        silence: calls are carried out, and no answer comes.
        late: of which scripts a call of client 0 arrives late, or never.
        deafness: subscriptions break.
        loss: keys vanish: the lock, the line, all of them. Then two may believe at once.
        revoke: an operator revokes the lease. Then, too.
        plain: clients also ask without waiting.
    """

    deaths: bool = False
    silence: bool = False
    late: tuple[str, ...] = ()
    deafness: bool = False
    loss: bool = False
    revoke: bool = False
    plain: bool = False


class World:
    """All that can happen.

    Args:
        clients: how many.
        faults: what may go wrong.
        scripts: those of the server; with a planted bug, or without.
    """

    places_are_remembered = False
    """Whether a cancel stops late copies of a join even if it was answered: see release.lua."""

    looks = True
    """Whether those who wait look now and then, whatever they hear."""

    claims = True
    """Whether who hears of its grant claims it before it believes."""

    def __init__(self, clients: int, faults: Faults, scripts: Scripts | None = None) -> None:
        self.start = State(Store(), (Client(),) * clients)
        self._faults = faults
        # Time runs: it always shows more than was ever issued.
        self._scripts = scripts or Scripts(clock=lambda: LATEST + 1)
        self._known: dict[Any, Done] = {}

    def steps(self, state: State) -> Iterator[Step]:
        """All that can come next.

        Raises:
            Broken: a step does what must never be done.
        """
        for who, client in enumerate(state.clients):
            yield from self._of_client(state, who, client)
        yield from self._of_time(state)
        if self._faults.loss:
            yield from self._of_loss(state)
        if self._faults.revoke and state.store.issued == LATEST:
            done = self._run(state, "revoke", Grant(-1, 0), LATEST)
            after = self._after(state, done)
            yield Step("an operator revokes", self._settled(after), False)

    # What clients do.

    def _of_client(self, state: State, who: int, client: Client) -> Iterator[Step]:
        grant = Grant(who, client.number)
        phase = client.phase
        if phase == IDLE:
            new = self._new_grant(state, who)
            if self._left_behind(state, who) < 2:
                yield self._become(state, who, JOINS, "joins", number=new, hears=True)
                if self._faults.plain:
                    yield self._become(state, who, ASKS, "asks", number=new)
        elif phase == ASKS:
            yield from self._calls(state, who, "acquire", grant, "no")
            yield self._become(state, who, CANCELS, "gives up asking")
        elif phase == JOINS:
            yield from self._calls(state, who, "acquire", grant, "join")
            yield self._become(state, who, CANCELS, "gives up joining")
        elif phase == WAITS:
            if self.looks:
                yield from self._calls(state, who, "acquire", grant, "stay")
            if client.inbox:
                told = CLAIMS if self.claims else HOLDS
                yield self._become(state, who, told, "hears GRANT", token=client.inbox)
            yield self._become(state, who, CANCELS, "gives up waiting")
        elif phase == CLAIMS:
            yield from self._calls(state, who, "renew", grant, client.token)
            if self._faults.silence:
                yield self._become(state, who, WAITS, "cannot claim for now")
        elif phase == HOLDS:
            yield from self._calls(state, who, "renew", grant, client.token)
            yield self._become(state, who, IDLE, "lets its lease run out")
            yield self._become(state, who, RELEASES, "ends its lease", heals=True)
        elif phase == CANCELS:
            yield from self._calls(state, who, "release", grant, 0)
            if self._faults.silence:
                yield self._become(state, who, IDLE, "cannot cancel")
        elif phase == GIVES_BACK:
            yield from self._calls(state, who, "release", grant, client.token)
        elif phase == RELEASES:
            yield from self._calls(state, who, "release", grant, client.token)
            if self._faults.silence:
                yield self._become(state, who, IDLE, "cannot release")
        if phase == DEAD:
            if client.hears:
                yield self._become(state, who, DEAD, "is found dead", hears=False)
            elif all(other.holder != who for other in state.store.queue):
                yield self._become(state, who, IDLE, "comes back")
        elif self._faults.deaths:
            yield self._become(state, who, DEAD, "dies")
        if self._faults.deafness and phase in (JOINS, WAITS):
            label = "is deaf" if client.hears else "hears again"
            yield self._become(state, who, phase, label, not client.hears, hears=not client.hears)
        elif phase not in (JOINS, WAITS, CLAIMS, GIVES_BACK, DEAD) and client.hears:
            yield self._become(state, who, phase, "listens no more", hears=False)

    def _left_behind(self, state: State, who: int) -> int:
        """How many grants it does not know of any more: places in line, and late calls."""
        left = [*state.store.queue, *([state.late.grant] if state.late else [])]
        return sum(1 for grant in left if grant.holder == who)

    def _new_grant(self, state: State, who: int) -> int:
        """A grant id that is not known anywhere any more."""
        known = {grant.number for grant in _named(state) if grant.holder == who}
        return next(number for number in range(9) if number not in known)

    def _become(
        self, state: State, who: int, phase: str, label: str, heals: bool = False, **changes: Any
    ) -> Step:
        client = state.clients[who]
        if phase != client.phase:
            client = client._replace(doubt=False, inbox=0)
        changed = client._replace(phase=phase, **changes)
        after = state._replace(clients=_with(state.clients, who, changed))
        return Step(f"{who} {label}", self._settled(after), heals)

    def _calls(
        self, state: State, who: int, script: str, grant: Grant, argument: Any
    ) -> Iterator[Step]:
        """A call: answered, unanswered, or late."""
        done = self._run(state, script, grant, argument)
        after = self._after(state, done)
        in_line = grant in state.store.queue
        label = f"{who} calls {script} {argument}: {' '.join(map(str, done.reply))}"
        yield Step(label, self._settled(self._heard(after, who, grant, done.reply, in_line)), True)
        doubtful = state.clients[who]._replace(doubt=True)
        if self._faults.silence:
            client = after.clients[who]._replace(doubt=True)
            unheard = after._replace(clients=_with(after.clients, who, client))
            yield Step(f"{label}, and no answer comes", self._settled(unheard), False)
        if script in self._faults.late and state.late is None and who == 0:
            late = state._replace(
                late=Late(script, grant, argument, _age(state, grant)),
                clients=_with(state.clients, who, doubtful),
            )
            label = f"{who} calls {script} {argument}, which is long on its way"
            yield Step(label, self._settled(late), False)

    def _heard(
        self, state: State, who: int, grant: Grant, reply: tuple[Any, ...], in_line: bool
    ) -> State:
        """What a client makes of an answer, as `fencer._protocol` does."""
        client = state.clients[who]
        status, *rest = reply
        over = state.over
        becomes: dict[str, Any]
        match client.phase, status:
            case (("asks" | "joins" | "waits"), "GRANTED"):
                if client.token and client.token != rest[0]:
                    raise Broken(f"{who} is told two tokens of one grant")
                if grant in state.over:
                    raise Broken(f"{who} is granted again what has ended")
                becomes = {"phase": HOLDS, "token": rest[0]}
            case (("joins" | "waits"), "QUEUED"):
                becomes = {"phase": WAITS}
                if client.phase == WAITS:
                    becomes["token"] = 0
            case (("joins" | "waits"), ("GONE" | "ENDED")):
                becomes = {"phase": JOINS, "number": self._new_grant(state, who), "token": 0}
            case "asks", "HELD":
                # A first try that is still on its way must not be granted behind its back.
                becomes = {"phase": CANCELS if client.doubt else IDLE}
            case "asks", "ENDED":
                becomes = {"phase": IDLE}
            case "claims", "RENEWED":
                becomes = {"phase": HOLDS}
            case "claims", ("STALE" | "FOREIGN"):
                becomes = {"phase": GIVES_BACK}
            case "gives back", _:
                becomes = {"phase": JOINS, "number": self._new_grant(state, who), "token": 0}
            case "holds", "RENEWED":
                becomes = {}
            case "holds", ("STALE" | "FOREIGN"):
                becomes = {"phase": IDLE}
            case (("cancels" | "releases"), ("RELEASED" | "CANCELLED" | "STALE")):
                becomes = {"phase": IDLE}
                if not in_line or self.places_are_remembered:
                    over = over | {grant}
                # A cancel is new in the history; a release that comes too late is not told there.
                if status == "CANCELLED" and state.late and state.late.grant == grant:
                    state = state._replace(late=state.late._replace(age=0))
                info, lock = state.store.info, state.store.lock
                live = info and info.grant == grant and info.token == state.store.issued
                if status != "STALE" and live and lock and lock.holder == who:
                    raise Broken(f"{who} has ended its grant, and still holds the name")
            case other:
                raise Broken(f"{who} does not expect {other}")
        if becomes.get("phase", client.phase) != client.phase or "number" in becomes:
            becomes = {"doubt": False, "inbox": 0, **becomes}
        clients = _with(state.clients, who, client._replace(**becomes))
        return state._replace(clients=clients, over=over)

    # What the server does.

    def _run(self, state: State, script: str, grant: Grant, argument: Any) -> Done:
        hears = frozenset(who for who, client in enumerate(state.clients) if client.hears)
        key = state.store, hears, script, grant, argument
        done = self._known.get(key)
        if done is None:
            done = self._known[key] = self._fresh(state.store, hears, script, grant, argument)
        return done

    def _fresh(self, store: Store, hears: Hears, script: str, grant: Grant, argument: Any) -> Done:
        match script:
            case "acquire":
                done = self._scripts.acquire(store, hears, grant, argument)
            case "renew":
                done = self._scripts.renew(store, hears, grant, argument, describe=True)
            case "release":
                done = self._scripts.release(store, hears, grant, argument)
            case _:
                done = self._scripts.revoke(store, hears, argument)
        joins = argument == "join" and grant not in store.queue
        _check_line(store, done.store, grant if joins else None)
        return done

    def _after(self, state: State, done: Done) -> State:
        """The state after a script, before its answer is heard. Judges what it did."""
        before, after = state.store, done.store
        clients, minted = state.clients, state.minted
        info = after.info
        if after.issued != before.issued and info and info.token == after.issued:
            _check_grant(state, done, info.grant)
            minted |= {info.grant}
        for told in done.told:
            who = told.grant.holder
            client = clients[who]
            waits = client.phase in (JOINS, WAITS) and client.number == told.grant.number
            if told.kind == "GRANT" and waits:
                clients = _with(clients, who, client._replace(inbox=told.number))
        late = state.late
        if late and late.grant in minted | state.over:
            age = late.age
            for event in after.history[len(before.history) :]:
                age = 0 if event.grant == late.grant else age + 1
            late = late._replace(age=min(age, 4))
        return state._replace(store=after, clients=clients, late=late, minted=minted)

    def _of_time(self, state: State) -> Iterator[Step]:
        store = state.store
        if store.lock and store.lock.lasts != FOR_EVER:
            believed = any(
                client.phase == HOLDS and client.token == LATEST and who == store.lock.holder
                for who, client in enumerate(state.clients)
            )
            if not believed:
                ended = state._replace(store=store._replace(lock=None))
                yield Step("the lock ends", self._settled(ended), True)
        if store.info and not store.lock:
            ended = state._replace(store=store._replace(info=None))
            yield Step("the info ends", self._settled(ended), True)
        if state.late:
            lost = state._replace(late=None)
            yield Step("the late call is lost", self._settled(lost), True)
            done = self._run(lost, *state.late[:3])
            if done.reply[0] == "RENEWED" and state.late.grant in state.over:
                raise Broken(f"a lease of {state.late.grant.holder} is renewed that has ended")
            after = self._settled(self._after(lost, done))
            label = f"the late {state.late.script} of {state.late.grant.holder} arrives"
            yield Step(f"{label}: {' '.join(map(str, done.reply))}", after, False)

    def _of_loss(self, state: State) -> Iterator[Step]:
        store = state.store
        losses = {
            "the lock vanishes": store._replace(lock=None),
            "the info vanishes": store._replace(info=None),
            "the token vanishes": store._replace(issued=0),
            "the line vanishes": store._replace(queue=()),
            "everything vanishes": Store(),
        }
        for label, after in losses.items():
            if after != store:
                lost = state._replace(store=after)
                yield Step(label, self._settled(lost), False)

    # What all states have in common.

    def _settled(self, state: State) -> State:
        """The same without what nothing depends on any more. Judges what everybody believes."""
        store, late = state.store, state.late
        believers = [who for who, client in enumerate(state.clients) if client.phase == HOLDS]
        if len(believers) > 1 and not (self._faults.loss or self._faults.revoke):
            raise Broken(f"{' and '.join(map(str, believers))} believe at once")
        issued = store.issued
        queued = {grant.holder for grant in store.queue}
        clients = tuple(
            _short_client(client, issued, who in queued) for who, client in enumerate(state.clients)
        )
        if late and late.grant in state.minted | state.over and _forgotten(store, late):
            late = None
        if late and late.script != "acquire":
            late = late._replace(argument=_rank(late.argument, issued))
        new = _names(clients, store, late)
        # Whose past can still decide something: who may ask again, and what is on its way.
        asking = {
            Grant(who, client.number)
            for who, client in enumerate(clients)
            if client.phase in (ASKS, JOINS, WAITS, CLAIMS)
        }
        if late:
            asking.add(late.grant)
        recent = {event.grant for event in store.history[-4:]}
        minted = frozenset(
            new[grant]
            for grant in state.minted & asking
            # What nobody was told may be granted anew once the history tells it no more.
            if grant in recent or _was_told(clients, grant)
        )
        over = frozenset(new[late.grant] for late in [late] if late and late.grant in state.over)
        store = Store(
            LATEST if issued else 0,
            store.lock and store.lock._replace(lasts=_LASTS[store.lock.lasts]),
            store.info and Info(new[store.info.grant], _rank(store.info.token, issued)),
            tuple(new[grant] for grant in store.queue),
            _short(store.history, asking, new, issued),
        )
        if late:
            late = late._replace(grant=new[late.grant])
        clients = tuple(
            client._replace(number=0) if client.number else client for client in clients
        )
        return State(store, clients, late, minted, over)


def _names(
    clients: tuple[Client, ...], store: Store, late: Late | None
) -> dict[Grant | None, Grant]:
    """New names for the grants that anything knows of: 0 for a client's own, then in order."""
    new: dict[Grant | None, Grant] = {}
    for who, client in enumerate(clients):
        if client.phase not in (IDLE, DEAD):
            new[Grant(who, client.number)] = Grant(who, 0)
    others = [
        *store.queue,
        *([late.grant] if late else []),
        *([store.info.grant] if store.info else []),
    ]
    for grant in others:
        if grant not in new:
            used = sum(1 for each in new.values() if each.holder == grant.holder and each.number)
            new[grant] = Grant(grant.holder, used + 1)
    return new


_LASTS = {TTL: TTL, CLAIM: TTL, FOR_EVER: FOR_EVER}


def _short_client(client: Client, issued: int, queued: bool) -> Client:
    phase, number, token, doubt, hears, inbox = client
    doubt = doubt and phase == ASKS
    if phase in (IDLE, DEAD):
        return Client(phase, hears=hears and queued)
    hears = hears and (queued or phase in (JOINS, WAITS, CLAIMS, GIVES_BACK))
    return Client(phase, number, _rank(token, issued), doubt, hears, _rank(inbox, issued))


def _was_told(clients: tuple[Client, ...], grant: Grant) -> bool:
    client = clients[grant.holder]
    return client.number == grant.number and client.token > 0


def _age(state: State, grant: Grant) -> int:
    """How many events ago something was written of a grant; 0 if it is new."""
    for age, event in enumerate(reversed(state.store.history)):
        if event.grant == grant:
            return age
    info = state.store.info
    return 4 if grant in state.minted or (info and info.grant == grant) else 0


def _rank(token: int, issued: int) -> int:
    return 0 if not token else LATEST if token == issued else STALE


def _short(
    history: tuple[Event, ...],
    asking: set[Grant],
    new: dict[Grant | None, Grant],
    issued: int,
) -> tuple[Event, ...]:
    """The last events, as far as every acquire looks back, without what nobody asks for."""
    kept = [
        Event(event.event, _rank(event.token, issued), new[event.grant])
        if event.grant in asking
        else _ANOTHER
        for event in history[-4:]
    ]
    while kept and kept[0] is _ANOTHER:
        del kept[0]
    return tuple(kept)


_ANOTHER = Event("another", 0, None)


def _forgotten(store: Store, late: Late) -> bool:
    """Whether a copy of a call comes so late that the history does not tell its end any more.

    It then holds the name for a ttl, as is documented, and nobody believes in it.
    """
    known = late.grant in store.queue or (store.info and store.info.grant == late.grant)
    return late.script == "acquire" and late.age >= 4 and not known


def _named(state: State) -> Iterator[Grant]:
    """All grants that anything knows of."""
    yield from state.store.queue
    if state.store.info:
        yield state.store.info.grant
    if state.late:
        yield state.late.grant
    for who, client in enumerate(state.clients):
        if client.phase not in (IDLE, DEAD):
            yield Grant(who, client.number)


def _with(clients: tuple[Client, ...], who: int, client: Client) -> tuple[Client, ...]:
    return (*clients[:who], client, *clients[who + 1 :])


def _check_grant(state: State, done: Done, grant: Grant) -> None:
    """A grant is new, larger, one of a kind, and nobody's turn was before."""
    if done.store.issued <= LATEST:
        raise Broken(f"the token falls: {done.store.issued} after {LATEST}")
    if grant in state.minted:
        raise Broken(f"{grant.holder} gets a second token for one grant")
    if grant in state.over:
        raise Broken(f"{grant.holder} gets a token for a grant that has ended")
    queue = state.store.queue
    before = queue[: queue.index(grant)] if grant in queue else queue
    passed = [other.holder for other in before if state.clients[other.holder].hears]
    if passed:
        raise Broken(f"{grant.holder} overtakes {passed[0]}")
    if any(other.kind == "GRANT" and other.grant != grant for other in done.told):
        raise Broken(f"{grant.holder} has it, and another is told so")


def _check_line(before: Store, after: Store, joins: Grant | None) -> None:
    """The line keeps its order, and who joins stands at its end."""
    kept = tuple(grant for grant in before.queue if grant in after.queue)
    expected = (*kept, joins) if joins in after.queue else kept
    if after.queue != expected:
        raise Broken(f"the line {before.queue} became {after.queue}")
