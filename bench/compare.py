"""The bench stage, from file names to rows: what the command and a script call alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .devices.dispatch import measuring_on, run_unmeasured
from .devices.naming import resolve_device
from .measure import Progress
from .plan import BenchPlan, Effort, choose_models, plan_bench, read_interfaces
from .report import Row, build_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What was measured, on which machine, and what follows from it."""

    machine: dict[str, Any]
    rows: tuple[Row, ...]


def plan_comparison(
    models: Sequence[Path],
    *,
    baseline: Path | None,
    device: str,
    steps: Sequence[int],
    batches: Sequence[int],
    threads: Sequence[int],
    effort: Effort,
) -> BenchPlan:
    """Read the models and decide what to measure; nothing runs yet.

    Raises:
        ModelFileError: a file is missing or is not an ONNX model.
        BenchError: the device is unknown, or the models cannot be compared.
    """
    resolve_device(device)
    read = read_interfaces(choose_models(models, baseline))
    return plan_bench(read, device=device, steps=steps, batches=batches, threads=threads, effort=effort)


def run_comparison(plan: BenchPlan, progress: Progress) -> BenchResult:
    """Measure, emulate or estimate a plan, as its device says, and derive its statistics.

    Raises:
        ModelFileError: ONNX Runtime does not load a model.
        BenchError: a model fails on its inputs, a worker dies, this Python runs under emulation, or the device
            cannot be used.
    """
    device = resolve_device(plan.device)
    if device.method in ("emulated", "estimated"):
        machine, unmeasured = run_unmeasured(plan, device, progress)
        return BenchResult(machine=machine, rows=tuple(unmeasured))
    measurement = measuring_on(device)(plan, progress)
    rows = tuple({**row, "method": device.method} for row in build_rows(measurement))
    return BenchResult(machine=measurement.machine, rows=rows)
