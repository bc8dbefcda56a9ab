"""How many neurons each group gives up: the cheapest next step, in error per cost saved, until the target is met.

    error     of a group, by number removed: its loss curve, scaled to output errors measured at a few points
    costs     multiply-adds, parameters, or predicted seconds, by number removed of every group

Errors of different groups are added: measured, they add up or stay below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Counts = tuple[int, ...]  # candidates removed, by group
EPSILON = 1e-30  # a step that saves nothing is taken last
STEPS = 64  # moves from everything to nothing in one group: 1.5% of it at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Predicted output error after removing 0, 1, 2, … candidates of one group, shape `[num_removed + 1]`."""

    errors: FloatArray

    @property
    def most(self) -> int:
        """The most that can be removed."""
        return self.errors.size - 1


def scaled_curve(losses: FloatArray, measured: Sequence[tuple[int, float]]) -> Curve:
    """Return a loss curve in units of output error.

    Between measured points the ratio of error to loss is interpolated; the result never falls.

    Args:
        losses: after removing 1, 2, … candidates.
        measured: output error after removing so many.
    """
    losses = np.concatenate([[0.0], losses])
    points = sorted((count, error / losses[count]) for count, error in measured if losses[count] > 0)
    if not points:
        return Curve(errors=losses)
    counts, ratios = zip(*points, strict=True)
    scale = np.interp(np.arange(losses.size), counts, ratios)
    return Curve(errors=np.maximum.accumulate(losses * scale))


def descend(
    curves: Sequence[Curve],
    sides: Sequence[int],
    cost: Callable[[Counts], float],
    *,
    evenness: float = 0.0,
    layers: Sequence[bool] | None = None,
) -> Iterator[Counts]:
    """Yield the counts after every step, from nothing removed to all that can be.

    Args:
        curves: predicted error of each group.
        sides: of each group; candidates go side by side, so many at a time.
        cost: of the model, what a step is priced in.
        evenness: no layer keeps a smaller share of its candidates than this times the share that all layers keep.
        layers: which groups are layers; None: all.
    """
    sizes = np.array([curve.most + side for curve, side in zip(curves, sides, strict=True)])
    among = np.ones(sizes.size, dtype=np.bool_) if layers is None else np.array(layers)
    counts: Counts = (0,) * len(curves)
    while True:
        yield counts
        before = cost(counts)
        moves = [_move(curve, count, side) for curve, count, side in zip(curves, counts, sides, strict=True)]
        steps = [(*counts[:g], counts[g] + step, *counts[g + 1 :]) for g, (step, _) in enumerate(moves)]
        prices = [rise / max(before - cost(after), EPSILON) if step else np.inf
                  for after, (step, rise) in zip(steps, moves, strict=True)]  # fmt: skip
        even = [after[g] == counts[g] or not layer or _is_even(np.array(after)[among], sizes[among],
                                                               after[g] / sizes[g], evenness)
                for g, (after, layer) in enumerate(zip(steps, among, strict=True))]  # fmt: skip
        if np.isfinite(np.array(prices)[even]).any():  # else what is left to take is taken as it comes
            prices = [price if fits else np.inf for price, fits in zip(prices, even, strict=True)]
        best = int(np.argmin(prices))
        if np.isinf(prices[best]):
            return
        counts = steps[best]


def _is_even(counts: npt.NDArray[np.integer], sizes: npt.NDArray[np.integer], removed: float, evenness: float) -> bool:
    """Tell whether a layer that has lost this share keeps enough beside what all layers keep."""
    return bool(1 - removed >= evenness * (1 - counts.sum() / sizes.sum()))


def predicted_error(curves: Sequence[Curve], counts: Counts) -> float:
    """Return the sum of the groups' errors."""
    return float(sum(curve.errors[count] for curve, count in zip(curves, counts, strict=True)))


def _move(curve: Curve, count: int, sides: int) -> tuple[int, float]:
    """Return the next step of a group and how much error it adds; a step of 0 when there is none left."""
    step = max(1, curve.most // (STEPS * sides)) * sides
    step = min(step, curve.most - count)
    return step, float(curve.errors[count + step] - curve.errors[count])
