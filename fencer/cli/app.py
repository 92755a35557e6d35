"""All commands, registered in one place, and what happens when one of them fails."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import fencer
from fencer.cli import acl, bench, demo, doctor, drill, guard, instance, leases, serve, show, watch
from fencer.cli.exits import MEANING, Exit, code_of, line_of
from fencer.errors import FencerError


class _Commands(TyperGroup):
    """Turns every error of the package into one line and an exit code."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        # Not as the epilog: versions of typer differ in where they break its lines.
        typer.echo(" Exit codes:\n")
        for code, meaning in MEANING.items():
            typer.echo(f"{code:>5}  {meaning}")

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FencerError as error:
            show.complain(line_of(error))
            raise typer.Exit(code_of(error)) from error
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None
        except BrokenPipeError:
            raise typer.Exit(Exit.PIPE) from None


app = typer.Typer(
    cls=_Commands,
    help="Leases with fencing tokens on Redis or Valkey.",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_TRY = "Try it"
_LOOK = "See who has what"
_ACT = "Step in"

app.command(rich_help_panel=_TRY)(demo.demo)
app.command(rich_help_panel=_TRY)(serve.serve)
app.command(rich_help_panel=_TRY)(instance.instance)
app.command(rich_help_panel=_TRY)(drill.drill)
app.command(rich_help_panel=_TRY)(bench.bench)
app.command(rich_help_panel=_LOOK)(leases.status)
app.command(rich_help_panel=_LOOK)(watch.watch)
app.command(rich_help_panel=_LOOK)(leases.ls)
app.command(rich_help_panel=_LOOK)(leases.history)
app.command(rich_help_panel=_LOOK)(doctor.doctor)
app.command(rich_help_panel=_ACT)(leases.revoke)
app.command(rich_help_panel=_ACT)(leases.advance)
app.command(rich_help_panel=_ACT)(acl.acl)
app.add_typer(guard.app, name="guard", rich_help_panel=_ACT)


def _version(wanted: bool) -> None:
    if wanted:
        show.line(f"fencer {fencer.__version__}")
        raise typer.Exit()


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass
