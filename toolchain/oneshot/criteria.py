"""In which order neurons would go.

reconstruct   backward elimination: cheapest when the others take over (see `elimination`)
magnitude     least squared weights in everything that reads the neuron
activation    least variance over the calibration samples
random        the floor to compare with
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from toolchain.graph.cells import CellArray
from toolchain.oneshot.elimination import OUTSIDE, Elimination, LinearReader, eliminate
from toolchain.oneshot.matrices import Matrix, Source
from toolchain.oneshot.moments import Moments
from toolchain.oneshot.neurons import NeuronGroup
from toolchain.oneshot.predictions import weighed

FloatArray = npt.NDArray[np.float64]
CRITERIA = ("reconstruct", "magnitude", "activation", "random")


def order_of(
    group: NeuronGroup,
    matrices: Sequence[Matrix],
    labels: CellArray,
    moments: Mapping[Source, Moments],
    *,
    criterion: str,
    seed: int,
    predictions: Mapping[Matrix, FloatArray],
) -> Elimination:
    """Return a group's candidates, the first to go first, and the loss after each.

    Args:
        group: its candidates are what is ordered.
        matrices: those that read the group.
        labels: class of every cell.
        moments: of the matrices' sources.
        criterion: one of `CRITERIA`.
        seed: of `random`.
        predictions: see `predictions.class_predictions`.
    """
    candidate = np.full(labels.size, OUTSIDE, dtype=np.intp)
    candidate[group.candidates] = np.arange(group.candidates.size)
    rows = [candidate[labels[matrix.rows]] for matrix in matrices]
    if criterion == "reconstruct":
        return eliminate(_readers(matrices, rows, moments, predictions), group.sides)
    scores = np.zeros(group.candidates.size)
    if criterion == "random":
        scores += np.random.default_rng(seed).random(scores.size)
    for matrix, places in zip(matrices, rows, strict=True):
        mine = places != OUTSIDE
        if criterion == "magnitude":
            np.add.at(scores, places[mine], np.square(matrix.weights()[mine], dtype=np.float64).sum(axis=1))
        elif criterion == "activation":
            np.add.at(scores, places[mine], np.diagonal(moments[matrix.source].covariance)[mine])
    order = _alternating(scores, group.sides)
    return Elimination(order=order, losses=np.cumsum(scores[order]))


def _readers(
    matrices: Sequence[Matrix],
    rows: Sequence[npt.NDArray[np.intp]],
    moments: Mapping[Source, Moments],
    predictions: Mapping[Matrix, FloatArray],
) -> list[LinearReader]:
    """Merge matrices that read the same rows: one covariance, what they say side by side."""
    merged: dict[tuple[Source, bytes], LinearReader] = {}
    for matrix, candidate in zip(matrices, rows, strict=True):
        weights = matrix.weights().astype(np.float64)
        if matrix in predictions:
            weights = weighed(weights, predictions[matrix])
        key = matrix.source, candidate.tobytes()
        gram = weights @ weights.T
        if key in merged:
            gram = gram + merged[key].gram
        merged[key] = LinearReader(covariance=moments[matrix.source].regularised(), gram=gram, candidate=candidate)
    return list(merged.values())


def _alternating(scores: npt.NDArray[np.float64], sides: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Sort by score, the sides taking turns, and leave one candidate of the largest side."""
    turns = np.empty_like(sides)
    ranked = np.argsort(scores, kind="stable")
    counts = np.bincount(sides)
    for side in range(counts.size):
        mine = ranked[sides[ranked] == side]
        turns[mine] = np.arange(counts[side]) - counts[side]  # the largest side goes first, until they are level
    order = np.lexsort((scores, turns))
    return order[: max(0, scores.size - int((turns == -1).sum()))]
