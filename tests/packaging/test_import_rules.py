"""Check the project's rules on imports and handlers in the syntax tree of every module under `src/pgha`.

import-linter checks modules; these rules check names inside packages (`psycopg.pq`) and handlers. Each rule
has sources that break the rule, since a rule that cannot fail is a defect.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "src" / "pgha"


@dataclass(frozen=True)
class Module:
    """A module's dotted name, whether it is a package, and its source."""

    name: str
    source: str
    is_package: bool = False

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    def within(self, *packages: str) -> bool:
        return any(_is_under(self.name, package) for package in packages)


Rule = Callable[[Module], list[str]]


def _is_under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _modules() -> list[Module]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        found.append(Module(".".join(parts[:-1] if is_package else parts), path.read_text(), is_package))
    return found


def _mentions(module: Module) -> list[tuple[int, str]]:
    """Return every dotted name that the module imports or reaches through an import, with its line."""
    found: set[tuple[int, str]] = set()
    known: dict[str, str] = {}
    nodes = list(ast.walk(module.tree))
    for node in nodes:
        for local, name in _imported(module, node):
            known[local] = name
            found.add((getattr(node, "lineno", 0), name))
    for node in nodes:
        if isinstance(node, ast.Attribute):
            root, _, rest = _dotted(node).partition(".")
            if root in known:
                found.add((node.lineno, f"{known[root]}.{rest}"))
    return sorted(found)


