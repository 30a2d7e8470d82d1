"""Everything that a cluster takes from outside besides its sockets: times and chance, from one place.

A simulated world gives its own. Nothing below `pgha` calls `time.time`, `random` or `os.urandom` elsewhere,
except the command, the fault kit and the trials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sources:
    """The clocks and the chance of a cluster; `pgha._options.REAL` holds the real ones."""

    clock: Callable[[], float]
    """Seconds of a clock that never goes back, as `time.monotonic`."""
    wall: Callable[[], float]
    """Seconds since 1970, as `time.time`."""
    cpu: Callable[[], float]
    """Seconds of processor time that the program has used, as `time.process_time`."""
    draw: Callable[[], float]
    """A random number of at least 0 and less than 1, as `random.random`: for the jitter of delays."""
    random_bytes: Callable[[int], bytes]
    """So many random bytes that nobody can guess, as `os.urandom`: for keys."""
