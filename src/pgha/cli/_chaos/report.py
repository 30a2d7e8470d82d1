"""The numbers of a chaos run's report. Pure: everything comes from the `Trial`.

Times are seconds since the load began, unless documented as `time.monotonic` seconds. An operation is counted
at the time when it ended: a fault shows as a gap, and operations that waited for the end of the fault follow
the gap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, log10
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from pgha.cli._chaos.timelines import bands, lanes, promotions, topology

if TYPE_CHECKING:
    from pgha._trials.trial import Trial
    from pgha.chaos.history import Entry

Sort: TypeAlias = Literal["left", "read", "write", "error", "in doubt"]
"""How an operation is drawn. "left" means that its caller did not wait for the end."""
SORTS: tuple[Sort, ...] = get_args(Sort)
_LEFT = ("left by ", "OperationCancelled")
"""The beginnings of the errors of operations that are drawn as "left"."""

_BINS = 300
"""The approximate number of bins in a run, if bins of that length are neither too short nor too long."""
_SHORTEST, _LONGEST = 0.1, 1.0
_MOST_DOTS = 50_000


@dataclass(frozen=True, slots=True)
class Totals:
    """The outcomes of the operations.

    Latencies are in seconds, and those of operations with a result; None if there are none.
    """

    operations: int
    reads: int
    writes: int
    answered: int
    """Operations with a result."""
    errors: int
    """Operations that ended with an error; writes in doubt are not counted here."""
    in_doubt: int
    left: int
    """Operations that their callers left on purpose: their outcomes are unknown, as expected."""
    unfinished: int
    """Operations that were still running when the history was closed."""
    retried: int
    p50: float | None
    p99: float | None
    p999: float | None
    longest_gap: float
    """The longest time without a result, from the beginning of the load to its end."""
    gap_at: float
    """The time when the longest gap began."""


@dataclass(frozen=True, slots=True)
class Series:
    """The number of operations that ended in each bin, by outcome. Each bin is `width` seconds long."""

    width: float
    answered: tuple[int, ...]
    errors: tuple[int, ...]
    in_doubt: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dots:
    """Operations as points: the time when each ended, and its latency in seconds."""

    at: tuple[float, ...]
    latency: tuple[float, ...]


def span(trial: Trial) -> float:
    """Return the seconds from the beginning of the load to its end, or to the last answer if later."""
    last = max((entry.ended for entry in trial.history if entry.ended is not None), default=trial.ended)
    return max(trial.ended, last) - trial.began


def sort_of(entry: Entry) -> Sort | None:
    """Return how the operation is drawn; None if it never ended."""
    if entry.ended is None or entry.ending is None:
        return None
    if entry.error is not None and entry.error.startswith(_LEFT):
        return "left"
    match entry.ending:
        case "acknowledged":
            return entry.kind
        case "in doubt":
            # Whether a failed read was carried out does not matter to its caller, who got an error.
            return "in doubt" if entry.kind == "write" else "error"
        case "refused" | "lost":
            return "error"


def totals(trial: Trial) -> Totals:
    """Return the counts and latencies of a run's operations."""
    kinds = Counter(entry.kind for entry in trial.history)
    sorts = Counter(sort_of(entry) for entry in trial.history)
    ordered = sorted(latency for _, latency in _answers(trial))
    gap_at, gap = longest_gap([at for at, _ in _answers(trial)], trial.ended - trial.began)
    return Totals(
        operations=kinds.total(),
        reads=kinds["read"],
        writes=kinds["write"],
        answered=len(ordered),
        errors=sorts["error"],
        in_doubt=sorts["in doubt"],
        left=sorts["left"],
        unfinished=sorts[None],
        retried=trial.retried,
        p50=percentile(ordered, 0.5),
        p99=percentile(ordered, 0.99),
        p999=percentile(ordered, 0.999),
        longest_gap=gap,
        gap_at=gap_at,
    )


def _answers(trial: Trial) -> Iterable[tuple[float, float]]:
    """Yield the time of each result and the latency of its operation."""
    for entry in trial.history:
        if entry.ending == "acknowledged" and entry.ended is not None:
            yield entry.ended - trial.began, entry.ended - entry.begun


def percentile(ordered: Sequence[float], part: float) -> float | None:
    """Return the smallest value that the fraction `part` (above 0, at most 1) of `ordered` does not exceed.

    Return None if `ordered` is empty.
    """
    return ordered[ceil(part * len(ordered)) - 1] if ordered else None


def longest_gap(answers: Iterable[float], end: float) -> tuple[float, float]:
    """Return when the longest time without an answer began, and how long it was.

    The gap may begin with the load and may last until `end`. After `end` no operations are submitted, so that
    silence is not a gap.
    """
    longest, last = (0.0, 0.0), 0.0
    for at in [*sorted(min(at, end) for at in answers), end]:
        if at - last > longest[1]:
            longest = (last, at - last)
        last = at
    return longest


