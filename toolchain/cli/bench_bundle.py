"""`toolchain bench bundle` and `bench merge`: measure on a device that has no ssh."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from toolchain.cli.bench_options import FILE, model_files, refuse_contradictions, shapes_asked, what_to_run
from toolchain.cli.bench_outputs import Outputs, output_files, print_result


@click.command()
@click.argument("folder", type=FILE)
@what_to_run
@click.pass_context
def bundle(
    ctx: click.Context,
    folder: Path,
    models: tuple[Path, ...],
    baseline: Path | None,
    steps: tuple[int, ...],
    batch: tuple[int, ...],
    threads: tuple[int, ...],
    protocol: str | None,
    inputs: Path | None,
    variants: tuple[str, ...],
    processes: int,
    seconds: float,
    seed: int,
) -> None:
    """Write FOLDER with the MODELs and a runner, to copy to a device that has no ssh.

    What is compared with what is decided as by `toolchain bench`. `toolchain bench merge` reads the result.
    """
    refuse_contradictions(ctx, models, baseline, variants)
    steps, batch = shapes_asked(protocol, steps, batch)
    effort = importlib.import_module("toolchain.bench.plan").Effort(processes=processes, seconds=seconds, seed=seed)
    with model_files(models, variants) as (files, names, notes):
        plan = importlib.import_module("toolchain.bench.compare").plan_comparison(
            files,
            baseline=baseline,
            device="cpu",
            steps=steps,
            batches=batch,
            threads=threads,
            effort=effort,
            names=names,
            inputs=inputs,
            protocol=protocol,
        )
        importlib.import_module("toolchain.bench.devices.bundle").write_bundle(folder, plan)
    for note in notes:
        click.echo(note)
    click.echo(f"Written: {folder}. Copy it to the device and run there: python3 runner.py job.json > result.json")
    click.echo(f"Next: bring result.json back into it, then: toolchain bench merge {folder}")


@click.command()
@click.argument("folder", type=FILE)
@output_files
def merge(
    folder: Path, json_path: Path | None, csv_path: Path | None, markdown_path: Path | None, html_path: Path | None
) -> None:
    """Print what a device measured with FOLDER, which `toolchain bench bundle` wrote."""
    outputs = Outputs(json=json_path, csv=csv_path, markdown=markdown_path, html=html_path)
    outputs.check()
    result = importlib.import_module("toolchain.bench.devices.bundle").read_bundle(folder)
    click.echo(f"measured on {result.machine['cpu_model'] or result.machine['machine']}")
    print_result(result)
    outputs.write(result)
