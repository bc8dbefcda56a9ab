"""`toolchain bench calibrate`: how far estimates are from measurements, on this machine."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

import click

from toolchain.cli.measuring import progress_bar, warn_about_cpus


@click.command()
@click.option("--seconds", default=1.0, show_default=True, type=click.FloatRange(0.1, 60), help="Samples per model.")
def calibrate(seconds: float) -> None:
    """Measure this machine's own profile, `host`, and how far estimates on it are from measurements."""
    warn_about_cpus(1)
    calibration = importlib.import_module("toolchain.bench.devices.calibration")
    with tempfile.TemporaryDirectory() as folder, progress_bar("calibrating") as progress:
        profile, validation = calibration.calibrate(Path(folder), progress, seconds=seconds)
    for line in importlib.import_module("toolchain.bench.devices.listing").list_figures(profile):
        click.echo(line)
    click.echo(importlib.import_module("toolchain.bench.devices.showing").describe_validation(validation))
    click.echo("Every estimate shows this from now on. Next: toolchain bench --device host")
