"""The guard of a file that is replaced as a whole.

Three files lie beside the one that is protected, say ``orders.json``:

- ``orders.json.fence`` holds the mark, as JSON. It is replaced atomically, too, and always before
  the content: a crash leaves the old or the new content, and a mark that is never too low for it.
- ``orders.json.lock`` is what writers lock (``flock``). It is never replaced or removed, so that
  all of them lock the same file.
- ``.orders.json.<token>.<random>.new`` is content that has yet to take its place. A writer that was
  killed leaves it behind; the next holder, whose token is larger, removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fencer import _check
from fencer.errors import InvalidArgument, StoreError, StoreUnavailable
from fencer.guards._base import BaseGuard, Claim, Mark, Token

_PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
"""Seconds between two tries to get the lock; the last one over and over."""


class FileGuard(BaseGuard):
    """Lets only the newest holder replace a file, which readers always see whole.

    Any thread and any process of one host may write; across hosts, on NFS say, `flock` cannot be
    relied on. Whoever writes to the file in another way is not guarded against.

    The file keeps its permissions and its owner. It gets a new inode with each write: hard links
    keep the old content, and ACLs and extended attributes are not carried over. A symbolic link is
    followed once, when the guard is made.

    Args:
        path: the file. It need not exist; its folder must, and must allow writing.
        name: the name of the leases whose tokens count here; by default the path as it is given.
        keys: take only what is sealed with one of these.
        timeout: seconds to wait for another writer, 0 to 86,400. None has the lock for longer than
            two renames take, unless it is stopped just then.

    Raises:
        InvalidArgument: an argument is not allowed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        keys: Sequence[bytes] | None = None,
        timeout: float = 10.0,
    ) -> None:
        given = os.fspath(path)
        super().__init__(given, name=name, keys=keys)
        self._timeout = _check.number("timeout", timeout, 0.0, 86_400.0)
        self._path = Path(given).resolve()
        if given.endswith(os.sep):
            raise InvalidArgument(f"{given!r} is a folder, not a file")

    @property
    def path(self) -> Path:
        """The file itself, links followed."""
        return self._path

    def write(self, token: Token, data: bytes | str) -> None:
        """Replace the file if the token is not stale.

        Args:
            token: an ``int``, or a `Lease` or `Sequencer`, whose grant is then compared too, or a
                packed sequencer.
            data: the new content; a ``str`` is written as UTF-8.

        Raises:
            StaleToken: a newer token, or another grant with this one, was here before; the file is
                as it was.
            StoreUnavailable: another writer had the lock for too long, and nothing changed; or the
                file was replaced, and the folder could not be flushed (``maybe_applied``).
            StoreError: the operating system refused; the file is as it was.
            InvalidArgument: it is no token, or one of another name, or no data; nothing changed.

        Cost:
            Two flushes to the disk, as for any file that is replaced safely. The first write with a
            token takes two more, for the mark.
        """
        if not isinstance(data, bytes | str):
            raise InvalidArgument(f"data must be bytes or str, not {type(data).__name__}")
        content = data.encode() if isinstance(data, str) else data
        with self.open(token) as file, self._refusals("write"):
            file.write(content)

    @contextmanager
    def open(self, token: Token) -> Iterator[BinaryIO]:
        """Write new content in pieces; it takes the file's place when the block ends.

        The token is accepted on entering, so that what you read inside cannot be changed by an
        older holder any more, and checked once more before the file is replaced. Others may write
        meanwhile: no lock is held inside the block.

        Raises:
            StaleToken: on entering, or on leaving if a newer holder was here meanwhile; the file is
                as that one left it.
            others: as for `write`. If the block raises, its exception comes out, and the file is as
                it was.
        """
        claim = self._claim(token)
        self._accept(claim)
        fresh = self._path.with_name(f".{self._path.name}.{claim.token}.{secrets.token_hex(8)}.new")
        try:
            with self._refusals("create"):
                file = os.fdopen(self._create_alike(fresh), "wb")
            try:
                yield file
                with self._refusals("write"):
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                with contextlib.suppress(OSError):  # What matters has been flushed.
                    file.close()
            self._accept(claim, fresh)
        except BaseException:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise

    def check(self, token: Token) -> None:
        """Accept the token, or refuse it; the file stays as it is.

        Raises:
            StaleToken: a newer token, or another grant with this one, was here before.
            others: as for `write`.
        """
        self._accept(self._claim(token))

    def highest(self) -> int:
        """Return the largest token accepted so far; 0 if there was none.

        Raises:
            StoreError: the mark cannot be read.
        """
        return self._read_mark().highest

    def _accept(self, claim: Claim, fresh: Path | None = None) -> None:
        """Check the claim, and put the fresh content into its place, as one step for writers."""
        with self._locked():
            before = self._read_mark()
            after = before.accept(claim, self.resource)
            with self._refusals("replace"):
                if after != before:
                    self._write_mark(after)
                if after.highest > before.highest:
                    self._remove_leftovers(after.highest)
                if fresh is not None:
                    fresh.replace(self._path)
            if fresh is not None:
                with self._refusals("flush the folder of", maybe_applied=True):
                    self._flush_folder()

    def _read_mark(self) -> Mark:
        path = self._beside(".fence")
        try:
            with self._refusals("read the mark of"):
                text = path.read_bytes()
        except StoreError as error:
            if error.code == "ENOENT":
                return Mark()
            raise
        try:
            fields = json.loads(text)
            mark = Mark(_check.token(fields["token"]), fields["grant"])
            if isinstance(mark.grant, str):
                return mark
        except (ValueError, TypeError, KeyError):
            pass
        raise StoreError(
            f"{str(path)!r} holds no mark. Nothing was changed: put it back from a backup, or "
            'write the largest token in use into it, as {"token": 1763870400123456, "grant": ""}',
            code="CORRUPT",
        )

    def _write_mark(self, mark: Mark) -> None:
        # Only the holder of the lock writes it, so that one name does for all.
        fresh = self._beside(".fence.new")
        fresh.unlink(missing_ok=True)
        file = _create(fresh, 0o666)
        try:
            os.write(file, _check.json_text({"token": mark.highest, "grant": mark.grant}).encode())
            os.fsync(file)
        finally:
            os.close(file)
        fresh.replace(self._beside(".fence"))
        # Before the content: two renames may reach the disk in either order.
        self._flush_folder()

    def _remove_leftovers(self, below: int) -> None:
        """Remove what was begun with smaller tokens: whoever did is gone, or will be refused."""
        start = f".{self._path.name}."
        with contextlib.suppress(OSError):  # It is in nobody's way.
            for path in self._path.parent.iterdir():
                token, _, end = path.name.removeprefix(start).partition(".")
                ours = path.name.startswith(start) and token.isdecimal() and end.endswith(".new")
                if ours and int(token) < below:
                    path.unlink()

    def _create_alike(self, fresh: Path) -> int:
        """Create a file with the owner and the permissions of the one that it will replace."""
        try:
            old = self._path.stat()
        except FileNotFoundError:
            return _create(fresh, 0o666)
        file = _create(fresh, 0o600)  # Nobody may read it who may not read the old one.
        try:
            new = os.fstat(file)
            if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
                os.fchown(file, old.st_uid, old.st_gid)
            os.fchmod(file, old.st_mode & 0o7777)
        except BaseException:
            os.close(file)
            raise
        return file

    def _flush_folder(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _beside(self, end: str) -> Path:
        return self._path.with_name(self._path.name + end)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        until = time.monotonic() + self._timeout
        with self._refusals("lock"):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            lock = os.open(self._beside(".lock"), flags, 0o666)
        try:
            tries = 0
            while not self._try_lock(lock):
                if time.monotonic() >= until:
                    raise StoreUnavailable(
                        f"another writer has had the lock on {self.resource!r} for "
                        f"{self._timeout:g} s, and may be stopped: "
                        f"`fuser -v {self._beside('.lock')}` shows it",
                        maybe_applied=False,
                    )
                time.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
                tries += 1
            try:
                yield
            finally:
                # Not by closing alone: a child that was forked meanwhile has the file open, too.
                fcntl.flock(lock, fcntl.LOCK_UN)
        finally:
            os.close(lock)

    def _try_lock(self, lock: int) -> bool:
        try:
            with self._refusals("lock"):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except StoreError as error:
            if error.code in ("EAGAIN", "EWOULDBLOCK"):
                return False
            raise
        return True

    @contextmanager
    def _refusals(self, what: str, *, maybe_applied: bool = False) -> Iterator[None]:
        """Translate what the operating system refuses."""
        try:
            yield
        except OSError as error:
            code = errno.errorcode.get(error.errno or 0, "")
            message = f"cannot {what} {self.resource!r}: {error.strerror or error}"
            if maybe_applied:
                raise StoreUnavailable(message, maybe_applied=True, code=code) from error
            raise StoreError(f"{message}. The file is as it was", code=code) from error


def _create(path: Path, mode: int) -> int:
    """Create a file; one that is there already, or a link, is none of ours."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
