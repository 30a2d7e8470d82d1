"""Check that `import pgha` imports no loop and no module that few programs use. Times are not measured here.

psycopg itself imports asyncio and ssl, so the two are in every program.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import textwrap

import pytest

from pgha._wire import interrupts
from pgha._wire.interrupts import protect_uninterrupted, uninterrupted

REPORT = "import json, sys; print(json.dumps(sorted(sys.modules)))"
OPEN = """
import pgha

async def main():
    async with pgha.open_cluster("host=127.0.0.1 port=1 dbname=none", min_ready=0):
        pass
"""
LOOPS = {
    "asyncio": {"pgha._wire.asyncio_loop", "anyio._backends._asyncio"},
    "trio": {"trio", "pgha._wire.trio_loop", "anyio._backends._trio"},
}
STARTS = {
    "asyncio.run": ("asyncio", "import asyncio; asyncio.run(main())"),
    "trio.run": ("trio", "import trio; trio.run(main)"),
    "anyio on asyncio": ("asyncio", "import anyio; anyio.run(main, backend='asyncio')"),
    "anyio on trio": ("trio", "import anyio; anyio.run(main, backend='trio')"),
}


@functools.cache
def _modules(program: str) -> frozenset[str]:
    """Return the modules that a fresh interpreter has imported at the end of ``program``."""
    done = subprocess.run(
        [sys.executable, "-c", f"{textwrap.dedent(program)}\n{REPORT}"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return frozenset(json.loads(done.stdout))


def test_importing_pgha_adds_anyio_and_little_else() -> None:
    added = _modules("import pgha") - _modules("import psycopg")
    roots = {name.partition(".")[0] for name in added}
    # termios defines the query for unsent bytes of a socket; uuid makes keys, and imports platform.
    light = {"pgha", "anyio", "sniffio", "termios", "uuid", "_uuid", "platform"}
    assert roots <= light


@pytest.mark.parametrize(
    "name",
    [
        "trio", "anyio._backends", "pgha._wire.trio_loop", "pgha._wire.asyncio_loop", "pgha.blocking",
        "pgha.chaos", "pgha.cli", "pgha._rows.json", "pgha._rows.models", "anyio.streams", "hashlib",
        "hypothesis", "pydantic", "attr",
        "msgspec", "concurrent.futures.thread", "multiprocessing", "http",
    ],
)  # fmt: skip
def test_importing_pgha_does_not_import(name: str) -> None:
    assert not {found for found in _modules("import pgha") if found == name or found.startswith(f"{name}.")}


@pytest.mark.parametrize("start", STARTS)
def test_a_program_imports_its_own_loop_only(start: str) -> None:
    loop, run = STARTS[start]
    modules = _modules(f"{OPEN}\n{run}")
    for name, own in LOOPS.items():
        assert modules & own == (own if name == loop else set())


def test_threads_run_on_one_loop_too() -> None:
    program = """
    import pgha.blocking
    with pgha.blocking.open_cluster("host=127.0.0.1 port=1 dbname=none", min_ready=0, backend="{}"):
        pass
    """
    for loop, other in (("asyncio", "trio"), ("trio", "asyncio")):
        modules = _modules(program.format(loop))
        assert LOOPS[loop] <= modules
        assert not LOOPS[other] & modules


def test_the_loop_may_be_imported_before_or_after_what_it_protects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_uninterrupted", [])
    monkeypatch.setattr(interrupts, "_protections", [])
    protected: list[object] = []

    @uninterrupted
    def before() -> None: ...

    protect_uninterrupted(protected.append)

    @uninterrupted
    def after() -> None: ...

    assert protected == [before, after]


def test_trio_protects_what_pgha_marks() -> None:
    program = f"""
    {textwrap.indent(OPEN, "    ").strip()}

    import trio
    trio.run(main)
    from pgha._wire.interrupts import _uninterrupted
    from trio._core._ki import _CODE_KI_PROTECTION_STATUS_WMAP as protected
    assert len(_uninterrupted) > 10
    assert all(protected[one.__code__] for one in _uninterrupted)
    """
    _modules(program)
