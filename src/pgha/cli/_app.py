"""The commands and their options."""

from __future__ import annotations

import random
from enum import StrEnum
from importlib.metadata import version
from typing import Annotated

import typer

from pgha.cli._demo import Options, run

# Plain messages: they must look right in a pipe. No pretty tracebacks: those show local variables, and with
# them passwords.
app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)


class Loop(StrEnum):
    """The event loops that pgha runs on."""

    asyncio = "asyncio"
    trio = "trio"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pgha {version('pgha')}")
        raise typer.Exit


@app.callback()
def pgha(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version.")
    ] = False,
) -> None:
    """A high-availability PostgreSQL client for trio and asyncio."""


@app.command()
def demo(
    seconds: Annotated[int, typer.Option(min=1, help="How long the workload runs.")] = 15,
    nodes: Annotated[int, typer.Option(min=2, max=9, help="Servers to start.")] = 3,
    seed: Annotated[int | None, typer.Option(help="Of the faults; random by default.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary alone, as JSON.")] = False,
    loop: Annotated[Loop, typer.Option(help="The event loop.")] = Loop.asyncio,
) -> None:
    """Start servers that replicate to each other, kill, freeze and restart them under a workload, and show
    what became of every operation.

    Exit code 1: a write was lost or doubled, or an error reached a caller.
    """
    chosen = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    raise typer.Exit(run(Options(seconds, nodes, chosen, loop.value), json=json))
