"""`toolchain bench bundle` and `bench merge`: measure on a device that has no ssh."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from toolchain.cli.bench_options import FILE, WhatToRun, what_to_run
from toolchain.cli.bench_outputs import Outputs, output_files, print_result


@click.command()
@click.argument("folder", type=FILE)
@what_to_run
def bundle(folder: Path, asked: WhatToRun) -> None:
    """Write FOLDER with the MODELs and a runner, to copy to a device that has no ssh.

    What is compared with what is decided as by `toolchain bench`. `toolchain bench merge` reads the result.
    """
    with asked.plan() as (plan, notes):
        importlib.import_module("toolchain.bench.devices.bundle").write_bundle(folder, plan)
    for note in notes:
        click.echo(note)
    click.echo(f"Written: {folder}. Copy it to the device and run there: python3 runner.py job.json > result.json")
    click.echo(f"Next: bring result.json back into it, then: toolchain bench merge {folder}")


@click.command()
@click.argument("folder", type=FILE)
@output_files
def merge(folder: Path, outputs: Outputs) -> None:
    """Print what a device measured with FOLDER, which `toolchain bench bundle` wrote."""
    result = importlib.import_module("toolchain.bench.devices.bundle").read_bundle(folder)
    click.echo(f"measured on {result.machine['cpu_model'] or result.machine['machine']}")
    print_result(result)
    outputs.write(result)
