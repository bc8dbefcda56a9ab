"""`toolchain bench`: measure models in ONNX Runtime against a baseline."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from toolchain.cli.bench_options import WhatToRun, ratio, share, what_to_run, words
from toolchain.cli.bench_outputs import Outputs, output_files, print_result
from toolchain.cli.measuring import progress_bar, warn_about_cpus
from toolchain.errors import BenchError

if TYPE_CHECKING:
    from toolchain.bench.bench_result import BenchResult
    from toolchain.bench.devices.naming import Device
    from toolchain.bench.plan import BenchPlan


@click.command(
    epilog="Also `toolchain bench compare`, `bundle`, `merge`, `table` and `calibrate`; each has its own --help."
)
@what_to_run
@click.option("--device", default="cpu", show_default=True,
              help="Where: cpu, ssh://user@host, a profile, qemu:PROFILE, arm; see `toolchain devices`.")  # fmt: skip
@click.option("--simulate-caches", is_flag=True,
              help="With qemu:PROFILE: count the misses of its data caches too, which takes longer.")  # fmt: skip
@click.option("--runtimes", default="onnxruntime", show_default=True, metavar="NAME[,NAME…]", callback=words,
              help="What runs each model: onnxruntime, torch, torch-compile, openvino.")  # fmt: skip
@click.option("--precision", metavar="2%", callback=share,
              help="Go on until every speedup is known to plus or minus this.")  # fmt: skip
@click.option("--limit", default=120.0, show_default=True, type=click.FloatRange(0.1),
              help="Seconds after which --precision gives up.")  # fmt: skip
@click.option("--roofline", default="cached", show_default=True, type=click.Choice(["cached", "measure", "skip"]),
              help="Hold results against this machine's peaks, which are measured once in 3 s.")  # fmt: skip
@click.option("--fail-below", metavar="10x", callback=ratio, help="Exit 1 if any speedup is smaller.")
@output_files
def bench(
    asked: WhatToRun,
    outputs: Outputs,
    device: str,
    simulate_caches: bool,
    runtimes: tuple[str, ...],
    precision: float | None,
    limit: float,
    roofline: str,
    fail_below: float | None,
) -> None:
    """Measure MODELs in ONNX Runtime, in turns, against a baseline.

    Without MODEL: model.shrunk.onnx against model.onnx, both in this folder. Without --baseline,
    x.shrunk.onnx is compared with x.onnx beside it if there is one, else everything with the first MODEL.

    Dynamic axes take their length from --steps and --batch; a length that the file fixes stays as it is. With
    one step, the state that a model declares as carried is fed back from call to call.
    """
    where = importlib.import_module("toolchain.bench.devices.naming").resolve_device(device)
    _refuse_unmeasured(where, {"--fail-below": fail_below, "--precision": precision})
    if simulate_caches and where.method != "emulated":
        raise BenchError(
            f"--simulate-caches: device {where.name!r} is {where.method}, not emulated; expected a device that QEMU "
            "runs, as qemu:rpi4. Leave it out, or name one of `toolchain devices`."
        )
    if where.note is not None:
        click.echo(where.note)
    with asked.plan(
        device=device,
        until={"precision": precision, "limit_s": limit},
        runtimes=runtimes,
        simulate_caches=simulate_caches,
    ) as (plan, notes):
        result = _run(plan, where, roofline)
    print_result(result, notes)
    outputs.write(result)
    if fail_below is not None:
        importlib.import_module("toolchain.bench.threshold").check_speedups(result.rows, fail_below)


def _refuse_unmeasured(where: Device, given: Mapping[str, float | None]) -> None:
    """Refuse, before anything runs, what only a measured speedup can answer."""
    for option, value in given.items():
        if value is not None and not where.is_measured:
            raise BenchError(
                f"{option}: device {where.name!r} is {where.method}, which gives no speedup; expected a device that is "
                f"measured, cpu or ssh://user@host. Leave {option} out, or measure."
            )


def _run(plan: BenchPlan, where: Device, rooflines: str) -> BenchResult:
    if where.method == "measured":
        warn_about_cpus(max(case.threads for case in plan.cases))
    compare = importlib.import_module("toolchain.bench.compare")
    with progress_bar("measuring" if where.is_measured else where.method) as progress:
        result: BenchResult = compare.run_comparison(plan, progress, rooflines=rooflines)
    return result
