"""Sphinx's settings."""

import re
import sys
from typing import Any, TypeVar

from sphinx.pycode import ModuleAnalyzer
from sphinx_autodoc_typehints import process_signature

import pgha.blocking  # noqa: F401 - its private modules are read below

project = "pgha"
author = "The pgha authors"
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "myst_parser",
]
html_theme = "furo"
html_title = "pgha"
default_role = "any"
myst_enable_extensions = ["deflist"]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_include_init_with_doc = False
napoleon_include_private_with_doc = False
napoleon_include_special_with_doc = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
typehints_defaults = "comma"
typehints_use_rtype = True
typehints_document_rtype_none = False
# Written for a reader without a network: no inventories of other projects are fetched.
intersphinx_mapping: dict[str, tuple[str, None]] = {}
suppress_warnings = ["ref.any", "sphinx_autodoc_typehints", "myst.xref_missing", "ref.ref", "config.cache"]
exclude_patterns = ["_build"]


CONSTRUCTED_BY_USERS = ("pgha.Node", "pgha.Pin")


def typehints_formatter(annotation: Any, _config: object) -> str | None:
    """Show a type variable by its name."""
    return f"``{annotation.__name__}``" if isinstance(annotation, TypeVar) else None


def skip_internal(_app: object, _what: str, _name: str, member: Any, skip: bool, _options: object) -> bool:
    """Leave out members that are for pgha alone: their docstrings say so."""
    return skip or (getattr(member, "__doc__", None) or "").startswith("Internal: ")


def public_signature(
    app: Any, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str
) -> tuple[str, str | None] | None:
    """Hide constructors that only pgha calls, and private parameters."""
    if what in ("class", "exception") and signature and name not in CONSTRUCTED_BY_USERS:
        return "", ""
    found = process_signature(app, what, name, value, options, signature or "", returns)
    return found and (re.sub(r", _\w+=None", "", found[0]), found[1])


def read_sources(_app: object) -> None:
    """Find attribute docstrings and the order of members, which stand in private modules.

    The public classes name a public module as theirs, and Sphinx looks into that module's source only.
    """
    for public in ("pgha.blocking", "pgha"):
        analyzer = ModuleAnalyzer.for_module(public)
        analyzer.analyze()
        for private in sorted(name for name in sys.modules if name.startswith(f"{public}._")):
            source = ModuleAnalyzer.for_module(private)
            source.analyze()
            analyzer.attr_docs.update(source.attr_docs)
            analyzer.annotations.update(source.annotations)
            analyzer.tagorder.update(source.tagorder)


def setup(app: Any) -> None:
    """Register the hooks."""
    app.connect("builder-inited", read_sources)
    app.connect("autodoc-skip-member", skip_internal)
    # Before the one of sphinx_autodoc_typehints: the first answer counts.
    app.connect("autodoc-process-signature", public_signature, priority=100)
