"""The guard of an object on S3, or on a server that speaks its protocol (extra ``s3``: boto3).

    from fencer.guards.s3 import S3Guard

The token and its grant are in the object's own metadata, ``fencing-token`` and ``fencing-grant``,
so that mark and data change in one step: a put on the condition that the object is still the one
whose mark was compared (``If-Match`` with its ETag; ``If-None-Match: *`` if there was none).

Why an object ends in blank space: S3 compares ETags only, and an ETag is as a rule the MD5 of the
content; metadata do not count. A newer holder that announces itself, or writes the same content
once more, would leave the ETag as it was, and the put of an older holder that had looked before
would pass. So the token has to be part of the content, too. The guard adds `STAMP_BYTES` spaces
and line ends, which spell a digest of token and grant. JSON, YAML, TOML, XML and other text read
the same with them; `S3Guard.get` leaves them out, and so can whoever knows the number.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    ParamValidationError,
)

from fencer import _check
from fencer.errors import InvalidArgument, StaleToken, StoreError, StoreUnavailable
from fencer.guards._base import BaseGuard, Claim, Mark, Token

__all__ = ["STAMP_BYTES", "S3Guard"]

STAMP_BYTES = 64
"""So many bytes of blank space are at the end of each object that a guard wrote."""

_TRIES = 20
_PAUSE = 0.05
"""Seconds at most between two tries, after the first few."""

_OURS = frozenset({"Bucket", "Key", "Body", "IfMatch", "IfNoneMatch"})
_KEPT = (
    "CacheControl",
    "ContentDisposition",
    "ContentEncoding",
    "ContentLanguage",
    "ContentType",
    "SSEKMSKeyId",
    "ServerSideEncryption",
    "StorageClass",
    "WebsiteRedirectLocation",
)
"""What an announcement carries over, apart from the content and its metadata."""

_TOKEN, _GRANT, _ANNOUNCED = "fencing-token", "fencing-grant", "fencing-announced"


class _Seen(NamedTuple):
    """An object as it was: its ETag, ``None`` if there was none, and its mark."""

    etag: str | None
    mark: Mark


class S3Guard(BaseGuard):
    """Lets only the newest holder write an object: check and write are one step of S3's.

    It relies on conditional puts, which S3 has had since November 2024, and on reads that see the
    last write. Whoever puts or deletes the object without the guard removes its mark, and is not
    guarded against: a bucket policy can demand the condition ``s3:if-match`` of all who put, and
    deny ``s3:DeleteObject``.

    Any thread may use it. Metadata named ``fencing-…`` are the guard's; what is said in the module
    about blank space at the end of the object concerns those who read it without `get`.

    Args:
        client: of boto3, ``boto3.client("s3")``; it stays yours to close.
        bucket: where the object is.
        key: its key.
        name: the name of the leases whose tokens count here; by default the key.
        keys: take only what is sealed with one of these.

    Raises:
        InvalidArgument: an argument is not allowed.
    """

    def __init__(
        self,
        client: Any,
        bucket: str,
        key: str,
        *,
        name: str | None = None,
        keys: Sequence[bytes] | None = None,
    ) -> None:
        super().__init__(f"s3://{bucket}/{key}", name=key if name is None else name, keys=keys)
        self._client = client
        self._place = {"Bucket": bucket, "Key": key}
        self._last: _Seen | None = None

    def put(self, token: Token, body: bytes | str, **options: Any) -> None:
        """Write the object if the token is not stale.

        A put whose reply is lost may be sent again, by boto3 too, and so may be applied twice.

        Args:
            token: an ``int``, or a `Lease` or `Sequencer`, whose grant is then compared too, or a
                packed sequencer.
            body: the content; a ``str`` is written as UTF-8. It is held in memory.
            options: of boto3's ``put_object``, such as ``ContentType`` or ``Metadata``.

        Raises:
            StaleToken: a newer token, or another grant with this one, was here before; the object
                is as that one left it. (If boto3 had sent the put before without getting an answer,
                that one may have been applied, and overwritten since.)
            StoreUnavailable: no answer came (see ``maybe_applied``), or others changed the object
                all the time.
            StoreError: S3 refused; nothing was written.
            InvalidArgument: it is no token, or one of another name, or an option is the guard's
                own; nothing was sent.

        Cost:
            One put, as without the guard. One ``HEAD`` more the first time, and one ``HEAD`` and
            one put more each time that somebody else has written meanwhile.
        """
        if not isinstance(body, bytes | str):
            raise InvalidArgument(f"body must be bytes or str, not {type(body).__name__}")
        metadata = options.pop("Metadata", {})
        taken = sorted(_OURS & options.keys()) + [n for n in metadata if _is_ours(n)]
        if taken:
            raise InvalidArgument(f"{', '.join(taken)}: the guard sets these itself")
        content = body.encode() if isinstance(body, str) else body
        claim = self._claim(token)

        def write(seen: _Seen, mark: Mark) -> str:
            return self._put(seen, mark, content, {**options, "Metadata": metadata})

        self._decide(claim, write, self._recall(claim))

    def check(self, token: Token) -> None:
        """Accept the token, or refuse it; the content stays as it is.

        If the token is new here, the object is written anew with the same content, the same
        metadata, and the same headers and encryption; tags and ACLs are not carried over. If there
        is no object, an empty one is made, for which `get` returns ``None``.

        Raises:
            StaleToken: a newer token, or another grant with this one, was here before.
            others: as for `put`.

        Cost:
            A ``HEAD``; for a new token a ``GET`` and a put of the whole object more.
        """

        def announce(seen: _Seen, mark: Mark) -> str | None:
            if mark == seen.mark:
                return seen.etag
            if seen.etag is None:
                return self._put(seen, mark, b"", {"Metadata": {_ANNOUNCED: "true"}})
            with self._answers():
                found = self._client.get_object(**self._place, IfMatch=seen.etag)
                content = found["Body"].read()
            return self._put(seen, mark, _unstamped(content, found["Metadata"]), _kept(found))

        self._decide(self._claim(token), announce, self._look())

    def get(self) -> bytes | None:
        """Return the content without the stamp; ``None`` if nothing has been written yet.

        Raises:
            StoreUnavailable: no answer came.
            StoreError: S3 refused.
        """
        try:
            with self._answers():
                found = self._client.get_object(**self._place)
                content: bytes = found["Body"].read()
        except _Changed:
            return None
        if _ANNOUNCED in found["Metadata"]:
            return None
        return _unstamped(content, found["Metadata"])

    def highest(self) -> int:
        """Return the largest token accepted so far; 0 if there was none.

        Raises:
            StoreUnavailable: no answer came.
            StoreError: S3 refused, or the object's metadata hold no token.

        Cost:
            A ``HEAD``.
        """
        return self._look().mark.highest

    def _decide(
        self, claim: Claim, write: Callable[[_Seen, Mark], str | None], seen: _Seen
    ) -> None:
        """Accept the claim and write; if the object has changed meanwhile, look and decide anew."""
        for attempt in range(_TRIES):
            mark = seen.mark.accept(claim, self.resource)
            try:
                etag = write(seen, mark)
            except _Changed:
                time.sleep(random.uniform(0, _PAUSE if attempt > 1 else 0))
                seen = self._look()
            except BaseException:
                self._last = None
                raise
            else:
                self._last = _Seen(etag, mark)
                return
        raise StoreUnavailable(
            f"{self.resource} was changed by others during each of {_TRIES} tries",
            maybe_applied=False,
        )

    def _recall(self, claim: Claim) -> _Seen:
        """What was seen last, if that is enough: the put's condition finds out what is too old."""
        last = self._last
        if last is not None:
            with suppress(StaleToken):  # which is to name the highest as it is now
                last.mark.accept(claim, self.resource)
                return last
        return self._look()

    def _look(self) -> _Seen:
        try:
            with self._answers():
                found = self._client.head_object(**self._place)
        except _Changed:
            return _Seen(None, Mark())
        return _Seen(found["ETag"], self._mark_in(found["Metadata"]))

    def _mark_in(self, metadata: dict[str, str]) -> Mark:
        if _TOKEN not in metadata:
            return Mark()
        try:
            return Mark(_check.token(int(metadata[_TOKEN])), metadata.get(_GRANT, ""))
        except ValueError:
            raise StoreError(
                f"{self.resource} has {metadata[_TOKEN]!r} for {_TOKEN}, which is no token. "
                "Nothing was changed: find out who wrote it",
                code="CORRUPT",
            ) from None

    def _put(self, seen: _Seen, mark: Mark, content: bytes, options: dict[str, Any]) -> str:
        condition = {"IfNoneMatch": "*"} if seen.etag is None else {"IfMatch": seen.etag}
        marked = {_TOKEN: str(mark.highest), _GRANT: mark.grant}
        # Some servers drop or refuse an empty value.
        metadata = {
            **options["Metadata"],
            **{name: value for name, value in marked.items() if value},
        }
        with self._answers(writing=True):
            done = self._client.put_object(
                **{**options, "Metadata": metadata},
                **self._place,
                **condition,
                Body=content + _stamp(mark),
            )
        etag: str = done["ETag"]
        return etag

    @contextmanager
    def _answers(self, *, writing: bool = False) -> Iterator[None]:
        """Translate what S3 and boto3 raise.

        Raises:
            _Changed: there is no such object, or not any more, or the condition was not met.
        """
        try:
            yield
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = error.response.get("Error", {}).get("Code", "")
            if code in (
                "NoSuchKey",
                "404",
                "PreconditionFailed",
                "412",
                "ConditionalRequestConflict",
            ):
                raise _Changed from error
            message = f"S3 refused {self.resource} ({error})"
            if status >= 500:
                raise StoreUnavailable(message, maybe_applied=writing, code=code) from error
            raise StoreError(message, code=code) from error
        except ParamValidationError as error:
            raise InvalidArgument(f"boto3 does not take this: {error}") from error
        except (ConnectionError, HTTPClientError) as error:
            raise StoreUnavailable(f"no answer from S3 ({error})", maybe_applied=writing) from error
        except BotoCoreError as error:
            raise StoreError(f"boto3 could not ask for {self.resource} ({error})") from error


class _Changed(Exception):
    """The object is not the one that was looked at."""


def _stamp(mark: Mark) -> bytes:
    digest = hashlib.blake2b(f"{mark.highest} {mark.grant}".encode(), digest_size=STAMP_BYTES // 8)
    return f"{int.from_bytes(digest.digest()):0{STAMP_BYTES}b}".translate({48: 32, 49: 10}).encode()


def _unstamped(content: bytes, metadata: dict[str, str]) -> bytes:
    return content[:-STAMP_BYTES] if _TOKEN in metadata else content


def _is_ours(name: str) -> bool:
    return name.lower().startswith("fencing-")


def _kept(found: dict[str, Any]) -> dict[str, Any]:
    """The options by which an object is put once more as it was found."""
    options = {option: found[option] for option in _KEPT if option in found}
    return {**options, "Metadata": {n: v for n, v in found["Metadata"].items() if not _is_ours(n)}}
