"""The commands ``guard ...``: what a guard needs at its resource."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from fencer.cli import show
from fencer.errors import InvalidArgument

app = typer.Typer(help="Prepare what guards need at their resources.", no_args_is_help=True)


class Dialect(StrEnum):
    """The databases that SQLGuard works on."""

    POSTGRESQL = "postgresql"
    MYSQL = "mysql"
    MARIADB = "mariadb"
    SQLITE = "sqlite"


@app.callback()
def _group() -> None:
    pass


@app.command()
def sql(
    dialect: Annotated[Dialect, typer.Option(help="The kind of database.")],
    table: Annotated[
        str, typer.Option(metavar="TEXT", help="What the table is called.")
    ] = "fencer_guard",
    schema: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The schema that it is in.")
    ] = None,
) -> None:
    """Print the statement that creates the table of SQLGuard, for a migration."""
    try:
        from fencer.guards.sql import ddl
    except ImportError as error:
        raise InvalidArgument(str(error)) from error
    for row in ddl(dialect.value, table=table, schema=schema).splitlines():
        show.line(row)
