"""What an election is, apart from how it runs."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from fencer import _check
from fencer._client import BaseFencer
from fencer._lease import BaseLease
from fencer.election._core import Campaign, Settings

L = TypeVar("L", bound=BaseLease)


class BaseElection(Generic[L]):
    """The settings and the state; `Election` and `AsyncElection` add the running."""

    def __init__(
        self, client: BaseFencer, settings: Settings, info: Mapping[str, Any] | None
    ) -> None:
        self._client = client
        self._settings = settings
        self._info = _check.info(info)
        self._campaign = Campaign(settings, client.holder)

    @property
    def name(self) -> str:
        """The name of the lease that the leader holds."""
        return self._settings.name

    @property
    def instance_id(self) -> str:
        """The readable id of the candidate: the holder id of its client."""
        return self._campaign.instance_id

    @property
    def is_leader(self) -> bool:
        """Whether this candidate leads, and may still believe so. It asks nobody.

        A leader that steps down leads no more from before ``on_lost`` is called.
        """
        return self._leading() is not None

    @property
    def lease(self) -> L | None:
        """The lease of the leader, with the token for its writes; ``None`` for a follower.

        It is there until ``on_lost`` has come to its end.
        """
        lease: L | None = self._campaign.lease
        return lease

    def _leading(self) -> L | None:
        campaign = self._campaign
        lease: L | None = campaign.lease
        return lease if lease is not None and campaign.leading and lease.valid else None

    def leader_only(
        self, task: Callable[..., Any], *, name: str | None = None
    ) -> Callable[..., Any]:
        """Make a function run on the leader only, with the lease as its first argument.

        Elsewhere it is skipped with a line in the log, and returns ``None``. The lease can still be
        lost while it runs: pass ``lease`` to the guards of what it writes. A coroutine function
        stays one. Works as a decorator.

        Args:
            task: the function.
            name: what the log calls it; by default its own name.
        """
        name = name or getattr(task, "__name__", repr(task))

        def admitted() -> L | None:
            lease = self._leading()
            if lease is None:
                self._campaign.log(
                    logging.INFO, "Skipping task execution - not the leader", task=name
                )
                return None
            self._campaign.log(
                logging.INFO, f"Leader executing scheduled task task={name}", token=lease.token
            )
            return lease

        if inspect.iscoroutinefunction(task):

            @functools.wraps(task)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                lease = admitted()
                return None if lease is None else await task(lease, *args, **kwargs)

            return run_async

        @functools.wraps(task)
        def run(*args: Any, **kwargs: Any) -> Any:
            lease = admitted()
            return None if lease is None else task(lease, *args, **kwargs)

        return run
