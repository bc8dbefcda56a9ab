"""Measure a latency table on this machine, and how well it predicts models that are not in it.

Every kernel is timed in several fresh processes, in another random order in each; a point is the median of the
processes' medians. The check draws random models, with sizes between the grid's points, and measures them as
`toolchain bench` would.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from toolchain.errors import BenchError
from toolchain.recurrent import QUANTIZED_LSTM

from . import runner
from .kernels import IDENTITY, Kernel, stack_model
from .latency_table import MATRIX, LatencyTable, Point

Progress = Callable[[int, int, str], None]
Shape = tuple[int, int]
IDENTITY_SIZE = 64  # columns of X in the call that computes nothing
PROCESSES, ROUNDS, ROUND_S = 4, 4, 0.05  # of each whole model that the table is checked on


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """What to measure. Sizes double, so that a curve between two points has little room."""

    op_types: tuple[str, ...] = ("LSTM", "GRU", "RNN")
    directions: tuple[int, ...] = (1, 2)
    dtypes: tuple[str, ...] = ("float32", "int8")
    input_sizes: tuple[int, ...] = (16, 64, 256, 512, 1024, 1536)
    hidden_sizes: tuple[int, ...] = (16, 32, 64, 128, 256, 384, 512, 768, 1024, 1536)
    batches: tuple[int, ...] = (1, 4, 16)
    steps: tuple[int, ...] = (1, 10, 100)
    columns: tuple[int, ...] = (16, 128, 1024, 4096, 10240)
    rows: tuple[int, ...] = (1, 4, 16, 64, 256, 1600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One random model: what it is, what the table says, and what was measured."""

    model: str
    batch: int
    steps: int
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        """The prediction's relative error; positive where it is too slow."""
        return self.predicted_s / self.measured_s - 1


def rows_for(batches: Sequence[int], steps: Sequence[int]) -> tuple[int, ...]:
    """Return rows of matrices that reach from one step of one sequence to all of all, about four times apart."""
    most = max(batches) * max(steps)
    count = max(2, round(np.log(most) / np.log(4)) + 1)
    return tuple(sorted({round(float(rows)) for rows in np.geomspace(1, most, count)}))


def plan_kernels(axes: Axes) -> tuple[tuple[Kernel, tuple[Shape, ...]], ...]:
    """Return every kernel with its shapes, `(batch, steps)`; a matrix has its rows as batch.

    ONNX Runtime quantizes no GRU and no RNN: with int8 there are LSTMs and matrices.
    """
    shapes = tuple(product(axes.batches, axes.steps))
    kernels: list[tuple[Kernel, tuple[Shape, ...]]] = []
    for dtype, input_size in product(axes.dtypes, axes.input_sizes):
        op_types = axes.op_types if dtype == "float32" else tuple({"LSTM"} & set(axes.op_types))
        for op_type, D, H in product(op_types, axes.directions, axes.hidden_sizes):
            called = op_type if dtype == "float32" else QUANTIZED_LSTM
            kernel = Kernel(op_type=called, dtype=dtype, num_directions=D, input_size=input_size, hidden_size=H)
            kernels.append((kernel, shapes))
        for columns in axes.columns:
            matrix = Kernel(op_type=MATRIX, dtype=dtype, input_size=input_size, hidden_size=columns)
            kernels.append((matrix, tuple((rows, 1) for rows in axes.rows)))
    return tuple(kernels)


def measure_table(axes: Axes, *, threads: int, processes: int, seed: int, progress: Progress) -> LatencyTable:
    """Measure every kernel in `processes` fresh processes.

    Raises:
        BenchError: a process dies.
    """
    identity = (Kernel(op_type=IDENTITY, input_size=IDENTITY_SIZE, hidden_size=IDENTITY_SIZE), ((1, 1),))
    kernels = (identity, *plan_kernels(axes))
    machine = runner.describe_machine()
    times: list[list[Sequence[float]]] = [[] for _ in kernels]  # per kernel and process: seconds per shape
    for process in range(processes):
        order = np.random.default_rng([seed, process]).permutation(len(kernels))
        found = _run_probe([kernels[number] for number in order], threads, seed)
        for done, (number, seconds) in enumerate(zip(order, found, strict=True)):
            progress(process * len(kernels) + done, processes * len(kernels), _describe(kernels[number][0]))
            times[number].append(seconds)
    points = [
        _point(kernel, shape, [process[place] for process in found])
        for (kernel, shapes), found in zip(kernels[1:], times[1:], strict=True)
        for place, shape in enumerate(shapes)
    ]
    metadata = {
        **machine,
        **runner.ONNX_RUNTIME.versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": threads,
        "processes": processes,
        "seed": seed,
        "overhead_s": float(median(process[0] for process in times[0])),
    }
    return LatencyTable(points, metadata)


