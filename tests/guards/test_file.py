"""The guard of a file: whole or not at all, and never back."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import fencer
from fencer.errors import InvalidArgument, StaleToken, StoreError, StoreUnavailable
from fencer.guards import FileGuard, Guard
from fencer.guards._base import Token
from fencer.guards.testing import conform
from tests.faults.planted import twin
from tests.faults.processes import Worker, WorkerError
from tests.guards import bugs

recorded = pytest.mark.usefixtures("history")

WRITER = """
import random, time
from fencer.errors import StaleToken
from fencer.guards import FileGuard
path, number = args
guard = FileGuard(path, name="orders", timeout=30)
def handle(count):
    accepted = []
    for _ in range(count):
        # The machine's clock stands for the store: one sequence, larger for who asks later.
        late_us = random.choice((0, 0, 3_000))
        token = (time.monotonic_ns() // 1_000 - late_us) * 8 + number
        try:
            guard.write(token, f"{token} " + "x" * 50_000)
            accepted.append(token)
        except StaleToken:
            pass
    return accepted
"""

KILLED = """
# A child writes, and is killed at a step, which it tells through a pipe.
import errno, fcntl, io, os, signal
from fencer.guards import FileGuard

STEPS = ["open", "write", "fsync", "replace", "close", "fchmod", "fchown", "unlink", "listdir"]

def handle(path, token, content, at):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        write = os.write
        count = 0
        def step(name):
            nonlocal count
            write(writing, f"{name} ".encode())
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
        def counted(name, function):
            def call(*args, **options):
                step(name)
                try:
                    return function(*args, **options)
                finally:
                    step(name + ".")
            return call
        class Pieces(io.FileIO):
            def write(self, data):
                step("piece")
                try:
                    return super().write(data)
                finally:
                    step("piece.")
        def fdopen(file, mode):
            return io.BufferedWriter(Pieces(file, mode), buffer_size=16)
        for name in STEPS:
            setattr(os, name, counted(name, getattr(os, name)))
        os.fdopen = fdopen
        fcntl.flock = counted("flock", fcntl.flock)
        try:
            with FileGuard(path, name="orders").open(token) as file:
                for piece in content.split("|"):
                    file.write(piece.encode())
        except BaseException as error:
            write(writing, f"{type(error).__name__} ".encode())
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with open(reading) as steps:
        done = steps.read().split()
    return done, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""

STOPPED = """
# Stops itself right before the new content takes its place: it has the lock, and has checked.
import os, signal
from fencer.guards import FileGuard
guard = FileGuard(args[0], name="orders")
real = os.replace
def replace(old, new):
    if str(old).endswith(".new") and not str(old).endswith(".fence.new"):
        os.kill(os.getpid(), signal.SIGSTOP)
    real(old, new)
os.replace = replace
def handle(token, content):
    guard.write(token, content)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (folder := tmp_path / "guarded").mkdir()
    return folder / "orders.json"


@pytest.fixture
def guard(path: Path) -> FileGuard:
    return FileGuard(path, name="orders")


class File:
    """A file behind its guard, as the suite wants it."""

    def __init__(self, folder: Path, resource: str) -> None:
        self.path = folder / resource
        self.guard = FileGuard(self.path, name=resource)

    def write(self, token: Token, value: str) -> None:
        self.guard.write(token, value)

    def read(self) -> str | None:
        return self.path.read_text() if self.path.exists() else None

    def check(self, token: Token) -> None:
        self.guard.check(token)

    def highest(self) -> int:
        return self.guard.highest()

    def fail(self, token: Token) -> None:
        with self.guard.open(token) as file:
            file.write(b"half")
            raise ZeroDivisionError


@twin(bugs.file_in_two_steps)
@pytest.mark.slow
def test_it_conforms(tmp_path: Path) -> None:
    """A rule of the family would be broken for files."""
    conform(lambda resource: File(tmp_path, resource), rounds=50, fail=File.fail)
    assert isinstance(FileGuard("x"), Guard)


def test_text_and_bytes_are_written(guard: FileGuard, path: Path) -> None:
    """What is read would not be what was written."""
    guard.write(1, "größe")
    assert path.read_bytes() == "größe".encode()
    guard.write(2, b"\0\xff")
    assert path.read_bytes() == b"\0\xff"
    with pytest.raises(InvalidArgument):
        guard.write(3, 5)  # type: ignore[arg-type]
    assert guard.highest() == 2


def test_pieces_show_when_the_block_ends(guard: FileGuard, path: Path) -> None:
    """A reader would see half of a file."""
    guard.write(1, "old")
    with guard.open(2) as file:
        file.write(b"new ")
        assert path.read_text() == "old"
        file.write(b"content")
    assert path.read_text() == "new content"


def test_a_block_that_fails_changes_nothing(guard: FileGuard, path: Path) -> None:
    """Half of a file would be published, or litter would stay."""
    guard.write(1, "old")
    with pytest.raises(ZeroDivisionError), guard.open(2) as file:
        file.write(b"half %d" % (1 // 0))
    assert path.read_text() == "old"
    assert _names(path) == ["orders.json", "orders.json.fence", "orders.json.lock"]


def test_an_older_holder_cannot_write_once_the_block_is_entered(guard: FileGuard) -> None:
    """What the new holder has read inside would change behind its back."""
    guard.write(1, "old")
    with guard.open(2) as file:
        file.write(b"new")
        with pytest.raises(StaleToken):
            guard.write(1, "late")


@twin(bugs.file_in_two_steps)
@recorded
def test_a_newer_holder_overtakes_an_open_block(guard: FileGuard, path: Path) -> None:
    """A holder that was paused inside the block would overwrite the one after it."""
    block = guard.open(1)
    block.__enter__().write(b"late")
    guard.write(2, "new")
    with pytest.raises(StaleToken) as caught:
        block.__exit__(None, None, None)
    assert (caught.value.token, caught.value.highest) == (1, 2)
    assert path.read_text() == "new"
    assert _names(path) == ["orders.json", "orders.json.fence", "orders.json.lock"]


def test_the_file_keeps_its_permissions_and_owner(guard: FileGuard, path: Path) -> None:
    """A write would lock its readers out, or let everybody in."""
    path.write_text("old")
    path.chmod(0o640)
    root = os.geteuid() == 0
    if root:
        os.chown(path, 1234, 4321)
    with guard.open(1) as file:
        fresh = os.fstat(file.fileno())
        assert stat.S_IMODE(fresh.st_mode) == 0o640, "from its first byte on"
    found = path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o640
    if root:
        assert (found.st_uid, found.st_gid) == (1234, 4321)


def test_a_new_file_is_as_the_umask_wants_it(guard: FileGuard, path: Path) -> None:
    """A new file would be for its writer only, or for everybody."""
    before = os.umask(0o027)
    try:
        guard.write(1, "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_is_followed(path: Path) -> None:
    """The link would be replaced by a file, and two ways to one file would have two marks."""
    link = path.with_name("link")
    link.symlink_to(path)
    FileGuard(link).write(2, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    with pytest.raises(StaleToken):
        FileGuard(path).write(1, "late")


def test_a_mark_that_is_none_is_refused(guard: FileGuard, path: Path) -> None:
    """A file cut short by hand would count as no mark, and every old holder could write."""
    guard.write(5, "old")
    for text in ("", "{}", "[]", '{"token": "5", "grant": ""}', '{"token": 5, "grant": 1}', "\xff"):
        Path(f"{path}.fence").write_text(text, "latin-1")
        with pytest.raises(StoreError, match="holds no mark") as caught:
            guard.write(6, "new")
        assert caught.value.code == "CORRUPT"
    assert path.read_text() == "old"


def test_what_the_system_refuses_is_told(tmp_path: Path, path: Path) -> None:
    """The caller would have to know which of two dozen exceptions mean that nothing changed."""
    missing = FileGuard(tmp_path / "missing" / "orders.json", name="orders")
    with pytest.raises(StoreError, match="No such file") as caught:
        missing.write(1, "new")
    assert caught.value.code == "ENOENT"
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    path.mkdir()
    with pytest.raises(StoreError, match="cannot replace"):
        FileGuard(path, name="orders").write(1, "new")
    assert FileGuard(path, name="orders").highest() == 1


@twin(bugs.file_is_not_flushed)
@recorded
def test_a_full_disk_leaves_the_old_content(
    guard: FileGuard, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error on the way to the disk would cost the old content, or pass for a success."""
    guard.write(1, "old")

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        guard.write(1, "new")
    assert caught.value.code == "ENOSPC"
    assert path.read_text() == "old"
    assert len(_names(path)) == 3


@pytest.mark.parametrize("path", ["", "folder/", "{x}", "a\nb", "x" * 600])
def test_what_is_no_path_is_refused(path: str) -> None:
    """The first write would find out."""
    with pytest.raises(InvalidArgument):
        FileGuard(path)


@twin(bugs.file_locks_nobody_out, raises=(StoreError,))
@recorded
def test_threads_take_turns(guard: FileGuard, path: Path) -> None:
    """Two threads of one process would be in the lock together: it belongs to the open file."""
    guard.write(1, "1 " + "x" * 10_000)
    tokens = itertools.count(2)

    def write(_: int) -> str:
        token = next(tokens)
        with contextlib.suppress(StaleToken):
            guard.write(token, f"{token} " + "x" * 10_000)
        return path.read_text()

    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(write, range(80)))
    assert all(text.endswith(" " + "x" * 10_000) for text in seen)
    assert guard.highest() == 81
    assert path.read_text().startswith("81 ")
    assert len(_names(path)) == 3


