"""The summary at the end of the demo."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from pgha.cli._demo.check import Verdict
from pgha.cli._demo.faults import Fault
from pgha.cli._demo.workload import Recorder


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command."""

    seconds: int
    nodes: int
    seed: int
    loop: str
    port: int | None = None
    """The port of the first node; the other nodes use the next ports. None: free ports."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The counted results of a demo."""

    options: Options
    recorder: Recorder
    statistics_retried: int
    faults: tuple[Fault, ...]
    verdict: Verdict
    replayed: int = 0
    """Writes that an earlier attempt had applied, as the ledger showed."""

    @property
    def good(self) -> bool:
        """Whether no write was lost, repeated or doubled, and no error reached a caller."""
        verdict, recorder = self.verdict, self.recorder
        bad = verdict.lost or verdict.doubled or verdict.repeated or recorder.errors or recorder.in_doubt
        return not bad

    def numbers(self) -> dict[str, Any]:
        """Return the names and values of the JSON output."""
        recorder, verdict, options = self.recorder, self.verdict, self.options
        operations, gaps = recorder.operations, recorder.gaps
        return {
            "operations": sum(operations.values()),
            "reads": operations["read"],
            "writes": operations["write"],
            "retried": self.statistics_retried,
            "replayed": self.replayed,
            "in_doubt": recorder.in_doubt,
            "errors": recorder.errors,
            "error_samples": recorder.samples,
            "repeated": len(verdict.repeated),
            "lost": len(verdict.lost),
            "doubled": len(verdict.doubled),
            "longest_gap_ms": _ms(gaps[None]),
            "longest_read_gap_ms": _ms(gaps["read"]),
            "longest_write_gap_ms": _ms(gaps["write"]),
            "faults": len(self.faults),
            "fault_list": [{"kind": f.kind, "node": f.node, "at": round(f.at, 2)} for f in self.faults],
            "seed": options.seed,
            "seconds": options.seconds,
            "nodes": options.nodes,
            "loop": options.loop,
        }

    def json(self) -> str:
        return json.dumps(self.numbers(), indent=2)

    def rows(self) -> list[tuple[str, str, str]]:
        """Return a row per number: its name, the number, and its meaning."""
        n = self.numbers()
        rows = [
            ("operations", n["operations"], f"{n['reads']} reads, {n['writes']} writes"),
            ("faults", n["faults"], self._faults()),
            ("retried", n["retried"], "times an operation was run again"),
            ("replayed", n["replayed"], "retries of applied writes, stopped by the ledger"),
            ("repeated", n["repeated"], "writes that were applied more than once"),
            ("in doubt", n["in_doubt"], "writes that may or may not have been applied"),
            ("errors", n["errors"], "errors that reached a caller"),
            ("lost", n["lost"], "acknowledged writes that are not on every node"),
            ("doubled", n["doubled"], "writes that were repeated, or should not be there"),
            ("longest gap", f"{n['longest_gap_ms']} ms", _gaps(n)),
        ]
        return [(name, str(value), remark) for name, value, remark in rows]

    def _faults(self) -> str:
        kinds = Counter(fault.kind for fault in self.faults)
        words = [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in sorted(kinds.items())]
        if by_hand := sum(fault.by_hand for fault in self.faults):
            words.append(f"{by_hand} of them by hand")
        return ", ".join(words)

    def text(self) -> str:
        """Return the summary as text, at most 79 columns wide except the samples of errors."""
        lines = [f"  {name:<12} {value:>9}   {remark}".rstrip() for name, value, remark in self.rows()]
        lines += [f"  ! {sample}" for sample in self.recorder.samples]
        return "\n".join([*lines, "", self.last_words()])

    def last_words(self) -> str:
        """Return the verdict. After a failure, include the command that repeats the faults."""
        if self.good:
            return "Nothing was lost, nothing doubled, and no caller saw an error."
        o = self.options
        again = f"pgha demo --seed {o.seed} --seconds {o.seconds} --nodes {o.nodes} --loop {o.loop}"
        return f"This must not happen. To repeat the same plan of faults:\n{again}"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _gaps(numbers: dict[str, Any]) -> str:
    read, write = numbers["longest_read_gap_ms"], numbers["longest_write_gap_ms"]
    return f"reads alone {read} ms, writes alone {write} ms"
