"""Whether a user of the server may do what leases need.

The user of the connection is tried: each command is sent in a form that changes nothing, for the
server looks at permissions before anything else. Any other user is asked about by ACL DRYRUN.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import redis

from fencer._keys import Keys, Keyspace
from fencer._refusals import code_in
from fencer._steps import text
from fencer.acl import rules
from fencer.doctor._nodes import Node
from fencer.doctor._records import Finding, NotSeen, Severity
from fencer.errors import StoreError

KEY, CHANNEL = "KEY", "CHANNEL"

PROBES: dict[str, tuple[str, ...]] = {
    "del": (KEY,),
    "eval": ("return 1", "0"),
    "evalsha": ("0" * 40, "0"),
    "exists": (KEY,),
    "get": (KEY,),
    "hdel": (KEY, "x"),
    "hget": (KEY, "x"),
    "hmget": (KEY, "x"),
    "hset": (KEY, "x", "x", "x"),  # one word too many, which is seen after the permission
    "mget": (KEY,),
    "pexpire": (KEY, "1"),
    "pttl": (KEY,),
    "publish": (CHANNEL, ""),
    "scan": ("0", "COUNT", "1"),
    "set": (KEY, "", "XX"),
    "subscribe": (CHANNEL,),
    "time": (),
    "xadd": (KEY, "NOMKSTREAM", "*", "x", "x"),
    "xrevrange": (KEY, "+", "-", "COUNT", "1"),
    "zadd": (KEY, "XX", "1", "x"),
    "zcard": (KEY,),
    "zrange": (KEY, "0", "0"),
    "zrank": (KEY, "x"),
    "zrem": (KEY, "x"),
    "zrevrange": (KEY, "0", "0"),
    "zscore": (KEY, "x"),
}
"""What follows each command; on a key that does not exist, none of them has any effect."""


def permissions(node: Node, keyspace: Keyspace, user: str | None = None) -> Iterator[Finding]:
    """The commands that leases need, on keys and a channel of a name that nobody has."""
    keys = keyspace.of(f"doctor-{secrets.token_hex(8)}")
    allowed = _dry(node, user) if user else _tried(node)
    sample = next(
        (key for kind in Keys.__slots__ if allowed("get", (key := getattr(keys, kind),))), None
    )
    missing = []
    channel = keyspace.channel(secrets.token_hex(8))
    if sample is None:
        missing.append("any key of the namespace (or GET)")
    else:
        missing += [
            f"keys *:{kind}"
            for kind in Keys.__slots__
            if not allowed("get", (getattr(keys, kind),))
        ]
        wanted = [c for c in rules(keyspace.namespace).commands if c in PROBES and c != "scan"]
        filled = {KEY: sample, CHANNEL: channel}
        missing += [
            command.upper()
            for command in wanted
            if not allowed(command, tuple(filled.get(word, word) for word in PROBES[command]))
        ]
    name = user or "the user of this connection"
    again = f"`fencer acl --user {user or 'USER'}` prints the rules that it needs, for redis-cli."
    if missing:
        yield Finding(
            "permissions",
            Severity.DANGER,
            node.address,
            f"{name[0].upper()}{name[1:]} is not allowed: {', '.join(missing)}.",
            "Leases are refused with NOPERM: at once, or in the middle of a wait or a release.",
            again,
        )
    elif not allowed("scan", PROBES["scan"]):
        yield Finding(
            "permissions",
            Severity.NOTE,
            node.address,
            f"{name[0].upper()}{name[1:]} is not allowed: SCAN.",
            "Leases work. Fencer.names(), `fencer ls` and this doctor's look at the leases do not.",
            again,
        )


def _tried(node: Node) -> Callable[[str, tuple[str, ...]], bool]:
    def allowed(command: str, words: tuple[str, ...]) -> bool:
        if command == "subscribe":
            return _may_subscribe(node.client, words[0])
        try:
            node.ask(command.upper(), *words)
        except NotSeen as refused:
            # Whatever else is refused, the permission was there.
            cause = refused.__cause__
            return not (isinstance(cause, StoreError) and cause.code == "NOPERM")
        return True

    return allowed


def _may_subscribe(client: Any, channel: str) -> bool:
    with client.pubsub() as pubsub:
        try:
            pubsub.subscribe(channel)
            pubsub.get_message(timeout=2.0)
        except redis.RedisError as error:
            return code_in(str(error), getattr(error, "status_code", None)) != "NOPERM"
    return True


def _dry(node: Node, user: str) -> Callable[[str, tuple[str, ...]], bool]:
    def allowed(command: str, words: tuple[str, ...]) -> bool:
        return text(node.ask("ACL", "DRYRUN", user, command, *words)) == "OK"

    return allowed
