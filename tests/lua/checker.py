"""Holds the header of a script against its body, by reading both.

It knows as much of Lua as the scripts use: strings in single quotes, comments from ``--``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fencer import _check
from fencer.guards import _redis
from tests.lua.header import BadHeader, Header, parse, split

MOST_LINES = 280

COMMANDS_OF_6_2 = set(
    re.findall(
        r"\w+",
        """
    APPEND COPY DECR DECRBY DEL EXISTS EXPIRE EXPIREAT GET GETDEL GETEX GETRANGE GETSET HDEL HEXISTS
    HGET HGETALL HINCRBY HKEYS HLEN HMGET HSET HSETNX HVALS INCR INCRBY LINDEX LINSERT LLEN LMOVE
    LPOP LPOS LPUSH LPUSHX LRANGE LREM LSET LTRIM MGET MSET PERSIST PEXPIRE PEXPIREAT PSETEX PTTL
    PUBLISH RENAME RPOP RPUSH RPUSHX SADD SCARD SET SETNX SISMEMBER SMEMBERS SREM STRLEN TIME TTL
    TYPE UNLINK XADD XDEL XLEN XRANGE XREVRANGE XTRIM ZADD ZCARD ZCOUNT ZPOPMIN ZRANGE ZRANGEBYSCORE
    ZRANK ZREM ZREMRANGEBYSCORE ZREVRANGE ZSCORE
        """,
    )
)
WITHOUT_KEY = {"TIME", "PUBLISH", "SPUBLISH"}
ON_CLUSTER = {"SPUBLISH"}
"""Commands of Redis 7 that stand in for PUBLISH where a waiter's channel asks for it."""
TAKES_BACK = {"ZADD"}
"""Commands that CALLS need not have: they may undo a step when the server refuses the next."""

