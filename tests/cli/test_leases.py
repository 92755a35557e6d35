"""The commands about leases, on a real server."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import socket
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

import fencer
from fencer.cli.exits import MEANING, Exit
from fencer.embedded import Server
from tests.cli.runs import PROGRAM, Cli, run, start
from tests.fix_servers import MakeServer


@pytest.fixture
def store(redis_client: redis.Redis) -> fencer.Fencer:
    """A client on the shared server, which is empty when the test begins."""
    return fencer.Fencer(redis_client, holder="me")


@pytest.fixture
def cli(shared_server: Server) -> Cli:
    """The command line, on the shared server."""
    return Cli(shared_server.unix_url)


@pytest.fixture
def closed_port() -> Iterator[str]:
    """The URL of a port that nobody listens on, and nobody else can take."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}/0"


def test_status_of_a_held_name(store: fencer.Fencer, cli: Cli) -> None:
    """Would fail if status did not tell who holds a lease, or exited as if it were free."""
    lease = store.acquire("orders", ttl=60, info={"role": "primary", "zones": [1, 2]})
    shown = cli("status", "orders")
    table = dict(shown.rows)
    assert shown.code == 0
    assert shown.err == ""
    assert (table["state"], table["holder"], table["token"]) == ("held", "me", str(lease.token))
    assert (table["pid"], table["host"]) == (str(os.getpid()), socket.gethostname())
    assert (table["info.role"], table["info.zones"]) == ("primary", "[1, 2]")
    assert table["last issued"] == str(lease.token)
    assert 0 < float(table["left"].removesuffix(" s")) <= 60
    assert table["since"].startswith("20")


def test_status_as_json(store: fencer.Fencer, cli: Cli) -> None:
    """Would fail if a script could not read the status, or its numbers were not numbers."""
    lease = store.acquire("orders", ttl=60)
    shown = cli("status", "orders", "--json")
    assert shown.code == 0
    status = json.loads(json.dumps(store.inspect("orders").as_dict()))
    assert shown.json | {"remaining": None} == status | {"remaining": None}
    assert shown.json["token"] == lease.token


def test_status_of_a_free_name(store: fencer.Fencer, cli: Cli) -> None:
    """Would fail if a script could not tell a free name by the exit code."""
    store.acquire("orders").release()
    for name, issued in (("orders", store.inspect("orders").issued), ("never", 0)):
        assert cli("status", name, "--json").json["issued"] == issued
        shown = cli("status", name)
        assert shown.code == 1
        assert shown.rows[1:] == [["state", "free"], ["last issued", str(issued or "none")]]


def test_ls(store: fencer.Fencer, cli: Cli) -> None:
    """Would fail if ls left out a name, or took one with odd characters apart."""
    odd = ["[x]", "[bold]b[/bold]", "a*b", "a b:c", "naïve", ":smile:", "a\\b"]
    tokens = {name: store.acquire(name, ttl=60).token for name in odd}
    store.acquire("free").release()
    header, *rows = cli("ls").rows
    assert header == ["NAME", "STATE", "TOKEN", "LEFT", "HOLDER"]
    assert [row[0] for row in rows] == sorted([*odd, "free"])
    assert {row[0]: int(row[2]) for row in rows if row[1] == "held"} == tokens
    assert [row for row in rows if row[1] == "free"] == [["free", "free", "-", "-", "-"]]
    found = cli("ls", "--json").json
    assert {each["name"]: each["token"] for each in found} == tokens | {"free": None}


def test_ls_of_nothing(store: fencer.Fencer, cli: Cli) -> None:
    """Would fail if a server without names were taken for a failure."""
    assert cli("ls", "--json").json == []
    assert cli("ls").code == 0


def test_ls_goes_on_after_a_key_of_somebody_else(
    store: fencer.Fencer, redis_client: redis.Redis, cli: Cli
) -> None:
    """Would fail if one foreign key hid all other names, or could send codes to a terminal."""
    store.acquire("good", ttl=60)
    redis_client.set("fencer:{bad}:token", "not a number")
    redis_client.set("fencer:{odd}:token", "5")
    redis_client.set("fencer:{odd}:lock", "two\nlines\x1b[31m\t")
    redis_client.set("fencer:{}:token", "7")
    shown = cli("ls")
    assert shown.code == Exit.SERVER
    assert [row[0] for row in shown.rows] == ["NAME", "good", "odd"]
    assert shown.rows[2][4] == r"two\nlines\x1b[31m\t"
    assert shown.err.startswith("fencer: bad: lua/inspect.lua: CORRUPT")
    assert len(shown.err.splitlines()) == 1


