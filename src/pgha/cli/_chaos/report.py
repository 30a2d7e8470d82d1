"""The numbers of a chaos run's report. Pure: everything comes from the `Trial`.

Times are seconds since the load began, unless they are said to be `time.monotonic` seconds. An operation
counts where it ended: what was silent during a fault shows as a gap, and what waited for its end behind it.
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
"""As what an operation is drawn; left: its caller did not wait for its end."""
SORTS: tuple[Sort, ...] = get_args(Sort)
_LEFT = ("left by ", "OperationCancelled")
"""How the error of such a one begins."""

_BINS = 300
"""About as many of them over the whole run, between the shortest and the longest bin."""
_SHORTEST, _LONGEST = 0.1, 1.0
_MOST_DOTS = 50_000


@dataclass(frozen=True, slots=True)
class Totals:
    """What became of the operations. Latencies in seconds, of those with a result; None without any."""

    operations: int
    reads: int
    writes: int
    answered: int
    """Those with a result."""
    errors: int
    """Those that ended with an error which is no doubt."""
    in_doubt: int
    left: int
    """Those that their callers did not wait for, on purpose: in doubt, and no surprise."""
    unfinished: int
    """Those that ran still when the history was closed."""
    retried: int
    p50: float | None
    p99: float | None
    p999: float | None
    longest_gap: float
    """The longest time without a result, from the beginning of the load to its end."""
    gap_at: float
    """When it began."""


@dataclass(frozen=True, slots=True)
class Series:
    """How many operations ended in each bin, and how; all bins are of `width` seconds."""

    width: float
    answered: tuple[int, ...]
    errors: tuple[int, ...]
    in_doubt: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dots:
    """Operations as points: when each ended, and how many seconds it had taken."""

    at: tuple[float, ...]
    latency: tuple[float, ...]


def span(trial: Trial) -> float:
    """Seconds from the beginning of the load to its end, and to the last answer if that was later."""
    last = max((entry.ended for entry in trial.history if entry.ended is not None), default=trial.ended)
    return max(trial.ended, last) - trial.began


def sort_of(entry: Entry) -> Sort | None:
    """As what it is drawn; None when it never ended."""
    if entry.ended is None or entry.ending is None:
        return None
    if entry.error is not None and entry.error.startswith(_LEFT):
        return "left"
    match entry.ending:
        case "acknowledged":
            return entry.kind
        case "in doubt":
            # A read that failed was perhaps carried out, which is nothing to its caller: it has an error.
            return "in doubt" if entry.kind == "write" else "error"
        case "refused" | "lost":
            return "error"


def totals(trial: Trial) -> Totals:
    """Count the operations of a run, and measure them."""
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
    """When each result came, and the latency of its operation."""
    for entry in trial.history:
        if entry.ending == "acknowledged" and entry.ended is not None:
            yield entry.ended - trial.began, entry.ended - entry.begun


def percentile(ordered: Sequence[float], part: float) -> float | None:
    """The smallest of `ordered` that `part` of them (above 0, at most 1) do not exceed; None of none."""
    return ordered[ceil(part * len(ordered)) - 1] if ordered else None


def longest_gap(answers: Iterable[float], end: float) -> tuple[float, float]:
    """When the longest time without an answer began, and how long it was.

    It may begin with the load and may last until `end`; past that nothing is asked for any more, and silence
    is no gap.
    """
    longest, last = (0.0, 0.0), 0.0
    for at in [*sorted(min(at, end) for at in answers), end]:
        if at - last > longest[1]:
            longest = (last, at - last)
        last = at
    return longest


def bins(seconds: float) -> tuple[int, float]:
    """How many bins there are in so many seconds, and how long each is: 0.1 to 1 second, or shorter when all
    of it is. They fill the time exactly, so that the last one is as good as the others.
    """
    count = max(1, round(seconds / min(max(seconds / _BINS, _SHORTEST), _LONGEST)))
    return count, seconds / count


def series(trial: Trial) -> Series:
    """What ended in each bin."""
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
    """The operations that ended, as points, `most` of them at most (at least one of each sort).

    Where there are more, of those that would be drawn on each other the slowest alone is kept. So nothing is
    left out that would be seen, and no outlier.
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
    columns, rows = 1200.0, 120.0  # cells over the time, and to a power of ten of latency
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
    """All that the page shows, and what it was made of, for JSON; `more` is added to it.

    Seconds but for the latencies, which are milliseconds as their names say.
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
    """How many of each kind were done, the most frequent first."""
    return dict(Counter(band.kind for band in bands(trial)).most_common())


def in_words(seconds: float) -> str:
    """A time to read: 0.45 ms, 45 ms, 3.1 s."""
    if seconds >= 0.9995:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"


def counted(count: int, word: str) -> str:
    """1 read, 2,000 reads."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