RANGES: dict[str, tuple[int | None, int]] = {
    "holder": (1, _check.MAX_HOLDER_BYTES),
    "token": (1, _check.MAX_TOKEN),
    "which": (1, _check.MAX_TOKEN),
    "mine": (None, _check.MAX_TOKEN),
    "ttl_ms": (round(_check.MIN_TTL * 1000), round(_check.MAX_TTL * 1000)),
    "keep_ms": (None, round(_check.MAX_KEEP * 1000)),
    "length": (1, _check.MAX_HISTORY),
    "beyond": (1, _check.MAX_BEYOND),
    "count": (0, _redis._MAX_COMMANDS),
}
"""What Python allows, by the argument's name; keep_ms may begin with a ttl, mine at 0."""


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a script, without comments."""

    naming: str
    rest: str

    @property
    def whole(self) -> str:
        return f"{self.naming}\n{self.rest}"

    def calls(self) -> list[list[str]]:
        """The arguments of each ``redis.call`` and ``redis.pcall``."""
        starts = re.finditer(r"redis\.p?call\(", self.rest)
        return [arguments(self.rest, start.end() - 1) for start in starts]

    def replies(self) -> list[list[str]]:
        """The elements of each ``return {…}``, and of each ``answer(…)`` that is one of several."""
        starts = re.finditer(r"return \{|(?<!function )\banswer\(", self.rest)
        return [arguments(self.rest, start.end() - 1) for start in starts]


def body_of(text: str) -> Body:
    """Part the body into the first statements, which name KEYS and ARGV, and the rest."""
    lines = [re.sub(r"\s*--.*", "", line) for line in split(text)[1]]
    names = re.compile(r"local [\w, ]+ = (unpack\((KEYS|ARGV)\)$|.*\b(KEYS|ARGV)\[)")
    length = next((n for n, line in enumerate(lines) if not names.match(line)), len(lines))
    return Body("\n".join(lines[:length]), "\n".join(lines[length:]))


def arguments(text: str, opening: int) -> list[str]:
    """Split what stands between a bracket and its partner at the commas of that level."""
    found, depth, quoted, item = [], 0, False, ""
    for letter in text[opening:]:
        if letter == "'":
            quoted = not quoted
        if not quoted and letter in "([{":
            depth += 1
            if depth == 1:
                continue
        if not quoted and letter in ")]}":
            depth -= 1
            if depth == 0:
                break
        if letter == "," and depth == 1 and not quoted:
            found.append(item.strip())
            item = ""
        else:
            item += letter
    return [*found, item.strip()] if item.strip() or found else []


def problems(name: str, text: str) -> list[str]:
    """Say everything that is wrong with a script; nothing if header and body agree."""
    try:
        header = parse(text)
    except BadHeader as error:
        return [str(error)]
    body = body_of(text)
    found = [] if header.name == name else [f"the header is that of {header.name!r}"]
    if len(text.splitlines()) > MOST_LINES:
        found.append(f"the script has more than {MOST_LINES} lines")
    if header.since != "Redis 6.2":
        found.append(f"SINCE says {header.since!r}: all scripts run on Redis 6.2")
    return (
        found
        + _indexes(header, body)
        + _names(header, body)
        + _outcomes(header, body)
        + _errors(header, body)
        + _commands(header, body)
        + _keys(header, body)
        + _ranges(header)
    )


def _named(body: Body) -> dict[str, list[str]]:
    """The names that the first statements give to KEYS and to ARGV, in order."""
    found: dict[str, list[str]] = {"KEYS": [], "ARGV": []}
    for line in body.naming.splitlines():
        left, _, right = line.removeprefix("local ").partition(" = ")
        names = left.split(", ")
        whole = re.fullmatch(r"unpack\((KEYS|ARGV)\)", right)
        sources = arguments(f"({right})", 0)
        if whole:
            found[whole[1]] += names
        elif len(names) == len(sources):
            for name, source in zip(names, sources, strict=True):
                what, index = source.rstrip("]").split("[")
                if int(index) == len(found[what]) + 1:
                    found[what].append(name)
    return found


def _indexes(header: Header, body: Body) -> list[str]:
    """KEYS and ARGV are read in the first statements only, where the header has no '...'."""
    found = []
    for what, items in (("KEYS", header.keys), ("ARGV", header.arguments)):
        more = any(item.index == 0 for item in items)
        late = re.findall(rf"\b{what}\[\d+\]", body.rest)
        if late:
            found.append(f"{what} is read by an index later than in the first statements: {late}")
        computed = rf"\b{what}\[\D|\bunpack\({what}\b|\({what}[,)]"
        if not more and re.search(computed, body.rest):
            found.append(f"{what} is read by a computed index, and the header has no '...'")
        if what == "ARGV" and more:
            continue
        named = len([item for item in items if item.index])
        counts = {int(count) for count in re.findall(rf"#{what} (?:~=|<) (\d+)", body.rest)}
        if counts != {named}:
            found.append(f"#{what} is held against {sorted(counts)}, the header has {named}")
    return found


def _names(header: Header, body: Body) -> list[str]:
    """Keys and arguments have the header's names, in its order, and none is left unused."""
    given = _named(body)
    found = []
    for what, items in (("KEYS", header.keys), ("ARGV", header.arguments)):
        wanted = [item.name for item in items if item.index]
        if given[what] != wanted:
            found.append(f"{what} are {wanted} in the header, {given[what]} in the body")
    found += [
        f"{name!r} is named and never used"
        for name in given["KEYS"] + given["ARGV"]
        if not re.search(rf"\b{name}\b", body.rest)
    ]
    return found


