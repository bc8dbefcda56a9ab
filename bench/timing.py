"""Time several models at several shapes in one interleaved run, and say it in columns of a result file.

35 steps of one sequence have the columns `t35b1_p50_ms`, `t35b1_speedup`, `t35b1_speedup_low` and `_high`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .measure import Progress, measure
from .plan import BenchPlan, Effort, plan_bench, read_interfaces
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
    read = [
        replace(model, name=name) for name, model in zip(models, read_interfaces(list(models.values())), strict=True)
    ]
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
        values = (row["p50_s"] * 1e3, row["speedup"], row["speedup_low"], row["speedup_high"])
        found[row["model"]].update(zip(columns, values, strict=True))
    return found
