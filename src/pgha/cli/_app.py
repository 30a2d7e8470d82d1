"""The commands and their options.

Each command imports its own modules when it runs. Importing the modules of all commands takes longer than
some commands run.
"""

from __future__ import annotations

import random
import sys
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pgha.cli._output import OutputClosed, output_closed, write

if TYPE_CHECKING:
    from pgha.cli._ledger import Act

_LAST_PORT = 65_535

# Plain messages look right in a pipe, too. Pretty tracebacks are off because they show local variables, which
# may hold passwords.
app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)


class LoopOption(StrEnum):
    """The event loops that pgha runs on."""

    asyncio = "asyncio"
    trio = "trio"


class NodeKindOption(StrEnum):
    """The places where the nodes of `pgha chaos` can run."""

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


@app.command(epilog="Example: pgha demo --seconds 60 --nodes 5")
def demo(
    context: typer.Context,
    seconds: Annotated[int, typer.Option(min=1, help="Duration of the workload, in seconds.")] = 15,
    nodes: Annotated[int, typer.Option(min=2, max=9, help="Number of servers to start.")] = 3,
    seed: Annotated[int | None, typer.Option(help="Seed of the faults. Random by default.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print only the summary, as JSON.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Print lines of text, even on a terminal.")] = False,
    loop: Annotated[LoopOption, typer.Option(help="Event loop to run on.")] = LoopOption.asyncio,
    port: Annotated[
        int | None,
        typer.Option(
            min=1024,
            max=_LAST_PORT,
            help="Port of the first server. The other servers use the next ports. Free ports by default.",
        ),
    ] = None,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve", help="Run no workload: print the servers' DSNs and keep the servers running."
        ),
    ] = False,
) -> None:
    """Show how pgha behaves while servers fail.

    Start PostgreSQL servers that replicate to each other, run a workload, and kill, freeze and restart the
    servers. At the end, show the outcome of every operation. The servers are removed.

    Exit code: 0 if no write was lost or applied twice and no caller saw an error, else 1. With --serve, 0 if
    Ctrl-C, SIGTERM or the key q ended the command.
    """
    if port is not None and port + nodes - 1 > _LAST_PORT:
        last = port + nodes - 1
        raise typer.BadParameter(
            f"{nodes} servers would need ports {port} to {last}; choose at most {_LAST_PORT - nodes + 1}",
            param_hint="--port",
        )
    chosen = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    if serve:
        _refuse(context, "seconds", "seed", "json", "plain")
    from pgha.cli._demo.summary import Options

    options = Options(seconds, nodes, chosen, loop.value, port)
    if serve:
        from pgha.cli._demo.serve import serve as keep_up

        raise typer.Exit(keep_up(options))
    from pgha.cli._demo.command import run

    raise typer.Exit(run(options, json=json, plain=plain))


def _refuse(context: typer.Context, *names: str) -> None:
    """Reject the options `names`, which describe the workload: --serve runs none."""
    for name in names:
        if _given(context, name):
            raise typer.BadParameter(
                "cannot be used with --serve, which runs no workload", param_hint=f"--{name}"
            )


@app.command(epilog="Example: pgha soak postgresql://db1/shop postgresql://db2/shop --rate 2000 --seconds 60")
def soak(
    dsns: Annotated[
        list[str],
        typer.Argument(metavar="DSN...", help="Conninfo strings or URIs of the nodes of one cluster."),
    ],
    spike: Annotated[int, typer.Option(min=1, max=100_000, help="Operations per spike.")] = 999,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Maximum operations per second, on average. No limit by default."),
    ] = None,
    pin: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Send every operation to the node with this name (host:port)."),
    ] = None,
    write: Annotated[
        bool,
        typer.Option("--write", help="Insert rows into the table pgha_soak, which is created and dropped."),
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.1, help="Stop after this many seconds. By default, run until Ctrl-C."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print only the summary, as JSON.")] = False,
    loop: Annotated[LoopOption, typer.Option(help="Event loop to run on.")] = LoopOption.asyncio,
) -> None:
    """Send spikes of operations to running nodes until Ctrl-C, and count the results.

    All operations of a spike are submitted at once. The next spike begins when they are all done; with
    --rate, it may begin later.

    Exit code: 0 without errors, else 1. A write in doubt is counted separately, not as an error.
    """
    from pgha.cli._soak.command import SoakOptions
    from pgha.cli._soak.command import soak as run_soak

    options = SoakOptions(tuple(dsns), spike, rate, pin, write, seconds, loop.value, json)
    raise typer.Exit(run_soak(options))


