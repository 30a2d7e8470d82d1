"""Sphinx's settings."""

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
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
# Written for a reader without a network: no inventories of other projects are fetched.
intersphinx_mapping: dict[str, tuple[str, None]] = {}
suppress_warnings = ["ref.any", "sphinx_autodoc_typehints", "myst.xref_missing", "ref.ref"]
exclude_patterns = ["_build"]
