"""Headers are held against bodies, and the checker that does so is seen to fail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fencer import _scripts
from tests.lua.checker import MOST_LINES, problems
from tests.lua.header import parse

FOLDER = Path(str(_scripts.folder()))
NAMES = sorted(path.stem for path in FOLDER.glob("*.lua"))
SERVING = ("acquire", "release")


def source(name: str) -> str:
    return (FOLDER / f"{name}.lua").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_header_agrees_with_body(name: str) -> None:
    """If this fails, a client in another language is told something that the script does not do."""
    assert problems(name, source(name)) == []


SAME = (
    "-- The same lines, up to the next mark, stand in acquire and release.\n",
    "-- End of the lines that are the same.\n",
)


def test_acquire_and_release_serve_the_line_alike() -> None:
    """If this fails, a release and a newcomer serve a waiter in two ways."""
    first, second = (source(name).partition(SAME[0])[2].partition(SAME[1]) for name in SERVING)
    assert first[:2] == second[:2]
    assert first[1]


def test_folder_has_no_python() -> None:
    """If this fails, an editable install breaks: a folder with Python in it becomes a package."""
    assert not list(FOLDER.rglob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_same_key_has_the_same_type_everywhere(name: str) -> None:
    """If this fails, two scripts disagree about what one key holds."""
    types = {key.name: key.type for other in NAMES for key in parse(source(other)).keys}
    assert all(types[key.name] == key.type for key in parse(source(name)).keys if key.index)


BREAKS = {
    # What is broken: (script, pattern, replacement, what the checker says of it)
    "a section is missing": ("acquire", r"-- ERRORS\n(--   .*\n)+", "", "sections"),
    "two sections change places": (
        "revoke",
        r"(-- IDEMPOTENT.*\n)(-- SINCE.*\n)",
        r"\2\1",
        "sections",
    ),
    "an unknown section": ("renew", r"-- ERRORS\n", "-- NOTES\n--   x\n-- ERRORS\n", "sections"),
    "a section twice": ("renew", r"-- ERRORS\n", "-- KEYS\n--   x\n-- ERRORS\n", "twice"),
    "a malformed line": ("renew", r"--   1 lock", "-- 1 lock", "neither a heading"),
    "no line between": ("renew", r"(-- SINCE.*\n)\n", r"\1", "blank line"),
    "a type that does not exist": ("renew", r"info      string", "info      blob", "type of a key"),
    "a row without an order": ("renew", r"FOREIGN  O\(1\)", "FOREIGN  once", "row of CALLS"),
    "an argument's line is removed": ("renew", r"--   5 about.*\n", "", "ARGV are"),
    "a line in the middle is removed": ("acquire", r"--   3 ttl_ms.*\n", "", "must count"),
    "an argument that is not used": (
        "inspect",
        r"--   none\n",
        "--   1 depth     integer, 1 to 9\n",
        "ARGV are",
    ),
    "a key that is not used": (
        "inspect",
        r"(-- ARGV\n)",
        r"--   6 history   stream  events\n\1",
        "KEYS are",
    ),
    "two keys change names": (
        "renew",
        r"local lock, token,",
        "local token, lock,",
        "KEYS are",
    ),
    "a name that is not used": (
        "advance",
        r"queue, 0, 9",
        "lock, 0, 9",
        "never used",
    ),
    "a wrong number of keys": ("revoke", r"#KEYS ~= 6", "#KEYS ~= 7", "#KEYS is held against"),
    "too small a number of keys": ("renew", r"#KEYS < 3", "#KEYS < 2", "#KEYS is held against"),
    "a late index": ("renew", r"if held_by then\n", "if KEYS[1] then\n", "later than"),
    "a late argument": ("renew", r"issued ~= mine", "issued ~= ARGV[2]", "later than"),
    "a computed index": ("revoke", r"issued ~= which", "issued ~= ARGV[at]", "computed index"),
    "a late list": ("revoke", r"issued ~= which", "issued ~= unpack(ARGV)", "computed index"),
    "all keys of a few": ("inspect", r"'PTTL', lock", "'PTTL', unpack(KEYS)", "computed index"),
    "an arity in the header": ("acquire", r'"ENDED", token', '"ENDED", token, grant', "RETURNS"),
    "an arity in the body": ("release", r"\{'CANCELLED', .*\}", "{'CANCELLED'}", "RETURNS"),
    "a status in the header": ("renew", r'\{"STALE"', '{"OLD"', "RETURNS"),
    "a status in the body": ("revoke", r"\{'STALE'", "{'OLD'", "RETURNS"),
    "a status among several": ("renew", r"answer\('STALE'", "answer('OLD'", "RETURNS"),
    "an arity among several": ("renew", r"answer\('STALE', .*\)", "answer('STALE')", "RETURNS"),
    "a status only in CALLS": ("renew", r"--   FOREIGN  O", "--   STRANGE  O", "same statuses"),
    "false in a reply": ("advance", r"\{'AHEAD', ", "{'AHEAD', issued == nil and ", "nil, true"),
    "a bare return": ("revoke", r"return \{'STALE', .*\}", "return issued", "neither a reply"),
    "an error only in the header": (
        "renew",
        r"(-- CALLS\n)",
        r"--   EXHAUSTED  no token\n\1",
        "ERRORS",
    ),
    "an error only in the body": ("acquire", r"--   EXHAUSTED.*\n", "", "ERRORS"),
    "a caller's text in an error": (
        "renew",
        r"error_reply\('BADCALL .*'\)",
        "error_reply('BADCALL ' .. holder)",
        "literal",
    ),
    "a command only in the header": ("renew", r"MGET PEXPIRE\*3", "MGET TTL", "CALLS"),
    "a command only in the body": ("renew", r"'SET', written", "'SETNX', written", "CALLS"),
    "a command of Redis 7": ("inspect", r"'PTTL', lock", "'PEXPIRETIME', lock", "Redis 6.2"),
    "a command that is computed": ("inspect", r"redis.call\('PTTL'", "redis.call(verb", "literal"),
    "a key that is computed": ("inspect", r"'PTTL', lock", "'PTTL', lock .. 'x'", "a key is not"),
    "a key in a list that is computed": (
        "release",
        r"table.insert\(leavings, info\)",
        "table.insert(leavings, info .. 'x')",
        "a key is not",
    ),
    "a key of several that is computed": (
        "renew",
        r"= info, ttl_ms",
        "= info .. 'x', ttl_ms",
        "a key is not",
    ),
    "a range": ("acquire", r"10 to 604800000", "10 to 604800001", "in Python"),
    "the lower end of a range": ("acquire", r"10 to 604800000", "1 to 604800000", "in Python"),
    "a script of another name": ("renew", r"-- renew:", "-- renewal:", "header is that of"),
    "a younger server": ("renew", r"Redis 6.2", "Redis 7.0", "SINCE"),
    "too many lines": ("renew", r"\Z", "\n" * MOST_LINES, "has more than"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_checker_sees_what_is_broken(what: str) -> None:
    """If this fails, the tests above pass whatever the headers say."""
    name, pattern, replacement, complaint = BREAKS[what]
    broken, changes = re.subn(pattern, replacement, source(name), count=1)
    assert changes == 1, "the script has changed: write this break anew"
    assert any(complaint in problem for problem in problems(name, broken)), problems(name, broken)


def test_revoke_and_advance_tell_the_line_alike() -> None:
    """A change to how waiters are told would reach only one of them."""
    bodies = [_scripts.load(name).body.decode() for name in ("revoke", "advance")]
    tails = {
        body.partition("-- On a Cluster a waiter")[2].rpartition("return {")[0] for body in bodies
    }
    assert len(tails) == 1
    assert "HEAD" in tails.pop()
