"""Sphinx's settings."""

import re
from typing import Any, TypeVar

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
always_document_param_types = False
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
    _app: object,
    what: str,
    name: str,
    _value: object,
    _options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str, str | None] | None:
    """Hide constructors that only pgha calls, and private parameters."""
    if signature is None or name in CONSTRUCTED_BY_USERS:
        return None
    if what in ("class", "exception"):
        return "", ""
    return re.sub(r", _\w+(: [^=,]+)?( ?= ?None)?", "", signature), returns


def setup(app: Any) -> None:
    """Register the hooks."""
    app.connect("autodoc-skip-member", skip_internal)
    app.connect("autodoc-process-signature", public_signature)
