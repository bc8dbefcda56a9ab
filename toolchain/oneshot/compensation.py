"""Give neurons up: zeros in their rows of every matrix, and what they said folded into the rows that stay.

    x W  is replaced by  x_S B + shift      B = C_SS^-1 C_S: W,  shift = mean W - mean_S B

with mean and covariance C of what the matrix reads. Other neurons that the same matrix reads (the other direction, a
skip connection) help to say it. Without compensation B = W_S and the shift is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.graph.cells import BoolArray, CellArray
from toolchain.graph.edits import Edits
from toolchain.oneshot.elimination import refit
from toolchain.oneshot.matrices import Matrix, Source
from toolchain.oneshot.moments import Moments


def give_up(
    graph: ir.Graph,
    matrices: Sequence[Matrix],
    labels: CellArray,
    removed: CellArray,
    moments: Mapping[Source, Moments],
    *,
    compensate: bool,
) -> None:
    """Zero the rows of removed classes in the graph's own weights.

    Args:
        graph: changed in place.
        matrices: of the graph, as it is now.
        labels: class of every cell.
        removed: classes to remove.
        moments: of every source that is compensated.
        compensate: fold what the removed rows said into the others.
    """
    edits = Edits(graph)
    gone = np.zeros(labels.size, dtype=np.bool_)
    gone[removed] = True
    for matrix in matrices:
        lost = gone[labels[matrix.rows]]  # [num_rows]
        if lost.any():
            weights, shift = _without(matrix, lost, moments.get(matrix.source) if compensate else None)
            matrix.replace(weights, shift, edits)


def _without(
    matrix: Matrix, lost: BoolArray, moments: Moments | None
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """Return the content with zero rows where neurons are lost, and what is to be added to the bias."""
    weights = matrix.weights()
    kept = np.flatnonzero(~lost)
    new = np.zeros_like(weights)
    if moments is None or not kept.size:
        new[kept] = weights[kept]
        mean = np.zeros(len(weights)) if moments is None else moments.mean
    else:
        mean = moments.mean
        alive = kept[(np.diagonal(moments.covariance)[kept] > 0) & (weights[kept] != 0).any(axis=1)]
        new[alive] = refit(moments.regularised(), weights.astype(np.float64), alive)
    return new, (mean @ (weights.astype(np.float64) - new)).astype(weights.dtype)
