"""Check that no file of the repository mentions the folders, hosts or tools of the place of its writing.

The patterns are spelt so that this file itself does not match them.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = re.compile(
    rb"""
      /[w]ork/
    | \b[p]ypi\.org\b | \b[f]iles\.pythonhosted\b | \b[d]eb\.debian\b | \b[s]ecurity\.debian\b
    | \b[r]egistry\.npmjs\b | \b[p]roxy\.golang\b
    | [c]laude | [a]nthropic | \b[l]lms?\b | \b[c]hatgpt\b | \b[l]anguage.model
    """,
    re.IGNORECASE | re.VERBOSE,
)


def _files() -> list[Path]:
    """Return the files that git tracks or would add, so that a file is checked before its commit, too."""
    # Git refuses to read a checkout of another user unless the folder is declared safe.
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    paths = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


def _found(content: bytes) -> list[str]:
    return [
        f"{number}: {line.decode(errors='replace').strip()}"
        for number, line in enumerate(content.splitlines(), 1)
        if WORDS.search(line)
    ]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_no_file_speaks_of_the_workplace() -> None:
    files = _files()
    assert Path(__file__) in files
    found = [f"{path.relative_to(ROOT)}:{line}" for path in files for line in _found(path.read_bytes())]
    found += [
        str(path.relative_to(ROOT)) for path in files if WORDS.search(str(path.relative_to(ROOT)).encode())
    ]
    assert found == []


@pytest.mark.parametrize(
    "parts",
    [
        ("see /wo", "rk/shared"),
        ("https://py", "pi.org/simple"),
        ("files.python", "hosted.org"),
        ("http://deb.", "debian.org"),
        ("registry.", "npmjs.org"),
        ("by Clau", "de"),
        ("ANTH", "ROPIC"),
        ("an LL", "M wrote it"),
        ("large language", " model"),
    ],
)
def test_the_pattern_catches(parts: tuple[str, str]) -> None:
    assert _found("".join(parts).encode())


@pytest.mark.parametrize(
    "text", ["the network/worker", "a framework/x", "hallmark", "work/main", "debian:bookworm"]
)
def test_the_pattern_allows(text: str) -> None:
    assert _found(text.encode()) == []