def test_history(store: fencer.Fencer, cli: Cli) -> None:
    """Would fail if history lost events, showed them in another order, or ignored -n."""
    lease = store.acquire("orders")
    lease.release()
    token = store.acquire("orders").token
    header, *rows = cli("history", "orders").rows
    assert header == ["TIME", "EVENT", "TOKEN", "HOLDER"]
    assert [row[1:] for row in rows] == [
        ["grant", str(lease.token), "me"],
        ["release", str(lease.token), "me"],
        ["grant", str(token), "me"],
    ]
    assert cli("history", "orders", "-n", "1").rows[1:] == [rows[2]]
    assert cli("history", "orders", "--json").json == [
        event.as_dict() for event in store.history("orders")
    ]
    assert cli("history", "never", "--json").json == []


def test_revoke(store: fencer.Fencer, cli: Cli) -> None:
    """Would fail if revoke ended no lease, did not say which, or ended another than was named."""
    lease = store.acquire("orders", ttl=60)
    other = cli("revoke", "orders", "--token", str(lease.token - 1))
    assert (other.code, store.inspect("orders").held) == (1, True)
    assert str(lease.token - 1) in other.out
    done = cli("revoke", "orders")
    assert (done.code, store.inspect("orders").held) == (0, False)
    assert done.out == f"orders: ended the lease of me, token {lease.token}\n"
    again = cli("revoke", "orders")
    assert (again.code, again.out) == (1, "orders: nothing to revoke, nobody has the lease\n")


def test_revoke_as_json(store: fencer.Fencer, cli: Cli) -> None:
    """Would fail if a script could not tell what a revoke ended."""
    token = store.acquire("orders", ttl=60).token
    shown = cli("revoke", "orders", "--token", str(token), "--json")
    assert (shown.code, shown.json) == (0, {"name": "orders", "revoked": token, "holder": "me"})
    shown = cli("revoke", "orders", "--json")
    assert (shown.code, shown.json) == (1, {"name": "orders", "revoked": None, "holder": None})


def test_advance(store: fencer.Fencer, cli: Cli) -> None:
    """Would fail if a resource that is ahead of the store could not be caught up with."""
    beyond = store.acquire("orders").token + 10**12
    assert str(beyond) in cli("advance", "orders", str(beyond)).out
    again = cli("advance", "orders", str(beyond), "--json")
    assert again.json == {"name": "orders", "beyond": beyond, "changed": True}
    assert again.code == 0
    assert store.acquire("orders").token > beyond
    late = cli("advance", "orders", str(beyond), "--json")
    assert late.json == {"name": "orders", "beyond": beyond, "changed": False}


def test_options_that_select_the_keys(
    store: fencer.Fencer, redis_client: redis.Redis, shared_server: Server
) -> None:
    """Would fail if --url, --namespace or --no-hash-tag were ignored by some command."""
    plain = fencer.Fencer(redis_client, namespace="maplefile", hash_tag=False)
    token = plain.acquire("leader", ttl=60).token
    cli = Cli(None)
    options = ["--url", shared_server.unix_url, "--namespace", "maplefile", "--no-hash-tag"]
    assert [each["name"] for each in cli("ls", "--json", *options).json] == ["leader"]
    assert cli("status", "leader", "--json", *options).json["token"] == token
    assert len(cli("history", "leader", "--json", *options).json) == 1
    assert cli("revoke", "leader", "--json", *options).json["revoked"] == token
    assert cli("advance", "leader", str(token + 9), "--json", *options).json["changed"]
    assert plain.inspect("leader").issued > token + 9


COMMANDS = [
    ["status", "orders"],
    ["ls"],
    ["history", "orders"],
    ["revoke", "orders"],
    ["advance", "orders", "5"],
]


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command[0]))
def test_no_server_is_one_line(command: list[str], as_json: list[str], closed_port: str) -> None:
    """Would fail if an unreachable server showed a traceback, or half an answer on stdout."""
    shown = Cli(closed_port)(*command, *as_json)
    assert shown.code == Exit.SERVER
    assert "Connection refused" in shown.complaint


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command[0]))
def test_no_url(command: list[str]) -> None:
    """Would fail if a command without a server did not say how to name one."""
    shown = Cli(None)(*command)
    assert shown.code == Exit.USAGE
    assert "--url" in shown.complaint
    assert "FENCER_URL" in shown.complaint


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "a{b"],
        ["status", ""],
        ["status", "two\nlines"],
        ["history", "orders", "-n", "0"],
        ["revoke", "orders", "--token", "0"],
        ["advance", "orders", "0"],
        ["advance", "orders", str(2**53)],
        ["status", "orders", "--url", "ftp://here"],
        ["status", "orders", "--namespace", "a}b"],
    ],
    ids=repr,
)
def test_a_bad_argument_is_one_line(arguments: list[str], cli: Cli) -> None:
    """Would fail if an argument that Fencer refuses did not exit with 2 and one line."""
    shown = cli(*arguments)
    assert shown.code == Exit.USAGE
    assert len(shown.complaint) > len("fencer: ")


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["advance", "orders", "x"], ["status", "orders", "--what"], ["nonsense"]],
    ids=repr,
)
def test_wrong_usage(arguments: list[str], cli: Cli) -> None:
    """Would fail if wrong usage did not exit with 2, or wrote to stdout."""
    shown = cli(*arguments)
    assert (shown.code, shown.out) == (Exit.USAGE, "")
    assert shown.err


