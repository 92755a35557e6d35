"""The keys of a name. No other module builds one.

``fencer:{orders}:lock`` and its siblings share the hash tag ``{orders}``, and so one slot of a
cluster. Without the braces (``hash_tag=False``, for people with names of their own, such as
``maplefile:leader:lock``) the keys of one name fall into different slots, which excludes Cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fencer import _check


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one name."""

    lock: str
    token: str
    info: str
    history: str
    queue: str
    waiters: str


@dataclass(frozen=True, slots=True)
class Keyspace:
    """Builds the keys of all names in one namespace, and finds names in keys."""

    namespace: str = "fencer"
    hash_tag: bool = True
    _before: str = field(init=False, repr=False)
    _after: str = field(init=False, repr=False)
    _latest: tuple[str, Keys] = field(
        init=False, repr=False, compare=False, default=("", Keys("", "", "", "", "", ""))
    )

    def __post_init__(self) -> None:
        _check.name(self.namespace, "namespace")
        object.__setattr__(self, "_before", f"{self.namespace}:{'{' if self.hash_tag else ''}")
        object.__setattr__(self, "_after", f"{'}' if self.hash_tag else ''}:")

    def of(self, name: str) -> Keys:
        """The keys of ``name``, which has been checked."""
        latest, keys = self._latest
        if latest != name:
            stem = f"{self._before}{name}{self._after}"
            keys = Keys(*(stem + last for last in Keys.__slots__))
            object.__setattr__(self, "_latest", (name, keys))  # most calls ask for it again
        return keys

    def pattern(self) -> str:
        """A ``SCAN`` pattern that matches the token key of every name."""
        return f"{_escaped(self._before)}*{self._after}token"

    def whole(self) -> str:
        """A ``SCAN`` pattern that matches every key of the namespace, guards' marks included."""
        return f"{_escaped(self.namespace)}:*"

    def read(self, key: str) -> tuple[str, str] | None:
        """The name and the kind of a key, such as ``("orders", "lock")``; ``None`` if not ours.

        Of a guard's mark: the key itself, and ``guard``.
        """
        stem, _, kind = key.rpartition(f"{self._after}")
        name = stem.removeprefix(self._before)
        if kind in Keys.__slots__ and name != stem and name and not set("{}") & set(name):
            return name, kind
        if key.startswith(f"{self.namespace}:{{") and (
            key.endswith("}:guard") or "}:guard:" in key
        ):
            return key, "guard"
        return None

    def name_in(self, token_key: str) -> str:
        """The name whose token key this is."""
        return token_key.removeprefix(self._before).removesuffix(f"{self._after}token")

    def channel(self, client_id: str, name: str | None = None) -> str:
        """The channel on which one client hears of the grants that it waits for.

        With a name it is in the name's slot, and the scripts publish to it within its shard.
        """
        if name is None:
            return f"{self.namespace}:wake:{client_id}"
        return f"{self._before}{name}{self._after}wake:{client_id}"

    def mark(self, resource: str, tag: str | None) -> str:
        """The key of a guard's mark; with a tag it shares the slot of the keys it protects."""
        if tag is None:
            return f"{self.namespace}:{{{resource}}}:guard"
        return f"{self.namespace}:{{{tag}}}:guard:{resource}"


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "*?[]^-\\" else letter for letter in text)
