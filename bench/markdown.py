"""A result as Markdown: for a pull request, an issue, a README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from .charts import shape_of
from .devices.naming import MEASURED
from .devices.showing import headline, unmeasured_cells, unmeasured_notes, unmeasured_warnings
from .report import Row
from .table import count, milliseconds, significant, times, verdict


def render(machine: dict[str, Any], rows: Sequence[Row]) -> str:
    """Return one table per shape, what follows from them, and where that was."""
    parts = _measured(machine, rows) if rows[0]["method"] in MEASURED else _unmeasured(machine, rows)
    return "\n\n".join(parts) + "\n"


def _measured(machine: dict[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    for shape, group in groupby(rows, key=shape_of):
        unit = "tokens/s" if rows[0]["reads_tokens"] else "steps/s"
        lines = [(row["model"], *map(milliseconds, (row["p50_s"], row["p90_s"], row["p99_s"], row["mean_s"])),
                  count(row["tokens_per_s"]), *_speedup(row)) for row in group]  # fmt: skip
        heads = ("model", "p50 ms", "p90 ms", "p99 ms", "mean ms", unit, "speedup", "95% interval")
        yield f"**{shape}**\n\n{_table(heads, lines)}"
    yield _table(
        ("model", "file MB", "parameters", "peak MB", "load ms", "first ms"),
        [
            (
                row["model"],
                significant(row["file_bytes"] / 1e6, digits=3),
                f"{row['parameters']:,}",
                f"{row['peak_rss_bytes'] / 1e6:.0f}",
                milliseconds(row["load_s"]),
                milliseconds(row["first_s"]),
            )
            for row in {row["model"]: row for row in rows}.values()
        ],
    )
    yield "\n".join(f"{line}  " for line in verdict(rows).splitlines())
    yield (
        f"{machine.get('cpu_model') or 'unknown CPU'}, {machine.get('cpus')} CPUs, {machine.get('os')}, "
        f"ONNX Runtime {machine.get('onnxruntime')}."
    )


def _unmeasured(machine: dict[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    yield headline(machine, rows)
    for cells in unmeasured_cells(rows, shape_of):
        yield f"**{cells.title}**\n\n{_table(cells.columns, cells.rows)}"
    yield from unmeasured_notes(machine, rows)
    yield from (f"Warning: {warning}" for warning in unmeasured_warnings(rows))


def _speedup(row: Row) -> tuple[str, str]:
    if row["is_baseline"]:
        return "baseline", ""
    mark = "" if row["significant"] else " (not significant)"
    return f"{times(row['speedup'])}{mark}", f"{times(row['speedup_low'])} to {times(row['speedup_high'])}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in heads[1:])]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (heads, rule, *rows))
