"""Emulated and estimated rows as a person reads them: no column of a method that was not used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..table import NAME_WIDTH, count, milliseconds, short_name, significant, times

Row = dict[str, Any]

PARITY_SHARE = 1e-5  # of the largest output: ten times the worst float32 difference seen between x86 and aarch64


def print_unmeasured(console: Console, machine: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Print the tables of emulated or estimated rows, what they rest on, and what they do not say."""
    emulated = rows[0]["method"] == "emulated"
    console.print(Text(f"{rows[0]['method']}: {machine['title']}, one {machine['core']} core"), soft_wrap=True)
    for shape, group in groupby(rows, key=_shape):
        console.print((emulated_table if emulated else estimated_table)(shape, list(group)))
        console.print()
    for line in emulated_notes(machine, rows) if emulated else estimated_notes(machine, rows):
        console.print(Text(line), soft_wrap=True)


def emulated_table(shape: str, rows: Sequence[Row]) -> Table:
    """Return instructions and parity of the rows of one shape."""
    table = _table(shape, ("instructions", "fewer", "max |diff|", "largest output"))
    for row in rows:
        table.add_row(
            short_name(row["model"]),
            count(row["instructions"]),
            "baseline" if row["is_baseline"] else times(row["instruction_ratio"]),
            f"{_gap(row):.1e}",
            significant(row["parity_max_abs_value"], digits=3),
        )
    return table


def estimated_table(shape: str, rows: Sequence[Row]) -> Table:
    """Return the intervals of the rows of one shape."""
    table = _table(shape, ("ms", "core ms", "memory ms", "MB moved", "ratio"))
    for row in rows:
        table.add_row(
            short_name(row["model"]),
            _interval(row["low_s"], row["high_s"]),
            _interval(row["core_low_s"], row["core_high_s"]),
            _interval(row["memory_low_s"], row["memory_high_s"]),
            significant(row["moved_bytes"] / 1e6, digits=3),
            "baseline" if row["is_baseline"] else f"{row['ratio_low']:.1f} to {row['ratio_high']:.1f}",
        )
    return table


def emulated_notes(machine: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Return what the counts rest on, and whether outputs agree."""
    apart = [row for row in rows if _gap(row) > PARITY_SHARE * max(1.0, row["parity_max_abs_value"])]
    notes = [
        f"Counted in aarch64 ONNX Runtime {machine['onnxruntime']} on an emulated {machine['emulated_core']}. "
        "Instructions know no caches: their ratio is no speedup, and no time follows from them."
    ]
    if machine["emulated_core"] != machine["core"].lower().replace(" ", "-"):
        notes.append(f"{machine['emulated_core']} stands in for {machine['core']}, which this QEMU does not have.")
    if apart:
        worst = max(apart, key=_gap)
        notes.append(
            f"warning: {short_name(worst['model'])}: its outputs on aarch64 differ by "
            f"{_gap(worst):.1e} from this machine's ({len(apart)} of {len(rows)} rows). "
            "Compare its quality on the device."
        )
    else:
        notes.append("Outputs on aarch64 equal this machine's.")
    return notes


def estimated_notes(machine: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Return how far estimates were off where they could be checked, and what they leave out."""
    notes = [
        "Estimated from the graph and the profile's figures, nothing was run: `toolchain devices show "
        f"{machine['profile']}` names their sources."
    ]
    checked = machine.get("validation")
    if checked is None:
        notes.append(
            "Never checked on this machine: `toolchain devices calibrate` compares estimates with measurements."
        )
    else:
        notes.append(describe_validation(checked))
    left_out = sorted({name for row in rows for name in row["left_out"]})
    if left_out:
        notes.append(f"warning: not in the estimate, so it is too low: {', '.join(left_out)}.")
    return notes


def describe_validation(checked: Mapping[str, Any]) -> str:
    """Return the error of estimates on the machine that was measured, in one sentence."""
    return (
        f"Checked on {checked['machine']}: {checked['inside']} of {checked['models']} measured times lie inside their "
        f"interval; its middle is off by {checked['median_error']:.0%} (median), {checked['p90_error']:.0%} (9 of 10), "
        f"{checked['worst_error']:.0%} (worst). On another processor it may be off by more."
    )


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(
        box=None, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left", header_style="bold"
    )
    table.add_column("", no_wrap=True, width=NAME_WIDTH)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _interval(low_s: float, high_s: float) -> str:
    return f"{milliseconds(low_s) if low_s else '0'}-{milliseconds(high_s) if high_s else '0'}"


def _gap(row: Row) -> float:
    """Return how far outputs are apart; infinite where one side is no number."""
    gap = row["parity_max_abs_diff"]
    return math.inf if gap is None else float(gap)


def _shape(row: Row) -> str:
    steps = "1 step" if row["steps"] == 1 else f"{row['steps']} steps"
    sequences = "" if row["batch"] == 1 else f" x {row['batch']} sequences"
    return steps + sequences + (", state fed back" if row["state_fed_back"] else "")
