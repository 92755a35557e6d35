"""Where a scenario is played: a server, a proxy and a process per instance, and what they tell.

The instances write into files what they believe; the stage reads along, and notes beside it what it
does to them. The data that the job writes are on a server of their own, which no fault reaches: a
leader that is cut off from its lease can still write there, unless the guard refuses it.

No process outlives the stage: a watchdog, one ``/bin/sh``, reads a pipe whose only writer is this
process; at its end it kills every instance that is left, and removes the folder unless there are
findings in it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import SplitResult, unquote, urlunsplit

import redis

from fencer._keys import Keyspace
from fencer._url_parts import reading
from fencer.client import Fencer, connect
from fencer.drill.clock import NoShim, ServerClock, compile_shim
from fencer.drill.judge import Count, Expected
from fencer.drill.proxy import Proxy
from fencer.drill.record import SERVER, Event, Record, Write, told_by_instance
from fencer.embedded import Persistence, Server
from fencer.embedded import _find_binary as server_program
from fencer.errors import FencerError, InvalidArgument

NAME = "drill"
ALLOWANCE = 1.0
"""Seconds that are allowed on top of every bound, for a busy machine."""

PROGRAM = (sys.executable, "-m", "fencer", "instance")

FINDINGS = "findings.txt"
"""What should not have been, in the folder of a run of which the logs are kept."""

_POLL = 0.004
_START_SECONDS = 30.0

# "+ PID": watch this process. "- PID": it has ended.
_WATCHDOG = """
pids=
while read -r mark pid; do
    case $mark in
        +) pids="$pids $pid" ;;
        -) kept=; for each in $pids; do [ "$each" = "$pid" ] || kept="$kept $each"; done
           pids=$kept ;;
    esac
