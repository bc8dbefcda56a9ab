"""How long one call of one model takes on a device: the number that a latency target is held against."""

from __future__ import annotations

from pathlib import Path

from toolchain.errors import BenchError

from .compare import plan_comparison, run_comparison
from .plan import Effort

EFFORT = Effort(processes=2, seconds=0.5)  # a search needs about eight of these; its last step is what is reported


def call_seconds(model: Path, device: str, *, steps: int) -> float:
    """Return the seconds of one call of one sequence, one thread: the median where measured, else the upper estimate.

    Raises:
        BenchError: the device cannot tell a time, or cannot be used.
    """
    plan = plan_comparison(
        [model], baseline=None, device=device, steps=[steps], batches=[1], threads=[1], effort=EFFORT
    )
    rows = run_comparison(plan, lambda done, total, what: None).rows
    row = next(row for row in rows if row["model"] == str(model))
    seconds = row.get("p50_s", row.get("high_s"))
    if seconds is None:
        raise BenchError(
            f"device {device!r}: tells no time ({row['method']}); expected one that measures or estimates. Choose "
            "another --device."
        )
    return float(seconds)
