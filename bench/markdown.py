"""A result as Markdown: for a pull request, an issue, a README."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from .charts import shape_of
from .report import Row
from .table import count, milliseconds, significant, times, verdict


def render(machine: dict[str, Any], rows: Sequence[Row]) -> str:
    """Return one table per shape, one of the models, and where it was measured."""
    parts = []
    for shape, group in groupby(rows, key=shape_of):
        unit = "tokens/s" if rows[0]["reads_tokens"] else "steps/s"
        lines = [(row["model"], *map(milliseconds, (row["p50_s"], row["p90_s"], row["p99_s"], row["mean_s"])),
                  count(row["tokens_per_s"]), *_speedup(row)) for row in group]  # fmt: skip
        heads = ("model", "p50 ms", "p90 ms", "p99 ms", "mean ms", unit, "speedup", "95% interval")
        parts.append(f"**{shape}**\n\n{_table(heads, lines)}")
    last = {row["model"]: row for row in rows}.values()
    parts.append(
        _table(
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
                for row in last
            ],
        )
    )
    parts.append("\n".join(f"{line}  " for line in verdict(rows).splitlines()))
    parts.append(
        f"{machine.get('cpu_model') or 'unknown CPU'}, {machine.get('cpus')} CPUs, {machine.get('os')}, "
        f"ONNX Runtime {machine.get('onnxruntime')}."
    )
    return "\n\n".join(parts) + "\n"


def _speedup(row: Row) -> tuple[str, str]:
    if row["is_baseline"]:
        return "baseline", ""
    mark = "" if row["significant"] else " (not significant)"
    return f"{times(row['speedup'])}{mark}", f"{times(row['speedup_low'])} to {times(row['speedup_high'])}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in heads[1:])]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (heads, rule, *rows))
