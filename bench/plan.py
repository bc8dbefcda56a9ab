"""What will be measured: models x shapes x threads, decided before anything runs.

The first model of a plan is the baseline. Every case gives all models the same number of steps and
sequences; where a file fixes its own, that is what the case says, and what its rows will say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from toolchain.axes import BATCH, TIME
from toolchain.errors import BenchError
from toolchain.interface import Feed, ModelInterface, plan_feeds, read_interface

ONNX_RUNTIME = "onnxruntime"
DEFAULT_MODEL, DEFAULT_BASELINE = Path("model.shrunk.onnx"), Path("model.onnx")
ROUND_S = 0.05  # shorter than most load changes on a shared machine, 10x longer than waking a process takes
MAKERS = {
    DEFAULT_BASELINE: "Write one with `toolchain train`, or name your own model.",
    DEFAULT_MODEL: "Write it with `toolchain shrink model.onnx`, or name the models to compare.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure: fresh processes per model and shape, and seconds for all of them together."""

    processes: int = 8  # the t quantile behind the interval is 2.4 there; at 4 it is 3.2, at 20 it is 2.1
    seconds: float = 3.0  # two models, two shapes: 12 s of samples and 9 s of starts and warm-up
    seed: int = 0
    precision: float | None = None  # half the interval's width over the speedup: 0.02 is plus or minus 2%
    limit_s: float = 120.0  # of the whole measurement, where a precision is asked for
    repetition: int = 0  # how often this was measured before; the order differs from one to the next

    @property
    def rounds(self) -> int:
        """Rounds of `ROUND_S` that each process runs."""
        return max(1, round(self.seconds / self.processes / ROUND_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One shape and thread count; `feeds` holds the inputs of each model, in the plan's order."""

    steps: int
    batch: int
    threads: int
    feeds: tuple[tuple[Feed, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """Everything that will be measured; `models[0]` is the baseline of the others.

    `runtimes` says for each model what runs it; empty, ONNX Runtime runs all. `inputs` is a file of real inputs.
    `simulate_caches` counts cache misses as well, where the device is emulated.
    """

    device: str
    models: tuple[ModelInterface, ...]
    cases: tuple[Case, ...]
    effort: Effort
    runtimes: tuple[str, ...] = ()
    inputs: Path | None = None
    protocol: str | None = None
    simulate_caches: bool = False

    def runtime(self, member: int) -> str:
        """Return what runs a model: ONNX Runtime unless said otherwise."""
        return self.runtimes[member] if self.runtimes else ONNX_RUNTIME

    def streams(self, case: Case, model: ModelInterface) -> bool:
        """Tell whether the model's carried state is fed back from call to call: one step at a time."""
        return case.steps == 1 and bool(model.carried)


def choose_models(models: Sequence[Path], baseline: Path | None) -> tuple[Path, ...]:
    """Return the files to measure, baseline first.

    Without names: `model.onnx`, then `model.shrunk.onnx`. Without a baseline: the file that the first model
    was shrunk from if it is there, else the first model. A baseline named as the only model is compared
    with itself, which shows what this machine calls equal.
    """
    if not models:
        return (baseline or DEFAULT_BASELINE, DEFAULT_MODEL)
    if baseline is None:
        origin = models[0].with_name(models[0].name.replace(".shrunk.onnx", ".onnx"))
        return tuple(dict.fromkeys([origin if origin.is_file() else models[0], *models]))
    others = tuple(dict.fromkeys(path for path in models if path != baseline))
    return (baseline, *(others or (baseline,)))


def read_interfaces(paths: Sequence[Path]) -> tuple[ModelInterface, ...]:
    """Read every model; a missing default file says which command writes it."""
    return tuple(read_interface(path, suggestion=MAKERS.get(path, "Check the path.")) for path in paths)


def plan_bench(
    models: Sequence[ModelInterface],
    *,
    device: str,
    steps: Sequence[int],
    batches: Sequence[int],
    threads: Sequence[int],
    effort: Effort,
) -> BenchPlan:
    """Combine models, shapes and thread counts; equal cases are measured once.

    Raises:
        BenchError: two files fix different numbers of steps or sequences.
    """
    shapes = {
        (_agree(models, TIME, step), _agree(models, BATCH, batch), count)
        for step, batch, count in product(steps, batches, threads)
    }
    return BenchPlan(
        device=device,
        models=tuple(models),
        cases=tuple(
            Case(
                steps=step,
                batch=batch,
                threads=count,
                feeds=tuple(plan_feeds(model, steps=step, batch=batch) for model in models),
            )
            for step, batch, count in sorted(shapes)
        ),
        effort=effort,
    )


def _agree(models: Sequence[ModelInterface], label: str, asked: int) -> int:
    """Return the length that all models can run: the one that a file fixes, else the one asked for."""
    fixed = {model.name: length for model in models if (length := model.fixed(label)) is not None}
    if len(set(fixed.values())) > 1:
        axis = "steps" if label == TIME else "sequences"
        listed = ", ".join(f"{name} {length}" for name, length in fixed.items())
        raise BenchError(
            f"{models[0].name}: the models fix different numbers of {axis} ({listed}); expected equal ones, "
            "because a ratio of different work means nothing. Export them with a dynamic axis."
        )
    return next(iter(fixed.values()), asked)
