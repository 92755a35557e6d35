"""Whether a user of the server may do what leases need.

The user of the connection is tried: each command is sent in a form that changes nothing, for the
server looks at permissions before anything else. Any other user is asked about by ACL DRYRUN.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Iterator, Sequence
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


_TRIED = 50
"""Names that are tried at most, to find one that the user may use."""


def permissions(
    node: Node,
    keyspace: Keyspace,
    user: str | None = None,
    prefix: str = "",
    known: Sequence[str] = (),
    *,
    cluster: bool = False,
) -> Iterator[Finding]:
    """The commands that leases need, on keys and a channel of a name that nobody has.

    Args:
        node: the server.
        keyspace: how the keys are called.
        user: who is meant; by default the user of the connection.
        prefix: what the user's names begin with.
        known: names that begin so, in use and read by this connection: such as begin like them
            are tried, too.
        cluster: whether it is a node of a Cluster.

    Raises:
        NotSeen: the server refuses to answer; or there are only names to try that are in use.
    """
    allowed = _dry(node, user) if user else _tried(node)
    unused = f"doctor-{secrets.token_hex(8)}"
    some = known[:: max(1, len(known) // _TRIED)][:_TRIED]  # from all over the alphabet
    names = [prefix + unused, *(name + unused for name in some)]
    if user:
        names += some  # asking has no effect on them, and trying would
    for name in names:
        keys = keyspace.of(name)
        every = (getattr(keys, kind) for kind in Keys.__slots__)
        sample = next((key for key in every if allowed("get", (key,))), None)
        if sample is not None:
            break
    if sample is None and known and not user:
        raise NotSeen(
            f"this user may use {known[0]!r}, and none that begins so: what else it may do there "
            "cannot be tried without harm; ask about it as another user (--user)"
        )
    missing = []
    channel = keyspace.channel(secrets.token_hex(8))
    if sample is None:
        tried = "of names with that prefix" if prefix else "of any name that was tried"
        missing.append(f"GET, or the keys {tried}")
    else:
        missing += [
            f"keys *:{kind}"
            for kind in Keys.__slots__
            if not allowed("get", (getattr(keys, kind),))
        ]
        wanted = [c for c in rules(prefix=prefix).commands if c in PROBES and c != "scan"]
        filled = {KEY: sample, CHANNEL: channel}
        missing += [
            command.upper()
            for command in wanted
            if not allowed(command, tuple(filled.get(word, word) for word in PROBES[command]))
        ]
    who = user or "the user of this connection"
    which = " on such names" if sample is None else ""
    again = (
        f"`{_command(keyspace, user, prefix, cluster)}` prints the rules that it needs, for "
        "redis-cli; they take the place of those that it has."
    )
    if sample is None and not prefix:
        again += " If it is only for names that begin alike, pass --prefix there and here."
    if missing:
        yield Finding(
            "permissions",
            Severity.DANGER,
            node.address,
            f"{who[0].upper()}{who[1:]} is not allowed: {', '.join(missing)}.",
            f"Leases{which} are refused with NOPERM: at once, or in the middle of a wait or a "
            "release.",
            again,
        )
    elif not allowed("scan", PROBES["scan"]):
        yield Finding(
            "permissions",
            Severity.NOTE,
            node.address,
            f"{who[0].upper()}{who[1:]} is not allowed: SCAN.",
            "Leases work. Fencer.names(), `fencer ls` and this doctor's look at the leases do not.",
            again,
        )


def _command(keyspace: Keyspace, user: str | None, prefix: str, cluster: bool) -> str:
    """What prints the rules for such a user."""
    words = ["fencer", "acl", "--user", shlex.quote(user or "USER")]
    if prefix:
        words += ["--prefix", shlex.quote(prefix)]
    if keyspace.namespace != "fencer":
        words += ["--namespace", shlex.quote(keyspace.namespace)]
    if not keyspace.hash_tag:
        words.append("--no-hash-tag")
    return " ".join([*words, *(["--cluster"] if cluster else [])])


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