@twin(bugs.file_in_two_steps)
@recorded
@pytest.mark.slow
def test_eight_processes_never_go_back(path: Path) -> None:
    """Writers in different processes would not see each other's marks."""
    writers = [Worker(WRITER, str(path), number) for number in range(8)]
    try:
        for writer in writers:
            writer.ask(count=0)  # so that all begin at once
        for writer in writers:
            writer.tell(count=10)
        newest = 0
        guard = FileGuard(path, name="orders")
        with ThreadPoolExecutor(1) as pool:
            hearing = pool.submit(lambda: [writer.hear(timeout=60) for writer in writers])
            while not hearing.done():
                content = path.read_text() if path.exists() else "0 "
                token = int(content.partition(" ")[0])
                assert token >= newest, f"went back from {newest} to {token}"
                assert token == 0 or content == f"{token} " + "x" * 50_000, "half of a file"
                assert guard.highest() >= token
                newest = token
        accepted = hearing.result()
    finally:
        for writer in writers:
            writer.close()
    assert all(share == sorted(share) for share in accepted)
    last = max(token for share in accepted for token in share)
    assert path.read_text().startswith(f"{last} ")
    assert len(_names(path)) == 3


@twin(bugs.file_is_written_in_place)
@recorded
@pytest.mark.slow
@pytest.mark.parametrize("token", [6, 5], ids=["a newer token", "the same token"])
def test_a_writer_killed_at_any_step_does_no_harm(tmp_path: Path, token: int) -> None:
    """A crash at that step would leave half of a file, a mark too low, or a lock for ever."""
    old, new = "5 old", "the |new |content, in |several pieces"
    written = new.replace("|", "")
    ends: set[str] = set()
    with Worker(KILLED) as worker:
        at, steps = 0, []
        while True:
            (folder := tmp_path / str(at)).mkdir()
            path = folder / "orders.json"
            guard = FileGuard(path, name="orders", timeout=5)
            guard.write(5, old)
            steps, ended = worker.ask(path=str(path), token=token, content=new, at=at)
            content, mark = path.read_text(), guard.highest()
            story = f"killed at step {at}: {steps}"
            assert content in (old, written), story
            assert mark in (5, token), story
            assert mark == token or content == old, story
            ends.add(content)
            if mark > 5:
                with pytest.raises(StaleToken):
                    guard.write(5, "late")
            guard.write(7, "7 next")
            assert path.read_text() == "7 next", story
            assert len(_names(path)) == 3, f"litter of a writer {story}"
            if ended == 0:
                break
            assert ended == -signal.SIGKILL, story
            at += 1
    assert ends == {old, written}
    for call in ("flock", "open", "piece", "fsync", "replace", "close"):
        assert call in steps, f"{call} was not counted: {steps}"
        assert call + "." in steps


