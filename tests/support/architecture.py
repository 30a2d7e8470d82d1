"""Read the names on docs/architecture.md and the names in the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "pgha"
PAGE = ROOT / "docs" / "architecture.md"

_FILE = re.compile(r"[\w./-]+\.(?:py|md|svg|toml|yaml|yml)|[\w./-]+/[\w./-]*")
_STEP = re.compile(r"^\| (\d+) \| `([^`]+)` \| ((?:`[^`]+`(?:, )?)+) \| .+ \|$", re.MULTILINE)
_MADE = frozenset({"docs/_build"})
"""Paths that a recipe creates."""
_ELSEWHERE = frozenset({"sys.setprofile", "Protocol", "Callbacks"})
"""Names on the page that are Python's own, or a part of a name."""


@dataclass(frozen=True)
class Step:
    """One row of the table "The way of one operation"."""

    number: int
    file: str
    functions: tuple[str, ...]


@dataclass
class Names:
    """The names that a source tree defines."""

    members: dict[str, set[str]] = field(default_factory=dict)
    """The functions, methods and attributes of each class and each module, by its own name."""
    by_file: dict[str, set[str]] = field(default_factory=dict)
    """The functions and `Class.method` names of each file, by its path below the tree."""


def code(page: str) -> list[str]:
    """Return everything between single backticks, without fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL))


def steps(page: str) -> list[Step]:
    """Return the rows of the way of one operation."""
    return [
        Step(int(number), file, tuple(re.findall(r"`([^`]+)`", functions)))
        for number, file, functions in _STEP.findall(page)
    ]


def files_passed(page: str) -> list[str]:
    """Return the page's list of the files that one `execute` passes through."""
    blocks = re.findall(r"^```text\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def layers(page: str) -> list[set[str]]:
    """Return the table of layers, from top to bottom."""
    (table,) = re.findall(r"^\| layer \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", page, flags=re.MULTILINE)
    return [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in table.splitlines()]


def packages(source: Path = SOURCE) -> set[str]:
    """Return the packages and single files at the top of ``source``."""
    found = {path.parent.name for path in source.glob("*/__init__.py")}
    return found | {path.stem for path in source.glob("*.py") if path.stem != "__init__"}


def names(source: Path = SOURCE) -> Names:
    """Return all names that the files below ``source`` define."""
    found = Names()
    for path in sorted(source.rglob("*.py")):
        here = found.by_file.setdefault(path.relative_to(source).as_posix(), set())
        module = found.members.setdefault(path.stem, set())
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                here.add(node.name)
                module.add(node.name)
            elif isinstance(node, ast.ClassDef):
                members = set(_members(node))
                found.members.setdefault(node.name, set()).update(members)
                here.update(f"{node.name}.{member}" for member in members)
                module.add(node.name)
    return found


def _members(node: ast.ClassDef) -> Iterator[str]:
    for part in ast.walk(node):
        match part:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def missing_files(page: str, root: Path = ROOT) -> list[str]:
    """Return the paths on the page that do not exist."""
    bases = (root / "src" / "pgha", root, root / "docs")
    paths = [one for one in code(page) if _FILE.fullmatch(one)]
    paths += re.findall(r"\]\(([^)#:]+)\)", page)
    paths += files_passed(page)
    own = [path for path in paths if not path.startswith("/") and path not in _MADE]
    return [path for path in own if not any((base / path).exists() for base in bases)]


def missing_names(page: str, known: Names) -> list[str]:
    """Return the `Class.method`, `module.function` and `Class` of the page that the source lacks."""
    missing = []
    for name in code(page):
        if name in _ELSEWHERE or name.startswith(("PQ", "pgha.")) or _FILE.fullmatch(name):
            continue
        owner, dot, member = name.partition(".")
        if dot and re.fullmatch(r"\w+\.\w+", name):
            if member not in known.members.get(owner, ()):
                missing.append(name)
        elif re.fullmatch(r"[A-Z][a-z]+(?:[A-Z][a-z]+)*", name) and name not in known.members:
            missing.append(name)
    # For example: `decide` in `_core/outcome.py`.
    for name, file in re.findall(r"`([\w.]+)` in\s+`([\w./]+\.py)`", page):
        if name not in known.by_file.get(file, ()):
            missing.append(f"{name} in {file}")
    return missing


def misplaced_steps(page: str, known: Names) -> list[str]:
    """Return the steps whose function is not in their file, and those out of number."""
    found = [
        f"{step.number}: {function} is not in {step.file}"
        for step in steps(page)
        for function in step.functions
        if function not in known.by_file.get(step.file, ())
    ]
    numbers = [step.number for step in steps(page)]
    return found + ([] if numbers == list(range(1, len(numbers) + 1)) else [f"numbers: {numbers}"])


def unnamed_packages(page: str, wanted: set[str]) -> set[str]:
    """Return the packages that no row of the table of layers names."""
    return wanted - set().union(*layers(page))


def imports(source: Path = SOURCE) -> set[tuple[str, str]]:
    """Return which package imports which. An import of `pgha` itself counts as one of `_cluster`."""
    own, found = packages(source), set()
    for path in source.rglob("*.py"):
        importer = path.relative_to(source).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            for name in _imported(node):
                parts = name.split(".")
                if parts[0] == source.name:
                    found.add((importer, parts[1] if len(parts) > 1 and parts[1] in own else "_cluster"))
    return found


def _imported(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=aliases):
            return [alias.name for alias in aliases]
        case ast.ImportFrom(module=str(base), names=aliases):
            return [f"{base}.{alias.name}" for alias in aliases]
    return []
