"""The Lua scripts, as they are packaged, and the SHA by which the server knows each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Script:
    """One script: ``lua/<name>.lua``."""

    name: str
    body: bytes
    sha: str


def folder() -> Traversable:
    """Where the scripts are: in the wheel, or at the top of a checkout."""
    packaged = files("fencer") / "lua"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "lua"


@cache
def load(name: str) -> Script:
    """Read ``lua/<name>.lua``."""
    body = (folder() / f"{name}.lua").read_bytes()
    return Script(name, body, hashlib.sha1(body, usedforsecurity=False).hexdigest())
