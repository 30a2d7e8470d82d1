"""Draw docs/architecture.svg: the packages of pgha, and what passes between them.

    uv run python docs/make_architecture_picture.py

The tables below are the picture. `tests/packaging/test_architecture.py` compares them with the source: every
package has a box, every call is an import that exists, and the file is what this program draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

TARGET = Path(__file__).with_name("architecture.svg")
WIDTH, HEIGHT = 960, 706


@dataclass(frozen=True)
class Box:
    """A package, or what stands outside of pgha."""

    name: str
    text: str
    x: int
    y: int
    width: int
    height: int = 58
    kind: str = "box"


BOXES = (
    Box("cli", "the command pgha", 24, 64, 236),
    Box("_trials", "pgha under its own fault kit", 24, 156, 236),
    Box("chaos", "the fault kit, without pgha", 24, 248, 236),
    Box("blocking", "the cluster from threads", 330, 64, 300),
    Box("_cluster", "the object that users hold", 330, 156, 300),
    Box("_dispatch", "queue, routes, retries, cancelling", 330, 248, 300),
    Box("_node", "one node: monitor, lanes, reconnects", 330, 340, 300),
    Box("_wire", "libpq, sockets, event loops", 330, 432, 300),
    Box("PostgreSQL", "one server per node", 330, 524, 300, kind="outside"),
    Box("_ledger", "installs, prunes the ledger", 700, 156, 236),
    Box("_operation", "request, key, record, doubt", 700, 294, 236),
    Box("_rows", "rows, objects, JSON", 700, 432, 236),
    Box("_telemetry", "the log, in few lines", 700, 524, 236),
    Box("_core", "every decision, pure", 24, 386, 236, 104, kind="core"),
    Box("_options", "checked options", 24, 624, 280),
    Box("_errors", "what pgha raises", 340, 624, 280),
    Box("_types", "routes, states, events", 656, 624, 280),
)

# From, to, and the line between them. The first name imports the second.
CALLS = (
    ("cli", "_trials", (142, 122, 142, 156)),
    ("cli", "_cluster", (260, 104, 330, 170)),
    ("_trials", "chaos", (142, 214, 142, 248)),
    ("_trials", "_cluster", (260, 185, 330, 185)),
    ("blocking", "_cluster", (460, 122, 460, 156)),
    ("blocking", "_dispatch", (630, 93, 662, 93, 662, 256, 630, 256)),
    ("_cluster", "_dispatch", (460, 214, 460, 248)),
    ("_cluster", "_ledger", (630, 185, 700, 185)),
    ("_ledger", "_dispatch", (740, 214, 630, 270)),
    ("_dispatch", "_node", (460, 306, 460, 340)),
    ("_dispatch", "_operation", (630, 290, 700, 312)),
    ("_dispatch", "_telemetry", (630, 277, 666, 277, 666, 553, 700, 553)),
    ("_dispatch", "_core", (330, 295, 220, 386)),
    ("_node", "_operation", (630, 360, 700, 336)),
    ("_node", "_wire", (460, 398, 460, 432)),
    ("_node", "_core", (330, 380, 260, 410)),
    ("_operation", "_wire", (740, 352, 630, 444)),
    ("_wire", "_core", (330, 461, 260, 461)),
    ("_wire", "_rows", (630, 466, 700, 466)),
)
# What goes down, what comes back, and where: by a return value, or by a callback that a Protocol describes.
PASSED = (
    ("operation", "result, error", 214),
    ("operation", "answer, failure", 306),
    ("segment", "answer", 398),
    ("SQL", "results", 490),
)

STYLE = """
  .page { fill: #ffffff; stroke: #d0d7de; }
  .box { fill: #eef4fb; stroke: #57779b; }
  .core { fill: #fdf3dc; stroke: #a27a1f; }
  .outside { fill: #f3f3f3; stroke: #777777; stroke-dasharray: 5 4; }
  text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
  .name { font: 600 15px ui-monospace, Menlo, Consolas, monospace; }
  .text { font-size: 13px; }
  .note { font-size: 12.5px; fill: #57606a; }
  polyline { fill: none; stroke: #57606a; stroke-width: 1.4; }
  .back { stroke-dasharray: 4 3; }
  marker path { fill: #57606a; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #30363d; }
    .box { fill: #17273a; stroke: #6f9bd1; }
    .core { fill: #33290f; stroke: #d3a53c; }
    .outside { fill: #1c1f24; stroke: #9aa0a6; }
    text { fill: #e6edf3; }
    .note { fill: #a5adb6; }
    polyline { stroke: #a5adb6; }
    marker path { fill: #a5adb6; }
  }
"""
# The page has a ground of its own: a reader's light or dark page around it does not matter.


def drawing() -> str:
    """Return the picture as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        ' aria-labelledby="title">',
        '<title id="title">The packages of pgha, from the command and the cluster down to libpq</title>',
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"'
        ' orient="auto"><path d="M0 0 10 5 0 10z"/></marker></defs>',
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
        _label("note", 24, 28, "Solid arrow: a call into a lower layer (not every import is drawn)."),
        _label("note", 24, 46, "Dashed arrow: what comes back, by a return value or by a callback."),
        *(_box(one) for one in BOXES),
        *(_line(*ends) for _, _, ends in CALLS),
        *(part for one in PASSED for part in _passed(*one)),
        _line(460, 490, 460, 524),
        _label("note", 452, 144, "opens it", "end"),
        _label("note", 670, 138, "requests, results"),
        _label("note", 24, 612, "For all layers above:"),
        _label("note", 40, 458, "no loop, no socket, no clock:"),
        _label("note", 40, 476, "tests need no server"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _box(box: Box) -> str:
    return (
        f'<rect class="{box.kind}" x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="6"/>'
        + _label("name", box.x + 16, box.y + 25, box.name)
        + _label("text", box.x + 16, box.y + 45, box.text)
    )


def _label(kind: str, x: int, y: int, text: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(*ends: int, kind: str = "call") -> str:
    points = " ".join(f"{x},{y}" for x, y in zip(ends[::2], ends[1::2], strict=True))
    return f'<polyline class="{kind}" points="{points}" marker-end="url(#tip)"/>'


def _passed(down: str, up: str, y: int) -> list[str]:
    return [
        _label("note", 452, y + 22, down, "end"),
        _line(500, y + 34, 500, y, kind="back"),
        _label("note", 508, y + 22, up),
    ]


if __name__ == "__main__":
    TARGET.write_text(drawing())
