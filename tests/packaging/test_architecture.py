"""Check that contributors' pages name existing things and all packages. Each check must find bad pages."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support import architecture
from support.architecture import PAGE, ROOT, Names, Step

TEXT = PAGE.read_text()


@pytest.fixture(scope="module")
def known() -> Names:
    return architecture.names()


@pytest.fixture(scope="module")
def picture() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "make_architecture_picture.py"))


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_every_path_exists(page: str) -> None:
    assert architecture.missing_files((ROOT / page).read_text()) == []


def test_every_name_exists(known: Names) -> None:
    assert architecture.missing_names(TEXT, known) == []


def test_every_step_is_in_its_file(known: Names) -> None:
    assert len(architecture.steps(TEXT)) > 20
    assert architecture.misplaced_steps(TEXT, known) == []


def test_every_package_is_named() -> None:
    packages = architecture.packages()
    assert {"_core", "_wire", "_types", "chaos", "cli"} <= packages
    assert architecture.unnamed_packages(TEXT, packages) == set()


def test_the_layers_are_those_of_the_checker() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (checked,) = [one["layers"] for one in settings["contracts"] if one["type"] == "layers"]
    assert architecture.layers(TEXT) == [set(layer.split(" | ")) for layer in checked]


# The picture


def test_the_picture_is_up_to_date(picture: dict[str, Any]) -> None:
    assert picture["TARGET"].read_text() == picture["drawing"](), "run docs/make_architecture_picture.py"


def test_the_picture_has_every_package(picture: dict[str, Any]) -> None:
    drawn = {box.name for box in picture["BOXES"] if box.kind != "outside"}
    assert drawn == architecture.packages()


def test_every_arrow_is_an_import(picture: dict[str, Any]) -> None:
    arrows = {(importer, imported) for importer, imported, _ in picture["CALLS"]}
    assert arrows - architecture.imports() == set()


# The checks themselves

WRONG = """
| layer | purpose |
|---|---|
| `_wire`, `_gone` | `_core` |

| 1 | `_wire/link.py` | `Link.send`, `Link.forget` | One is there. |
| 3 | `_wire/none.py` | `Link.send` | No such file. |

`Lane.nothing`, `Nothing`, `link.nothing`, and `decide` in `_wire/link.py` are missing; so is [x](none.svg).
`Link.send`, `Link.fd`, `Link`, `link.Link`, `sys.setprofile`, `PQflush`, `pgha.x.y` and `_wire/` are.

```text
_wire/link.py
_wire/lost.py
```
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    package = tmp_path / "src" / "pgha"
    (package / "_wire").mkdir(parents=True)
    (package / "_wire" / "__init__.py").write_text("import pgha._core.outcome\n")
    (package / "_types.py").write_text("from pgha import open_cluster\nimport os\n")
    (package / "_wire" / "link.py").write_text(
        "class Link:\n"
        "    def __init__(self):\n        self.fd = 1\n"
        "    def send(self):\n        pass\n"
        "class Lane:\n    pass\n"
    )
    return tmp_path


def test_a_missing_file_is_found(tree: Path) -> None:
    assert architecture.missing_files(WRONG, tree) == ["_wire/none.py", "none.svg", "_wire/lost.py"]


def test_a_missing_name_is_found(tree: Path) -> None:
    known = architecture.names(tree / "src" / "pgha")
    wrong = ["Link.forget", "Lane.nothing", "Nothing", "link.nothing", "decide in _wire/link.py"]
    assert architecture.missing_names(WRONG, known) == wrong


def test_a_misplaced_step_is_found(tree: Path) -> None:
    known = architecture.names(tree / "src" / "pgha")
    assert architecture.steps(WRONG) == [
        Step(1, "_wire/link.py", ("Link.send", "Link.forget")),
        Step(3, "_wire/none.py", ("Link.send",)),
    ]
    assert architecture.misplaced_steps(WRONG, known) == [
        "1: Link.forget is not in _wire/link.py",
        "3: Link.send is not in _wire/none.py",
        "numbers: [1, 3]",
    ]


def test_an_unnamed_package_is_found(tree: Path) -> None:
    packages = architecture.packages(tree / "src" / "pgha")
    assert packages == {"_wire", "_types"}
    assert architecture.unnamed_packages(WRONG, packages) == {"_types"}


def test_imports_are_read(tree: Path) -> None:
    (tree / "src" / "pgha" / "_core").mkdir()
    (tree / "src" / "pgha" / "_core" / "__init__.py").write_text("")
    assert architecture.imports(tree / "src" / "pgha") == {("_wire", "_core"), ("_types", "_cluster")}
