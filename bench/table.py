"""The rows as a person reads them: tables that fit 80 columns, warnings with remedies, and one sentence.

Rounding happens here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .report import Row
from .stored import Comparison
from .variants import making

NAME_WIDTH = 20
FEW_PROCESSES = 5  # the most that fewer can say with 95% is min to max of their ratios, and that is not 95%


def print_report(console: Console, rows: Sequence[Row], *, notes: Sequence[str] = ()) -> None:
    """Print the tables, notes, warnings, and what was found."""
    for shape, group in groupby(rows, key=shape_title):
        console.print(latency_table(shape, list(group)))
        console.print()
    console.print(model_table(rows))
    console.print()
    if any(row["bytes_moved"] is not None for row in rows):
        console.print(limit_table(rows))
        console.print()
    for note in notes:
        console.print(Text(note), soft_wrap=True)
    for warning in warnings(rows):
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
    console.print(Text(verdict(rows), style="bold"), soft_wrap=True)
    console.print(Text(next_step(rows)), soft_wrap=True)


def print_stored(console: Console, comparison: Comparison, before: str, after: str) -> None:
    """Print how two stored results differ, row by row."""
    table = text_table(f"{after} against {before}")
    for heading, width in (("steps x batch", 13), ("A ms", 7), ("B ms", 7), ("speedup", 10), ("95% interval", 14)):
        table.add_column(heading, justify="right", width=width, no_wrap=True)
    for row in comparison.rows:
        table.add_row(
            short_name(row["model"]),
            f"{row['steps']} x {row['batch']}",
            milliseconds(row["before_s"]),
            milliseconds(row["after_s"]),
            *_speedup_cells({**row, "is_baseline": False}),
        )
    console.print(table)
    console.print()
    for text in (*comparison.changed_versions, *(f"Not compared: {each}." for each in comparison.only_one)):
        console.print(Text(text), soft_wrap=True)
    console.print(Text("Measured at different times: what the machine did meanwhile does not cancel."), soft_wrap=True)


def latency_table(shape: str, rows: Sequence[Row]) -> Table:
    """Return the rows of one shape: percentiles, throughput, speedup with its interval."""
    unit = "tokens/s" if all(row["reads_tokens"] for row in rows) else "steps/s"
    table = text_table(shape)
    for heading, width in (("p50 ms", 7), ("p90 ms", 7), ("p99 ms", 7), (unit, 8), ("speedup", 10)):
        table.add_column(heading, justify="right", width=width, no_wrap=True)
    table.add_column("95% interval", justify="right", width=12, no_wrap=True)
    for row in rows:
        table.add_row(
            short_name(row["model"]),
            *(milliseconds(row[key]) for key in ("p50_s", "p90_s", "p99_s")),
            count(row["tokens_per_s"]),
            *_speedup_cells(row),
        )
    return table


def model_table(rows: Sequence[Row]) -> Table:
    """Return one line per model: size, and what a fresh process needs until its first answer."""
    table = text_table("each model, in a fresh process")
    for heading in ("file MB", "parameters", "peak MB", "load ms", "first ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    last = {(row["model"], row["is_baseline"]): row for row in rows}  # the longest shape, where memory peaks
    for row in last.values():
        table.add_row(
            short_name(row["model"]),
            significant(row["file_bytes"] / 1e6, digits=3),
            f"{row['parameters']:,}",
            f"{row['peak_rss_bytes'] / 1e6:.0f}",
            milliseconds(row["load_s"]),
            milliseconds(row["first_s"]),
        )
    return table


def limit_table(rows: Sequence[Row]) -> Table:
    """Return what one inference multiplies and moves, how fast, and how near that is to what the machine can do."""
    limited = any(row["limit_share"] is not None for row in rows)
    share = ", share of this machine's limit" if limited else ""
    table = text_table(f"one inference: work, weights read{share}")
    for heading in ("steps x batch", "M mult-adds", "MB moved", "GB/s", "GFLOP/s", *(("limit",) if limited else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    units = (("multiply_adds", 1e-6), ("bytes_moved", 1e-6), ("bytes_per_s", 1e-9), ("flops_per_s", 1e-9))
    for row in rows:
        table.add_row(
            short_name(row["model"]),
            f"{row['steps']} x {row['batch']}",
            *("-" if row[key] is None else significant(row[key] * unit, digits=3) for key, unit in units),
            *(("-" if row["limit_share"] is None else f"{row['limit_share']:.0%}",) if limited else ()),
        )
    return table


def text_table(title: str) -> Table:
    """Return an empty table with a column for models."""
    table = Table(
        box=None, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left", header_style="bold"
    )
    table.add_column("", no_wrap=True, width=NAME_WIDTH)
    return table


def warnings(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what makes the numbers less certain, each with its remedy."""
    unstable = [row for row in rows if row["unstable"]]
    if unstable:
        worst = max(unstable, key=lambda row: float(row["spread"]))
        yield (
            f"{short_name(worst['model'])} at {_steps(worst)}: medians of fresh processes differ by "
            f"{worst['spread']:.0%} ({len(unstable)} of {len(rows)} rows: above 10%). The interval allows "
            "for it; for a narrower one close other programs, or use --precision 2%."
        )
    cold = [row for row in rows if not row["warm"]]
    if cold:
        yield (
            f"{short_name(cold[0]['model'])} at {_steps(cold[0])}: still getting faster after 1 s of warm-up "
            f"({len(cold)} of {len(rows)} rows). Repeat it; if it stays, fix the CPU's frequency governor."
        )
    loose = [row for row in rows if row["precision_asked"] is not None and row["precision"] > row["precision_asked"]]
    if loose := [row for row in loose if not row["is_baseline"] or len(rows) == len(_alone(rows))]:
        worst = max(loose, key=lambda row: float(row["precision"]))
        yield (
            f"{short_name(worst['model'])} at {_steps(worst)}: known to plus or minus {worst['precision']:.1%}, "
            f"{worst['precision_asked']:.1%} was asked ({len(loose)} of {len(rows)} rows). The time limit came "
            "first: close other programs, or raise --limit."
        )
    if len(rows[0]["samples_s"]) < FEW_PROCESSES:
        yield f"fewer than {FEW_PROCESSES} processes cannot carry a 95% interval. Use --processes 8."


