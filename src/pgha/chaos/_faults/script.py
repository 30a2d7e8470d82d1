"""The text of programs that perform a schedule again."""

from __future__ import annotations

from pgha.chaos._errors import ChaosError


def default_program(nodes: int, wired: bool, program: str | None, backend: str) -> str:
    """Return a program that starts its own servers and performs the schedule on them.

    Proxies stand before the servers if the schedule needs some, and the program under test may run beside it.
    """
    names = ["Injector", *(["proxied"] if wired else []), "standalone"]
    entered = f"standalone({nodes}) as nodes" + (", proxied(nodes) as proxies" if wired else "")
    proxies = ", proxies" if wired else ""
    imports, started = _program_under_test(program, "proxies" if wired else "nodes")
    return f"""\
import anyio

from pgha.chaos import {", ".join(names)}
{imports}

async def main() -> None:
    async with {entered}:
        async with anyio.create_task_group() as tasks:
{started}            for done in await Injector(nodes{proxies}).run(schedule):
                print(done)


anyio.run(main, backend={backend!r})
"""


def _program_under_test(program: str | None, dsns_of: str) -> tuple[str, str]:
    """Return the line that imports the program under test, and the line that starts it."""
    if program is None:
        return "", ""
    module, _, name = program.partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ChaosError(f"{program!r} does not have the form 'package.module:function'")
    return (
        f"from {module} import {name} as program_under_test\n",
        f"            tasks.start_soon(program_under_test, {dsns_of}.dsns)\n",
    )
