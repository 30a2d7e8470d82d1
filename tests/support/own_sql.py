"""Every SQL text in the source of pgha: statements that pgha runs by itself, as somebody's database role."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from types import ModuleType

import pgha

_ROOT = Path(pgha.__file__).parent
_USER = ("chaos", "_trials", "cli")
"""Packages that run SQL on servers of their own, or only call other packages."""
_SQL = re.compile(
    r"\s*(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH|CREATE|DROP|ALTER|COMMENT ON|GRANT|REVOKE|SET|LOCK"
    r"|CALL|DO|LISTEN|SHOW)\s+\S|pg_catalog\."
)
_NO_SQL = {"SET TRANSACTION", "SET LOCAL", "SET CONSTRAINTS"}
"""Keywords of the user's statements."""


def texts() -> dict[str, str]:
    """Return the file of each text; parts that the program fills in are ``{}``."""
    found: dict[str, str] = {}
    for path in sorted(_ROOT.rglob("*.py")):
        name = path.relative_to(_ROOT)
        if name.parts[0] in _USER or name.name in ("__main__.py", "statement_kind.py"):
            continue
        dotted = ".".join(("pgha", *name.with_suffix("").parts)).removesuffix(".__init__")
        module = importlib.import_module(dotted)
        for text in _strings(ast.parse(path.read_text()), module):
            if _SQL.match(text) and text not in _NO_SQL:
                found[" ".join(text.split())] = str(name)
    return found


def _strings(tree: ast.AST, module: ModuleType) -> list[str]:
    """Return all strings in the code except docstrings."""
    found: list[str] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.JoinedStr):
            found.append("".join(_part(one, module) for one in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
            found.append(node.value if isinstance(node.value, str) else node.value.decode("latin-1"))
        else:
            found += _strings(node, module)
    return found


def _part(node: ast.expr, module: ModuleType) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name):
        return str(getattr(module, node.value.id, "{}"))
    return "{}"
