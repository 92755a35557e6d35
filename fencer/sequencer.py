"""A token that travels: through headers, queues and files (Chubby's word: Burrows 2006, 2.4)."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from fencer import _check
from fencer.errors import InvalidArgument

_VERSION = 1
_MAX_BYTES = 1_024
_MIN_KEY_BYTES = 16
_GRANT = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Sequencer:
    """A lease's name, token, grant and holder as one value.

    `pack` makes bytes of it, `unpack` reads them. Unsealed, anybody who can send bytes can invent a
    huge token and lock the real holder out; sealed with a key (HMAC-SHA256), only who has the key.
    """

    name: str
    token: int
    grant: str
    holder: str

    def __post_init__(self) -> None:
        _check.name(self.name)
        _check.token(self.token)
        _check.holder(self.holder)
        if not isinstance(self.grant, str) or not _GRANT.fullmatch(self.grant):
            raise InvalidArgument("a sequencer's grant must be 32 lower-case hex digits")

    def pack(self, key: bytes | None = None) -> bytes:
        """Return the sequencer as bytes: a msgpack array, at most 1,024 bytes.

        Args:
            key: seals the bytes; at least 16 random bytes that only you and your guards know.

        Raises:
            InvalidArgument: the key is too short.
        """
        fields = [_VERSION, self.name, self.token, self.grant, self.holder]
        return _packed([*fields, _seal(fields, key)] if key is not None else fields)

    @classmethod
    def unpack(cls, data: bytes, keys: Sequence[bytes] | None = None) -> Sequencer:
        """Read what `pack` wrote; anything else is refused.

        Args:
            data: the bytes.
            keys: where given, the data must be sealed with one of them (several: for rotation).

        Raises:
            InvalidArgument: the data is not a sequencer, is not sealed though keys are given, is
                sealed with another key, or is sealed though no keys are given to check it with.
        """
        if not isinstance(data, bytes) or len(data) > _MAX_BYTES:
            raise InvalidArgument(f"a sequencer is at most {_MAX_BYTES} bytes")
        try:
            values = msgpack.unpackb(data)
        except Exception as error:
            raise InvalidArgument("the data is no sequencer: it is not msgpack") from error
        if not isinstance(values, list) or len(values) not in (5, 6) or values[0] != _VERSION:
            raise InvalidArgument("the data is no sequencer of a version known here")
        fields, seal = values[:5], values[5:]
        if keys is None and seal:
            raise InvalidArgument("the sequencer is sealed: pass the keys to check it with")
        if keys is not None and not _is_sealed(fields, seal, keys):
            raise InvalidArgument("the sequencer is not sealed with any of the keys")
        sequencer = cls(*fields[1:])
        # One value, one encoding: nothing can hide in another spelling of the same fields.
        if _packed([_VERSION, *fields[1:], *seal]) != data:
            raise InvalidArgument("the data is no sequencer: it is not in its shortest form")
        return sequencer


def _packed(values: list[Any]) -> bytes:
    data: bytes = msgpack.packb(values)
    return data


def _seal(fields: list[Any], key: bytes) -> bytes:
    if not isinstance(key, bytes) or len(key) < _MIN_KEY_BYTES:
        raise InvalidArgument(f"a key to seal with needs at least {_MIN_KEY_BYTES} bytes")
    return hmac.digest(key, b"fencer sequencer\0" + _packed(fields), "sha256")


def _is_sealed(fields: list[Any], seal: list[Any], keys: Sequence[bytes]) -> bool:
    if len(seal) != 1 or not isinstance(seal[0], bytes):
        return False
    return any(hmac.compare_digest(seal[0], _seal(fields, key)) for key in keys)