def _imported(module: Module, node: ast.AST) -> list[tuple[str, str]]:
    """Return the local names that an import binds, with their full names."""
    match node:
        case ast.Import(names=names):
            return [_bound(alias) for alias in names] + [("", alias.name) for alias in names]
        case ast.ImportFrom(module=base, names=names, level=level):
            origin = _absolute(module, base, level)
            return [(alias.asname or alias.name, f"{origin}.{alias.name}") for alias in names]
        case ast.Call(
            func=ast.Name("__import__" | "import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            return [("", name)]
    return []


def _bound(alias: ast.alias) -> tuple[str, str]:
    """Return the bound name and its full name: `import a.b` binds a; `import a.b as c` binds a.b to c."""
    root = alias.name.partition(".")[0]
    return (alias.asname, alias.name) if alias.asname else (root, root)


def _absolute(module: Module, base: str | None, level: int) -> str:
    if level == 0:
        return base or ""
    package = module.name.split(".")
    package = package[: len(package) - level + (1 if module.is_package else 0)]
    return ".".join([*package, *([base] if base else [])])


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _forbid(module: Module, *names: str) -> list[str]:
    return [
        f"{module.name}:{line}: {name}"
        for line, name in _mentions(module)
        if any(_is_under(name, forbidden) for forbidden in names)
    ]


LOOPS = ("anyio", "trio", "asyncio")
HIDDEN = ("time", "datetime", "random", "secrets", "logging", "os")
SYSTEM = ("socket", "select", "selectors", "ssl", "threading", "subprocess", "multiprocessing", "concurrent")


def the_core_is_pure(module: Module) -> list[str]:
    """`_core` only decides: it uses no loop, driver, clock, random number, log, socket or thread."""
    if not module.within("pgha._core"):
        return []
    return _forbid(module, *LOOPS, "psycopg", *HIDDEN, *SYSTEM)


def the_core_knows_only_the_types(module: Module) -> list[str]:
    """`_core` imports no other part of pgha than itself and `_types`."""
    if not module.within("pgha._core"):
        return []
    return [
        f"{module.name}:{line}: {name}"
        for line, name in _mentions(module)
        if _is_under(name, "pgha") and not any(_is_under(name, ok) for ok in ("pgha._core", "pgha._types"))
        if name != "pgha"
    ]


def time_and_chance_come_from_one_place(module: Module) -> list[str]:
    """`Sources` is filled in `_options`; a simulated world gives others. Tools have their own clocks."""
    if module.within("pgha._options", "pgha.cli", "pgha.chaos", "pgha._trials"):
        return []
    clocks = (
        f"time.{name}{unit}"
        for name in ("time", "monotonic", "perf_counter", "process_time")
        for unit in ("", "_ns")
    )
    return _forbid(
        module, *clocks, "random", "secrets", "os.urandom", "uuid.uuid1", "uuid.uuid4", "uuid.uuid7"
    )


def only_the_wire_knows_psycopgs_inside(module: Module) -> list[str]:
    """Private names of psycopg, `psycopg.pq` and `psycopg.generators` stay in `_wire`."""
    if module.within("pgha._wire"):
        return []
    inside = re.compile(r"psycopg\.(.*\.)?(_(?!_)\w*|pq|generators)(\.|$)")
    return [f"{module.name}:{line}: {name}" for line, name in _mentions(module) if inside.match(name)]


def only_the_wire_has_sockets(module: Module) -> list[str]:
    """Sockets and `select` stay in `_wire`; the fault kit has its own sockets, to break them."""
    if module.within("pgha._wire", "pgha.chaos"):
        return []
    return _forbid(module, "socket", "select", "selectors", "ssl")


def no_loop_by_name(module: Module) -> list[str]:
    """Only the wire, the command and the fault kit may distinguish trio from asyncio."""
    if module.within("pgha._wire", "pgha.cli", "pgha.chaos", "pgha._trials"):
        return []
    return _forbid(module, "trio", "asyncio")


def only_the_command_uses_the_fault_kit(module: Module) -> list[str]:
    """No module that runs in production imports `pgha.chaos`."""
    return [] if module.within("pgha.cli", "pgha.chaos", "pgha._trials") else _forbid(module, "pgha.chaos")


def the_fault_kit_stands_alone(module: Module) -> list[str]:
    """`pgha.chaos` imports no other part of pgha, since users' tests use it too."""
    if not module.within("pgha.chaos"):
        return []
    return [
        f"{module.name}:{line}: {name}"
        for line, name in _mentions(module)
        if _is_under(name, "pgha") and not _is_under(name, "pgha.chaos")
        if name != "pgha"
    ]


WIDE = {"Exception", "BaseException", "BaseExceptionGroup"}
# A suppression of ruff's check, which must have a reason beside it.
REASONED = re.compile(r"# noqa: BLE001\b\W*\w+")


def no_handler_hides_a_cancellation(module: Module) -> list[str]:
    """A wide handler raises again, logs an `Exception` with traceback, or has a reason for neither."""
    lines = module.source.splitlines()
    hiding = [
        node.lineno
        for node in ast.walk(module.tree)
        if (isinstance(node, ast.Call) and _suppresses(node))
        or (
            isinstance(node, ast.ExceptHandler)
            and _hides(node)
            and not REASONED.search(lines[node.lineno - 1])
        )
    ]
    return [f"{module.name}:{line}: {lines[line - 1].strip()}" for line in hiding]


def _hides(handler: ast.ExceptHandler) -> bool:
    if not _is_wide(handler.type):
        return False
    # Ruff accepts a logged traceback, and reports a suppression beside it as unused. A cancellation is no
    # `Exception` on either loop.
    logged = handler.type is not None and _dotted(handler.type) == "Exception" and _logs(handler.body)
    return not logged and not _raises(handler.body)


def _suppresses(call: ast.Call) -> bool:
    return _dotted(call.func).rpartition(".")[2] == "suppress" and any(_is_wide(one) for one in call.args)


def _logs(body: list[ast.stmt]) -> bool:
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "exception"
        for node in _executed(body)
    )


def _raises(body: list[ast.stmt]) -> bool:
    return any(isinstance(node, ast.Raise) for node in _executed(body))


def _executed(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Yield the nodes of these statements, except the bodies of functions and classes they define."""
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield node
            waiting.extend(ast.iter_child_nodes(node))


def _is_wide(caught: ast.expr | None) -> bool:
    if caught is None:
        return True
    caught_types = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(_dotted(one).rpartition(".")[2] in WIDE for one in caught_types)


CORE, WIRE, NODE = "pgha._core.health", "pgha._wire.link", "pgha._node"
CLI, CHAOS = "pgha.cli.demo", "pgha.chaos.history"
SWALLOW = "try:\n    f()\nexcept {}:\n    {}\n"

BAD: list[tuple[Rule, str, str]] = [
    *((the_core_is_pure, CORE, f"import {name}") for name in (*LOOPS, "psycopg", *HIDDEN, *SYSTEM)),
    (the_core_is_pure, CORE, "from time import monotonic"),
    (the_core_is_pure, CORE, "def f():\n    import os.path"),
    (the_core_is_pure, CORE, "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import anyio.abc"),
    (the_core_is_pure, CORE, "import importlib\nimportlib.import_module('random')"),
    (the_core_is_pure, CORE, "__import__('random')"),
    (the_core_is_pure, "pgha._core", "import random"),
    (the_core_knows_only_the_types, CORE, "from pgha import _options"),
    (the_core_knows_only_the_types, CORE, "from pgha._errors import Error"),
    (the_core_knows_only_the_types, CORE, "from .._wire import link"),
    (the_core_knows_only_the_types, CORE, "from .. import _options"),
    (the_core_knows_only_the_types, CORE, "import pgha\npgha._options.Options()"),
    (time_and_chance_come_from_one_place, NODE, "import time\ntime.time()"),
    (time_and_chance_come_from_one_place, WIRE, "from time import monotonic_ns"),
    (time_and_chance_come_from_one_place, NODE, "import random"),
    (time_and_chance_come_from_one_place, NODE, "import os\nos.urandom(8)"),
    (time_and_chance_come_from_one_place, NODE, "from uuid import uuid4"),
    (only_the_wire_knows_psycopgs_inside, NODE, "from psycopg import pq"),
    (only_the_wire_knows_psycopgs_inside, NODE, "from psycopg.pq import ExecStatus"),
    (only_the_wire_knows_psycopgs_inside, NODE, "from psycopg.pq.abc import PGconn"),
    (only_the_wire_knows_psycopgs_inside, NODE, "import psycopg.generators"),
    (only_the_wire_knows_psycopgs_inside, NODE, "from psycopg._queries import PostgresQuery"),
    (only_the_wire_knows_psycopgs_inside, NODE, "from psycopg import _queries"),
    (only_the_wire_knows_psycopgs_inside, NODE, "from psycopg.types.json import _default"),
    (only_the_wire_knows_psycopgs_inside, NODE, "import psycopg\npsycopg.pq.ExecStatus.FATAL_ERROR"),
    (only_the_wire_knows_psycopgs_inside, CLI, "import psycopg\npsycopg._encodings"),
    (only_the_wire_knows_psycopgs_inside, NODE, "import psycopg as pg\nx = pg.pq.ExecStatus"),
    (only_the_wire_knows_psycopgs_inside, NODE, "from psycopg import types\nx = types._private"),
    (only_the_wire_has_sockets, NODE, "import socket"),
    (only_the_wire_has_sockets, NODE, "from select import poll"),
    (only_the_wire_has_sockets, CLI, "import selectors"),
    (no_loop_by_name, NODE, "import trio"),
    (no_loop_by_name, NODE, "from asyncio import Task"),
    (no_loop_by_name, "pgha", "import trio.lowlevel"),
    (only_the_command_uses_the_fault_kit, NODE, "import pgha.chaos"),
    (only_the_command_uses_the_fault_kit, NODE, "from . import chaos"),
    (only_the_command_uses_the_fault_kit, NODE, "from .chaos._server import start"),
    (only_the_command_uses_the_fault_kit, "pgha.cling", "import pgha.chaos"),
    (the_fault_kit_stands_alone, CHAOS, "from pgha._types import Role"),
    (the_fault_kit_stands_alone, CHAOS, "from .. import _types"),
    (the_fault_kit_stands_alone, CHAOS, "from pgha import Node"),
    (the_fault_kit_stands_alone, CHAOS, "import pgha\npgha.Node('')"),
    (no_handler_hides_a_cancellation, NODE, "try:\n    f()\nexcept:\n    pass\n"),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("Exception", "pass")),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("BaseException as error", "log(error)")),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("(OSError, Exception)", "pass")),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("builtins.Exception", "pass")),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("*Exception", "pass")),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("BaseExceptionGroup", "pass")),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("Exception", "def g(): raise OSError")),
    (no_handler_hides_a_cancellation, NODE, "try:\n    f()\nexcept Exception:  # noqa: BLE001\n    pass\n"),
    (no_handler_hides_a_cancellation, NODE, "try:\n    f()\nexcept Exception:  # a reason alone\n    pass\n"),
    (
        no_handler_hides_a_cancellation,
        NODE,
        "import contextlib\nwith contextlib.suppress(Exception):\n    f()",
    ),
    (no_handler_hides_a_cancellation, NODE, "with suppress(OSError, BaseException):\n    f()"),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("Exception", "log.warning('x')")),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("BaseException", "log.exception('x')")),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("(OSError, BaseException)", "log.exception('x')")),
]
GOOD: list[tuple[Rule, str, str]] = [
    (the_core_is_pure, CORE, "import heapq\nfrom collections import deque\nfrom timeit import x"),
    (the_core_is_pure, CORE, "def f(time: float, random: float) -> float:\n    return time.real + random"),
    (the_core_is_pure, NODE, "import time, anyio"),
    (time_and_chance_come_from_one_place, NODE, "import os\nfrom uuid import UUID\nos.getpid()"),
    (time_and_chance_come_from_one_place, "pgha._options", "import random, time\ntime.time()"),
    (time_and_chance_come_from_one_place, CHAOS, "from random import Random"),
    (
        the_core_knows_only_the_types,
        CORE,
        "from pgha._types import Role\nfrom . import backoff\nfrom .. import _types",
    ),
    (the_core_knows_only_the_types, NODE, "from ._options import Options"),
    (
        only_the_wire_knows_psycopgs_inside,
        WIRE,
        "from psycopg import pq\nfrom psycopg._queries import PostgresQuery",
    ),
    (
        only_the_wire_knows_psycopgs_inside,
        NODE,
        "import psycopg\npsycopg.__version__\npsycopg.rows.tuple_row",
    ),
    (only_the_wire_knows_psycopgs_inside, NODE, "import psycopg_pool._private\nfrom psycopg import Error"),
    (only_the_wire_has_sockets, WIRE, "import socket, select"),
    (only_the_wire_has_sockets, CHAOS, "import socket"),
    (no_loop_by_name, WIRE, "import trio, asyncio"),
    (no_loop_by_name, CLI, "import trio"),
    (no_loop_by_name, NODE, "import anyio\nfrom ._trio import x"),
    (only_the_command_uses_the_fault_kit, CLI, "from pgha import chaos"),
    (only_the_command_uses_the_fault_kit, CHAOS, "from ._ports import free_port"),
    (the_fault_kit_stands_alone, CHAOS, "from ._ports import free_port\nimport pgha.chaos._servers.ports"),
    (the_fault_kit_stands_alone, CLI, "from pgha import Node"),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("OSError", "pass")),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("BaseException", "raise")),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("Exception", "log.exception('x')")),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("ExceptionGroup", "pass")),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("Exception as e", "if x: raise Error from e")),
    (no_handler_hides_a_cancellation, NODE, SWALLOW.format("Exception:  # noqa: BLE001 - why #", "pass")),
    (
        no_handler_hides_a_cancellation,
        NODE,
        "from contextlib import suppress\nwith suppress(OSError):\n    f()",
    ),
]
RULES: list[Rule] = list(dict.fromkeys(rule for rule, _, _ in BAD))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_obeys(rule: Rule) -> None:
    broken = [where for module in _modules() for where in rule(module)]
    assert not broken, f"{rule.__doc__}\n" + "\n".join(broken)


@pytest.mark.parametrize(("rule", "name", "source"), BAD)
def test_the_rule_catches(rule: Rule, name: str, source: str) -> None:
    assert rule(Module(name, source, is_package=name == "pgha"))


@pytest.mark.parametrize(("rule", "name", "source"), GOOD)
def test_the_rule_allows(rule: Rule, name: str, source: str) -> None:
    assert rule(Module(name, source)) == []


def test_the_modules_are_found() -> None:
    by_name = {module.name: module for module in _modules()}
    assert {"pgha", "pgha._core", "pgha._core.statement_kind", "pgha._wire"} <= by_name.keys()
    assert by_name["pgha._core"].is_package and not by_name["pgha._core.statement_kind"].is_package


def test_an_import_from_a_package_is_relative_to_itself() -> None:
    package = Module("pgha._core", "from . import health\nfrom ..chaos import x", is_package=True)
    assert [name for _, name in _mentions(package)] == ["pgha._core.health", "pgha.chaos.x"]
