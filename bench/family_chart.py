"""The front of a family (`toolchain shrink --family`): relative output error against multiply-adds left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .svg import Chart, bottom_axis, drawing, hover, label, left_axis, polyline, scale_for, series_class

LEFT, RIGHT, TOP, BOTTOM = 58.0, 448.0, 26.0, 240.0
MEASURED, PREDICTED = 1, 2  # series


def family_section(members: Sequence[Mapping[str, Any]], number: int) -> dict[str, Any]:
    """Return the part of a page that shows a family.

    Args:
        members: the results of `shrink`, as its JSON holds them.
        number: of the section on its page.
    """
    chart = front_chart(members, f"family{number}-front")
    return {
        "id": f"family{number}",
        "title": f"Family of {Path(members[0]['source']).name}",
        "lead": [],
        "warnings": [],
        "tables": [],
        "charts": [chart],
        "facts": [("samples", members[0]["pruned"]["calibration"]), ("criterion", members[0]["pruned"]["criterion"])],
    }


def front_chart(members: Sequence[Mapping[str, Any]], chart: str) -> Chart:
    """Draw the members' measured errors and the predicted front between them."""
    whole = members[0]["multiply_adds"]["before"]
    shares = [member["multiply_adds"]["after"] / whole for member in members]
    errors = [member["pruned"]["error"] for member in members]
    front = [(point["multiply_adds"], point["error"]) for point in members[0]["pruned"]["front"] if point["error"] > 0]
    x = scale_for([*shares, *(share for share, _ in front)], LEFT + 8, RIGHT - 8)
    y = scale_for([*errors, *(error for _, error in front)], BOTTOM, TOP, log=True)
    parts = [
        bottom_axis(x, TOP, BOTTOM, "multiply-adds left", [(tick, f"{tick:.0%}") for tick in x.ticks()]),
        left_axis(y, LEFT, RIGHT, "relative output error", [(tick, f"{tick:g}") for tick in y.ticks()]),
        polyline([(x(share), y(error)) for share, error in front], PREDICTED, "predicted"),
    ]
    for member, share, error in zip(members, shares, errors, strict=True):
        text = hover(f"{_name(member)}: {share:.1%} of the multiply-adds, error {error:.3g}")
        place = f'cx="{x(share):.1f}" cy="{y(error):.1f}" r="5"'
        parts.append(f'<circle {place} class="dot {series_class(MEASURED)}">{text}</circle>')
    legend = BOTTOM + 46
    for row, (series, name) in enumerate(((MEASURED, "measured on held-out samples"), (PREDICTED, "predicted"))):
        parts.append(f'<circle cx="{LEFT}" cy="{legend + 16 * row - 4}" r="5" class="dot {series_class(series)}"/>')
        parts.append(label(LEFT + 12, legend + 16 * row, name))
    summary = "; ".join(f"{_name(member)}: {share:.0%} of the multiply-adds at an error of {error:.2g}"
                        for member, share, error in zip(members, shares, errors, strict=True))  # fmt: skip
    title = "Error against size"
    rows = tuple(
        (_name(member), f"{member['parameters']['after']:,}", f"{member['multiply_adds']['after']:,}", f"{error:.3g}")
        for member, error in zip(members, errors, strict=True)
    )
    svg = drawing(chart, title, f"{summary}.", legend + 26, "".join(parts))
    return Chart(id=chart, title=title, summary=f"{summary}.", svg=svg,
                 columns=("model", "parameters", "multiply-adds", "error"), rows=rows)  # fmt: skip


def _name(member: Mapping[str, Any]) -> str:
    return Path(member["output"] or member["source"]).name
