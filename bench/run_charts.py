"""A finished or unfinished training run as charts: its figures, and neurons kept, over epochs."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain.errors import BenchError

from .svg import (
    WIDTH,
    Chart,
    bottom_axis,
    drawing,
    label,
    left_axis,
    polyline,
    scale_for,
    series_class,
)
from .table import significant

LEFT, RIGHT, TOP, BOTTOM = 52.0, WIDTH - 12.0, 26.0, 240.0
LEGEND_ROW = 18.0
PERPLEXITIES = ("train_perplexity", "valid_perplexity")  # of a language model
SCORES = ("train_loss", "valid_exact_match", "valid_f1")  # of a reader
Record = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """What a run wrote: one row per epoch; per epoch and set of neurons; its recipe and result, if there are any."""

    name: str
    metrics: tuple[Record, ...]
    gates: tuple[Record, ...]
    recipe: Mapping[str, Any]
    result: Mapping[str, Any] | None


def read_run(folder: Path) -> TrainingRecord:
    """Read the tables of a run's folder.

    Raises:
        BenchError: the folder holds no run, or a table is damaged.
    """
    try:
        metrics = _read_csv(folder / "metrics.csv")
        gates = _read_csv(folder / "gates.csv") if (folder / "gates.csv").exists() else ()
        recipe = tomllib.loads((folder / "recipe.toml").read_text("utf-8")) if (folder / "recipe.toml").exists() else {}
        result = json.loads((folder / "result.json").read_text("utf-8")) if (folder / "result.json").exists() else None
        record = TrainingRecord(name=folder.name, metrics=metrics, gates=gates, recipe=recipe, result=result)
        for row in metrics:
            float(row["epoch"]), [float(row[column]) for column in (SCORES if "valid_f1" in row else PERPLEXITIES)]
        for row in gates:
            float(row["epoch"]), float(row["open"]), float(row["size"]), row["gate"]
    except OSError as error:
        raise BenchError(
            f"{folder}: holds no training run ({error.strerror}: {Path(str(error.filename)).name}); expected what "
            "`toolchain train` leaves. Name a folder under runs/."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"{folder}: its tables cannot be read ({error}); expected metrics.csv and gates.csv as `toolchain train` "
            "writes them. Copy them again."
        ) from error
    if not metrics:
        raise BenchError(f"{folder}: has no finished epoch; expected at least one. Wait for it.")
    return record


def run_charts(run: TrainingRecord, prefix: str) -> list[Chart]:
    """Return the charts of a run; gates have one where they were learnt."""
    reads = "valid_f1" in run.metrics[0]
    charts = [_scores(run, f"{prefix}-scores") if reads else _perplexity(run, f"{prefix}-perplexity")]
    return [*charts, _neurons(run, f"{prefix}-neurons")] if run.gates else charts


def _perplexity(run: TrainingRecord, chart: str) -> Chart:
    epochs = [float(row["epoch"]) for row in run.metrics]
    series = {name: [float(row[f"{name}_perplexity"]) for row in run.metrics] for name in ("train", "valid")}
    last = run.metrics[-1]
    summary = f"After {last['epoch']} epochs: training {_number(last['train_perplexity'])}, validation "
    summary += f"{_number(last['valid_perplexity'])}."
    if run.result is not None:
        summary += f" Test: {run.result['perplexity']:.2f}."
    columns = ("epoch", "phase", "train", "validation", "multiply-adds kept", "tokens/s")
    rows = tuple(_row(row, PERPLEXITIES) for row in run.metrics)
    return _lines(chart, f"Perplexity of {run.name}", summary, epochs, series, "perplexity", columns, rows, log=True)


def _scores(run: TrainingRecord, chart: str) -> Chart:
    epochs = [float(row["epoch"]) for row in run.metrics]
    series = {
        "F1": [float(row["valid_f1"]) for row in run.metrics],
        "exact match": [float(row["valid_exact_match"]) for row in run.metrics],
    }
    last = run.metrics[-1]
    summary = f"After {last['epoch']} epochs: validation F1 {_number(last['valid_f1'])}, exact match "
    summary += f"{_number(last['valid_exact_match'])}."
    if run.result is not None:
        summary += f" Test: F1 {run.result['f1']:.2f}, exact match {run.result['exact_match']:.2f}."
    columns = ("epoch", "phase", "training loss", "exact match", "F1", "multiply-adds kept", "tokens/s")
    rows = tuple(_row(row, SCORES) for row in run.metrics)
    return _lines(chart, f"Validation scores of {run.name}", summary, epochs, series, "percent", columns, rows)


def _row(row: Record, figures: Sequence[str]) -> tuple[str, ...]:
    """Return an epoch's row of a table."""
    return (
        row["epoch"],
        row.get("phase", ""),
        *(_number(row[column]) for column in figures),
        f"{float(row['multiply_adds_share']):.1%}" if row.get("multiply_adds_share") else "",
        f"{float(row['tokens_per_s']):,.0f}" if row.get("tokens_per_s") else "",
    )


def _neurons(run: TrainingRecord, chart: str) -> Chart:
    names = list(dict.fromkeys(row["gate"] for row in run.gates))
    epochs = sorted({float(row["epoch"]) for row in run.gates})
    found = {(row["gate"], float(row["epoch"])): row for row in run.gates}
    series = {name: [float(found[name, epoch]["open"]) for epoch in epochs if (name, epoch) in found] for name in names}
    ends = [f"{name} {rows[-1]:.0f}" for name, rows in series.items()]
    rows = tuple((row["epoch"], row["gate"], row["size"], row["open"]) for row in run.gates)
    return _lines(
        chart,
        f"Neurons kept by {run.name}",
        f"Open gates at the end of each epoch. Last: {', '.join(ends)}.",
        epochs,
        series,
        "neurons",
        ("epoch", "neurons of", "all", "kept"),
        rows,
    )


def _lines(
    chart: str,
    title: str,
    summary: str,
    epochs: Sequence[float],
    series: Mapping[str, Sequence[float]],
    unit: str,
    columns: tuple[str, ...],
    rows: tuple[tuple[str, ...], ...],
    *,
    log: bool = False,
) -> Chart:
    """Draw series over epochs, with a legend below."""
    x = scale_for(epochs, LEFT + 8, RIGHT - 8)
    y = scale_for((value for values in series.values() for value in values), BOTTOM, TOP, log=log, zero=not log)
    whole = [tick for tick in x.ticks(10) if tick == int(tick)]
    parts = [
        bottom_axis(x, TOP, BOTTOM, "epoch", [(tick, f"{tick:.0f}") for tick in whole]),
        left_axis(y, LEFT, RIGHT, unit, [(tick, f"{tick:g}") for tick in y.ticks()]),
    ]
    legend = BOTTOM + 46
    for number, (name, values) in enumerate(series.items()):
        points = [(x(epoch), y(value)) for epoch, value in zip(epochs[-len(values) :], values, strict=True)]
        parts.append(polyline(points, number + 1, name))
        at = legend + number * LEGEND_ROW
        parts.append(f'<circle cx="{LEFT}" cy="{at - 4}" r="5" class="dot {series_class(number + 1)}"/>')
        parts.append(label(LEFT + 12, at, name))
    height = legend + len(series) * LEGEND_ROW - 6
    svg = drawing(chart, title, summary, height, "".join(parts))
    return Chart(id=chart, title=title, summary=summary, svg=svg, columns=columns, rows=rows)


def _number(text: str) -> str:
    return significant(float(text), digits=4)


def _read_csv(path: Path) -> tuple[Record, ...]:
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))
