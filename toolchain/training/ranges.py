"""Ranges of numbers that a recipe may hold, as annotations of its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True)
class Within:
    """A range, bounds included unless `open`; used in `Annotated[float, Within(0, 1)]`."""

    low: float
    high: float = float("inf")
    open: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low < value < self.high if self.open else self.low <= value <= self.high

    def __str__(self) -> str:
        if self.high == float("inf"):
            return f"{'more than' if self.open else 'at least'} {self.low:g}"
        return f"a value {'strictly ' if self.open else ''}between {self.low:g} and {self.high:g}"


Count = Annotated[int, Within(1)]
Positive = Annotated[float, Within(0, open=True)]
NonNegative = Annotated[float, Within(0)]
Share = Annotated[float, Within(0, 1)]
OpenShare = Annotated[float, Within(0, 1, open=True)]
