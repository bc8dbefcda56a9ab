"""The front of language models: test perplexity against milliseconds, every point from one interleaved run.

A filled mark is the float model, a hollow one its 8-bit copy, joined by a line; its colour is the pruning method,
however long the network learned after it. A published network stands at its authors' perplexity and at the time of its
sizes here; the dashed lines are its perplexity, and a twentieth of its time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from .svg import WIDTH, bottom_axis, drawing, element, hover, label, left_axis, scale_for, series_class
from .table import milliseconds
from .timing import Shape

SHAPE = Shape(steps=35, batch=1)
LEFT, RIGHT, TOP, BOTTOM = 44.0, 400.0, 26.0, 250.0
CLAIM = 20  # times faster at inference without loss: Wen et al. 2019, arXiv 1906.06847, abstract
LINE, LETTER = 11.0, 6.2  # height of a name, width of its letters
STYLE = (
    "svg{background:#fff;font:11px system-ui,sans-serif}.grid{stroke:#e3e6ea}.tick,.axis{fill:#55606b}"
    ".reference{stroke:#8a939c;stroke-dasharray:4 3}.label{fill:#20262c}.joint{stroke-opacity:.5}"
    ".s0{fill:#6b7480;stroke:#6b7480}.s1{fill:#0b6bcb;stroke:#0b6bcb}.s2{fill:#c2500a;stroke:#c2500a}"
    ".s3{fill:#0a7d5a;stroke:#0a7d5a}.s4{fill:#8b3fb8;stroke:#8b3fb8}.s5{fill:#b0215f;stroke:#b0215f}"
    ".hollow{fill:#fff}"
)

Row = Mapping[str, str]
Point = tuple[float, float]  # milliseconds, perplexity


def point_of(row: Row) -> Point | None:
    """Return where a row stands; None where it has no time or no perplexity."""
    perplexity = row["test_perplexity"] or row["published_perplexity"]
    time = row[SHAPE.columns[0]]
    return (float(time), float(perplexity)) if time and perplexity else None


def method_of(row: Row) -> str:
    """Return the pruning method of a row, without the training that followed: `one-shot` of `one-shot, 4 epochs`."""
    return row["method"].partition(",")[0]


def front_picture(rows: Sequence[Row]) -> str:
    """Draw the rows of one run of `bench.paper_table`, its dense network first."""
    runs = {run: {row["weights"]: (row, point) for row in group if (point := point_of(row)) is not None}
            for run, group in groupby(rows, key=lambda row: row["run"])}  # fmt: skip
    runs = {run: points for run, points in runs.items() if points}
    places = [point for points in runs.values() for _, point in points.values()]
    dense_ms, dense_perplexity = next(iter(next(iter(runs.values())).values()))[1]
    x = scale_for([*(ms for ms, _ in places), dense_ms / CLAIM], LEFT, RIGHT, log=True)
    y = scale_for([perplexity for _, perplexity in places], BOTTOM, TOP)
    methods = list(dict.fromkeys(method_of(row) for points in runs.values() for row, _ in points.values()))
    claimed = x(dense_ms / CLAIM)
    parts = [
        element("style", STYLE),
        bottom_axis(x, TOP, BOTTOM, "ms for 35 words, one thread (logarithmic)", [(t, f"{t:g}") for t in x.ticks(8)]),
        left_axis(y, LEFT, RIGHT, "test perplexity", [(tick, f"{tick:g}") for tick in y.ticks()]),
        element("line", x1=LEFT, x2=RIGHT, y1=y(dense_perplexity), y2=y(dense_perplexity), class_="reference"),
        element("line", x1=claimed, x2=claimed, y1=TOP, y2=BOTTOM, class_="reference"),
        label(claimed + 4, TOP + 8, f"{CLAIM}x", class_="tick"),
    ]
    names = []
    for run, points in runs.items():
        marks = [(x(ms), y(perplexity)) for _, (ms, perplexity) in points.values()]
        colour = series_class(methods.index(method_of(next(iter(points.values()))[0])))
        if len(marks) > 1:
            (x1, y1), (x2, y2) = marks
            parts.append(element("line", x1=x1, x2=x2, y1=y1, y2=y2, class_=f"joint {colour}"))
        for (weights, (_, (ms, perplexity))), (cx, cy) in zip(points.items(), marks, strict=True):
            text = hover(f"{run}, {weights}: perplexity {perplexity:.2f}, {milliseconds(ms / 1e3)} ms")
            hollow = " hollow" if weights == "int8" else ""
            parts.append(element("circle", text, cx=cx, cy=cy, r=4, class_=f"{colour}{hollow}"))
        px, py = marks[0]
        width = LETTER * len(run)
        names.append((px + 7 if px + 7 + width < WIDTH else px - 7 - width, py, run))
    parts += [label(px, py, run, class_="label") for px, py, run in apart(names)]
    for number, method in enumerate(methods):
        parts.append(element("circle", cx=LEFT + 4, cy=BOTTOM + 46 + 16 * number, r=4, class_=series_class(number)))
        parts.append(label(LEFT + 14, BOTTOM + 50 + 16 * number, method))
    summary = "; ".join(f"{run}, {weights}: {perplexity:.2f} at {milliseconds(ms / 1e3)} ms" for run, points in
                        runs.items() for weights, (_, (ms, perplexity)) in points.items())  # fmt: skip
    height = BOTTOM + 56 + 16 * len(methods)
    picture = drawing("front", "Test perplexity against time", summary, height, "".join(parts))
    return picture.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def apart(names: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Return the places of names, each moved down until it touches none of those above it."""
    placed: list[tuple[float, float, str]] = []
    for x, y, name in sorted(names, key=lambda each: each[1]):
        near = [other for other in placed
                if other[0] < x + LETTER * len(name) and x < other[0] + LETTER * len(other[2])]  # fmt: skip
        below = max((other[1] + LINE for other in near), default=0.0)
        placed.append((x, max(y + 4, below), name))
    return placed
