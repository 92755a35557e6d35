"""The command ``acl``: the rules for a user of the server that may use leases, and nothing else."""

from __future__ import annotations

from typing import Annotated

import typer

from fencer import _check
from fencer.cli import show
from fencer.cli.options import AsJson, HashTag, Namespace
from fencer.errors import InvalidArgument


def acl(
    user: Annotated[str, typer.Option(metavar="NAME", help="The user of the server.")] = "fencer",
    prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="Only leases whose names begin so.")
    ] = "",
    guards: Annotated[
        bool, typer.Option("--guards", help="Allow RedisGuard, too; not yet your data's own keys.")
    ] = False,
    listing: Annotated[
        bool,
        typer.Option(
            "--ls/--no-ls",
            help="Allow ls, doctor and names(): SCAN shows the names of all keys.",
        ),
    ] = True,
    replicated: Annotated[
        bool, typer.Option("--replicated", help="Allow the durability Replicated, too.")
    ] = False,
    fsynced: Annotated[
        bool, typer.Option("--fsynced", help="Allow the durability Fsynced, too.")
    ] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Allow what a Cluster asks for; for each node.")
    ] = False,
    db: Annotated[
        int, typer.Option(metavar="N", min=0, help="The database that the URL names.")
    ] = 0,
    as_json: AsJson = False,
    namespace: Namespace = "fencer",
    hash_tag: HashTag = True,
) -> None:
    """Print the ACL rules under which a client can use leases, and nothing else.

    The output is for redis-cli; a password is left as it is, and a new user has none yet.
    """
    # Nothing else needs it, and the other commands shall start fast.
    from fencer.acl import rules

    if any(letter.isspace() for letter in _check.text("--user", user, 255)):
        raise InvalidArgument(f"--user {user!r}: the server takes no user with a space in its name")
    found = rules(
        namespace,
        hash_tag=hash_tag,
        prefix=prefix,
        guards=guards,
        listing=listing,
        replicated=replicated,
        fsynced=fsynced,
        cluster=cluster,
        db=db,
    )
    if as_json:
        show.as_json({"user": user, **found.as_dict()})
        return
    show.line(found.line(user))