def bins(seconds: float) -> tuple[int, float]:
    """Return the number of bins in `seconds`, and the length of each.

    The length is 0.1 to 1 second, or less for a shorter run. The bins fill the time exactly, so that the last
    bin is as long as the others.
    """
    count = max(1, round(seconds / min(max(seconds / _BINS, _SHORTEST), _LONGEST)))
    return count, seconds / count


def series(trial: Trial) -> Series:
    """Return the number of operations that ended in each bin."""
    count, width = bins(span(trial))
    answered, errors, in_doubt, left = ([0] * count for _ in range(4))
    kept = {"read": answered, "write": answered, "error": errors, "in doubt": in_doubt, "left": left}
    for entry in trial.history:
        sort = sort_of(entry)
        if sort is not None and entry.ended is not None:
            number = int((entry.ended - trial.began) / width) if width else 0
            kept[sort][max(0, min(number, count - 1))] += 1
    return Series(width, tuple(answered), tuple(errors), tuple(in_doubt))


def dots(trial: Trial, most: int = _MOST_DOTS) -> dict[Sort, Dots]:
    """Return the operations that ended as points: at most `most`, but at least one of each sort.

    If there are more, then of the points that would be drawn over each other only the slowest is kept. So
    neither visible points nor outliers are lost.
    """
    ended = [
        (sort, entry.ended - trial.began, entry.ended - entry.begun)
        for entry in trial.history
        if (sort := sort_of(entry)) is not None and entry.ended is not None
    ]
    found: dict[Sort, list[tuple[float, float]]] = {sort: [] for sort in SORTS}
    for sort, at, latency in _thinned(ended, most, span(trial)):
        found[sort].append((at, latency))
    return {sort: Dots(*_columns(sorted(points))) for sort, points in found.items()}


def _thinned(
    ended: list[tuple[Sort, float, float]], most: int, seconds: float
) -> Collection[tuple[Sort, float, float]]:
    columns, rows = 1200.0, 120.0  # cells over the whole time, and per power of ten of latency
    kept: Collection[tuple[Sort, float, float]] = ended
    while len(kept) > most and columns >= 1.0:
        cells: dict[tuple[Sort, int, int], tuple[Sort, float, float]] = {}
        for dot in kept:
            sort, at, latency = dot
            cell = (sort, int(at / seconds * columns), int(log10(max(latency, 1e-6)) * rows))
            if cell not in cells or cells[cell][2] < latency:
                cells[cell] = dot
        kept, columns, rows = cells.values(), columns / 1.4, rows / 1.4
    return kept


def _columns(points: list[tuple[float, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(at for at, _ in points), tuple(latency for _, latency in points)


def numbers(trial: Trial, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return all numbers of the page, and the data behind them, for JSON. `more` is added.

    Times are in seconds, except values named `..._ms`, which are in milliseconds.
    """
    return {
        "title": trial.title,
        "kept": trial.kept,
        "seed": trial.seed,
        "loop": trial.loop,
        "kind": trial.kind,
        "nodes": list(trial.nodes),
        "topology": topology(trial),
        "seconds": round(span(trial), 3),
        **_counted(totals(trial)),
        "violations": [asdict(violation) for violation in trial.violations],
        "schedule": None if trial.schedule is None else asdict(trial.schedule),
        "faults_by_kind": faults_by_kind(trial),
        "faults": [_rounded(asdict(band)) for band in bands(trial)],
        "skipped": [f"{one.kind} {one.node}: {one.skipped}" for one in trial.faults if one.skipped],
        **_over_time(trial),
        **more,
    }


def _counted(found: Totals) -> dict[str, Any]:
    values = _rounded(asdict(found))
    for name in ("p50", "p99", "p999"):
        del values[name]
        values[f"{name}_ms"] = _ms(getattr(found, name))
    return values


def _over_time(trial: Trial) -> dict[str, Any]:
    shown = series(trial)
    return {
        "series": asdict(shown) | {"width": round(shown.width, 6)},
        "lanes": {
            node: [_rounded(asdict(bar)) for bar in found]
            for node, found in lanes(trial, span(trial)).items()
        },
        "promotions": [_rounded(asdict(one)) for one in promotions(trial)],
    }


def faults_by_kind(trial: Trial) -> dict[str, int]:
    """Return the number of faults of each kind, the most frequent first."""
    return dict(Counter(band.kind for band in bands(trial)).most_common())


def in_words(seconds: float) -> str:
    """Return a time as text: 0.45 ms, 45 ms, 3.10 s."""
    if seconds >= 0.9995:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"


def counted(count: int, word: str) -> str:
    """Return a count as text: 1 read, 2,000 reads."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
