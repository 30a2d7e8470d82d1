"""The commands and their options."""

from __future__ import annotations

import random
import sys
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pgha.cli._demo.command import Options, run
from pgha.cli._demo.serve import serve as keep_up
from pgha.cli._ledger import Act, Asked, age
from pgha.cli._ledger import run as run_ledger
from pgha.cli._output import OutputClosed, output_closed, write
from pgha.cli._soak.command import SoakOptions
from pgha.cli._soak.command import soak as run_soak

_LAST_PORT = 65_535

# Plain messages: they must look right in a pipe. No pretty tracebacks: those show local variables, and with
# them passwords.
app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)


class LoopOption(StrEnum):
    """The event loops that pgha runs on."""

    asyncio = "asyncio"
    trio = "trio"


class NodeKindOption(StrEnum):
    """What the nodes of `pgha chaos` run in."""

    local = "local"
    container = "container"


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
    context: typer.Context,
    seconds: Annotated[int, typer.Option(min=1, help="How long the workload runs.")] = 15,
    nodes: Annotated[int, typer.Option(min=2, max=9, help="Servers to start.")] = 3,
    seed: Annotated[int | None, typer.Option(help="Of the faults; random by default.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary alone, as JSON.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines of text, on a terminal too.")] = False,
    loop: Annotated[LoopOption, typer.Option(help="The event loop.")] = LoopOption.asyncio,
    port: Annotated[
        int | None, typer.Option(min=1024, max=_LAST_PORT, help="Of the first server; the others follow it.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="No workload: print the servers' DSNs and keep them up.")
    ] = False,
) -> None:
    """Start servers that replicate to each other, kill, freeze and restart them under a workload, and show
    what became of every operation.

    Exit code 1: a write was lost or doubled, or an error reached a caller. With --serve: 0 when Ctrl-C,
    SIGTERM or the key q ends it.
    """
    if port is not None and port + nodes - 1 > _LAST_PORT:
        raise typer.BadParameter(f"{nodes} servers need ports up to {_LAST_PORT}", param_hint="--port")
    chosen = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    options = Options(seconds, nodes, chosen, loop.value, port)
    if serve:
        _refuse(context, "seconds", "seed", "json", "plain")
        raise typer.Exit(keep_up(options))
    raise typer.Exit(run(options, json=json, plain=plain))


def _refuse(context: typer.Context, *names: str) -> None:
    """With --serve there is no workload for them to say something of."""
    for name in names:
        if _given(context, name):
            raise typer.BadParameter("not with --serve, which runs no workload", param_hint=f"--{name}")


@app.command()
def soak(
    dsns: Annotated[
        list[str], typer.Argument(metavar="DSN...", help="Conninfo strings or URIs, of one cluster's nodes.")
    ],
    spike: Annotated[int, typer.Option(min=1, max=100_000, help="Operations submitted at once.")] = 999,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Operations a second at most, over all spikes.")
    ] = None,
    pin: Annotated[
        str | None, typer.Option(metavar="NAME", help="Send all to one node, by its name: host:port.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Insert into a table pgha_soak, made and dropped for it.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="End by itself after so long; else by Ctrl-C.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary alone, as JSON.")] = False,
    loop: Annotated[LoopOption, typer.Option(help="The event loop.")] = LoopOption.asyncio,
) -> None:
    """Send spikes of operations to nodes that run already until Ctrl-C, and show what becomes of them.

    A spike begins when the one before is done, and with --rate not before its time either. Exit code 1:
    errors reached the caller (a write in doubt is counted apart, and is none).
    """
    options = SoakOptions(tuple(dsns), spike, rate, pin, write, seconds, loop.value, json)
    raise typer.Exit(run_soak(options))


ledger = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(ledger, name="ledger", help="The table that makes keyed writes exactly once.")
_DSNS = Annotated[
    list[str], typer.Argument(metavar="DSN...", help="Conninfo strings or URIs, of one cluster's nodes.")
]
_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_LOOP = Annotated[LoopOption, typer.Option(help="The event loop.")]


def _do(act: Act, dsns: list[str], json: bool, loop: LoopOption, **more: Any) -> NoReturn:
    raise typer.Exit(run_ledger(Asked(act, tuple(dsns), json, loop=loop.value, **more)))


@ledger.command()
def install(
    dsns: _DSNS,
    grant: Annotated[
        list[str] | None, typer.Option("--grant", metavar="ROLE", help="Let this role use and prune it.")
    ] = None,
    json: _JSON = False,
    loop: _LOOP = LoopOption.asyncio,
) -> None:
    """Make the ledger on every node that takes writes; where it is already, only grant.

    All nodes have to be up: else nothing is done.
    """
    _do("install", dsns, json, loop, grants=tuple(grant or ()))


@ledger.command()
def status(dsns: _DSNS, json: _JSON = False, loop: _LOOP = LoopOption.asyncio) -> None:
    """Show every node's ledger. Exit code 1: a node that takes writes has none that can be used."""
    _do("status", dsns, json, loop)


@ledger.command()
def prune(
    dsns: _DSNS,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="7d, 36h, 90m, 3600s; an hour at least.")
    ] = "7d",
    json: _JSON = False,
    loop: _LOOP = LoopOption.asyncio,
) -> None:
    """Delete the keys that are older than that: they are forgotten, and used again they are new ones.

    Writes go on meanwhile, and others may do it at the same time. Exit code 1: not all could be pruned.
    """
    try:
        seconds = age(older_than)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--older-than") from None
    _do("prune", dsns, json, loop, older_than=seconds)


