"""Counts what a server is asked, and what its scripts run: by ``INFO commandstats``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ASKED_FOR = (
    "eval",
    "script",
    "subscribe",
    "unsubscribe",
    "ping",
    "hello",
    "client",
    "auth",
    "select",
)
"""How the commands begin that a client sends; our scripts use none of them."""

_OBSERVING = ("info", "multi", "exec", "xinfo")
"""The commands of which a look at the server is made; our scripts use none of them."""


@dataclass(frozen=True, slots=True)
class Commands:
    """How often each command was run.

    Attributes:
        calls: by the command's name, in lower case.
    """

    calls: dict[str, int]

    @classmethod
    def of(cls, peer: Any) -> Commands:
        """All that a server has run so far."""
        return cls.told(peer.info("commandstats"))

    @classmethod
    def told(cls, info: Mapping[str, Any]) -> Commands:
        """The same from an answer to ``INFO commandstats``."""
        return cls({name.removeprefix("cmdstat_"): each["calls"] for name, each in info.items()})

    def since(self, before: Commands) -> Commands:
        """What was run since, without the looks at the server themselves."""
        return Commands(
            {
                command: calls - before.calls.get(command, 0)
                for command, calls in sorted(self.calls.items())
                if calls > before.calls.get(command, 0) and not command.startswith(_OBSERVING)
            }
        )

    @property
    def requests(self) -> int:
        """Those that clients sent."""
        return sum(calls for command, calls in self.calls.items() if command.startswith(_ASKED_FOR))

    @property
    def inside(self) -> int:
        """Those that scripts ran."""
        return sum(self.calls.values()) - self.requests
