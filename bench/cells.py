"""Measured rows as tables of text, with whole names: Markdown and the page draw them, each in its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from .table import count, milliseconds, significant, times

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """A table as text; the first column is the model."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def latency_cells(rows: Sequence[Row], title: Callable[[Row], str]) -> Iterator[Cells]:
    """Yield one table per shape: percentiles, throughput, speedup with its interval."""
    unit = "tokens/s" if all(row["reads_tokens"] for row in rows) else "steps/s"
    for shape, group in groupby(rows, key=title):
        yield Cells(
            title=shape,
            columns=("model", "p50 ms", "p90 ms", "p99 ms", "mean ms", unit, "speedup", "95% interval"),
            rows=tuple(
                (
                    row["model"],
                    *(milliseconds(row[key]) for key in ("p50_s", "p90_s", "p99_s", "mean_s")),
                    count(row["tokens_per_s"]),
                    *_speedup(row),
                )
                for row in group
            ),
        )


def model_cells(rows: Sequence[Row]) -> Cells:
    """Return one line per model: size, and what a fresh process needs until its first answer."""
    longest = {row["model"]: row for row in rows}  # the last row of a model is its longest shape, where memory peaks
    return Cells(
        title="Each model, in a fresh process",
        columns=("model", "file MB", "parameters", "peak memory MB", "load ms", "first inference ms"),
        rows=tuple(
            (
                row["model"],
                significant(row["file_bytes"] / 1e6, digits=3),
                f"{row['parameters']:,}",
                f"{row['peak_rss_bytes'] / 1e6:.0f}",
                milliseconds(row["load_s"]),
                milliseconds(row["first_s"]),
            )
            for row in longest.values()
        ),
    )


def _speedup(row: Row) -> tuple[str, str]:
    if row["is_baseline"]:
        return "baseline", ""
    mark = "" if row["significant"] else " (not significant)"
    return f"{times(row['speedup'])}{mark}", f"{times(row['speedup_low'])[:-1]} to {times(row['speedup_high'])[:-1]}"
