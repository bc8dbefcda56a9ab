"""Latencies of ONNX Runtime's kernels on one machine, and what they predict for whole models.

`toolchain bench table` measures single nodes over a grid of (input, hidden, batch, steps) for every operator, number of
directions and number type. Between grid points the logarithm of time is interpolated linearly over the logarithms of
input, hidden and batch size; over steps, time itself is, because T steps cost a start and T equal parts.
Outside the grid nothing is predicted: a kernel that leaves a cache there would be met by surprise.

    model = overhead + sum over recurrent nodes and matrices of (node alone - overhead)

A matrix is measured with the addition of its bias, and depends on its rows, batch * steps, alone. Tables that are
looked up in, elementwise operators and reshapes count as nothing. A node alone is hot in the caches, as in a model that
fits there; `toolchain bench table --validate 12` says how far that carries.

The file is CSV: one comment line of JSON (machine, versions, threads, overhead), then one line per point.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.errors import BenchError
from toolchain.interface import plan_feeds, read_interface
from toolchain.recurrent import GATES, QUANTIZED_LSTM

from .costs import PRODUCTS, LayerCost, ModelCosts, read_costs

SCHEMA = 1
MATRIX = "MatMul"
AXES = ("input_size", "hidden_size", "batch", "steps")
FIELDS = ("op_type", "dtype", "num_directions", *AXES, "seconds", "spread")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured node: seconds of a whole call, and how far the processes were apart.

    `hidden_size` is the number of columns of a matrix, `batch` its rows.
    """

    op_type: str
    dtype: str
    num_directions: int
    input_size: int
    hidden_size: int
    batch: int
    steps: int
    seconds: float
    spread: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The latency of a whole model.

    Attributes:
        seconds: of one inference.
        layers: what each node adds, by its name.
        left_out: nodes that the table does not hold, which cost more than is said here.
    """

    seconds: float
    layers: tuple[tuple[str, float], ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """Times of one kind of node, seconds, shape `[inputs, hiddens, batches, steps]`, at sorted `axes`."""

    axes: tuple[tuple[int, ...], ...]
    times: npt.NDArray[np.float64]


class LatencyTable:
    """A loaded table; it answers from memory, in about 20 microseconds a node."""

    def __init__(self, points: Iterable[Point], metadata: dict[str, Any]) -> None:
        """Arrange points into grids.

        Raises:
            BenchError: a grid has holes, or the metadata lacks the overhead.
        """
        self.points = tuple(points)
        self.metadata = metadata
        if not isinstance(metadata.get("overhead_s"), float) or not self.points:
            raise BenchError("latency table: holds no points or no overhead_s; expected both. Measure it again.")
        self.overhead_s: float = metadata["overhead_s"]
        kinds = dict.fromkeys((point.op_type, point.dtype, point.num_directions) for point in self.points)
        self._grids = {kind: _grid([point for point in self.points if _kind(point) == kind]) for kind in kinds}

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read a table.

        Raises:
            BenchError: there is no such file, or it is no table.
        """
        try:
            first, _, rest = path.read_text("utf-8").partition("\n")
        except OSError as error:
            raise BenchError(
                f"{path}: cannot be read ({error.strerror}); expected a latency table. Write one with `toolchain bench "
                "table`."
            ) from error
        try:
            metadata = json.loads(first.removeprefix("#"))
            if metadata["schema"] != SCHEMA:
                raise ValueError(f"schema {metadata['schema']}")
            return cls([_point(row) for row in csv.DictReader(io.StringIO(rest))], metadata)
        except (ValueError, KeyError, TypeError) as error:
            raise BenchError(
                f"{path}: is no latency table ({error}); expected schema {SCHEMA}. Measure it again with "
                "`toolchain bench table`."
            ) from error

    def to_csv(self) -> str:
        """Return the file's text."""
        text = io.StringIO()
        text.write("# " + json.dumps({"schema": SCHEMA, **self.metadata}, allow_nan=False) + "\n")
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({field: getattr(point, field) for field in FIELDS} for point in self.points)
        return text.getvalue()

    def hull(self, op_type: str, dtype: str, num_directions: int) -> dict[str, tuple[int, int]]:
        """Return the least and largest size of each axis.

        Raises:
            BenchError: nothing of this kind was measured.
        """
        grid = self._find(op_type, dtype, num_directions)
        return {name: (axis[0], axis[-1]) for name, axis in zip(AXES, grid.axes, strict=True)}

    def predict_s(
        self,
        op_type: str,
        input_size: int,
        hidden_size: int,
        num_directions: int,
        batch: int,
        steps: int,
        dtype: str = "float32",
    ) -> float:
        """Return what one node adds to a call, in seconds.

        Args:
            op_type: LSTM, GRU, RNN, DynamicQuantizeLSTM, or MatMul.
            input_size: of the node; rows of a matrix.
            hidden_size: of one direction; columns of a matrix.
            num_directions: 1 or 2; 1 for a matrix.
            batch: sequences at once.
            steps: sequence length.
            dtype: of the weights: float32 or int8.

        Raises:
            BenchError: the table does not hold this kind of node, or the size lies outside of what was measured.
        """
        grid = self._find(op_type, dtype, num_directions)
        if op_type == MATRIX:
            batch, steps = batch * steps, 1
        sizes = (input_size, hidden_size, batch, steps)
        for name, size, axis in zip(AXES, sizes, grid.axes, strict=True):
            if not axis[0] <= size <= axis[-1]:
                called = "rows" if op_type == MATRIX and name == "batch" else name
                raise BenchError(
                    f"{op_type} {input_size} -> {hidden_size}: {called} {size} lies outside the latency table; "
                    f"expected {axis[0]} to {axis[-1]}. Measure a wider one with `toolchain bench table`."
                )
        return max(_interpolate(grid, sizes) - self.overhead_s, 0.0)

    def predict(self, costs: ModelCosts) -> Prediction:
        """Return the latency of a model by its layers, as `toolchain.bench.costs` lists them.

        Raises:
            BenchError: a recurrent node or matrix lies outside the table.
        """
        layers = tuple((layer.name, self._layer_s(layer)) for layer in costs.layers if _is_measured(layer))
        conspicuous = [f"{layer.op_type} {layer.name}" for layer in costs.layers if layer.op_type.startswith("Conv")]
        return Prediction(
            seconds=self.overhead_s + sum(seconds for _, seconds in layers),
            layers=layers,
            left_out=(*conspicuous, *costs.not_counted),
        )

    def predict_model_s(self, model: Path, *, steps: int, batch: int) -> float:
        """Return the latency of a model file, in seconds.

        Raises:
            ModelFileError: there is no such file, or it is not an ONNX model.
            BenchError: a node lies outside the table, or is of a kind that it does not hold.
        """
        feeds = plan_feeds(read_interface(model), steps=steps, batch=batch)
        prediction = self.predict(read_costs(model, {feed.name: feed.shape for feed in feeds}))
        if prediction.left_out:
            raise BenchError(
                f"{model}: {prediction.left_out[0]} is not in the latency table; expected recurrent nodes and matrices "
                "outside of If, Loop and Scan. Measure the model itself with `toolchain bench`."
            )
        return prediction.seconds

    def _find(self, op_type: str, dtype: str, num_directions: int) -> _Grid:
        kind = (op_type, dtype, num_directions)
        if kind not in self._grids:
            known = ", ".join(f"{op} {number_type} x {directions}" for op, number_type, directions in self._grids)
            raise BenchError(
                f"{op_type} {dtype} x {num_directions}: is not in the latency table; expected one of: {known}. "
                "Measure it with `toolchain bench table`."
            )
        return self._grids[kind]

    def _layer_s(self, layer: LayerCost) -> float:
        if layer.op_type in PRODUCTS:
            dtype = "int8" if "int8" in layer.dtype else layer.dtype
            return self.predict_s(MATRIX, layer.input_size, layer.output_size, 1, layer.rows, 1, dtype)
        batch = layer.rows // layer.steps
        sizes = (layer.input_size, layer.hidden_size, layer.num_directions, batch, layer.steps)
        return self.predict_s(layer.op_type, *sizes, layer.dtype)


