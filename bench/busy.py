"""How many processors other programs keep busy just now, asked before a measurement starts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

_STAT = Path("/proc/stat")


def _first_line() -> str:
    return _STAT.read_text().partition("\n")[0] if _STAT.exists() else ""


def busy_cpus(interval_s: float = 0.2, read: Callable[[], str] = _first_line) -> float | None:
    """Return how many CPUs are busy; None where the system does not say.

    The load average would not do: it remembers a training that ended a minute ago.

    Args:
        interval_s: time between the two looks.
        read: returns the line `cpu user nice system idle iowait irq softirq steal ...` in ticks of all CPUs.
    """
    before = _ticks(read())
    time.sleep(interval_s)
    after = _ticks(read())
    if before is None or after is None or after[0] == before[0]:
        return None
    return (os.cpu_count() or 1) * (1 - (after[1] - before[1]) / (after[0] - before[0]))


def _ticks(line: str) -> tuple[int, int] | None:
    """Return all ticks and the idle ones (idle and iowait)."""
    ticks = [int(number) for number in line.split()[1:9]]
    return (sum(ticks), ticks[3] + ticks[4]) if len(ticks) == 8 else None
