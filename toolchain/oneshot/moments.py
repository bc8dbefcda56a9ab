"""Mean and covariance of what matrices read, taken from ONNX Runtime while the model runs on calibration samples.

The watched values become outputs of a copy of the model, so that what is measured is what the readers see. Rows are
every step of every sequence. For a GRU with `linear_before_reset=0` the vector `r * h` is computed from X and Y.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.graph.loading import save_model
from toolchain.oneshot.calibration import Calibration, run_calls
from toolchain.oneshot.matrices import Matrix, Source
from toolchain.recurrent import slot
from toolchain.runtime import open_session

Array = npt.NDArray[np.floating]
FloatArray = npt.NDArray[np.float64]
# Of the mean variance, times neurons over samples: the less the samples know, the more what is fitted is pulled towards
# the weights as they were. Language model of 384 units on 15,000 samples (a ridge of 0.013), half and a quarter of the
# units left: perplexity 72.9 and 95.2, against 73.1 and 97.3 with a ridge of 1e-4; with that one and 2,000 samples
# weights grow tenfold and the network becomes unstable.
RIDGE = 0.5
LEAST_RIDGE = 1e-4  # what float32 sums lose


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Of one source: rows seen, mean `[num_rows]` and covariance `[num_rows, num_rows]` of the neurons."""

    count: int
    mean: FloatArray
    covariance: FloatArray

    def regularised(self) -> FloatArray:
        """Return the covariance with a ridge on its diagonal: always positive definite."""
        variances = np.diagonal(self.covariance)
        share = max(LEAST_RIDGE, RIDGE * len(variances) / max(self.count, 1))
        ridge = share * max(float(variances.mean()), float(np.finfo(np.float32).tiny))
        return self.covariance + ridge * np.eye(len(self.covariance))


def watch(
    model: ir.Model, matrices: Sequence[Matrix], calibration: Calibration, *, threads: int | None = None
) -> dict[Source, Moments]:
    """Run the model on all samples and return the moments of every matrix's source; the model is as it was after."""
    sources = {matrix.source: matrix for matrix in matrices}
    sums = {source: _Sums() for source in sources}
    names = sorted({source.value for source in sources} | {_input_of(m) for m in sources.values() if m.source.reset})
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        path = Path(folder) / "watched.onnx"
        _save_watched(model, names, path)
        session = open_session(path, threads=threads)
        for values in run_calls(session, calibration, names):
            for source, matrix in sources.items():
                sums[source].add(_rows(source, matrix, values))
    return {source: total.moments() for source, total in sums.items()}


def _save_watched(model: ir.Model, names: Sequence[str], path: Path) -> None:
    """Write the model with more outputs."""
    graph = model.graph
    outputs = {value.name for value in graph.outputs}
    produced = {value.name: value for node in graph for value in node.outputs if value.name}
    added = [produced[name] for name in names if name in produced and name not in outputs]
    graph.outputs.extend(added)
    try:
        save_model(model, path)
    finally:
        for _ in added:
            graph.outputs.pop()


def _input_of(matrix: Matrix) -> str:
    return str(matrix.node.value(slot("X")).name)


def _rows(source: Source, matrix: Matrix, values: dict[str, Array]) -> Array:
    """Return what was read, one row for each step of each sequence, shape `[num, num_rows]`."""
    value = values[source.value]
    if source.reset:
        return _reset_state(matrix, values)
    if source.direction is not None:
        value = value[:, source.direction]  # [seq_length, batch_size, hidden_size]
    value = np.moveaxis(value, source.axis if source.direction is None else -1, -1)
    return np.asarray(value.reshape(-1, value.shape[-1]))


def _reset_state(matrix: Matrix, values: dict[str, Array]) -> Array:
    """Return `r_t * h_(t-1)` of a GRU with linear_before_reset=0, shape `[num, hidden_size]`.

    Source: https://onnx.ai/onnx/operators/onnx__GRU.html (initial_h is taken as zero: one row in seq_length)
    """
    node, d = matrix.node, matrix.direction
    X, Y = values[_input_of(matrix)], values[matrix.source.value][:, d]  # [T, B, input_size], [T, B, hidden_size]
    reverse = d == 1 or node.attribute("direction", "forward") == "reverse"
    h = np.zeros_like(Y)
    h[:-1] = Y[1:] if reverse else 0
    if not reverse:
        h[1:] = Y[:-1]
    H = Y.shape[-1]
    W, R = node.weights(slot("W"))[d, H : 2 * H], node.weights(slot("R"))[d, H : 2 * H]
    B = node.constant(slot("B"))
    bias = 0.0 if B is None else B[d, H : 2 * H] + B[d, 4 * H : 5 * H]
    reset = 1 / (1 + np.exp(-(X @ W.T + h @ R.T + bias)))
    return np.asarray((reset * h).reshape(-1, H))


class _Sums:
    """Count, sum and sum of products; float32 products of one call are added up in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: FloatArray | float = 0.0
        self.products: FloatArray | float = 0.0

    def add(self, rows: Array) -> None:
        rows = rows.astype(np.float32, copy=False)
        self.count += len(rows)
        self.total = self.total + rows.sum(axis=0, dtype=np.float64)
        self.products = self.products + (rows.T @ rows).astype(np.float64)

    def moments(self) -> Moments:
        mean = np.asarray(self.total / max(self.count, 1))
        return Moments(
            count=self.count, mean=mean, covariance=self.products / max(self.count, 1) - np.outer(mean, mean)
        )
