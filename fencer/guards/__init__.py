"""Guards: what a token is checked by, where the writes land."""

from fencer.guards._base import AsyncGuard, BaseGuard, Claim, Guard, Mark, Token
from fencer.guards._file import FileGuard
from fencer.guards._memory import MemoryGuard
from fencer.guards._redis import AsyncRedisGuard, RedisGuard

__all__ = [
    # Where the writes land
    "FileGuard",
    "MemoryGuard",
    "RedisGuard",
    "AsyncRedisGuard",
    # For guards of your own
    "AsyncGuard",
    "BaseGuard",
    "Claim",
    "Guard",
    "Mark",
    "Token",
]