ledger = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(
    ledger,
    name="ledger",
    help="Manage the ledger: the table of idempotency keys. A write with a key is applied exactly once.",
    epilog="Example: pgha ledger install postgresql://db1/shop postgresql://db2/shop",
)
_DSNS = Annotated[
    list[str], typer.Argument(metavar="DSN...", help="Conninfo strings or URIs of the nodes of one cluster.")
]
_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_LOOP = Annotated[LoopOption, typer.Option(help="Event loop to run on.")]


def _do(act: Act, dsns: list[str], json: bool, loop: LoopOption, **more: Any) -> NoReturn:
    from pgha.cli._ledger import Asked, run

    raise typer.Exit(run(Asked(act, tuple(dsns), json, loop=loop.value, **more)))


@ledger.command(epilog="Example: pgha ledger install postgresql://db1/shop --grant app")
def install(
    dsns: _DSNS,
    grant: Annotated[
        list[str] | None,
        typer.Option(
            "--grant", metavar="ROLE", help="Allow this role to use and prune the ledger. Can be repeated."
        ),
    ] = None,
    json: _JSON = False,
    loop: _LOOP = LoopOption.asyncio,
) -> None:
    """Create the table of idempotency keys on every primary.

    If a node already has the table, only the privileges are granted. All nodes must be up; otherwise nothing
    is changed.
    """
    _do("install", dsns, json, loop, grants=tuple(grant or ()))


@ledger.command(epilog="Example: pgha ledger status postgresql://db1/shop")
def status(dsns: _DSNS, json: _JSON = False, loop: _LOOP = LoopOption.asyncio) -> None:
    """Show each node's table of idempotency keys.

    Exit code: 0 if every node that takes writes has a usable table, else 1.
    """
    _do("status", dsns, json, loop)


@ledger.command(epilog="Example: pgha ledger prune postgresql://db1/shop --older-than 36h")
def prune(
    dsns: _DSNS,
    older_than: Annotated[
        str,
        typer.Option(
            metavar="AGE", help="Minimum age of the keys to delete: 7d, 36h, 90m, 3600s. At least one hour."
        ),
    ] = "7d",
    json: _JSON = False,
    loop: _LOOP = LoopOption.asyncio,
) -> None:
    """Delete idempotency keys older than AGE.

    A deleted key can be used again, for a new write. Writes continue meanwhile, and several prunes may run at
    the same time.

    Exit code: 0 if every node that takes writes was pruned, else 1.
    """
    from pgha.cli._ledger import age

    try:
        seconds = age(older_than)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--older-than") from None
    _do("prune", dsns, json, loop, older_than=seconds)


@ledger.command(epilog="Example: pgha ledger uninstall postgresql://db1/shop --yes")
def uninstall(
    dsns: _DSNS,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Remove the table even if keys were used within the last hour, or if its layout is unknown.",
        ),
    ] = False,
    json: _JSON = False,
    loop: _LOOP = LoopOption.asyncio,
) -> None:
    """Remove the table of idempotency keys from every node.

    All keys are deleted. Without --yes, the command asks for confirmation.
    """
    _do("uninstall", dsns, json, loop, yes=yes, force=force)


@app.command(epilog="Example: pgha chaos --minutes 5 --seed 7 --report page.png")
def chaos(
    context: typer.Context,
    scenario: Annotated[
        str | None, typer.Argument(help="Name of a scenario (see --list). Random faults by default.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the scenarios and exit.")] = False,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the faults and the workload. Random by default.")
    ] = None,
    faults: Annotated[
        str | None, typer.Option(metavar="KIND,...", help="Kinds of random faults. All kinds by default.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Duration of random faults, in minutes.")] = 0.5,
    nodes: Annotated[NodeKindOption, typer.Option(help="Where the servers run.")] = NodeKindOption.local,
    count: Annotated[
        int, typer.Option(min=2, max=9, help="Number of servers to start. A scenario has its own number.")
    ] = 3,
    loop: Annotated[LoopOption, typer.Option(help="Event loop to run on.")] = LoopOption.asyncio,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw the run as .png or .svg. The numbers go into a .json file next to it."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print only the report, as JSON.")] = False,
    schedule: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Replay the faults in this JSON file; - reads standard input."),
    ] = None,
    shrink: Annotated[
        float,
        typer.Option(
            min=0.0, help="After a failure, search this many seconds for a shorter schedule that also fails."
        ),
    ] = 60.0,
) -> None:
    """Test pgha under faults, and check every promise.

    The faults are those of a named scenario, random faults from a seed, or a recorded schedule.

    Exit code: 0 if every promise was kept, else 1. After a broken promise, the command prints the seed and a
    schedule that replays the run.
    """
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
    """Print `text` on standard output, and return the exit code, even if the reader closed the output."""
    try:
        write(text, sys.stdout)
    except OutputClosed as closed:
        return output_closed(closed, "chaos")
    return 0


def _given(context: typer.Context, name: str) -> bool:
    """Return whether the option was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
