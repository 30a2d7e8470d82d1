"""Check that the README's programs print the output that the README shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def output(block: str) -> list[str]:
    """Run the block as a separate program, and return its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def printed(block: str, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Run the block in this process, which is cheaper, and return its output."""
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    shown, complaints = capfd.readouterr()
    assert complaints == ""
    return shown.splitlines()


def test_every_block_is_tried_here() -> None:
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ten_lines(backend: str, capfd: pytest.CaptureFixture[str]) -> None:
    block = BLOCKS[0]
    assert block.endswith("anyio.run(main)\n")
    # Use the same replacement as the README.
    told = re.search(r"`(anyio\.run\(main, backend=\"trio\"\))`", README)
    assert told is not None
    other = block.replace("anyio.run(main)", told[1])
    found = printed(other, capfd) if backend == "trio" else output(block)
    assert found == ["[(1, 'tea')]"]


def test_rows_objects_json(capfd: pytest.CaptureFixture[str]) -> None:
    row, dicts, objects, text = printed(BLOCKS[1], capfd)
    assert row == "('tea', Decimal('2.50'))"
    assert dicts == "[{'name': 'tea', 'price': Decimal('2.50')}]"
    assert objects == "[Item(name='tea', price=Decimal('2.50'))]"
    assert text == '[{"name":"tea","price":2.50}]'
    assert json.loads(text) == [{"name": "tea", "price": 2.5}]


def test_from_threads(capfd: pytest.CaptureFixture[str]) -> None:
    assert printed(BLOCKS[2], capfd) == [str(sum(range(100)))]
