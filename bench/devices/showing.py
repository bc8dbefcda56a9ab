"""Emulated and estimated rows as a person reads them: no column of a method that was not used.

Tables are text here, with whole names; the terminal, Markdown and the page each draw them in their own way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..cells import Cells
from ..table import count, milliseconds, shape_title, short_name, significant, text_table, times

Row = Mapping[str, Any]

CACHE_LINE_BYTES = 64  # count.c
PARITY_SHARE = 1e-5  # of the largest output: ten times the worst float32 difference seen between x86 and aarch64


def print_unmeasured(
    console: Console, machine: Mapping[str, Any], rows: Sequence[Row], *, notes: Sequence[str] = ()
) -> None:
    """Print the tables of emulated or estimated rows, what they rest on, and what they do not say."""
    console.print(Text(headline(machine, rows)), soft_wrap=True)
    for cells in unmeasured_cells(rows, shape_title):
        console.print(_drawn(cells))
        console.print()
    for note in (*notes, *unmeasured_notes(machine, rows)):
        console.print(Text(note), soft_wrap=True)
    for warning in unmeasured_warnings(rows):
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
    console.print(Text(next_step(machine, rows)), soft_wrap=True)


def headline(machine: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return the method, and the processor that it stands for."""
    core = "" if machine["core"] == machine["title"] else f", one {machine['core']} core"
    return f"{rows[0]['method'].capitalize()}: {machine['title']}{core}"


def unmeasured_cells(rows: Sequence[Row], title: Callable[[Row], str]) -> Iterator[Cells]:
    """Yield one table per shape, with the columns of the rows' method."""
    for shape, group in groupby(rows, key=title):
        emulated = rows[0]["method"] == "emulated"
        columns, cells = (EMULATED, _emulated_cells) if emulated else (ESTIMATED, _estimated_cells)
        models = list(group)
        yield Cells(title=shape, columns=columns, rows=tuple((row["model"], *cells(row)) for row in models))
        if levels := tuple(_misses(models[0])):
            headings = ("model", *(f"{level} misses" for level in levels), "MB from memory")
            missed = tuple((row["model"], *_missed_cells(row)) for row in models)
            yield Cells(title=f"{shape}: simulated caches", columns=headings, rows=missed)


EMULATED = ("model", "instructions", "fewer", "max |diff|", "largest output")


def _misses(row: Row) -> Mapping[str, int]:
    misses: Mapping[str, int] = row.get("cache_misses") or {}  # results before 2026-11-24 have none
    return misses


def _missed_cells(row: Row) -> Iterator[str]:
    misses = list(_misses(row).values())
    yield from map(count, misses)
    yield significant(misses[-1] * CACHE_LINE_BYTES / 1e6, digits=3)


def _emulated_cells(row: Row) -> tuple[str, ...]:
    return (
        count(row["instructions"]),
        "baseline" if row["is_baseline"] else times(row["instruction_ratio"]),
        f"{_gap(row):.1e}",
        significant(row["parity_max_abs_value"], digits=3),
    )


ESTIMATED = ("model", "ms", "core ms", "memory ms", "MB moved", "times faster")


def _estimated_cells(row: Row) -> tuple[str, ...]:
    return (
        *(_interval(row[f"{part}low_s"], row[f"{part}high_s"]) for part in ("", "core_", "memory_")),
        significant(row["bytes_moved"] / 1e6, digits=3),
        "baseline" if row["is_baseline"] else f"{row['ratio_low']:.1f} to {row['ratio_high']:.1f}",
    )


def unmeasured_notes(machine: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Return what the numbers rest on, and what they cannot say."""
    return _emulated_notes(machine, rows) if rows[0]["method"] == "emulated" else _estimated_notes(machine)


def unmeasured_warnings(rows: Sequence[Row]) -> list[str]:
    """Return what is wrong with the numbers, or with the model on that processor."""
    if rows[0]["method"] == "estimated":
        left_out = sorted({name for row in rows for name in row["left_out"]})
        return [f"not in the estimate, so it is too low: {', '.join(left_out)}."] if left_out else []
    apart = _apart(rows)
    if not apart:
        return []
    worst = max(apart, key=_gap)
    return [
        f"{short_name(worst['model'])}: its outputs on aarch64 differ by {_gap(worst):.1e} from this machine's "
        f"({len(apart)} of {len(rows)} rows). Compare its quality on the device."
    ]


def next_step(machine: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Say how to learn what this method cannot tell."""
    measure = "--device ssh://user@host measures it there, `toolchain bench bundle FOLDER` without ssh"
    if rows[0]["method"] == "emulated":
        return f"Next: for time, --device {machine['profile']} estimates it; {measure}."
    return f"Next: {measure}."


def _emulated_notes(machine: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    notes = [
        f"Counted in aarch64 ONNX Runtime {machine['onnxruntime']} on an emulated {machine['emulated_core']}. "
        "Instructions know no caches: their ratio is no speedup, and no time follows from them."
    ]
    if caches := machine.get("simulated_caches"):
        sizes = ", ".join(f"{name} {size // 1024:,} kB" for name, size in caches.items())
        notes.append(f"Misses of simulated data caches: {sizes}; 16 ways, lines of 64 bytes, nothing prefetched.")
    if machine["emulated_core"] != machine["core"].lower().replace(" ", "-"):
        notes.append(f"{machine['emulated_core']} stands in for {machine['core']}, which this QEMU does not have.")
    if not _apart(rows):
        notes.append("Outputs on aarch64 are this machine's, to rounding.")
    return notes


def _estimated_notes(machine: Mapping[str, Any]) -> list[str]:
    """Return how far estimates were off where they could be checked."""
    checked = machine.get("validation")
    return [
        "Estimated from the graph and the profile's figures, nothing was run: `toolchain devices show "
        f"{machine['profile']}` names their sources.",
        "Never checked on this machine: `toolchain bench calibrate` compares estimates with measurements."
        if checked is None
        else describe_validation(checked),
    ]


def describe_validation(checked: Mapping[str, Any]) -> str:
    """Return the error of estimates on the machine that was measured, in one sentence."""
    return (
        f"Checked on {checked['machine']}: {checked['inside']} of {checked['models']} measured times lie inside their "
        f"interval; its middle is off by {checked['median_error']:.0%} (median), {checked['p90_error']:.0%} (9 of 10), "
        f"{checked['worst_error']:.0%} (worst). On another processor it may be off by more."
    )


def _drawn(cells: Cells) -> Table:
    table = text_table(cells.title)
    for heading in cells.columns[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for model, *others in cells.rows:
        table.add_row(short_name(model), *others)
    return table


def _interval(low_s: float, high_s: float) -> str:
    return f"{milliseconds(low_s) if low_s else '0'}-{milliseconds(high_s) if high_s else '0'}"


def _apart(rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose outputs differ by more than rounding."""
    return [row for row in rows if _gap(row) > PARITY_SHARE * max(1.0, row["parity_max_abs_value"])]


def _gap(row: Row) -> float:
    """Return how far outputs are apart; infinite where one side is no number."""
    gap = row["parity_max_abs_diff"]
    return math.inf if gap is None else float(gap)
