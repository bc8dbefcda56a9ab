"""`--fail-below`: a speedup that a build is held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toolchain.errors import BenchError

from .table import short_name, times


def check_speedups(rows: Sequence[dict[str, Any]], least: float) -> None:
    """Refuse a result in which any model's speedup, at any shape, is below `least`.

    The median ratio decides, not an end of its interval: an interval that straddles the threshold would make the build
    depend on how long was measured.

    Raises:
        BenchError: names the worst row; or nothing was compared.
    """
    compared = [row for row in rows if not row.get("is_baseline")]
    if not compared:
        raise BenchError("--fail-below: one model alone has no speedup; expected two or more. Name a baseline.")
    worst = min(compared, key=lambda row: float(row["speedup"]))
    if worst["speedup"] < least:
        raise BenchError(
            f"{short_name(worst['model'])}: speedup {times(worst['speedup'])} at {worst['steps']} x "
            f"{worst['batch']} (95% interval {times(worst['speedup_low'])} to {times(worst['speedup_high'])}); "
            f"expected at least {times(least)}. Lower --fail-below, or make the model faster."
        )