def verdict(rows: Sequence[Row]) -> str:
    """Say in one sentence per model how it compares with the baseline, the longest shape first."""
    compared = [row for row in rows if not row["is_baseline"]]
    if not compared:
        row = rows[-1]
        return f"{short_name(row['model'])} took {milliseconds(row['p50_s'])} ms at {_steps(row)}."
    by_model = [[row for row in compared if row["model"] == name] for name in _names(compared)]
    return "\n".join(_sentence(group[::-1]) for group in by_model)


def next_step(rows: Sequence[Row]) -> str:
    """Say what to do with this result."""
    compared = [row for row in rows if not row["is_baseline"]]
    if not compared:
        return f"Next: compare it with another model: toolchain bench OTHER --baseline {rows[0]['model']}"
    best = max(compared, key=lambda row: float(row["speedup_low"]))
    if best["speedup_low"] > 1:
        made_by = making(best["model"])
        what = f"write it with {made_by}" if made_by else f"ship {best['model']}"
        return f"Next: {what}; --json FILE keeps the raw samples."
    if best["speedup_high"] < 1:
        return f"Next: ship {best['baseline']}; none of the others is faster."
    return "Next: narrow the interval with --precision 1%, or make the model smaller."


def short_name(name: str, width: int = NAME_WIDTH) -> str:
    """Return the end of a path in so many characters: with the folders that fit, because runs share file names.

    A file name that is too long loses its suffix, then its middle; what a variant or a runtime adds in brackets stays.
    """
    parts = Path(name).parts
    for first in range(len(parts)):
        if len(whole := str(Path(*parts[first:]))) <= width:
            return whole
    file, space, added = parts[-1].partition(" (")
    stem = file.removesuffix(".onnx")
    left = max(width - len(space + added), 3)
    if len(stem) > left:
        stem = f"{stem[: left // 2]}…{stem[len(stem) - (left - 1) // 2 :]}"
    return stem + space + added


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds, three digits."""
    return significant(seconds * 1e3, digits=3)


def times(ratio: float) -> str:
    """Return a ratio as people write it: 1.02x, 3.9x, 84x."""
    return f"{ratio:.{_decimals(ratio)}f}x"


def significant(value: float, *, digits: int) -> str:
    """Return a number with so many significant digits, never in powers of ten: 0.0213, 2.30, 144."""
    magnitude = math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{max(0, digits - 1 - magnitude)}f}"


def count(value: float) -> str:
    """Return a rate in thousands or millions: 812, 57.3k, 1.20M."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{significant(value / limit, digits=3)}{unit}"
    return significant(value, digits=3)


def _alone(rows: Sequence[Row]) -> list[Row]:
    """Return the baseline's rows; they are all there is when one model was measured alone."""
    return [row for row in rows if row["is_baseline"]]


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in rows))


def _steps(row: Mapping[str, Any]) -> str:
    text = "1 step" if row["steps"] == 1 else f"{row['steps']} steps"
    return text if row["batch"] == 1 else f"{text} x {row['batch']} sequences"


def shape_title(row: Mapping[str, Any]) -> str:
    """Return a row's shape in words."""
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    return f"{_steps(row)}, {threads}" + (", state fed back" if row["state_fed_back"] else "")


def _speedup_cells(row: Row) -> tuple[str, str]:
    if row["is_baseline"]:
        return "baseline", ""
    speedup = times(row["speedup"]) if row["significant"] else f"{times(row['speedup'])} n.s."  # not significant
    return speedup, _interval(row["speedup_low"], row["speedup_high"])


def _interval(low: float, high: float) -> str:
    return f"{low:.{_decimals(low)}f} to {high:.{_decimals(low)}f}"  # as many decimals on both sides


def _decimals(ratio: float) -> int:
    return 2 if ratio < 2 else 1 if ratio < 20 else 0


def _sentence(rows: Sequence[Row]) -> str:
    """Describe one model's rows, given the longest shape first."""
    first, *others = rows
    name, baseline = short_name(first["model"]), short_name(first["baseline"])
    interval = f"95% interval {_interval(first['speedup_low'], first['speedup_high'])}"
    if not first["significant"]:
        text = f"{name} is not significantly faster or slower than {baseline} at {_steps(first)} ({interval})"
    elif first["speedup"] > 1:
        text = f"{name} ran {times(first['speedup'])} faster than {baseline} at {_steps(first)} ({interval})"
    else:
        slower = f"95% interval {times(1 / first['speedup_high'])[:-1]} to {times(1 / first['speedup_low'])[:-1]}"
        text = f"{name} ran {times(1 / first['speedup'])} slower than {baseline} at {_steps(first)} ({slower})"
    rest = [
        f"{times(row['speedup'])} at {_steps(row)}" + ("" if row["significant"] else " (not significant)")
        for row in others
    ]
    return ", ".join([text, *rest]) + "."
