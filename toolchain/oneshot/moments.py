"""Mean and covariance of what matrices read, taken from ONNX Runtime while the model runs on calibration samples.

The watched values become the outputs of a copy of the model, so that what is measured is what the readers see. Rows are
every step of every sequence. What `R` reads is the state one step earlier: the initial state is among its rows and the
last one is not, since weights fitted without it err at the start of every sequence. For a GRU with
`linear_before_reset=0` the vector `r * h` is computed from that and X.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from toolchain.graph.loading import save_model
from toolchain.oneshot.calibration import Calibration, run_calls
from toolchain.oneshot.matrices import Matrix, Source
from toolchain.recurrent import slot
from toolchain.runtime import open_session

Array = npt.NDArray[np.floating]
FloatArray = npt.NDArray[np.float64]
# Of the mean variance, on the diagonal. At 1e-5, 1e-4, 1e-3 and 1e-2: held-out error of nsnet2 with a quarter of its
# units (15,200 frames) 0.186, 0.110, 0.149 and 0.136; perplexity of a 2x384 language model with half its units (15,000
# words) 72.1, 72.1, 72.8 and 72.9, with a quarter 96.6, 96.5, 97.1 and 96.8, on 2,000 words 83.6, 84.3, 84.1 and 83.6,
# and 139, 144, 138 and 139; that of a 2x200 one on 20,000 words changes by less than 0.1%.
RIDGE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Of one source: rows seen, mean `[num_rows]` and covariance `[num_rows, num_rows]` of the neurons."""

    count: int
    mean: FloatArray
    covariance: FloatArray
    ridge: float = RIDGE

    def regularised(self) -> FloatArray:
        """Return the covariance with `ridge` of its mean variance on the diagonal: always positive definite."""
        variance = max(float(np.diagonal(self.covariance).mean()), float(np.finfo(np.float32).tiny))
        return self.covariance + self.ridge * variance * np.eye(len(self.covariance))


def watch(
    model: ir.Model,
    matrices: Sequence[Matrix],
    calibration: Calibration,
    *,
    threads: int | None = None,
    ridge: float = RIDGE,
) -> dict[Source, Moments]:
    """Run the model on all samples and return the moments of every matrix's source; the model is as it was after."""
    sources = {matrix.source: matrix for matrix in matrices}
    sums = {source: _Sums() for source in sources}
    names = sorted({name for matrix in sources.values() for name in _watched(matrix)})
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        path = Path(folder) / "watched.onnx"
        _save_watched(model, [*names, *(out for _, out in calibration.carried)], path)
        session = open_session(path, threads=threads)
        for values in run_calls(session, calibration, names):
            for source, matrix in sources.items():
                sums[source].add(_rows(source, matrix, values))
    return {source: total.moments(ridge) for source, total in sums.items()}


def _save_watched(model: ir.Model, names: Sequence[str], path: Path) -> None:
    """Write a copy of the model that computes the named values, and nothing that only other outputs need."""
    watched = model.clone()
    graph = watched.graph
    values = {value.name: value for value in (*graph.outputs, *(v for node in graph for v in node.outputs))}
    outputs = [values[name] for name in dict.fromkeys(names) if name in values]
    if outputs:  # or all that is watched are inputs
        graph.outputs.clear()
        graph.outputs.extend(outputs)
        RemoveUnusedNodesPass()(watched)
    save_model(watched, path)


def _watched(matrix: Matrix) -> Iterator[str]:
    """Yield the names of the values that a matrix's rows are made from."""
    source = matrix.source
    yield source.value
    if source.reset:
        yield _name_at(matrix, "X")
    if source.direction is not None and _starts_at_a_value(matrix):
        yield _name_at(matrix, "initial_h")


def _name_at(matrix: Matrix, name: str) -> str:
    return str(matrix.node.value(slot(name)).name)


def _starts_at_a_value(matrix: Matrix) -> bool:
    """Tell whether the initial state is computed or fed; otherwise it is a constant, or zero."""
    return matrix.node.has_input(slot("initial_h")) and matrix.node.constant(slot("initial_h")) is None


def _rows(source: Source, matrix: Matrix, values: dict[str, Array]) -> Array:
    """Return what was read, one row for each step of each sequence, shape `[num, num_rows]`."""
    if source.direction is None:
        value = np.moveaxis(values[source.value], source.axis, -1)
    else:
        value = _reset_state(matrix, values) if source.reset else _earlier_state(matrix, values)
    return np.asarray(value.reshape(-1, value.shape[-1]))


def _earlier_state(matrix: Matrix, values: dict[str, Array]) -> Array:
    """Return the state that each step starts from, shape `[seq_length, batch_size, hidden_size]`."""
    node, d = matrix.node, matrix.direction
    Y = values[matrix.source.value][:, d]  # [seq_length, batch_size, hidden_size]
    first: Array | None = node.constant(slot("initial_h"))
    if _starts_at_a_value(matrix):
        first = values[_name_at(matrix, "initial_h")]
    start = np.broadcast_to(np.zeros((), Y.dtype) if first is None else first[d], Y.shape[1:])[None]
    if d == 1 or node.attribute("direction", "forward") == "reverse":
        return np.concatenate([Y[1:], start])
    return np.concatenate([start, Y[:-1]])


def _reset_state(matrix: Matrix, values: dict[str, Array]) -> Array:
    """Return `r_t * h_(t-1)` of a GRU with linear_before_reset=0, shape `[seq_length, batch_size, hidden_size]`.

    Source: https://onnx.ai/onnx/operators/onnx__GRU.html
    """
    node, d = matrix.node, matrix.direction
    X, h = values[_name_at(matrix, "X")], _earlier_state(matrix, values)  # [T, B, input_size], [T, B, hidden_size]
    H = h.shape[-1]
    W, R = node.weights(slot("W"))[d, H : 2 * H], node.weights(slot("R"))[d, H : 2 * H]
    B = node.constant(slot("B"))
    bias = 0.0 if B is None else B[d, H : 2 * H] + B[d, 4 * H : 5 * H]
    return np.asarray(h / (1 + np.exp(-(X @ W.T + h @ R.T + bias))))


class _Sums:
    """Count, sum and sum of products; float32 products of one call are added up in float64.

    Rows are taken from about their mean, that of the first call: of neurons that hardly move, products of the values
    themselves would leave nothing but rounding.
    """

    def __init__(self) -> None:
        self.count = 0
        self.centre: Array = np.zeros(1, np.float32)
        self.total: FloatArray | float = 0.0
        self.products: FloatArray | float = 0.0

    def add(self, rows: Array) -> None:
        rows = rows.astype(np.float32, copy=False)
        if not self.count:
            self.centre = rows.mean(axis=0)
        rows = rows - self.centre
        self.count += len(rows)
        self.total = self.total + rows.sum(axis=0, dtype=np.float64)
        self.products = self.products + (rows.T @ rows).astype(np.float64)

    def moments(self, ridge: float) -> Moments:
        offset = np.asarray(self.total / max(self.count, 1))
        covariance = self.products / max(self.count, 1) - np.outer(offset, offset)
        return Moments(count=self.count, mean=self.centre + offset, covariance=covariance, ridge=ridge)
