"""Time several models at several shapes in one interleaved run, and say it in columns of a result file.

35 steps of one sequence have the columns `t35b1_p50_ms`, `t35b1_speedup`, `t35b1_speedup_low` and `_high`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolchain.interface import ModelInterface

from .measure import Progress, measure
from .plan import BenchPlan, Effort, plan_bench, read_interfaces
from .real_inputs import read_lengths
from .report import Row, build_rows

COLUMNS = ("p50_ms", "speedup", "speedup_low", "speedup_high")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """So many steps of so many sequences; one step of a model with carried state is fed back, as in a stream."""

    steps: int
    batch: int

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in the order of `COLUMNS`."""
        return tuple(f"t{self.steps}b{self.batch}_{name}" for name in COLUMNS)


def plan_timing(models: Mapping[str, Path], shapes: Sequence[Shape], effort: Effort) -> BenchPlan:
    """Decide one run over all models and shapes, on this machine, in one thread.

    Args:
        models: files by the name that they have in the result; the first is what speedups are over.
        shapes: to time at.
        effort: how long.

    Raises:
        ModelFileError: a file is missing or is not an ONNX model.
        BenchError: the models fix different numbers of steps or sequences.
    """
    read = _named_interfaces(models)
    plans = [plan_bench(read, device="cpu", steps=[shape.steps], batches=[shape.batch], threads=[1], effort=effort)
             for shape in shapes]  # fmt: skip
    return replace(plans[0], cases=tuple(case for plan in plans for case in plan.cases))


def time_models(
    models: Mapping[str, Path],
    shapes: Sequence[Shape],
    effort: Effort,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Row]:
    """Measure, and return the columns of each model by its name.

    Raises:
        ModelFileError: a file cannot be read, or ONNX Runtime does not load it.
        BenchError: a model fails on its inputs, or a worker dies.
    """
    found: dict[str, Row] = {name: {} for name in models}
    for row in build_rows(measure(plan_timing(models, shapes, effort), progress)):
        columns = Shape(steps=row["steps"], batch=row["batch"]).columns
        found[row["model"]].update(zip(columns, _times(row), strict=True))
    return found


def time_on_inputs(
    models: Mapping[str, Path],
    inputs: Path,
    effort: Effort,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Row]:
    """Measure on an `.npz` of real inputs, in one thread; return `COLUMNS` of each model by its name.

    Raises:
        ModelFileError: a file cannot be read, or ONNX Runtime does not load it.
        BenchError: the inputs do not fit, a model fails on them, or a worker dies.
    """
    read = _named_interfaces(models)
    steps, batch = read_lengths(inputs, read)
    plan = plan_bench(read, device="cpu", steps=[steps], batches=[batch], threads=[1], effort=effort)
    rows = build_rows(measure(replace(plan, inputs=inputs), progress))
    return {row["model"]: dict(zip(COLUMNS, _times(row), strict=True)) for row in rows}


def _named_interfaces(models: Mapping[str, Path]) -> list[ModelInterface]:
    """Return what each model takes, under the name that it has in the result."""
    read = read_interfaces(list(models.values()))
    return [replace(model, name=name) for name, model in zip(models, read, strict=True)]


def _times(row: Row) -> tuple[float | None, ...]:
    """Return what `COLUMNS` name."""
    return (row["p50_s"] * 1e3, row["speedup"], row["speedup_low"], row["speedup_high"])
