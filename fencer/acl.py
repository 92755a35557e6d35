"""The smallest set of ACL rules under which Fencer works, for ``fencer acl`` and for programs.

Which commands the scripts call is read from their headers, and which keys and channels there are is
asked of `fencer._keys`, so that no list here can be forgotten when either changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from fencer import _check
from fencer._keys import Keys, Keyspace
from fencer._scripts import load
from fencer.errors import InvalidArgument

_LEASES = ("acquire", "renew", "release", "inspect", "revoke", "advance")
"""The scripts behind leases, waits and elections."""

_PLAIN = ("eval", "evalsha", "subscribe")
"""What is sent as a command of its own. Logging in needs no permission."""

_ANY = "\0"
"""Stands for a name while a pattern is made; no name can have it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a user of the server must be allowed, and nothing else.

    Attributes:
        keys: patterns of keys, to be read and written.
        channels: patterns of channels.
        commands: commands, in small letters.
    """

    keys: tuple[str, ...]
    channels: tuple[str, ...]
    commands: tuple[str, ...]

    def words(self) -> list[str]:
        """The rules as ``ACL SETUSER`` takes them, each a word; passwords are left as they are."""
        return [
            *("on", "resetkeys", "resetchannels", "nocommands"),
            *(f"~{pattern}" for pattern in self.keys),
            *(f"&{pattern}" for pattern in self.channels),
            *(f"+{command}" for command in self.commands),
        ]

    def line(self, user: str) -> str:
        """The whole command for ``redis-cli``."""
        return " ".join(["ACL", "SETUSER", *map(_quoted, [user, *self.words()])])

    def as_dict(self) -> dict[str, Any]:
        """The same as a plain dict, fit for JSON."""
        return {key: list(value) for key, value in asdict(self).items()} | {"rules": self.words()}


def rules(
    namespace: str = "fencer",
    *,
    hash_tag: bool = True,
    prefix: str = "",
    guards: bool = False,
    listing: bool = True,
    replicated: bool = False,
    fsynced: bool = False,
    cluster: bool = False,
    db: int = 0,
) -> Rules:
    """Return the rules for a client of the leases in one namespace.

    Args:
        namespace: how the keys begin.
        hash_tag: whether they have braces.
        prefix: only names that begin so.
        guards: `RedisGuard`, too. The keys of your data, and the commands on them, come on top.
        listing: allow ``SCAN``, for `Fencer.names`, ``fencer ls`` and ``fencer doctor``. It shows
            the names of all keys on the server: no rule can narrow it.
        replicated: allow what `Replicated` asks the server.
        fsynced: allow what `Fsynced` asks it; servers before 7.2 do not know the command.
        cluster: allow what a Cluster asks for on top; its user is to be made on each node. Redis
            6.2 does not know sharded channels: leave out what it refuses.
        db: the number of the database that the URL names; other than 0, it must be selected.

    Raises:
        InvalidArgument: an argument is not allowed, or cannot be written as a rule.
    """
    keyspace = Keyspace(namespace, hash_tag)
    if prefix:
        _check.name(prefix, "prefix")
    _check.integer("db", db, 0, 2**31 - 1)
    if re.search(r"\s", namespace + prefix):
        raise InvalidArgument(
            f"the server's ACL takes no pattern with a space in it, as {namespace + prefix!r} has"
        )
    own = keyspace.of(_ANY)
    keys = [getattr(own, kind) for kind in Keys.__slots__]
    scripts, plain = list(_LEASES), list(_PLAIN)
    if guards:
        keys += [keyspace.mark(_ANY, None), keyspace.mark(_ANY + _ANY, _ANY)]
        scripts.append("guard")
        plain.append("hget")
    if listing:
        plain.append("scan")
    if replicated:
        plain.append("wait")
    if fsynced:
        plain += ("waitaof", "info", "config|get")
    channels = [keyspace.channel(_ANY)]
    if cluster:
        plain += ("asking", "cluster|slots", "command")
        plain += ("spublish", "ssubscribe", "sunsubscribe")
        channels.append(keyspace.channel(_ANY, _ANY))
    if db:
        plain.append("select")
    called = {command for script in scripts for command in _called(script)}
    return Rules(
        keys=tuple(_pattern(key, prefix) for key in keys),
        channels=tuple(_pattern(channel, "") for channel in channels),
        commands=tuple(sorted(called.union(plain))),
    )


def _called(script: str) -> Iterable[str]:
    """The commands that a script calls, by the table CALLS of its header."""
    header = load(script).body.decode().partition("\n\n")[0]
    table = header.partition("-- CALLS\n")[2].partition("\n-- IDEMPOTENT")[0]
    for row in table.splitlines():
        calls = re.split(r" {2,}", row)[-1]
        yield from (word.lower() for word in re.findall(r"\b[A-Z]{2,}\b", calls))


def _pattern(key: str, prefix: str) -> str:
    """A glob for all keys like this one, whatever their name is."""
    escaped = "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in key)
    begins = "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in prefix)
    # Two stand for a name on which the prefix does not bear: a tag is a name, a resource is not.
    return escaped.replace(_ANY + _ANY, "*").replace(_ANY, f"{begins}*")


def _quoted(word: str) -> str:
    """A word as ``redis-cli`` and configuration files read it."""
    if re.fullmatch(r"[^\s\"'\\]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