done
for pid in $pids; do kill -s KILL "$pid"; done
if [ ! -e "$1" ]; then rm -rf -- "$2" || { sleep 1; rm -rf -- "$2"; }; fi
"""


class NotSeen(FencerError):
    """What a scenario waited for did not happen in time."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How all scenarios are played; times in seconds.

    Attributes:
        ttl, retry_interval: as for `fencer.Election`.
        instances: how many processes; scenarios that need another number say so.
        duration: how long chaos lasts.
        seed: of what is random.
        url: the server; ``None`` starts one for each run.
        program: what runs an instance.
    """

    ttl: float = 5.0
    retry_interval: float = 1.0
    instances: int = 3
    duration: float = 300.0
    seed: int = 0
    url: str | None = None
    program: Sequence[str] = PROGRAM

    @property
    def every(self) -> float:
        """Seconds between two jobs."""
        return self.ttl / 10

    @property
    def limit(self) -> float:
        """Seconds within which every change of leader must be over."""
        return self.ttl + self.retry_interval + ALLOWANCE


class Stage:
    """A server and its instances. A context manager, whose end kills all processes.

    Args:
        settings: see there.
        told: is called with what is waited for now.
        persistence: of the own server.
        shifts_clock: whether the own server's clock shall be able to jump.
        work: seconds that the job takes between its look at the lead and its write.

    Attributes:
        folder: has the logs, the events and the servers' data. `close` removes it unless there is
            a file `FINDINGS` in it.
        figures: what the scenario measured, in seconds.
    """

    def __init__(
        self,
        settings: Settings,
        told: Callable[[str], None] = lambda text: None,
        *,
        persistence: Persistence = "aof",
        shifts_clock: bool = False,
        work: float | None = None,
    ) -> None:
        self.settings = settings
        self.told = told
        self.folder = Path(tempfile.mkdtemp(prefix="fencer-drill-"))
        self.figures: list[float] = []
        self.forgets = False
        self.gap = settings.limit
        self._work = settings.every / 4 if work is None else work
        self._opened = contextlib.ExitStack()
        self._events: list[Event] = []
        self._counts: list[Count] = []
        self._instances: dict[str, Instance] = {}
        try:
            self._open(persistence, shifts_clock)
        except BaseException:
            self.close()
            raise

    def _open(self, persistence: Persistence, shifts_clock: bool) -> None:
        self._watchdog = self._opened.enter_context(_Watchdog(self.folder))
        self._server: Server | None = None
        url = self.settings.url
        if url is None:
            binary = None
            if shifts_clock:
                self._clock = ServerClock(self.folder, compile_shim(self.folder))
                binary = self._clock.program(server_program(None))
            folder = self.folder / "server"
            self._server = Server(folder, persistence=persistence, binary=binary)
            self._opened.callback(self._server.stop, timeout=0)
            url = self._server.start().url
        self._data = Server(self.folder / "data", persistence="none", port=0)
        self._opened.callback(self._data.stop, timeout=0)
        self._data.start()
        self.store: Fencer = self._opened.enter_context(connect(url, namespace=NAME))
        self._target, self._url, self._user = _taken_apart(url)
        self.store.inspect(NAME)  # raises if the server cannot be used
        if self._server is None:
            self._forget_leases()
            self._opened.callback(self._forget_leases)
        self.note(SERVER, "start", time.monotonic())

    def _forget_leases(self) -> None:
        """Leave nothing of a drill on somebody's server."""
        keys = Keyspace(NAME).of(NAME)
        every = (getattr(keys, field) for field in keys.__slots__)
        with contextlib.suppress(redis.RedisError):
            self.store.client.delete(*every)

    # What scenarios do.

    def gather(self, count: int | None = None) -> str:
        """Start instances, and wait until one leads and works and the others follow: who leads."""
        names = [f"instance-{number + 1}" for number in range(count or self.settings.instances)]
        for name in names:
            self.start(name)
        leader = self.leader()
        for name in names:
            if name != leader:
                self.follows(name)
        self.works(leader)
        return leader

    def start(self, name: str) -> float:
        """Start an instance, or start it again; return when."""
        if name not in self._instances:
            proxy = self._opened.enter_context(Proxy(self._target))
            self._instances[name] = Instance(name, self.folder, proxy)
            self._opened.callback(self._instances[name].close)
        begun = time.monotonic()
        settings = self.settings
        instance = self._instances[name]
        if instance.lives:  # It has said that it stopped, and is about to end.
            self._watchdog.tell("-", instance.reap())
        instance.begin()
        options = {
            "--id": name,
            "--name": NAME,
            "--namespace": NAME,
            "--events": str(instance.events),
            "--ttl": _duration(settings.ttl),
            "--retry-interval": _duration(settings.retry_interval),
            "--every": _duration(settings.every),
            "--work": _duration(self._work),
            "--url": urlunsplit(
                self._url._replace(netloc=f"{self._user}{_address(instance.proxy)}")
            ),
            "--data-url": self._data.unix_url,
        }
        instance.start([*settings.program, *(word for pair in options.items() for word in pair)])
        self._watchdog.tell("+", instance.pid)
        return begun

    def terminate(self, name: str) -> float:
        """Ask an instance to stop (SIGTERM); return when."""
        begun = time.monotonic()
        self._instances[name].signal(signal.SIGTERM)
        return self.note(name, "term", begun)

    def kill(self, *names: str) -> float:
        """Kill instances at once (SIGKILL); return when."""
        begun = time.monotonic()
        for name in names:
            self._instances[name].signal(signal.SIGKILL)
        for name in names:
            self._watchdog.tell("-", self._instances[name].reap())
            self.note(name, "kill", begun)
        return begun

    def freeze(self, name: str) -> float:
        """Stop an instance (SIGSTOP); return when."""
        begun = time.monotonic()
        self._instances[name].freeze()
        return self.note(name, "freeze", begun)

    def thaw(self, name: str) -> float:
        """Let a stopped instance go on (SIGCONT); return when."""
        begun = time.monotonic()
        self._instances[name].signal(signal.SIGCONT)
        return self.note(name, "thaw", begun)

    def cut(self, name: str, *, refuse: bool = False) -> float:
        """Cut an instance off from the server, in silence or by refusing it; return when."""
        proxy = self._instances[name].proxy
        begun = time.monotonic()
        if refuse:
            proxy.refuse()
        else:
            proxy.drop()
        return self.note(name, "cut", begun, "connections refused" if refuse else "silent")

    def mend(self, name: str) -> float:
        """Let an instance reach the server again; return when."""
        begun = time.monotonic()
        self._instances[name].proxy.heal()
        return self.note(name, "mend", begun)

    def stop_server(self, *, kill: bool = False) -> float:
        """Stop the server, or kill it; return when."""
        assert self._server is not None
        begun = time.monotonic()
        if kill:
            self._server.kill()
        else:
            self._server.stop()
        return self.note(SERVER, "stop", begun, "killed" if kill else "")

    def start_server(self) -> float:
        """Start the server again; return when."""
        assert self._server is not None
        begun = time.monotonic()
        self._server.start()
        return self.note(SERVER, "start", begun)

    def jump(self, seconds: float) -> float:
        """Let the server's clock jump; return when.

        Raises:
            NoShim: it did not.
        """
        begun = time.monotonic()
        self._clock.jump(seconds)
        told, _ = self.store.client.time()
        if abs(told - time.time() - self._clock.offset) > 1.5:
            raise NoShim("the server's clock cannot be shifted: it may be linked statically")
        return self.note(SERVER, "jump", begun, f"{seconds:+g} s")

    def note(self, who: str, what: str, begun: float, note: str = "") -> float:
        """Put into the record what was done just now; return when it began."""
        self._events.append(Event(who, what, begun, time.monotonic(), note=note))
        return begun

    # What scenarios wait for.

    def wait(self, condition: Callable[[], Any], limit: float, what: str) -> Any:
        """Wait until a condition is true, and return what it is then.

        Raises:
            NotSeen: it was not, for so many seconds.
        """
        self.told(what)
        until = time.monotonic() + limit
        news, last = True, False
        while True:
            if (news or last) and (found := condition()):
                return found
            if last:
                raise NotSeen(f"waited {limit:.1f} s in vain for {what}")
            time.sleep(_POLL)
            last = time.monotonic() > until
            news = self.look()

    def pause(self, seconds: float, what: str) -> None:
        """Let time pass."""
        with contextlib.suppress(NotSeen):
            self.wait(lambda: False, seconds, what)

    def leader(self, limit: float = _START_SECONDS) -> str:
        """Wait until somebody leads who can; return who."""
        name: str = self.wait(self._leads_now, limit, "a leader")
        return name

    def new_leader(self, after: float) -> Event:
        """Wait for a leader elected after a moment, which then does its job."""
        elected = self.event("elected", after, "a new leader")
        self.works(elected.who, elected.begun)
        return elected

    def follows(self, name: str, after: float = 0.0) -> Event:
        """Wait until an instance knows that another leads."""
        return self.event("follows", after, f"{name} to follow", name, _START_SECONDS)

    def works(self, name: str, after: float = 0.0) -> Event:
        """Wait until a job of an instance is done."""
        return self.event("job", after, f"{name} to do its job", name, outcome="ok")

    def event(
        self,
        what: str,
        after: float,
        told: str,
        who: str | None = None,
        limit: float | None = None,
        outcome: str | None = None,
    ) -> Event:
        """Wait for the first event of a kind that began after a moment."""

        def found() -> Event | None:
            return next(
                (
                    event
                    for event in self._events
                    if event.what == what
                    and event.begun >= after
                    and who in (None, event.who)
                    and outcome in (None, event.outcome)
                ),
                None,
            )

        event: Event = self.wait(found, limit or self.gap, told)
        return event

    def others(self, *names: str) -> list[str]:
        """The ids of all other instances."""
        return [name for name in self._instances if name not in names]

    def log_of(self, name: str) -> str:
        """What an instance logged."""
        return self._instances[name].log.read_text(errors="replace")

    def expect(self, leaders: int, after: float) -> None:
        """Let the judge count: so many new leaders, from a moment until now."""
        self.look()
        self._counts.append(Count(after, time.monotonic(), leaders))

    @property
    def leads(self) -> str | None:
        """Who leads now and can, as far as is known."""
        return self._leads_now()

    def start_again(self, name: str) -> float:
        """Start an instance that was asked to stop, once it has; return when."""
        self.wait(
            lambda: name not in self.running, _START_SECONDS, f"{name} to stop before it starts"
        )
        return self.start(name)

    @property
    def ready(self) -> list[str]:
        """The ids of the instances that run and have said so, and were not asked to stop."""
        record = self.record()
        return [name for name in self.running if record.alive(name).holds(record.end)]

    @property
    def running(self) -> list[str]:
        """The ids of the instances whose processes live."""
        return [name for name, instance in self._instances.items() if instance.lives]

    def _works_since(self, after: float) -> bool:
        leads = self._leads_now()
        return any(
            event.who == leads and event.what == "job" and event.outcome == "ok"
            for event in self._events
            if event.begun >= after
        )

    def _leads_now(self) -> str | None:
        record = self.record()
        now = record.end
        for term in reversed(record.terms()):
            if term.end == "open" and record.able(term.who).holds(now):
                return term.who
        return None

    def look(self) -> bool:
        """Take in what the instances have told since the last look; whether that was anything."""
        known = len(self._events)
        for name, instance in self._instances.items():
            self._events += instance.read()
            status = instance.ended()
            if status is not None:
                self._watchdog.tell("-", instance.pid)
                self._events += instance.read()
                if not any(event.what == "stopped" for event in instance.told):
                    at = time.monotonic()
                    note = f"exit status {status}"
                    self._events.append(Event(name, "died", at, at, note=note))
        return len(self._events) > known

    # The end.

    def heal(self) -> None:
        """End every fault, and wait until somebody leads and works: without that, no good end."""
        now = time.monotonic()
        if self._server is not None and not self._server.running:
            now = self.start_server()
        for name, instance in self._instances.items():
            if not instance.lives:
                continue
            record = self.record()
            if record.frozen(name).holds(record.end):
                self.thaw(name)
            if record.cut(name).holds(record.end):
                self.mend(name)
        if self.running:
            # Whoever leads now may yet be lost, and another elected: what counts is that one works.
            self.wait(lambda: self._works_since(now), 2 * self.gap, "a leader to do its job")
            self.pause(2 * self.settings.every, "more jobs to be done")

    def record(self) -> Record:
        """The record until now."""
        self.look()
        return Record.of(self._events, (), time.monotonic())

    def final(self) -> tuple[Record, Expected]:
        """End the instances, and return the record with what was written, and what to expect."""
        self.look()
        # What was told after this moment would be about the end of the drill.
        end = time.monotonic()
        for name in self.running:
            self._instances[name].signal(signal.SIGKILL)
        for name in self.running:
            self._watchdog.tell("-", self._instances[name].reap())
        self.look()
        with redis.Redis.from_url(self._data.unix_url) as data:
            entries: Any = data.xrange(f"{NAME}:{{{NAME}}}:writes")
        writes = [
            Write(fields[b"instance"].decode(), int(fields[b"token"])) for _, fields in entries
        ]
        record = Record.of(self._events, writes, end)
        expected = Expected(self.gap, self.settings.every, tuple(self._counts), self.forgets)
        return record, expected

    def close(self) -> None:
        """Kill every process, and remove the folder unless it has findings."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Instance:
    """One process after another under one id, each with the same proxy, log and file of events."""

    def __init__(self, name: str, folder: Path, proxy: Proxy) -> None:
        self.name = name
        self.proxy = proxy
        self.log = folder / f"{name}.log"
        self.told: list[Event] = []
        self._folder = folder
        self._starts = 0
        self._offset = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def events(self) -> Path:
        """What its latest process tells. Each has a file: a killed one may leave half a line."""
        return self._folder / f"{self.name}.{self._starts}.events"

    @property
    def pid(self) -> int:
        """Of its latest process."""
        assert self._process is not None
        return self._process.pid

    @property
    def lives(self) -> bool:
        """Whether its process has not been seen to end."""
        return self._process is not None and self._process.returncode is None

    def begin(self) -> None:
        """Make ready for another process."""
        self.told, self._offset = [], 0
        self._starts += 1
        self.events.touch()

    def start(self, command: Sequence[str]) -> None:
        """Start a process."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("LEADER_ELECTION_", "CACHE_", "FENCER_URL"))
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                process_group=0,  # Ctrl-C in a terminal does not reach it
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process lives."""
        if self._process is not None:
            self._process.send_signal(number)

    def freeze(self) -> None:
        """Stop the process, and wait until it has stopped."""
        self.signal(signal.SIGSTOP)
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(self.pid, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                return
        raise NotSeen(f"{self.name} had ended when it was to be stopped")

    def reap(self) -> int:
        """Wait until the killed process is gone; its pid."""
        assert self._process is not None
        self._process.wait(10)
        return self.pid

    def ended(self) -> int | None:
        """The status of a process that has just been seen to end."""
        return self._process.poll() if self._process is not None and self.lives else None

    def read(self) -> list[Event]:
        """What it has told since the last time."""
        if self._process is None or self.events.stat().st_size == self._offset:
            return []
        with self.events.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()  # Half a line: it is being written, or its writer was killed.
        self._offset += sum(map(len, lines))
        new = [told_by_instance(line.decode()) for line in lines if line.strip()]
        self.told += new
        return new

    def close(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)


class _Watchdog:
    """Kills the instances if this process is killed, and removes the folder."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "fencer-drill-watchdog", folder / FINDINGS, folder],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.defpath},
            start_new_session=True,
        )

    def tell(self, mark: str, pid: int) -> None:
        """``+``: watch a process; ``-``: it has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{mark} {pid}\n".encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def _taken_apart(url: str) -> tuple[tuple[str, int] | str, SplitResult, str]:
    """Where a URL leads; the same URL for TCP, whose host and port are to be replaced; the user."""
    with reading(url) as parts:
        if parts.scheme == "unix":
            return unquote(parts.path), SplitResult("redis", "", "", parts.query, ""), parts.login
        servers = parts.addresses("server", 6379)
    if parts.scheme != "redis" or parts.topology or len(servers) > 1:
        raise InvalidArgument(
            "the drill stands between the instances and the server, which it can do for redis:// "
            f"and unix:// only, with one server, not for {url.strip().partition('://')[0]}://"
        )
    return servers[0], SplitResult("redis", "", parts.path, parts.query, ""), parts.login


def _address(proxy: Proxy) -> str:
    return f"{proxy.host}:{proxy.port}"


def _duration(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"
