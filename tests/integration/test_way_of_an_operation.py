"""The path of one operation as docs/architecture.md describes it, recorded on a real server."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import pytest
from support import architecture
from support.architecture import PAGE, SOURCE
from support.common import cluster_of

import pgha
from pgha.chaos import Node

pytestmark = pytest.mark.anyio

Call = tuple[str, str]
"""A file below src/pgha, and a function."""


async def recorded(cluster: pgha.Cluster, value: int) -> list[Call]:
    """Return every call into pgha while one `execute` runs, in order. A resumed task counts as a call."""
    calls: list[Call] = []
    root = f"{Path(pgha.__file__).parent}/"

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(root):
            calls.append((code.co_filename.removeprefix(root), code.co_qualname))

    sys.setprofile(note)
    try:
        await cluster.execute("INSERT INTO way VALUES (%s)", [value])
    finally:
        sys.setprofile(None)
    return calls


async def way(server: Node) -> list[Call]:
    """Return the calls of one prepared write during which nothing else happened: the shortest of several."""
    assert Path(pgha.__file__).parent == SOURCE
    async with cluster_of(server) as cluster:
        await cluster.execute("CREATE TABLE way (id int)")
        try:
            ways = [await recorded(cluster, value) for value in range(20)]
        finally:
            await cluster.execute("DROP TABLE way")
    prepared = [one for one in ways if ("_wire/link.py", "Link._send_unprepared") not in one]
    return min(prepared, key=len)


def in_order(steps: list[architecture.Step], calls: list[Call]) -> list[str]:
    """Return the steps that the calls do not make, in the order of the page."""
    missed, rest = [], iter(calls)
    for step in steps:
        wanted = {(step.file, function) for function in step.functions}
        tried = list(rest)
        place = next((index for index, call in enumerate(tried) if call in wanted), None)
        if place is None:
            missed.append(f"{step.number}: {step.file} {step.functions}")
            rest = iter(tried)
        else:
            rest = iter(tried[place + 1 :])
    return missed


async def test_as_the_page_says(server: Node, anyio_backend: str) -> None:
    calls = await way(server)
    page = PAGE.read_text()
    if anyio_backend == "trio":
        # The page describes asyncio, and names the replacements on trio.
        page = page.replace("`_Serving.ready`", "`TrioLoop.serve`").replace("asyncio_loop.py", "trio_loop.py")
    assert in_order(architecture.steps(page), calls) == []
    files = list(dict.fromkeys(file for file, _ in calls))
    passed = architecture.files_passed(page)
    if anyio_backend == "asyncio":
        assert files == passed
    else:
        assert sorted(files) == sorted(passed)


def test_a_step_that_is_not_made_is_found() -> None:
    calls = [("a.py", "A.one"), ("b.py", "B.two"), ("a.py", "A.three")]
    step = architecture.Step
    assert in_order([step(1, "a.py", ("A.one",)), step(2, "a.py", ("A.x", "A.three"))], calls) == []
    assert in_order([step(1, "b.py", ("B.two",)), step(2, "a.py", ("A.one",))], calls) == [
        "2: a.py ('A.one',)"
    ]
    assert in_order([step(1, "a.py", ("B.two",)), step(2, "a.py", ("A.three",))], calls) == [
        "1: a.py ('B.two',)"
    ]