@ledger.command()
def uninstall(
    dsns: _DSNS,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also with keys of the last hour, or in another layout.")
    ] = False,
    json: _JSON = False,
    loop: _LOOP = LoopOption.asyncio,
) -> None:
    """Remove the ledger from every node: all keys are forgotten."""
    _do("uninstall", dsns, json, loop, yes=yes, force=force)


@app.command()
def chaos(
    context: typer.Context,
    scenario: Annotated[
        str | None, typer.Argument(help="One of --list; without a name, faults that the seed gives.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Show the scenarios, and end.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of faults and load; random by default.")] = None,
    faults: Annotated[
        str | None, typer.Option(metavar="KIND,...", help="Only these, of random faults; all by default.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long random faults go on.")] = 0.5,
    nodes: Annotated[NodeKindOption, typer.Option(help="What the servers run in.")] = NodeKindOption.local,
    count: Annotated[int, typer.Option(min=2, max=9, help="Servers to start, of no scenario.")] = 3,
    loop: Annotated[LoopOption, typer.Option(help="The event loop.")] = LoopOption.asyncio,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the run: .png or .svg; its JSON goes beside it.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report's JSON, and nothing else.")] = False,
    schedule: Annotated[
        str | None, typer.Option(metavar="FILE", help="Faults to play again, in JSON; - is standard input.")
    ] = None,
    shrink: Annotated[
        float, typer.Option(min=0.0, help="Seconds to look for a shorter schedule that fails too.")
    ] = 60.0,
) -> None:
    """Try pgha under faults: a named scenario, those of a seed, or those of a schedule; then check every
    promise.

    Exit code 1: a promise was broken. Then the seed is told, and a schedule to play again.
    """
    # Not above: the other commands have no use for it, nor for the time that it takes.
    from pgha.cli._chaos.arguments import Unusable, checked, listed
    from pgha.cli._chaos.command import run as run_chaos
    from pgha.cli._chaos.text import ChaosOptions

    if listing:
        raise typer.Exit(_print(listed()))
    given = {name for name in context.params if _given(context, name)}
    chosen = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    options = ChaosOptions(
        seed=chosen,
        scenario=scenario,
        minutes=minutes,
        kind=nodes.value,
        count=count,
        loop=loop.value,
        report=report,
        json=json,
        shrink=shrink,
    )
    try:
        options = checked(options, faults, schedule, given)
    except Unusable as error:
        sys.stderr.write(f"pgha chaos: {' '.join(str(error).split())}\n")
        raise typer.Exit(error.code) from None
    raise typer.Exit(run_chaos(options))


def _print(text: str) -> int:
    """On standard output; the exit code, also for a reader who left."""
    try:
        write(text, sys.stdout)
    except OutputClosed as closed:
        return output_closed(closed, "chaos")
    return 0


def _given(context: typer.Context, name: str) -> bool:
    """Whether it stood on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
