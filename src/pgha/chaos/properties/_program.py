"""A failing example as the text of an async program that runs it again."""

from __future__ import annotations

import ast
import builtins
import sys
import sysconfig
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

_HOMES = ("pgha.chaos", "pgha.chaos.properties")


def program(machine: type, steps: Sequence[str], *, backend: str, options: str) -> str:
    """Return the text of a program that runs the steps again.

    `steps`: statements about `state`. `options`: an expression for the backend's options, "" for none. Names
    in the steps are imported from the machine's module or from the kit. If the repr of a value is not Python,
    or the machine is defined in a function, the program is incomplete, and says so.
    """
    body = "\n".join(steps) or "pass"
    names, complaint = _names(body)
    module = sys.modules.get(machine.__module__)
    imports = [*_imports(machine, module), *_of_values(names - {"state"}, module)]
    run = ", ".join(["main", f"backend={backend!r}", *([f"backend_options={options}"] if options else [])])
    return f"""\
{chr(10).join([*complaint, "import anyio", "", *imports])}


async def main() -> None:
    async with {machine.__qualname__.rpartition("<locals>.")[2]}() as state:
{textwrap.indent(body, "        ")}


anyio.run({run})
"""


def _names(body: str) -> tuple[set[str], list[str]]:
    """Return the names that the statements use and do not define, without builtins."""
    try:
        # `await` is Python only in a coroutine.
        tree = ast.parse(f"async def main():\n{textwrap.indent(body, ' ')}")
    except SyntaxError:
        return set(), ["# The repr of one of the values below is not Python: replace it by an expression."]
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    made = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    return {name.id for name in names} - made - set(dir(builtins)), []


def _imports(machine: type, module: ModuleType | None) -> Iterable[str]:
    """Return the lines that import the machine."""
    where = f"{machine.__module__}.{machine.__qualname__}"
    if module is None or module.__name__ == "__main__" or "<locals>" in machine.__qualname__:
        return [f"# {machine.__name__} is {where}: copy its definition here."]
    return [*_path(module), f"from {module.__name__} import {machine.__qualname__.partition('.')[0]}"]


def _path(module: ModuleType) -> Iterable[str]:
    """Return the lines that make the module importable: tests are seldom installed."""
    if not module.__file__:
        return []
    folder = Path(module.__file__).parents[module.__name__.count(".")]
    if str(folder).startswith(sysconfig.get_paths()["stdlib"]):
        return []
    return ["import sys", f"sys.path.insert(0, {str(folder)!r})"]


def _of_values(names: Iterable[str], module: ModuleType | None) -> Iterable[str]:
    """Yield the lines that import what the arguments are made of.

    A name that the machine's module does not define is taken from the kit.
    """
    own = {} if module is None else vars(module)
    for name in sorted(names):
        kit = next((home for home in _HOMES if hasattr(sys.modules.get(home), name)), None)
        if kit is not None and own.get(name) in (None, getattr(sys.modules[kit], name)):
            yield f"from {kit} import {name}"
        elif module is not None and name in own:
            yield f"from {module.__name__} import {name}"
        elif name in sys.modules:
            yield f"import {name}"