@twin(bugs.file_locks_nobody_out)
@recorded
def test_a_writer_stopped_with_the_lock_is_told_of(path: Path) -> None:
    """Others would wait for ever, would not learn why, or would write past it."""
    guard = FileGuard(path, name="orders", timeout=0.2)
    guard.write(1, "old")
    with Worker(STOPPED, str(path)) as worker:
        worker.tell(token=2, content="stopped")
        os.waitpid(worker.pid, os.WUNTRACED)
        with pytest.raises(StoreUnavailable, match=r"0\.2 s, and may be stopped.*fuser") as caught:
            guard.write(3, "new")
        assert not caught.value.maybe_applied
        assert path.read_text() == "old"
        assert guard.highest() == 2, "a reader needs no lock"
        worker.cont()
        worker.hear()
        assert path.read_text() == "stopped"
        guard.write(3, "new")
        with pytest.raises(WorkerError, match="StaleToken"):
            worker.ask(token=2, content="late")
    assert path.read_text() == "new"


@twin(bugs.file_lock_stays)
@recorded
def test_a_writer_killed_with_the_lock_frees_it(path: Path) -> None:
    """A crash would need an operator."""
    guard = FileGuard(path, name="orders", timeout=0.2)
    with Worker(STOPPED, str(path)) as worker:
        worker.tell(token=2, content="stopped")
        os.waitpid(worker.pid, os.WUNTRACED)
        worker.kill()
    guard.write(3, "new")
    assert path.read_text() == "new"


def test_a_lease_writes(client: fencer.Fencer, guard: FileGuard, path: Path) -> None:
    """The shortest use would not work: a lease with its grant."""
    with client.acquire("orders") as lease:
        shown: Any = lease.sequencer()
        guard.write(shown, "new")
    mark = json.loads(Path(f"{path}.fence").read_text())
    assert mark == {"token": shown.token, "grant": shown.grant}


def _names(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())