def check_table(table: LatencyTable, *, models: int, seed: int, progress: Progress) -> tuple[Check, ...]:
    """Measure random models and compare them with the table's predictions.

    Raises:
        BenchError: a model fails or a worker dies.
    """
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        drawn = [_draw(table, random, Path(folder) / f"{number}.onnx", number) for number in range(models)]
        cases = [
            {"threads": table.metadata["threads"], "members": [_member(path, batch, steps)]}
            for path, _, batch, steps in drawn
        ]
        job = {"seed": seed, "processes": PROCESSES, "rounds": ROUNDS, "round_s": ROUND_S, "cases": cases}
        try:
            runs = runner.conduct(job, progress)["runs"]
        except runner.WorkerError as error:
            raise BenchError(f"latency table: {error}. Measure again.") from error
        return tuple(
            Check(
                model=name,
                batch=batch,
                steps=steps,
                predicted_s=table.predict_model_s(path, steps=steps, batch=batch),
                measured_s=_median_s([run for run in runs if run["case"] == case]),
            )
            for case, (path, name, batch, steps) in enumerate(drawn)
        )


def with_checks(table: LatencyTable, checks: Sequence[Check]) -> LatencyTable:
    """Return the table with its errors in the metadata: they belong to every number that it predicts."""
    errors = [abs(check.error) for check in checks]
    validation = {
        "median_error": float(median(errors)),
        "worst_error": max(errors),
        "models": [{**asdict(check), "error": check.error} for check in checks],
    }
    return LatencyTable(table.points, {**table.metadata, "validation": validation})


def _run_probe(kernels: Sequence[tuple[Kernel, Sequence[Shape]]], threads: int, seed: int) -> Iterator[list[float]]:
    """Yield the seconds of each kernel as a fresh process reports them."""
    job = {"threads": threads, "seed": seed, "kernels": [{**asdict(k), "shapes": shapes} for k, shapes in kernels]}
    command = [sys.executable, "-P", "-m", "toolchain.bench.kernel_probe"]
    with tempfile.TemporaryFile("w+") as stdin, tempfile.TemporaryFile("w+") as stderr:
        json.dump(job, stdin)
        stdin.seek(0)
        probe = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, text=True)
        assert probe.stdout is not None
        try:
            for line in probe.stdout:
                yield json.loads(line)["seconds"]
            if probe.wait() != 0:
                stderr.seek(0)
                last = (stderr.read().strip() or f"exit code {probe.returncode}").splitlines()[-1]
                raise BenchError(f"latency table: a process failed ({last}); expected times. Use smaller sizes.")
        finally:
            probe.kill()
            probe.communicate()


def _point(kernel: Kernel, shape: Shape, seconds: Sequence[float]) -> Point:
    batch, steps = shape
    spread = max(seconds) / min(seconds) - 1
    return Point(**asdict(kernel), batch=batch, steps=steps, seconds=float(median(seconds)), spread=round(spread, 4))


def _describe(kernel: Kernel) -> str:
    return f"{kernel.op_type} {kernel.dtype} {kernel.input_size} -> {kernel.hidden_size}"


def _draw(table: LatencyTable, random: np.random.Generator, path: Path, number: int) -> tuple[Path, str, int, int]:
    """Write a random model with sizes between those of the grid; return it with its name, batch and steps."""
    kinds = sorted(
        {(p.op_type, p.num_directions) for p in table.points if p.dtype == "float32" and p.op_type != MATRIX}
    )
    op_type, D = kinds[number % len(kinds)]
    hull, matrix = table.hull(op_type, "float32", D), table.hull(MATRIX, "float32", 1)
    widest = min(hull["input_size"][1], matrix["input_size"][1]) // D
    narrowest = -(-max(hull["input_size"][0], matrix["input_size"][0]) // D)
    first = _size(random, *hull["input_size"])
    hidden = [
        _size(random, max(hull["hidden_size"][0], narrowest), min(hull["hidden_size"][1], widest))
        for _ in range(int(random.integers(1, 4)))
    ]
    batch, steps = _size(random, *hull["batch"]), _size(random, *hull["steps"])
    if batch * steps > matrix["batch"][1]:
        steps = max(hull["steps"][0], matrix["batch"][1] // batch)
    output = _size(random, *matrix["hidden_size"])
    inputs = [first, *(D * width for width in hidden)]
    layers = [
        Kernel(op_type=op_type, num_directions=D, input_size=inputs[layer], hidden_size=width)
        for layer, width in enumerate(hidden)
    ]
    onnx.save(stack_model(layers, output_size=output, seed=number), path)
    sizes = "-".join(map(str, [first, *hidden, output]))
    return path, f"{op_type}{' x 2' if D == 2 else ''} {sizes}", batch, steps


def _size(random: np.random.Generator, low: int, high: int) -> int:
    """Draw a size whose logarithm is uniform."""
    return round(float(np.exp(random.uniform(np.log(low), np.log(max(low, high))))))


def _member(path: Path, batch: int, steps: int) -> dict[str, Any]:
    shape = [steps, batch, onnx.load(path).graph.input[0].type.tensor_type.shape.dim[2].dim_value]
    feed = {"name": "X", "dtype": "float32", "shape": shape, "kind": "normal", "value": 0}
    return {"model": path.name, "path": str(path), "feeds": [feed], "carried": []}


def _median_s(runs: Sequence[dict[str, Any]]) -> float:
    return float(median(median(sample for samples in run["rounds_s"] for sample in samples) for run in runs))
