"""Planted bugs of this folder: durabilities that promise more, or ask less, than they should."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from fencer import (
    Fsynced,
    NotDurable,
    Replicated,
    StoreError,
    _protocol,
    _wire,
    durability,
    embedded,
)
from fencer._lease import BaseLease
from fencer._protocol import Granted, Protocol
from fencer._steps import Call, Confirm, text
from fencer._wire import AsyncWire, Wire, _AsyncLoan
from tests.faults.planted import in_script

# What is asked


def asks_nothing(patch: pytest.MonkeyPatch) -> None:
    """Nothing is asked about a grant."""
    patch.setattr(Protocol, "_confirm", lambda core, status, at_most: None)


def asks_everybody(patch: pytest.MonkeyPatch) -> None:
    """A replica is waited for even if no durability is wanted."""
    plain = durability.confirm

    def confirm(wanted: Any, status: str, at_most: float) -> Confirm | None:
        return plain(wanted or (Replicated(1),), status, at_most)

    patch.setattr(durability, "confirm", confirm)


def asks_about_the_first_grant_alone(patch: pytest.MonkeyPatch) -> None:
    """A client that has asked once asks no more."""
    plain = Protocol._confirm
    known: list[Protocol] = []

    def confirm(core: Protocol, status: str, at_most: float) -> Confirm | None:
        if core in known:
            return None
        known.append(core)
        return plain(core, status, at_most)

    patch.setattr(Protocol, "_confirm", confirm)


def asks_nothing_in_line(patch: pytest.MonkeyPatch) -> None:
    """What was handed over is claimed, and nothing is asked about it."""
    plain = Protocol._confirm

    def confirm(core: Protocol, status: str, at_most: float) -> Confirm | None:
        return None if status == "RENEWED" else plain(core, status, at_most)

    patch.setattr(Protocol, "_confirm", confirm)


def asks_whatever_came(patch: pytest.MonkeyPatch) -> None:
    """The question is asked even if the script has granted nothing."""
    for name in ("confirmed", "confirmed_async"):
        plain = getattr(_wire, name)

        def confirmed(
            connection: Any, confirm: Confirm, reply: Any, driver: Any, plain: Any = plain
        ) -> Any:
            return plain(connection, replace(confirm, status=text(reply[0])), reply, driver)

        patch.setattr(_wire, name, confirmed)


def asks_elsewhere(patch: pytest.MonkeyPatch) -> None:
    """The question goes out on another connection than the script."""
    plain = Wire.call

    def call(wire: Wire, call: Call) -> Any:
        if call.confirm is None:
            return plain(wire, call)
        with wire.lent(None) as other:
            reply = plain(wire, replace(call, confirm=None))
            return _wire.confirmed(other, call.confirm, reply, wire.driver)

    patch.setattr(Wire, "call", call)


def takes_any_connection(patch: pytest.MonkeyPatch) -> None:
    """The answer counts, whether or not the connection is still the one of the script."""
    patch.setattr(_wire, "_check_same", lambda connection, stream: None)


def ignores_durable(patch: pytest.MonkeyPatch) -> None:
    """``durable=True`` makes no difference to a renew or a release."""
    renewing, releasing = BaseLease._renewing, BaseLease._releasing
    patch.setattr(BaseLease, "_renewing", lambda lease, ttl, durable=False: renewing(lease, ttl))
    patch.setattr(BaseLease, "_releasing", lambda lease, durable=False: releasing(lease))


def every_renew_is_durable(patch: pytest.MonkeyPatch) -> None:
    """Each renew waits for the replicas, whether that was asked for or not."""
    plain = BaseLease._renewing
    patch.setattr(BaseLease, "_renewing", lambda lease, ttl, durable=False: plain(lease, ttl, True))


def asks_no_release_again(patch: pytest.MonkeyPatch) -> None:
    """A release that is asked again is durable because it was carried out before."""

    def confirm_release(core: Protocol, lease: Granted) -> Iterator[Any]:
        yield from ()

    patch.setattr(Protocol, "confirm_release", confirm_release)


# How long it takes


def waits_out_the_ttl(patch: pytest.MonkeyPatch) -> None:
    """The server is given the time that was asked for, however little is left of the lease."""
    patch.setattr(durability, "_times", lambda wanted, at_most: [one.timeout for one in wanted])


def waits_as_for_a_read(patch: pytest.MonkeyPatch) -> None:
    """The answer to a question must come as soon as any other."""
    patch.setattr(_wire, "_patience", lambda connection, confirm: connection.socket_timeout)


def waits_in_one_queue(patch: pytest.MonkeyPatch) -> None:
    """A call waits for its turn behind the grants that wait for a replica, and soon gives up."""

    class Loan(_AsyncLoan):
        async def __aenter__(self) -> Any:
            try:
                async with asyncio.timeout(0.1):
                    return await super().__aenter__()
            except TimeoutError as error:
                raise StoreError("no free turn") from error

    def lent(
        wire: AsyncWire, script: Any, kept: Any = None, confirm: Any = None, urgent: Any = None
    ) -> Any:
        kind = Loan if confirm is None else _AsyncLoan
        return kind(wire.client.connection_pool, wire.driver, script, kept, wire._at_once, urgent)

    patch.setattr(AsyncWire, "lent", lent)


# What an answer means


def looks_at_no_answer(patch: pytest.MonkeyPatch) -> None:
    """What was asked is safe, whatever the server says."""
    patch.setattr(durability, "judge", lambda wanted, answers, asked, what: None)


def takes_a_refusal_for_an_answer(patch: pytest.MonkeyPatch) -> None:
    """A question that is refused leaves the grant safe."""
    plain = durability._told
    patch.setattr(
        durability, "_told", lambda answer: 9 if isinstance(answer, StoreError) else plain(answer)
    )


def one_replica_will_do(patch: pytest.MonkeyPatch) -> None:
    """One replica is asked for, where more are wanted."""
    plain = Replicated._questions
    patch.setattr(Replicated, "_questions", lambda one, seconds: plain(Replicated(1), seconds))
    patch.setattr(Replicated, "_reached", lambda one, answers: (1, int(durability._told(*answers))))


def one_more_must_follow(patch: pytest.MonkeyPatch) -> None:
    """More replicas must have it than were asked for."""
    plain = Replicated._reached
    patch.setattr(
        Replicated, "_reached", lambda one, answers: (one.replicas + 1, plain(one, answers)[1])
    )


def just_as_many_must_follow(patch: pytest.MonkeyPatch) -> None:
    """A replica that has it beside those that were asked for is one too many."""
    plain = Replicated._reached

    def reached(one: Replicated, answers: list[Any]) -> tuple[int, int]:
        wanted, number = plain(one, answers)
        return wanted, number if number == wanted else 0

    patch.setattr(Replicated, "_reached", reached)


def the_disk_will_do(patch: pytest.MonkeyPatch) -> None:
    """Where both are wanted, the replicas are not looked at."""
    patch.setattr(Replicated, "_reached", lambda one, answers: (0, 0))


def takes_replicas_for_the_disk(patch: pytest.MonkeyPatch) -> None:
    """Of the two numbers that ``WAITAOF`` answers it reads the other one."""
    patch.setattr(Fsynced, "_reached", lambda one, answers: (1, int(answers[-1][1])))


def wants_an_answer_of_all(patch: pytest.MonkeyPatch) -> None:
    """What was not asked about, for it was refused, is not durable."""
    plain = _protocol._ask

    def ask(call: Call, *rest: Any) -> Any:
        reply, answers, doubtful = yield from plain(call, *rest)
        if call.confirm is not None and answers is None:
            raise NotDurable("orders", 1, 1, 0, call.confirm.seconds)
        return reply, answers, doubtful

    patch.setattr(_protocol, "_ask", ask)


# What is made of it


def claims_nothing(patch: pytest.MonkeyPatch) -> None:
    """A grant that was asked for again, or came late, is taken as it is."""

    def claimed(core: Protocol, granted: Granted) -> Any:
        yield from ()
        return replace(granted, deadline=core.clock() + core.belief(granted.ttl_ms))

    patch.setattr(Protocol, "_claimed", claimed)


def doubts_every_repetition(patch: pytest.MonkeyPatch) -> None:
    """A call that was never sent is taken for one that may arrive."""
    plain = _protocol._again

    def again(*args: Any, **options: Any) -> Any:
        outcome, _ = yield from plain(*args, **options)
        return outcome, True

    patch.setattr(_protocol, "_again", again)


def fails_to_give_back(patch: pytest.MonkeyPatch) -> None:
    """A failure to give back hides why it was given back."""

    def cancel(core: Protocol, release: Call) -> Iterator[Any]:
        yield release

    patch.setattr(Protocol, "_cancel", cancel)


# Which servers are relied upon


def relies_on_every_server(patch: pytest.MonkeyPatch) -> None:
    """What ``WAITAOF`` says is believed, whoever says it and whatever is set."""
    patch.setattr(durability, "_trusted", lambda known, setting: None)


def relies_on_no_everysec(patch: pytest.MonkeyPatch) -> None:
    """A server must sync at each write, even if its ``WAITAOF`` waits for the next sync."""
    plain = durability._trusted
    patch.setattr(durability, "_trusted", lambda known, setting: plain(("", ()), setting))


def relies_on_what_was_set(patch: pytest.MonkeyPatch) -> None:
    """A server whose setting was right once is not looked at again."""
    plain = durability._trusted
    known: list[Any] = []

    def trusted(server: Any, setting: Any) -> None:
        if server not in known:
            plain(server, setting)
            known.append(server)

    patch.setattr(durability, "_trusted", trusted)


def reads_no_map(patch: pytest.MonkeyPatch) -> None:
    """A setting that comes as a map is none."""
    plain = durability._trusted

    def trusted(server: Any, setting: Any) -> None:
        plain(*((("", ()), []) if isinstance(setting, dict) else (server, setting)))

    patch.setattr(durability, "_trusted", trusted)


def says_it_in_the_servers_words(patch: pytest.MonkeyPatch) -> None:
    """What is missing on the server is not explained."""
    patch.setattr(durability, "_without_waitaof", lambda error, known: error)


# The server, and the scripts


def always_is_when_it_suits(patch: pytest.MonkeyPatch) -> None:
    """A server that is to sync at each write leaves it to the system when to do so."""
    options = {**embedded._PERSISTENCE["aof-always"], "appendfsync": "no"}
    patch.setitem(embedded._PERSISTENCE, "aof-always", options)


def writes_no_token(patch: pytest.MonkeyPatch) -> None:
    """A grant tells its token to the caller, and the token key does not hear of it."""
    in_script(
        patch,
        "acquire",
        "redis.call('SET', token, text, 'PX', tonumber(full_ms) > tonumber(keep_ms) and full_ms",
        "redis.call('PEXPIRE', token, tonumber(full_ms) > tonumber(keep_ms) and full_ms",
    )


def heals_no_lock(patch: pytest.MonkeyPatch) -> None:
    """A lease whose lock key has gone is lost, whoever was granted since."""
    in_script(
        patch,
        "renew",
        "if issued ~= mine then\n    answer",
        "if issued ~= mine or not held_by then\n    answer",
    )