def test_help_lists_commands_and_exit_codes(cli: Cli) -> None:
    """Would fail if an exit code or a command were not documented in the help."""
    shown = cli("--help")
    assert shown.code == 0
    for command in ("demo", "serve", "status", "ls", "history", "revoke", "advance"):
        assert f" {command} " in shown.out
    for code in Exit:
        assert f"{code:>5}  {MEANING[code]}\n" in shown.out


def test_version(cli: Cli) -> None:
    """Would fail if --version did not print the package's version alone."""
    assert cli("--version").out == f"fencer {fencer.__version__}\n"


def test_as_a_program(store: fencer.Fencer, shared_server: Server, closed_port: str) -> None:
    """Would fail if ``python -m fencer`` lost an exit code, its output, or showed a traceback."""
    store.acquire("orders", ttl=60)
    shown = run("status", "orders", "--json", "--url", shared_server.unix_url)
    assert (shown.code, shown.err, shown.json["held"]) == (0, "", True)
    assert run("status", "other", "--url", shared_server.unix_url).code == 1
    shown = run("ls", "--url", closed_port)
    assert shown.code == 3
    assert shown.complaint


def test_a_closed_pipe_is_quiet(store: fencer.Fencer, shared_server: Server) -> None:
    """Would fail if ``fencer ls | head -1`` showed a traceback or a warning."""
    for number in range(1_500):
        store.advance(f"name-{number:04}-{'x' * 60}", 5)
    with start("ls", "--url", shared_server.unix_url) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("NAME")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == Exit.PIPE


def test_a_closed_stdout_is_no_crash(store: fencer.Fencer, shared_server: Server) -> None:
    """Would fail if a script that only wants the exit code could not close stdout."""
    command = '"$@" >&-'
    shown = subprocess.run(
        ["/bin/sh", "-c", command, "sh", *PROGRAM, "status", "x", "--url", shared_server.unix_url],
        capture_output=True,
        text=True,
    )
    assert (shown.returncode, shown.stderr) == (1, "")


def test_markup_is_shown_as_it_is_on_a_terminal(
    store: fencer.Fencer, shared_server: Server
) -> None:
    """Would fail if names with brackets vanished as markup, or tokens were cut at 80 columns."""
    tokens = {
        name: store.acquire(name, ttl=60).token for name in ("[red]r[/red]", "[/x]", "y" * 90)
    }
    shown = _on_terminal("ls", "--url", shared_server.unix_url)
    assert "[red]r[/red]" in shown
    assert "[/x]" in shown
    assert all(str(token) in shown for token in tokens.values())
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "[/x]" in _on_terminal("status", "[/x]", "--url", shared_server.unix_url)


def _on_terminal(*arguments: str) -> str:
    """What a command shows on a terminal of 80 columns without colours."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "dumb"}
    environment.pop("COLUMNS", None)
    with subprocess.Popen([*PROGRAM, *arguments], stdout=its, stderr=its, env=environment):
        os.close(its)
        shown = b""
        try:
            while some := os.read(ours, 65_536):
                shown += some
        except OSError:
            pass  # Linux's way to say that the other end has been closed
    os.close(ours)
    return shown.decode()


@pytest.mark.slow
def test_a_server_that_hangs_is_given_up(make_server: MakeServer) -> None:
    """Would fail if a server that accepts and never answers blocked the command for long."""
    server = make_server(persistence="none")
    server.pause()
    shown = Cli(server.unix_url)("status", "orders")
    assert shown.code == Exit.SERVER
    assert "no answer" in shown.complaint


def test_the_library_needs_no_command_line() -> None:
    """Would fail if ``import fencer`` loaded typer or rich, which would slow every program."""
    code = "import sys, fencer; print([m for m in ('typer', 'rich') if m in sys.modules])"
    shown = subprocess.run([*PROGRAM[:1], "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
