"""Tests of the page of `pgha chaos`: the page of every run can be drawn and read."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import matplotlib.image
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from support.made_trials import BEGAN, answers, done, entry, lively, sighting, trial, violations

from pgha._trials.trial import Trial
from pgha.cli._chaos.figure import page, save

LONG = "the longest of all the longest of all " * 8


def promoted() -> Trial:
    seen = [sighting(-1.0, "n1"), sighting(-1.0, "n2", role="standby"), sighting(4.0, "n1", "down")]
    return trial(10.0, answers([1.0, 9.0]), sightings=[*seen, sighting(5.0, "n2")], nodes=("n1", "n2"))


RUNS = {
    "short": lively(5.0, 100.0, 3),
    "dense": lively(20.0, 50.0, 60, errors=0.05),
    "long": lively(1800.0, 2.0, 400, errors=0.01),
    "many": lively(60.0, 200.0, 0),
    "no answers": trial(5.0, faults=[done("freeze", "n1", 1.0, 4.0)]),
    "no ends": trial(5.0, [entry("a", 0.0, None, None), entry("b", 1.0, None, None)]),
    "errors alone": trial(5.0, [entry(str(n), 0.0, n / 10, "refused") for n in range(50)]),
    "one": trial(5.0, answers([2.0])),
    "of no time": trial(0.0, answers([0.0], 0.0)),
    "nothing seen": trial(5.0, answers([1.0]), sightings=[]),
    "nine": trial(5.0, answers([1.0]), nodes=[f"n{n}" for n in range(1, 10)]),
    "promoted": promoted(),
    "broken": trial(5.0, answers([1.0]), violations=violations(7), title=LONG),
}


def texts(figure: Figure) -> list[Text]:
    """Return all visible texts that are not empty."""
    return [text for text in figure.findobj(Text) if text.get_text().strip()]


def labels(figure: Figure) -> list[Text]:
    return [text for text in texts(figure) if text.get_gid() == "fault"]


@pytest.mark.parametrize("name", RUNS)
def test_every_run_can_be_drawn_and_its_labels_read(name: str) -> None:
    figure = page(RUNS[name])
    figure.canvas.draw()
    found = labels(figure)
    boxes = [text.get_window_extent() for text in found]
    assert not [
        (one.get_text(), other.get_text())
        for (one, here), (other, there) in combinations(zip(found, boxes, strict=True), 2)
        if here.overlaps(there)
    ]
    assert all(box.x0 >= 0 and box.x1 <= 1600 for box in boxes)
    headings = [text.get_window_extent() for text in figure.texts]
    assert not any(one.overlaps(other) for one, other in combinations(headings, 2))
    assert all(box.x0 >= 0 and box.x1 <= 1600 and box.y1 <= 1000 for box in headings)


def test_what_was_done_is_named() -> None:
    struck = [done("freeze_backend", "n2", 1.0, 2.0), done("kill", "n1", 1.5, 1.5, "n1 is down")]
    assert [text.get_text() for text in labels(page(trial(5.0, faults=struck)))] == [" freeze backend n2"]
    few = lively(60.0, 5.0, 9)
    assert len(labels(page(few))) == 9


def said(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in texts(figure))


def test_the_title_has_the_totals_and_the_verdict() -> None:
    figure = page(trial(5.0, answers([1.0, 2.0]), [done("kill", "n1", 1.0, 2.0)]))
    assert "made up, seed 7" in said(figure)
    assert "trio; local nodes n1, n2, n3: 3 primaries; 5.0 s, 1 fault" in said(figure)
    assert "2 operations (2 reads, 0 writes): 2 with a result, 0 errors" in said(figure)
    (verdict,) = [text for text in figure.texts if text.get_text() == "0 violations"]
    assert verdict.get_color() == "#009E73"


def test_a_broken_promise_is_said_in_red() -> None:
    figure = page(trial(5.0, violations=violations(5)))
    red = [text.get_text() for text in figure.texts if text.get_color() == "#D55E00"]
    assert red[0] == "5 violations"
    assert red[1] == "doubled: write w0 is there twice, and was tried once"
    assert red[-1] == "and 2 more, listed in the JSON next to this page"


def test_errors_have_a_row_when_there_are_any() -> None:
    assert len(page(RUNS["errors alone"]).axes) == len(page(RUNS["one"]).axes) + 1


def test_a_png_has_the_size_that_was_promised(tmp_path: Path) -> None:
    save(RUNS["short"], tmp_path / "page.png")
    assert matplotlib.image.imread(tmp_path / "page.png").shape[:2] == (1000, 1600)


def test_in_an_svg_text_is_text_and_dots_are_few(tmp_path: Path) -> None:
    save(RUNS["many"], tmp_path / "page.SVG")
    found = ElementTree.parse(tmp_path / "page.SVG").getroot()
    words = ["".join(text.itertext()).strip() for text in found.iter("{http://www.w3.org/2000/svg}text")]
    assert "made up, seed 7" in words
    assert any(word.startswith("p99.9 ") for word in words)
    assert (tmp_path / "page.SVG").stat().st_size < 2_000_000
    save(RUNS["many"], tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "page.SVG").read_bytes()


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        save(RUNS["one"], tmp_path / "nowhere" / "page.png")


def test_nothing_global_is_changed_or_loaded(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    save(RUNS["one"], tmp_path / "page.svg")
    assert dict(matplotlib.rcParams) == before
    program = "import sys, pgha.cli._chaos.figure; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_command_loads_no_matplotlib_until_it_draws() -> None:
    program = "import sys, pgha.cli._app, pgha.cli._chaos.command; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_times_are_relative_to_the_beginning() -> None:
    assert BEGAN > 100  # otherwise a forgotten subtraction would go unnoticed
    for axes in page(RUNS["short"]).axes:
        assert axes.get_xlim() == pytest.approx((0.0, 5.0))