def _is_measured(layer: LayerCost) -> bool:
    return layer.op_type in GATES or layer.op_type == QUANTIZED_LSTM or layer.op_type in PRODUCTS


def _kind(point: Point) -> tuple[str, str, int]:
    return (point.op_type, point.dtype, point.num_directions)


def _grid(points: Sequence[Point]) -> _Grid:
    """Arrange points of one kind into an array; every combination of sizes must be there."""
    axes = tuple(tuple(sorted({getattr(point, name) for point in points})) for name in AXES)
    known = {tuple(getattr(point, name) for name in AXES): point.seconds for point in points}
    missing = next((sizes for sizes in product(*axes) if sizes not in known), None)
    if missing is not None:
        sizes = ", ".join(f"{name} {size}" for name, size in zip(AXES, missing, strict=True))
        raise BenchError(
            f"latency table: {points[0].op_type} lacks {sizes}; expected every combination of its sizes. Measure again."
        )
    times = np.array([known[sizes] for sizes in product(*axes)]).reshape([len(axis) for axis in axes])
    return _Grid(axes=axes, times=times)


def _interpolate(grid: _Grid, sizes: Sequence[int]) -> float:
    """Return the time of a call: log-log over the first three axes, then linear over steps."""
    values = np.log(grid.times)
    for axis, size in zip(grid.axes[:3], sizes[:3], strict=True):
        values = _between(np.log(axis), values, float(np.log(size)))  # takes the first axis away
    return float(_between(np.asarray(grid.axes[3], np.float64), np.exp(values), float(sizes[3])))


def _between(axis: npt.NDArray[np.float64], values: npt.NDArray[np.float64], at: float) -> npt.NDArray[np.float64]:
    """Interpolate linearly along the first axis of `values`, within the axis."""
    if len(axis) == 1:
        return np.asarray(values[0])
    upper = int(np.clip(np.searchsorted(axis, at), 1, len(axis) - 1))
    part = (at - axis[upper - 1]) / (axis[upper] - axis[upper - 1])
    return np.asarray((1 - part) * values[upper - 1] + part * values[upper])


def _point(row: dict[str, str]) -> Point:
    numbers = {name: int(row[name]) for name in ("num_directions", *AXES)}
    return Point(
        op_type=row["op_type"],
        dtype=row["dtype"],
        seconds=float(row["seconds"]),
        spread=float(row["spread"]),
        **numbers,
    )
