"""The bench stage, from file names to rows: what the command and a script call alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toolchain.interface import ModelInterface

from .costs import ModelCosts, read_costs
from .measure import Progress, job_of, measure
from .plan import ONNX_RUNTIME, BenchPlan, Effort, check_device, choose_models, plan_bench, read_interfaces
from .real_inputs import read_lengths
from .repetition import measure_until_precise
from .report import Context, Row, build_rows
from .roofline import Roofline, find_roofline
from .runtimes import check_outputs, check_runtimes


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What was measured, on which machine, and what follows from it.

    `layers` holds, for each model, what its layers cost at the longest shape.
    """

    machine: dict[str, Any]
    rows: tuple[Row, ...]
    layers: Mapping[str, ModelCosts] = field(default_factory=dict)
    rooflines: tuple[Roofline, ...] = ()


def plan_comparison(
    models: Sequence[Path],
    *,
    baseline: Path | None,
    device: str,
    steps: Sequence[int],
    batches: Sequence[int],
    threads: Sequence[int],
    effort: Effort,
    names: Mapping[Path, str] | None = None,
    runtimes: Sequence[str] = (ONNX_RUNTIME,),
    inputs: Path | None = None,
    protocol: str | None = None,
) -> BenchPlan:
    """Read the models and decide what to measure; nothing runs yet.

    Args:
        models: files; see `choose_models`.
        baseline: what the speedup is over.
        device: where to measure.
        steps: sequence lengths; those of `inputs` come first.
        batches: sequences at once; likewise.
        threads: of each model.
        effort: how long.
        names: what files are called in the result, by default their paths.
        runtimes: what runs each model; the first one runs the baseline.
        inputs: an `.npz` of real inputs.
        protocol: the published protocol that `steps` and `batches` follow, for the record.

    Raises:
        ModelFileError: a file is missing or is not an ONNX model.
        BenchError: the device or a runtime is unknown, the inputs do not fit, or the models cannot be compared.
        MissingExtraError: a runtime is not installed.
    """
    check_device(device)
    check_runtimes(runtimes)
    read = read_interfaces(choose_models(models, baseline))
    read = tuple(replace(model, name=(names or {}).get(model.path, model.name)) for model in read)
    if inputs is not None:
        step, batch = read_lengths(inputs, read)
        steps, batches = [step], [batch]
    members = [(_named(model, runtime), runtime) for model in read for runtime in runtimes]
    plan = plan_bench(
        [model for model, _ in members], device=device, steps=steps, batches=batches, threads=threads, effort=effort
    )
    return replace(plan, runtimes=tuple(runtime for _, runtime in members), inputs=inputs, protocol=protocol)


def run_comparison(plan: BenchPlan, progress: Progress, *, rooflines: str = "skip") -> BenchResult:
    """Measure a plan and derive its statistics.

    Args:
        plan: what to measure.
        progress: called as it goes on.
        rooflines: "cached" holds the result against this machine's peaks, which are measured once and kept; "measure"
            measures them again; "skip" leaves them out.

    Raises:
        ModelFileError: ONNX Runtime does not load a model.
        BenchError: a model fails on its inputs, a runtime computes something else than ONNX Runtime, a worker dies, or
            this Python runs under emulation.
    """
    differences = _compare_outputs(plan)
    costs = _costs(plan)
    peaks = {
        threads: find_roofline(threads, again=rooflines == "measure")
        for threads in dict.fromkeys(case.threads for case in plan.cases)
        if rooflines != "skip"
    }
    measurement = measure_until_precise(plan, measure, progress)
    context = Context(costs=costs, rooflines=peaks, differences=differences)
    last = len(plan.cases) - 1
    return BenchResult(
        machine=measurement.machine,
        rows=tuple(build_rows(measurement, context)),
        layers={model.name: costs[last, member] for member, model in enumerate(plan.models)},
        rooflines=tuple(peaks.values()),
    )


def _named(model: ModelInterface, runtime: str) -> ModelInterface:
    return model if runtime == ONNX_RUNTIME else replace(model, name=f"{model.name} ({runtime})")


def _compare_outputs(plan: BenchPlan) -> dict[int, float]:
    """Return how far the outputs of each member on another runtime are from ONNX Runtime's."""
    members = job_of(plan)["cases"][0]["members"]
    return {
        number: check_outputs(
            member, threads=plan.cases[0].threads, seed=plan.effort.seed, runtime=plan.runtime(number)
        )
        for number, member in enumerate(members)
        if plan.runtime(number) != ONNX_RUNTIME
    }


def _costs(plan: BenchPlan) -> dict[tuple[int, int], ModelCosts]:
    """Return what each model costs in each case; shapes alone decide, so equal ones are looked at once."""
    found: dict[tuple[Any, ...], ModelCosts] = {}
    costs = {}
    for number, case in enumerate(plan.cases):
        for member, model in enumerate(plan.models):
            shapes = {feed.name: feed.shape for feed in case.feeds[member]}
            key = (model.path, *sorted(shapes.items()))
            if key not in found:
                found[key] = read_costs(model.path, shapes)
            costs[number, member] = found[key]
    return costs
