"""The bench stage, from file names to rows: what the command and a script call alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from toolchain.errors import BenchError
from toolchain.interface import ModelInterface

from .bench_result import BenchResult, costs_of, layers_of, result_of
from .devices.dispatch import measuring_on, run_unmeasured
from .devices.naming import Device, resolve_device
from .measure import Progress, job_of
from .plan import ONNX_RUNTIME, BenchPlan, Effort, choose_models, plan_bench, read_interfaces
from .real_inputs import read_lengths
from .repetition import measure_until_precise
from .report import Context
from .roofline import find_roofline
from .runtimes import check_outputs, check_runtimes


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
    simulate_caches: bool = False,
) -> BenchPlan:
    """Read the models and decide what to measure; nothing runs yet.

    Args:
        models: files; see `choose_models`.
        baseline: what the speedup is over.
        device: where; see `devices.naming`.
        steps: sequence lengths; those of `inputs` come first.
        batches: sequences at once; likewise.
        threads: of each model.
        effort: how long.
        names: what files are called in the result, by default their paths.
        runtimes: what runs each model; the first one runs the baseline.
        inputs: an `.npz` of real inputs.
        protocol: the published protocol that `steps` and `batches` follow, for the record.
        simulate_caches: on an emulated device, count cache misses as well.

    Raises:
        ModelFileError: a file is missing or is not an ONNX model.
        BenchError: the device or a runtime is unknown, the inputs do not fit, or the models cannot be compared.
        MissingExtraError: a runtime is not installed.
    """
    _check_runtimes(resolve_device(device), runtimes)
    read = read_interfaces(choose_models(models, baseline))
    read = tuple(replace(model, name=(names or {}).get(model.path, model.name)) for model in read)
    if inputs is not None:
        step, batch = read_lengths(inputs, read)
        steps, batches = [step], [batch]
    members = [(_named(model, runtime), runtime) for model in read for runtime in runtimes]
    plan = plan_bench(
        [model for model, _ in members], device=device, steps=steps, batches=batches, threads=threads, effort=effort
    )
    return replace(plan, runtimes=tuple(runtime for _, runtime in members), inputs=inputs, protocol=protocol,
                   simulate_caches=simulate_caches)  # fmt: skip


def run_comparison(plan: BenchPlan, progress: Progress, *, rooflines: str = "skip") -> BenchResult:
    """Measure, emulate or estimate a plan, as its device says, and derive its statistics.

    Args:
        plan: what to measure.
        progress: called as it goes on.
        rooflines: "cached" holds what is measured here against this machine's peaks, which are measured once and kept;
            "measure" measures them again; "skip" leaves them out.

    Raises:
        ModelFileError: ONNX Runtime does not load a model.
        BenchError: a model fails on its inputs, a runtime computes something else than ONNX Runtime, a worker dies,
            this Python runs under emulation, or the device cannot be used.
    """
    device = resolve_device(plan.device)
    costs = costs_of(plan)
    if not device.is_measured:
        machine, unmeasured = run_unmeasured(plan, device, costs, progress)
        return BenchResult(machine=machine, rows=tuple(unmeasured), layers=layers_of(plan, costs))
    differences = _compare_outputs(plan)
    peaks = {
        threads: find_roofline(threads, again=rooflines == "measure")
        for threads in dict.fromkeys(case.threads for case in plan.cases)
        if rooflines != "skip" and device.method == "measured"  # another machine has other peaks
    }
    measurement = measure_until_precise(plan, measuring_on(device), progress)
    context = Context(method=device.method, costs=costs, rooflines=peaks, differences=differences)
    return result_of(measurement, context)


def _check_runtimes(device: Device, runtimes: Sequence[str]) -> None:
    check_runtimes(runtimes)
    others = [runtime for runtime in runtimes if runtime != ONNX_RUNTIME]
    if others and device.method != "measured":
        raise BenchError(
            f"device {device.name!r}: is {device.method}, and {others[0]} is measured on this machine only; expected "
            "ONNX Runtime. Leave out --runtimes."
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
