"""The charts of a bench result, each with the numbers it is drawn from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from .report import Row
from .roofline import Roofline, roofline_from_json
from .svg import (
    WIDTH,
    Chart,
    Scale,
    bottom_axis,
    drawing,
    element,
    hover,
    label,
    left_axis,
    scale_for,
    series_class,
)
from .table import count, milliseconds, short_name, significant, times

LEFT, RIGHT = 16.0, WIDTH - 16.0
ROW = 42.0  # height of one labelled row
BINS = 48  # of a distribution: about 100 samples each where there are 5,000
QUANTIZED_SUFFIX = "_quant"  # ONNX Runtime appends it to the names of nodes that it quantizes
Content = Mapping[str, Any]


def charts_of(result: Content, prefix: str) -> list[Chart]:
    """Return every chart that a stored result has the numbers for.

    Args:
        result: what `toolchain bench --json` writes.
        prefix: of the charts' ids, unique in the page.
    """
    rows = [row for row in result["rows"] if row.get("samples_s")]
    colours = {name: number for number, name in enumerate(dict.fromkeys(row["model"] for row in result["rows"]))}
    compared = [row for row in rows if not row["is_baseline"]]
    charts = [speedup_chart(compared, colours, f"{prefix}-speedup")] if compared else []
    charts += [
        distribution_chart(list(group), colours, f"{prefix}-latency-{number}")
        for number, (_, group) in enumerate(groupby(rows, key=shape_of))
    ]
    if result.get("models"):
        charts += layer_charts(result["models"], colours, prefix)
    if result.get("rooflines"):
        rooflines = {each["threads"]: roofline_from_json(each) for each in result["rooflines"]}
        charts += [
            roofline_chart(
                [row for row in rows if row["threads"] == threads], roofline, colours, f"{prefix}-roof-{threads}"
            )
            for threads, roofline in rooflines.items()
            if any(row["threads"] == threads and row["bytes_moved"] for row in rows)
        ]
    return charts


def shape_of(row: Mapping[str, Any]) -> str:
    """Return a row's shape, device and method in words."""
    steps = "1 step" if row["steps"] == 1 else f"{row['steps']} steps"
    sequences = "" if row["batch"] == 1 else f" × {row['batch']} sequences"
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    fed_back = ", state fed back" if row["state_fed_back"] else ""
    return f"{steps}{sequences}, {threads}{fed_back}, {row['device']} ({row['method']})"


def speedup_chart(rows: Sequence[Row], colours: Mapping[str, int], chart: str) -> Chart:
    """Draw the speedup of every model at every shape with its 95% interval."""
    values = [1.0, *(row[key] for row in rows for key in ("speedup_low", "speedup_high"))]
    scale = scale_for(values, LEFT, RIGHT - 44, log=True)
    bottom = 8 + ROW * len(rows)
    ticks = sorted({1.0, *(tick for tick in scale.ticks() if abs(scale(tick) - scale(1.0)) > 24)})
    parts = [bottom_axis(scale, 4, bottom, "times faster than the baseline", [(t, f"{t:g}×") for t in ticks])]
    parts.append(element("line", x1=scale(1.0), x2=scale(1.0), y1=4, y2=bottom, class_="reference"))
    for number, row in enumerate(rows):
        y = 8 + ROW * number
        low, middle, high = (scale(row[key]) for key in ("speedup_low", "speedup", "speedup_high"))
        text = f"{short_name(row['model'])}, {shape_of(row)}: {times(row['speedup'])}, {_interval(row)}"
        colour = series_class(colours[row["model"]])
        parts += [
            label(LEFT, y + 12, f"{short_name(row['model'])}, {shape_of(row)}"),
            element("line", x1=low, x2=high, y1=y + 26, y2=y + 26, class_=f"whisker {colour}"),
            element("circle", hover(text), cx=middle, cy=y + 26, r=5, class_=f"mark dot {colour}"),
            label(high + 8, y + 30, times(row["speedup"]), class_="value"),
        ]
    summary = "; ".join(
        f"{short_name(row['model'])} at {shape_of(row)}: {times(row['speedup'])} ({_interval(row)})" for row in rows
    )
    title = f"Speedup over {short_name(rows[0]['baseline'])}"
    return Chart(
        id=chart,
        title=title,
        summary=f"Ratio of medians with its 95% interval. {summary}.",
        svg=drawing(chart, title, summary, bottom + 38, "".join(parts)),
        columns=("model", "shape", "speedup", "95% interval", "verdict"),
        rows=tuple(
            (short_name(row["model"]), shape_of(row), times(row["speedup"]), _interval(row)[13:], _verdict(row))
            for row in rows
        ),
    )


