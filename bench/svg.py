"""The few parts that every chart of a report is drawn from: scales, ticks, axes, escaped elements.

A drawing is 460 units wide, so that its text stays readable on a phone; colours are CSS classes, so that they follow
the reader's light or dark scheme and print in black.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 460.0
SERIES = 6  # colours that the page defines; more series than that repeat them with another dash
DASHES = ("none", "6 3", "2 3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A drawing, what it shows in one sentence, and the same numbers as a table."""

    id: str
    title: str
    summary: str
    svg: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps `[low, high]` to `[start, end]`, by logarithms where `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value; outside values end up at the edge."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Return round values within the scale, at most about `most`."""
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


def scale_for(values: Iterable[float], start: float, end: float, *, log: bool = False, zero: bool = False) -> Scale:
    """Return a scale that holds all values with some room."""
    known = list(values)
    low, high = min(known), max(known)
    if log:
        room = max(high / low, 1.2) ** 0.06
        return Scale(low=low / room, high=high * room, start=start, end=end, log=True)
    low = min(low, 0.0) if zero else low
    room = 0.06 * (high - low) or abs(high) or 1.0
    return Scale(low=low if zero else low - room, high=high + room, start=start, end=end)


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def element(name: str, content: str = "", /, **attributes: str | float | None) -> str:
    """Return one element; `class_` is written class, underscores become hyphens, None is left out."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{text}>{content}</{name}>" if content else f"<{name}{text}/>"


def label(x: float, y: float, text: str, *, anchor: str = "start", class_: str = "label", turned: float = 0.0) -> str:
    """Return a text, turned about its place by degrees."""
    transform = f"rotate({turned:.1f} {x:.1f} {y:.1f})" if turned else None
    return element("text", escape(text), x=x, y=y, text_anchor=anchor, class_=class_, transform=transform)


def hover(text: str) -> str:
    """Return what a pointer on a mark, and a screen reader in it, is told."""
    return f"<title>{escape(text)}</title>"


def bottom_axis(scale: Scale, top: float, bottom: float, name: str, ticks: Sequence[tuple[float, str]]) -> str:
    """Return grid lines from top to bottom, their labels below, and what is measured."""
    parts = []
    for value, text in ticks:
        x = scale(value)
        parts.append(element("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        parts.append(label(x, bottom + 15, text, anchor="middle", class_="tick"))
    parts.append(label(WIDTH - 8, bottom + 31, name, anchor="end", class_="axis"))
    return "".join(parts)


def left_axis(scale: Scale, left: float, right: float, name: str, ticks: Sequence[tuple[float, str]]) -> str:
    """Return grid lines from left to right, their labels, and above them what is measured."""
    parts = [label(8, scale.end - 10, name, class_="axis")]
    for value, text in ticks:
        y = scale(value)
        parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(label(left - 6, y + 4, text, anchor="end", class_="tick"))
    return "".join(parts)


def drawing(chart: str, title: str, summary: str, height: float, content: str) -> str:
    """Return the whole drawing, named and described for those who do not see it."""
    head = f'<title id="{chart}-t">{escape(title)}</title><desc id="{chart}-d">{escape(summary)}</desc>'
    return element(
        "svg",
        head + content,
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        role="img",
        aria_labelledby=f"{chart}-t {chart}-d",
    )


def series_class(number: int) -> str:
    """Return the class of the n-th series' colour; 0 is the baseline."""
    return f"s{number % SERIES}"


def polyline(points: Sequence[tuple[float, float]], number: int, text: str) -> str:
    """Return one series as a line with a mark at each value."""
    path = " ".join(f"{_text(x)},{_text(y)}" for x, y in points)
    dash = DASHES[number // SERIES % len(DASHES)]
    colour = series_class(number)
    line = element("polyline", hover(text), points=path, class_=f"line {colour}", stroke_dasharray=dash)
    return line + "".join(element("circle", cx=x, cy=y, r=2.5, class_=f"mark dot {colour}") for x, y in points)


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
