"""Jobs of APScheduler 3 that run on the leader only. Needs the extra ``apscheduler``.

A scheduler whose jobs run on the leader, but for those with ``executor="everywhere"``::

    scheduler = BackgroundScheduler(
        executors={"default": LeaderExecutor(election), "everywhere": ThreadPoolExecutor()}
    )
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from apscheduler.executors.base import BaseExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.job import Job

from fencer.election import AsyncElection, Election


class LeaderExecutor(BaseExecutor):  # type: ignore[misc]
    """Passes a job that is due on to another executor, if this candidate leads.

    Elsewhere the job is skipped with a line in the log, and counts as submitted. The lead can still
    be lost before the job has run: let it pass ``election.lease`` to the guards of what it writes.

    Args:
        election: whose leader runs the jobs. You start and stop it.
        executor: what runs them; by default a pool of ten threads.
    """

    def __init__(
        self, election: Election | AsyncElection, executor: BaseExecutor | None = None
    ) -> None:
        super().__init__()
        self._election = election
        self._executor = ThreadPoolExecutor() if executor is None else executor

    def start(self, scheduler: Any, alias: str) -> None:
        """Start the other executor."""
        super().start(scheduler, alias)
        self._executor.start(scheduler, alias)

    def shutdown(self, wait: bool = True) -> None:
        """Shut the other executor down."""
        self._executor.shutdown(wait)

    def submit_job(self, job: Job, run_times: list[datetime]) -> None:
        """Run the job, or skip it."""
        self._election.leader_only(
            lambda _: self._executor.submit_job(job, run_times), name=job.name
        )()

    def _do_submit_job(self, job: Job, run_times: list[datetime]) -> None:
        raise AssertionError("the other executor does this")