def distribution_chart(rows: Sequence[Row], colours: Mapping[str, int], chart: str) -> Chart:
    """Draw how the latencies of each model at one shape are distributed."""
    samples = {row["model"]: np.concatenate([np.asarray(each) for each in row["samples_s"]]) for row in rows}
    everything = np.concatenate(list(samples.values()))
    scale = scale_for(
        (float(np.quantile(everything, 0.001)), float(np.quantile(everything, 0.995))), LEFT, RIGHT, log=True
    )
    edges = np.geomspace(scale.low, scale.high, BINS + 1)
    bottom = 8 + (ROW + 14) * len(samples)
    ticks = [(tick, f"{tick * 1e3:g}") for tick in scale.ticks()]
    parts = [bottom_axis(scale, 4, bottom, "milliseconds, logarithmic", ticks)]
    for number, (model, values) in enumerate(samples.items()):
        base = 8 + (ROW + 14) * (number + 1)
        text = (
            f"{short_name(model)}: half of {len(values):,} calls took up to {milliseconds(float(np.median(values)))} ms"
        )
        colour = series_class(colours[model])
        middle = scale(float(np.median(values)))
        parts += [
            label(LEFT, base - ROW + 2, short_name(model)),
            element("path", hover(text), d=_ridge(values, edges, scale, base), class_=f"mark area {colour}"),
            element("line", x1=middle, x2=middle, y1=base - 30, y2=base, class_=f"median {colour}"),
        ]
    title = f"Latency at {shape_of(rows[0])}"
    summary = "; ".join(
        f"{short_name(row['model'])}: median {milliseconds(row['p50_s'])} ms, "
        f"99% within {milliseconds(row['p99_s'])} ms"
        for row in rows
    )
    return Chart(
        id=chart,
        title=title,
        summary=f"Share of calls by their time; the line is the median. {summary}.",
        svg=drawing(chart, title, summary, bottom + 38, "".join(parts)),
        columns=("model", "p50 ms", "p90 ms", "p99 ms", "mean ms", "fastest ms", "calls"),
        rows=tuple(
            (
                short_name(row["model"]),
                *(milliseconds(row[key]) for key in ("p50_s", "p90_s", "p99_s", "mean_s")),
                milliseconds(float(samples[row["model"]].min())),
                f"{len(samples[row['model']]):,}",
            )
            for row in rows
        ),
    )


