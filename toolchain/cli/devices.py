"""`toolchain devices`: what can be benched on, what that rests on, and what is missing for it."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from toolchain.cli.bench import progress_bar, warn_about_cpus, whole_numbers

FC = TypeVar("FC", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)


def _numbers(name: str, default: str, text: str) -> Callable[[FC], FC]:
    return click.option(name, default=default, show_default=True, metavar="N[,N…]", callback=whole_numbers, help=text)


def _module(name: str) -> Any:
    return importlib.import_module(f"toolchain.bench.{name}")


@click.group(invoke_without_command=True)
@click.pass_context
def devices(context: click.Context) -> None:
    """List what `toolchain bench --device NAME` accepts, and what is missing for the rest."""
    if context.invoked_subcommand is not None:
        return
    for line in _module("devices.listing").list_devices():
        click.echo(line)


@devices.command()
@click.argument("profile")
def show(profile: str) -> None:
    """Print every number of PROFILE (a name or a file) with its source."""
    for line in _module("devices.listing").list_figures(_module("devices.profiles").find_profile(profile)):
        click.echo(line)


@devices.command()
@click.argument("what", type=click.Choice(["qemu"]))
@click.option("--apt-sources", type=PATH, help="An apt sources file that holds arm64, in place of this machine's.")
def install(what: str, apt_sources: Path | None) -> None:
    """Fetch an aarch64 Python with ONNX Runtime into the cache folder, for qemu:PROFILE. Nothing else is changed."""
    sysroot = _module("devices.sysroot")
    installed = sysroot.install_sysroot(click.echo, sources=apt_sources)
    click.echo(f"installed in {installed.folder}; remove that folder to be rid of it")
    click.echo("Next: toolchain bench --device qemu:rpi4")


@devices.command()
@click.option("--seconds", default=1.0, show_default=True, type=click.FloatRange(0.1, 60), help="Samples per model.")
def calibrate(seconds: float) -> None:
    """Measure this machine's own profile, `host`, and how far estimates on it are from measurements."""
    warn_about_cpus(1)
    calibration = _module("devices.calibration")
    with tempfile.TemporaryDirectory() as folder, progress_bar() as progress:
        profile, validation = calibration.calibrate(Path(folder), progress, seconds=seconds)
    for line in _module("devices.listing").list_figures(profile):
        click.echo(line)
    click.echo(_module("devices.showing").describe_validation(validation))
    click.echo("Every estimate shows this from now on. Next: toolchain bench --device host")


@devices.command()
@click.argument("folder", type=PATH)
@click.argument("models", nargs=-1, metavar="[MODEL]...", type=PATH)
@click.option("--baseline", type=PATH, help="What the speedup is over, as in `toolchain bench`.")
@_numbers("--steps", "1,35", "Sequence lengths.")
@_numbers("--batch", "1", "Sequences at once.")
@_numbers("--threads", "1", "Threads per model.")
@click.option("--processes", default=8, show_default=True, type=click.IntRange(2, 1000), help="Fresh processes.")
@click.option("--seconds", default=4.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Time per row.")
def bundle(
    folder: Path,
    models: tuple[Path, ...],
    baseline: Path | None,
    steps: tuple[int, ...],
    batch: tuple[int, ...],
    threads: tuple[int, ...],
    processes: int,
    seconds: float,
) -> None:
    """Write FOLDER with the MODELs and a runner, to copy to a device that has no ssh. `merge` reads its result."""
    compare, plans = _module("compare"), _module("plan")
    plan = compare.plan_comparison(
        models,
        baseline=baseline,
        device="cpu",
        steps=steps,
        batches=batch,
        threads=threads,
        effort=plans.Effort(processes=processes, seconds=seconds),
    )
    _module("devices.bundle").write_bundle(folder, plan, steps=steps, batches=batch, threads=threads)
    click.echo(f"{folder}: copy it to the device and run there: python3 runner.py job.json > result.json")
    click.echo(f"Next: bring result.json back into it, then: toolchain devices merge {folder}")


@devices.command()
@click.argument("folder", type=PATH)
@click.option("--json", "json_path", type=PATH, help="Write rows, raw samples and machine to this file.")
@click.option("--csv", "csv_path", type=PATH, help="Write rows to this file.")
def merge(folder: Path, json_path: Path | None, csv_path: Path | None) -> None:
    """Print what a device measured with the bundle FOLDER."""
    from rich.console import Console

    machine, rows = _module("devices.bundle").read_bundle(folder)
    click.echo(f"measured on {machine['cpu_model'] or machine['machine']}")
    _module("table").print_report(Console(), rows)
    if json_path is not None:
        _module("report").write_json(json_path, machine, rows)
    if csv_path is not None:
        _module("report").write_csv(csv_path, rows)
