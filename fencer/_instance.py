"""One replica of a service: a candidate for the lead, and a job that only the leader does.

This is what ``fencer instance`` runs and the drills harm. It keeps a record of what it believed and
when, on the clock that all processes of one machine share, so that others can judge it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

import redis

from fencer import _clock
from fencer.client import Fencer, Lease
from fencer.election import Election
from fencer.election._signals import asked_to_stop
from fencer.errors import StaleToken, StoreError, StoreUnavailable
from fencer.guards import RedisGuard
from fencer.records import Leader

TASK = "CleanupJob"

_WRITES_KEPT = 100_000

logger = logging.getLogger("fencer.instance")


@dataclass(frozen=True, slots=True)
class Settings:
    """How one replica behaves; times in seconds.

    Attributes:
        name: what is led.
        namespace, hash_tag: how the keys of the job's data begin, as for the leases.
        ttl, heartbeat, retry_interval: as for `fencer.Election`.
        every: how often the job is due.
        work: how long the job takes between its look at the lead and its write.
    """

    name: str = "leader"
    namespace: str = "fencer"
    hash_tag: bool = True
    ttl: float = 10.0
    heartbeat: float | None = None
    retry_interval: float = 2.0
    every: float = 1.0
    work: float = 0.0


class Record:
    """What happened when, one line of JSON each, by ``CLOCK_MONOTONIC``.

    Args:
        file: where to; ``None`` keeps no record.
        instance_id: who writes it.
    """

    def __init__(self, file: TextIO | None, instance_id: str) -> None:
        self._file = file
        self._instance_id = instance_id
        self._writing = threading.Lock()

    def add(self, event: str, *, at: float | None = None, **fields: Any) -> None:
        """Write an event that happened just now, or ``at`` the time given."""
        if self._file is None:
            return
        entry = {
            "at": now() if at is None else at,
            "event": event,
            "instance": self._instance_id,
            "pid": os.getpid(),
            **fields,
        }
        with self._writing:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()


def now() -> float:
    """The time that all processes of this machine share, in seconds."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


class Writes:
    """The data that the job writes: a stream of all writes that landed, and their number.

    Both are written in one step, through a guard, so the stream shows in which order tokens came.

    Args:
        client: the server that has them.
        settings: where on it.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        stem = f"{{{settings.name}}}" if settings.hash_tag else settings.name
        self.stream = f"{settings.namespace}:{stem}:writes"
        self.count = f"{settings.namespace}:{stem}:runs"
        self.guard = RedisGuard(
            client, TASK, name=settings.name, namespace=settings.namespace, tag=settings.name
        )

    def add(self, lease: Lease, instance_id: str) -> None:
        """Write once, if the lease's token is not stale."""
        fields = "instance", instance_id, "token", lease.token, "at", f"{now():.6f}"
        self.guard.transaction(
            lease,
            [
                ("XADD", self.stream, "MAXLEN", "~", _WRITES_KEPT, "*", *fields),
                ("INCR", self.count),
            ],
        )


class Instance:
    """The replica. `run` is its life.

    Args:
        fencer: the client; its holder id is the instance's id.
        data: the server that has the job's data.
        settings: see there.
        events: where the record goes.
    """

    def __init__(
        self, fencer: Fencer, data: redis.Redis, settings: Settings, events: TextIO | None = None
    ) -> None:
        self._settings = settings
        self._fencer = fencer
        self._writes = Writes(data, settings)
        self._record = Record(events, fencer.holder)
        self._lease: Lease | None = None
        self._believed = 0.0
        self.election = Election(
            fencer,
            settings.name,
            ttl=settings.ttl,
            heartbeat=settings.heartbeat,
            retry_interval=settings.retry_interval,
            info=_about(fencer),
            guards=[self._writes.guard],
            on_elected=self._elected,
            on_lost=self._lost,
            on_leader_change=self._leader_changed,
        )
        self._job = self.election.leader_only(self._clean_up, name=TASK)

    def run(self) -> None:
        """Campaign and do the job when it is due, until SIGTERM or SIGINT; a second one kills."""
        with asked_to_stop() as wait:
            self._record.add("started", **_times(self._settings))
            self.election.start()
            due = time.monotonic()
            while not wait(max(0.0, due - time.monotonic())):
                self._job()
                due = max(due + self._settings.every, time.monotonic())
            self._log(logging.INFO, "Scheduler stopped successfully")
            self.election.stop()
            self._record.add("stopped")

    def _clean_up(self, lease: Lease) -> None:
        """The job. Whoever is paused in here comes back with an old token."""
        begun = now()
        time.sleep(self._settings.work)
        told: dict[str, Any] = {"token": lease.token, "begun": begun}
        try:
            self._writes.add(lease, self._fencer.holder)
        except StaleToken as error:
            self._record.add("job", outcome="refused", highest=error.highest, **told)
            self._log(logging.WARNING, f"The guard refused the write task={TASK}", error=error)
        except StoreError as error:
            unknown = isinstance(error, StoreUnavailable) and error.maybe_applied
            self._record.add("job", outcome="unknown" if unknown else "failed", **told)
            self._log(logging.WARNING, f"The write failed task={TASK}", error=error)
        else:
            self._record.add("job", outcome="ok", **told)

    def _elected(self, lease: Lease) -> None:
        self._lease, self._believed = lease, now()
        self._record.add("elected", at=self._believed, token=lease.token)

    def _lost(self, reason: str) -> None:
        told = now()
        assert self._lease is not None
        token, deadline = self._lease.token, _deadline(self._lease)
        self._lease = None
        self._record.add("lost", at=told, token=token, reason=reason)
        self._record.add("believed", begun=self._believed, ended=min(told, deadline), token=token)

    def _leader_changed(self, leader: Leader) -> None:
        self._record.add("leader_change", leader=leader.holder, token=leader.token)

    def _log(self, level: int, message: str, **fields: object) -> None:
        fields = {"instance_id": self._fencer.holder, **fields}
        shown = " ".join(f"{key}={value}" for key, value in fields.items())
        logger.log(level, "%s %s", message, shown, extra=fields)


def _about(fencer: Fencer) -> dict[str, Any]:
    """What ``GET …:info`` shows first."""
    return {
        "instance_id": fencer.holder,
        "hostname": os.uname().nodename,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _times(settings: Settings) -> dict[str, float]:
    return {
        "ttl": settings.ttl,
        "retry_interval": settings.retry_interval,
        "every": settings.every,
        "work": settings.work,
    }


def _deadline(lease: Lease) -> float:
    """When the belief in the lease ends by itself, on the clock of the record."""
    return now() + lease._deadline - _clock.now()
