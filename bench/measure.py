"""Run a plan: turn it into the runner's job, run that, and read the samples back.

Device `cpu` conducts the workers from this process, which sleeps while they run. The job and its result are
plain JSON, so the same two functions around `conduct` will serve a runner on another machine.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from toolchain.errors import BenchError, ModelFileError, ToolchainError

from . import runner
from .plan import ROUND_S, BenchPlan
from .runtimes import worker_of
from .statistics import FloatArray

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One worker process: one model, one case. `rounds` holds samples in seconds, one array per round."""

    case: int
    member: int
    load_s: float
    first_s: float
    warm: bool
    peak_rss_bytes: int
    idle_rss_bytes: int
    rounds: tuple[FloatArray, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """All runs of a plan and the machine they ran on."""

    plan: BenchPlan
    machine: dict[str, Any]
    runs: tuple[Run, ...]

    def of(self, case: int, member: int) -> tuple[Run, ...]:
        """Return the runs of one model in one case, in the order in which its processes ran."""
        return tuple(run for run in self.runs if (run.case, run.member) == (case, member))


def measure(plan: BenchPlan, progress: Progress) -> Measurement:
    """Measure on this machine.

    Raises:
        ModelFileError: ONNX Runtime does not load a model.
        BenchError: a model fails on its inputs, a worker dies, or this Python runs under emulation.
    """
    _check_native()
    try:
        result = runner.conduct(job_of(plan), progress)
    except runner.WorkerError as error:
        raise _explain(error) from error
    return read_result(plan, result)


def job_of(plan: BenchPlan) -> dict[str, Any]:
    """Return the runner's job, as its module docstring describes it."""
    return {
        "seed": plan.effort.seed,
        "repetition": plan.effort.repetition,
        "processes": plan.effort.processes,
        "rounds": plan.effort.rounds,
        "round_s": ROUND_S,
        "cases": [
            {
                "threads": case.threads,
                "members": [
                    {
                        "model": model.name,
                        "path": str(model.path),
                        "feeds": [asdict(feed) for feed in feeds],
                        "carried": [list(pair) for pair in model.carried] if plan.streams(case, model) else [],
                        **({"inputs": str(plan.inputs.resolve())} if plan.inputs is not None else {}),
                        **({"worker": worker} if (worker := worker_of(plan.runtime(member))) is not None else {}),
                    }
                    for member, (model, feeds) in enumerate(zip(plan.models, case.feeds, strict=True))
                ],
            }
            for case in plan.cases
        ],
    }


def read_result(plan: BenchPlan, result: dict[str, Any]) -> Measurement:
    """Give the runner's JSON its types."""
    runs = [
        Run(
            case=run["case"],
            member=run["member"],
            load_s=run["load_s"],
            first_s=run["first_s"],
            warm=run["warm"],
            peak_rss_bytes=run["peak_rss_bytes"],
            idle_rss_bytes=run["idle_rss_bytes"],
            rounds=tuple(np.asarray(samples, dtype=np.float64) for samples in run["rounds_s"]),
        )
        for run in result["runs"]
    ]
    return Measurement(plan=plan, machine=result["machine"], runs=tuple(runs))


def _check_native() -> None:
    machine, elf = platform.machine(), runner.elf_machine()
    if runner.is_emulated(machine, elf):
        raise BenchError(
            f"device 'cpu': this Python says {machine} but runs under emulation (ELF machine {elf}); "
            "expected a native interpreter, because emulated time counts instructions and knows no caches. "
            "Measure on the device itself."
        )


def _explain(error: runner.WorkerError) -> ToolchainError:
    if error.stage == "load":
        return ModelFileError(
            f"{error.model}: ONNX Runtime does not load it ({error.reason}); expected a model that it "
            "can run. Export it again for this version, or update onnxruntime."
        )
    shapes = ", ".join(f"{feed['name']} {feed['shape']}" for feed in error.feeds)
    return BenchError(
        f"{error.model}: fails on its inputs ({error.reason}); expected it to accept {shapes}. "
        "Choose other --steps or --batch."
    )
