"""The parts of a URL, and how a URL that cannot be used is told about.

A password with a raw ``/``, ``?``, ``#`` or ``@`` in it ends up in other parts, so an error quotes
none of them. Neither the driver nor the standard library, whose errors do, is given a user, a
password or a host that was not read here: `Parts.for_driver` writes the URL anew.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

from redis.exceptions import RedisError

from fencer.errors import InvalidArgument

SCHEMES: Final = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)

ENCODED: Final = "In a user or password, write / as %2F, ? as %3F, # as %23 and @ as %40"

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[^]]+)?\]|[^][:@,]*)(?::([0-9]{0,5}))?")
_DATABASE = re.compile(r"[0-9]{0,9}")


class Unreadable(Exception):
    """What is wrong with a URL, in words that may be shown."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A URL, in parts.

    Attributes:
        scheme: what the driver calls it: ``redis``, ``rediss`` or ``unix``.
        topology: ``sentinel``, ``cluster``, or ``""`` for a single server.
        login: ``user:password@`` with all that is odd encoded, or ``""``.
        hosts: what names the servers, as it was written.
        path: what follows them, as it was written.
        query: the options, as they were written.
    """

    scheme: str
    topology: str
    login: str
    hosts: str
    path: str
    query: str

    def addresses(self, what: str, port: int) -> list[tuple[str, int]]:
        """The host and port of each server.

        Args:
            what: what the servers are, for errors.
            port: for servers without one.
        """
        found = []
        for place, item in enumerate(self.hosts.split(","), 1):
            host, number = _address(item, f"{what} {place}")
            if not host:
                raise Unreadable(f"{what} {place} has no host: each is HOST or HOST:PORT")
            found.append((unquote(host).strip("[]"), number or port))
        return found

    def database(self, text: str) -> str:
        """The number of a database in a part of the path; ``""`` if there is none."""
        number = unquote(text).strip("/ ")
        if _DATABASE.fullmatch(number):
            return number
        if self.topology:
            raise Unreadable("what follows the service's name must be the number of a database")
        raise Unreadable(
            f"its path must be the number of a database, as in {self.scheme}://host:6379/0; a "
            f"service of sentinels is named by {self.scheme}+sentinel://host:26379/service"
        )

    def for_driver(self, host: str, path: str = "") -> str:
        """A URL that the driver reads, with the same login and options."""
        return f"{self.scheme}://{self.login}{host}{path}?{self.query}"

    def for_driver_itself(self) -> str:
        """The same, of the one server that this URL names."""
        if self.scheme == "unix":
            if self.hosts or not self.path:
                raise Unreadable(
                    "unix:// is followed by the whole path of a socket, as in "
                    f"unix:///run/redis.sock. {ENCODED}"
                )
            return self.for_driver("", self.path)
        if "," in self.hosts:
            raise Unreadable(
                f"{self.scheme}:// names one server: several sentinels are named by "
                f"{self.scheme}+sentinel://, and nodes of a Cluster by {self.scheme}+cluster://"
            )
        host, port = _address(self.hosts, "the server")
        host = host if host.startswith("[") else quote(unquote(host), safe="")
        database = self.database(self.path)
        return self.for_driver(f"{host}:{port}" if port else host, database and f"/{database}")


@contextlib.contextmanager
def reading(url: str) -> Iterator[Parts]:
    """Take a URL apart, and have all that is wrong with it or with the options told in one way.

    In the block the driver makes its objects; faults of a server do not get out of there.

    Raises:
        InvalidArgument: the URL or an option cannot be used.
    """
    shown = True
    try:
        parts = _split(url.strip())
        shown = "@" not in parts.query
        yield parts
    except Unreadable as error:
        raise InvalidArgument(f"the URL cannot be used: {error}") from None
    except (ValueError, TypeError, AttributeError, OSError, RedisError) as error:
        if shown:
            raise InvalidArgument(f"the URL or a driver option cannot be used: {error}") from error
        # The driver quotes the names of options, and these may be half of a password.
        raise InvalidArgument(
            "an option of the URL or of the driver cannot be used; it is not shown which, for the "
            f"URL has an @ behind a ?. {ENCODED}, and the same in an option"
        ) from None


def _split(url: str) -> Parts:
    scheme, marked, rest = url.partition("://")
    scheme = scheme.lower()
    if not marked or scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise Unreadable(f"it must begin with one of the schemes {known}")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    path, _, query = rest[len(authority) :].partition("?")
    if "#" in rest:
        raise Unreadable(f"a # has no meaning in it. {ENCODED}, and the same in an option")
    if "@" in path and (scheme != "unix" or authority):
        raise Unreadable(f"there is an @ behind a /. {ENCODED}")
    named = [item.partition("=") for item in query.split("&") if item]
    if not all(equals for _, equals, _ in named):
        raise Unreadable(f"what follows the ? is not NAME=VALUE&NAME=VALUE. {ENCODED}")
    if any(name == "retry" for name, _, _ in named):
        raise Unreadable("retry is an object of the driver, and no option of a URL")
    login, at, hosts = authority.rpartition("@")
    user, colon, password = login.partition(":")
    login = f"{_encoded(user)}{colon}{_encoded(password)}{at}"
    scheme, _, topology = scheme.partition("+")
    return Parts(scheme, topology, login, hosts, path, query)


def _address(text: str, what: str) -> tuple[str, int]:
    """A host as it was written, maybe ``""``, and its port, or 0."""
    found = _ADDRESS.fullmatch(text)
    if found is None or (found[2] and not 0 < int(found[2]) < 65_536):
        raise Unreadable(f"the address of {what} is not HOST or HOST:PORT. {ENCODED}")
    return found[1], int(found[2] or 0)


def _encoded(text: str) -> str:
    return quote(unquote(text), safe="")