def _ridge(values: npt.NDArray[np.float64], edges: npt.NDArray[np.float64], scale: Scale, base: float) -> str:
    """Return the outline of a histogram, 30 units high."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    heights = 30 * counts / max(int(counts.max()), 1)
    steps = [f"L{scale(float(left)):.1f},{base - h:.1f} L{scale(float(right)):.1f},{base - h:.1f}"
             for left, right, h in zip(edges[:-1], edges[1:], heights, strict=True)]  # fmt: skip
    return f"M{scale(float(edges[0])):.1f},{base:.1f} {' '.join(steps)} L{scale(float(edges[-1])):.1f},{base:.1f} Z"


def layer_charts(models: Mapping[str, Content], colours: Mapping[str, int], prefix: str) -> Iterator[Chart]:
    """Yield a chart of the size of every layer: before, and after in each other model."""
    layers = {
        model: {layer["name"].removesuffix(QUANTIZED_SUFFIX): layer for layer in content["layers"]}
        for model, content in models.items()
        if model in colours
    }
    names = list(dict.fromkeys(name for found in layers.values() for name in found))
    if not names:
        return
    largest = max(layer["parameters"] for found in layers.values() for layer in found.values())
    scale = Scale(low=0.0, high=float(largest), start=LEFT, end=RIGHT - 60)
    parts, y, table = [], 8.0, []
    for model in layers:
        parts.append(element("circle", cx=LEFT + 5, cy=y + 5, r=5, class_=f"dot {series_class(colours[model])}"))
        parts.append(label(LEFT + 16, y + 9, short_name(model)))
        y += 18
    for name in names:
        parts.append(label(LEFT, y + 14, f"{_operator(layers, name)} {name}"))
        y += 20
        for model, found in layers.items():
            if name in found:
                layer = found[name]
                text = f"{short_name(model)}: {_size(layer)}, {layer['parameters']:,} parameters"
                end = scale(layer["parameters"])
                parts += [
                    element("rect", hover(text), x=LEFT, y=y, width=max(end - LEFT, 1.0), height=11.0,
                            class_=f"mark bar {series_class(colours[model])}"),
                    label(max(end, LEFT + 1) + 6, y + 10, count(layer["parameters"]), class_="value"),
                ]  # fmt: skip
                table.append((name, short_name(model), layer["op_type"], _size(layer), f"{layer['parameters']:,}"))
            y += 15
        y += 8
    title = "Size of every layer"
    totals = [
        f"{short_name(model)} {sum(layer['parameters'] for layer in found.values()):,}"
        for model, found in layers.items()
    ]
    summary = f"Parameters of the layers that hold weights, before and after. In all: {', '.join(totals)}."
    yield Chart(
        id=f"{prefix}-layers",
        title=title,
        summary=summary,
        svg=drawing(f"{prefix}-layers", title, summary, y, "".join(parts)),
        columns=("layer", "model", "operator", "size", "parameters"),
        rows=tuple(table),
    )


def _operator(layers: Mapping[str, Mapping[str, Content]], name: str) -> str:
    return str(next(found[name]["op_type"] for found in layers.values() if name in found))


def _size(layer: Content) -> str:
    """Return input -> hidden, rows x columns of a matrix, or columns of a table."""
    if layer["hidden_size"]:
        directions = " × 2" if layer["num_directions"] == 2 else ""
        return f"{layer['input_size']} → {layer['hidden_size']}{directions}"
    return (
        f"{layer['input_size']} → {layer['output_size']}" if layer["output_size"] else f"{layer['input_size']} columns"
    )


def roofline_chart(rows: Sequence[Row], roofline: Roofline, colours: Mapping[str, int], chart: str) -> Chart:
    """Draw the arithmetic that models achieve under what memory and processor allow."""
    intensity = [2 * row["multiply_adds"] / row["bytes_moved"] for row in rows]
    rates = [row["flops_per_s"] / 1e9 for row in rows]
    peak = roofline.flops_per_s / 1e9
    levels = _levels(roofline)
    x = scale_for([0.25, 8.0, *intensity], 46, RIGHT, log=True)
    y = scale_for([*rates, peak * 1.1, min(rates) / 2], 270, 26, log=True)
    parts = [
        bottom_axis(x, 26, 270, "floating-point operations per byte read", [(t, f"{t:g}") for t in x.ticks()]),
        left_axis(y, 46, RIGHT, "GFLOP/s", [(t, f"{t:g}") for t in y.ticks()]),
        element("line", x1=46, x2=RIGHT, y1=y(peak), y2=y(peak), class_="roof"),
        label(RIGHT, y(peak) - 5, f"arithmetic {peak:.0f} GFLOP/s", anchor="end", class_="tick"),
    ]
    for size_bytes, rate in levels:
        start, end = max(x.low, y.low / rate), min(x.high, peak / rate)
        if start < end:
            ends = (x(start), y(start * rate)), (x(end), y(end * rate))
            parts.append(_slope(*ends, f"{_bytes(size_bytes)}: {rate:.0f} GB/s"))
    for number, (row, at, rate) in enumerate(zip(rows, intensity, rates, strict=True), 1):
        text = f"{number}: {short_name(row['model'])}, {shape_of(row)}: {rate:.3g} GFLOP/s"
        colour = series_class(colours[row["model"]])
        parts.append(element("circle", hover(text), cx=x(at), cy=y(rate), r=9, class_=f"mark dot {colour}"))
        parts.append(label(x(at), y(rate) + 4, str(number), anchor="middle", class_="on-mark"))
    title = "How near this machine's limits"
    disturbed = " Other programs ran during that measurement, so the limits are too low." if roofline.disturbed else ""
    summary = (
        f"Peaks measured on {roofline.cpu_model}, {roofline.threads} thread(s), {roofline.date[:10]}.{disturbed} Lines "
        "are what can be reached from caches and memory of that size."
    )
    return Chart(
        id=chart,
        title=title,
        summary=summary,
        svg=drawing(chart, title, summary, 308, "".join(parts)),
        columns=("#", "model", "steps × batch", "multiply-adds", "MB read", "GB/s", "GFLOP/s", "of the limit"),
        rows=tuple(
            (
                str(number),
                short_name(row["model"]),
                f"{row['steps']} × {row['batch']}",
                count(row["multiply_adds"]),
                significant(row["bytes_moved"] / 1e6, digits=3),
                significant(row["bytes_per_s"] / 1e9, digits=3),
                significant(row["flops_per_s"] / 1e9, digits=3),
                "–" if row["limit_share"] is None else f"{row['limit_share']:.0%}",
            )
            for number, row in enumerate(rows, 1)
        ),
    )


def _slope(start: tuple[float, float], end: tuple[float, float], text: str) -> str:
    """Return a bandwidth's line with its name along it."""
    turned = math.degrees(math.atan2(end[1] - start[1], end[0] - start[0]))
    across, along = math.radians(turned - 90), 0.04
    at = tuple(one + along * (other - one) for one, other in zip(start, end, strict=True))
    name = label(at[0] + 4 * math.cos(across), at[1] + 4 * math.sin(across), text, class_="tick", turned=turned)
    return element("line", x1=start[0], x2=end[0], y1=start[1], y2=end[1], class_="roof") + name


def _levels(roofline: Roofline) -> list[tuple[int, float]]:
    """Return up to four working sets, in bytes, whose bandwidths, in GB/s, differ visibly; the ends come first."""
    points = [(point.size_bytes, point.read_bytes_per_s / 1e9) for point in roofline.bandwidths]
    levels = [points[0], points[-1]] if points[-1][1] < 0.7 * points[0][1] else [points[0]]
    for size, rate in points[1:-1]:
        if len(levels) < 4 and all(max(rate, other) > 1.5 * min(rate, other) for _, other in levels):
            levels.append((size, rate))
    return levels


def _bytes(size: int) -> str:
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} kB"


def _interval(row: Row) -> str:
    return f"95% interval {times(row['speedup_low'])[:-1]} to {times(row['speedup_high'])[:-1]}"


def _verdict(row: Row) -> str:
    if not row["significant"]:
        return "not significant"
    return "faster" if row["speedup"] > 1 else "slower"