def _outcomes(header: Header, body: Body) -> list[str]:
    """The same statuses of the same arity; no nil, true or false in a reply."""
    found = []
    said = {(reply.status, 1 + len(reply.fields)) for reply in header.replies}
    done = set()
    for reply in body.replies():
        status = re.fullmatch("'([A-Z]+)'", reply[0]) if reply else None
        if status is None:
            found.append(f"a reply does not begin with its status: {reply}")
            continue
        done.add((status[1], len(reply)))
        found += [
            f"a reply may have nil, true or false in it: {item!r}"
            for item in reply
            if re.search(r"\b(nil|true|false)\b", re.sub("'[^']*'", "''", item))
        ]
    if said != done:
        found.append(f"RETURNS differ: header {sorted(said - done)}, body {sorted(done - said)}")
    if len(said) != len(header.replies):
        found.append("a status stands twice in RETURNS")
    if {row.status for row in header.rows} != {reply.status for reply in header.replies}:
        found.append("CALLS and RETURNS do not have the same statuses")
    if len({(row.status, row.variant) for row in header.rows}) != len(header.rows):
        found.append("a row stands twice in CALLS")
    outside = re.sub(
        r"^( *)local function .*?^\1end$", "", body.rest, flags=re.DOTALL | re.MULTILINE
    )
    for value in re.findall(r"\breturn\b(?! \{| redis\.error_reply\()(.*)", outside):
        if value == " replies" and "local function answer(" in body.rest:
            continue
        if not re.search(rf"\blocal {re.escape(value.split()[0])} = redis\.pcall\(", body.rest):
            found.append(f"a return is neither a reply nor an error: {value.strip()!r}")
    return found


def _errors(header: Header, body: Body) -> list[str]:
    """The same codes; each message is one literal, so that no caller's text gets into it."""
    found = []
    messages = [
        arguments(body.rest, start.end() - 1) for start in re.finditer(r"error_reply\(", body.rest)
    ]
    codes = set()
    for message in messages:
        literal = re.fullmatch("'([A-Z]+) [^']+'", message[0]) if len(message) == 1 else None
        if literal is None:
            found.append(f"an error is not one literal that begins with a code: {message}")
        else:
            codes.add(literal[1])
    said = {error.code for error in header.errors}
    if said != codes:
        found.append(f"ERRORS differ: header {sorted(said - codes)}, body {sorted(codes - said)}")
    return found


def _commands(header: Header, body: Body) -> list[str]:
    """Only commands of the oldest server; the header's are the body's."""
    found = []
    used = set()
    for call in body.calls():
        literal = re.fullmatch("'([A-Z]+)'", call[0])
        if literal:
            used.add(literal[1])
        elif not any(row.caller for row in header.rows):
            found.append(f"a command is not a literal: {call}")
    found += [
        f"{command} is not in Redis 6.2" for command in sorted(used - COMMANDS_OF_6_2 - ON_CLUSTER)
    ]
    said = {command for row in header.rows for command, _ in row.calls}
    if not used - TAKES_BACK - ON_CLUSTER <= said <= used:
        found.append(f"CALLS differ: header {sorted(said - used)}, body {sorted(used - said)}")
    return found


def _keys(header: Header, body: Body) -> list[str]:
    """Every key in a call is one of KEYS by its name, or a list into which only such are put."""
    names = {key.name for key in header.keys}
    more = any(key.index == 0 for key in header.keys)
    found = []
    for call in body.calls():
        if (
            len(call) < 2
            or call[0].strip("'") in WITHOUT_KEY
            or (more and call[1] == "unpack(KEYS)")
        ):
            continue
        listed = re.fullmatch(r"unpack\((\w+)\)|(\w+)\[i\]", call[1])
        put = [call[1]]
        if listed and listed[1]:
            put = re.findall(rf"table\.insert\({listed[1]}, (.*)\)", body.rest)
        elif listed:
            put = re.findall(rf"\b{listed[2]}\[\w+\](?:, \w+\[\w+\])* = ([^,\n]+)", body.rest)
        put = [re.sub(r"\) end$|\)$", "", item) for item in put]
        if not put or not set(put) <= names:
            found.append(f"a key is not one of {sorted(names)}: {call[:2]}")
    return found


def _ranges(header: Header) -> list[str]:
    """The ranges are those of the Python side."""
    found = []
    for argument in header.arguments:
        wanted, given = RANGES.get(argument.name), argument.range
        if wanted is None:
            continue
        low_differs = wanted[0] is not None and given is not None and given[0] != str(wanted[0])
        if given is None or given[1] != wanted[1] or low_differs:
            found.append(f"{argument.name} is {given} in the header, {wanted} in Python")
    more = next((argument.text for argument in header.arguments if argument.index == 0), None)
    if header.name == "guard" and f"1 to {_redis._MAX_WORDS}" not in (more or ""):
        found.append(f"a command has at most {_redis._MAX_WORDS} words in Python")
    return found
