"""`toolchain bench compare`: two stored results of the same machine."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from toolchain.cli.bench_options import FILE, ratio
from toolchain.cli.json_file import write_json


@click.command()
@click.argument("before", metavar="A.json", type=FILE)
@click.argument("after", metavar="B.json", type=FILE)
@click.option("--fail-below", metavar="0.9x", callback=ratio, help="Exit 1 if B is slower than this anywhere.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the resampling.")
@click.option("--json", "json_path", type=FILE, help="Write the comparison as JSON.")
def compare(before: Path, after: Path, fail_below: float | None, seed: int, json_path: Path | None) -> None:
    """Compare two results of `toolchain bench --json`: how much faster B is than A.

    Rows are compared where model, steps, batch, threads, device and method are equal. Results of different machines
    are refused. The two were measured at different times, so intervals are wider than within one result.
    """
    from rich.console import Console

    stored = importlib.import_module("toolchain.bench.stored")
    table = importlib.import_module("toolchain.bench.table")
    found = stored.compare_stored(stored.read_result_file(before), stored.read_result_file(after), seed=seed)
    table.print_stored(Console(), found, before.name, after.name)
    write_json(
        json_path,
        {
            "schema": stored.SCHEMA,
            "before": str(before),
            "after": str(after),
            "rows": list(found.rows),
            "only_one": list(found.only_one),
            "changed_versions": list(found.changed_versions),
        },
    )
    if fail_below is not None:
        importlib.import_module("toolchain.bench.threshold").check_speedups(found.rows, fail_below)
