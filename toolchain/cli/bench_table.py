"""`toolchain bench table`: a latency table of this machine's recurrent kernels."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from toolchain.cli.bench_options import FILE, whole_numbers, words
from toolchain.cli.measuring import progress_bar
from toolchain.files import write_text


@click.command()
@click.option("-o", "--output", type=FILE, help="File to write.  [default: in the user's cache folder]")
@click.option("--ops", default="LSTM,GRU,RNN", show_default=True, callback=words, help="Recurrent operators.")
@click.option("--dtypes", default="float32,int8", show_default=True, callback=words,
              help="Of the weights; int8 takes LSTM and matrices.")  # fmt: skip
@click.option("--directions", default="1,2", show_default=True, callback=whole_numbers, help="1, 2 or both.")
@click.option("--input", "inputs", default="16,64,256,512,1024,1536", show_default=True, callback=whole_numbers,
              help="Input sizes; rows of matrices.")  # fmt: skip
@click.option("--hidden", default="16,32,64,128,256,384,512,768,1024,1536", show_default=True,
              callback=whole_numbers, help="Hidden sizes.")  # fmt: skip
@click.option("--output-size", "columns", default="16,128,1024,4096,10240", show_default=True,
              callback=whole_numbers, help="Columns of matrices.")  # fmt: skip
@click.option("--batch", default="1,4,16", show_default=True, callback=whole_numbers, help="Sequences at once.")
@click.option("--steps", default="1,10,100", show_default=True, callback=whole_numbers, help="Sequence lengths.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads per model.")
@click.option("--processes", default=3, show_default=True, type=click.IntRange(1, 100), help="Fresh processes.")
@click.option("--validate", default=12, show_default=True, type=click.IntRange(0, 1000),
              help="Random models on which the table is checked.")  # fmt: skip
@click.option("--only-validate", is_flag=True, help="Check the table that is there; measure no kernels.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of weights, order, models.")
def table(
    output: Path | None,
    ops: tuple[str, ...],
    dtypes: tuple[str, ...],
    directions: tuple[int, ...],
    inputs: tuple[int, ...],
    hidden: tuple[int, ...],
    columns: tuple[int, ...],
    batch: tuple[int, ...],
    steps: tuple[int, ...],
    threads: int,
    processes: int,
    validate: int,
    only_validate: bool,
    seed: int,
) -> None:
    """Measure ONNX Runtime's recurrent kernels and matrices; write a table that predicts the latency of models.

    The whole grid takes about 10 minutes per process. Then random models that are not in the table are measured, and
    the errors of the table's predictions are printed and kept with it.
    """
    measurement = importlib.import_module("toolchain.bench.latency_measurement")
    tables = importlib.import_module("toolchain.bench.latency_table")
    report = importlib.import_module("toolchain.bench.report")
    _check(ops, dtypes, directions)
    path = output or importlib.import_module("toolchain.bench.cache").latency_table_path(threads)
    if output is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    report.check_writable(path)
    if only_validate:
        found = tables.LatencyTable.load(path)
    else:
        axes = measurement.Axes(op_types=ops, dtypes=dtypes, directions=directions, input_sizes=inputs,
                                hidden_sizes=hidden, columns=columns, batches=batch, steps=steps,
                                rows=measurement.rows_for(batch, steps))  # fmt: skip
        with progress_bar("kernels") as progress:
            found = measurement.measure_table(axes, threads=threads, processes=processes, seed=seed, progress=progress)
        write_text(path, found.to_csv())
    if validate:
        with progress_bar("models") as progress:
            checks = measurement.check_table(found, models=validate, seed=seed + 1, progress=progress)
        found = measurement.with_checks(found, checks)
        write_text(path, found.to_csv())
        _print_checks(checks, found.metadata["validation"])
    click.echo(f"Written: {path} ({len(found.points)} points)")


def _check(ops: tuple[str, ...], dtypes: tuple[str, ...], directions: tuple[int, ...]) -> None:
    for option, given, known in (
        ("--ops", ops, {"LSTM", "GRU", "RNN"}),
        ("--dtypes", dtypes, {"float32", "int8"}),
        ("--directions", directions, {1, 2}),
    ):
        if not given or set(given) - known:
            raise click.UsageError(f"{option}: expected a list of {', '.join(map(str, sorted(known)))}.")
    if "float32" not in dtypes:
        raise click.UsageError("--dtypes: float32 must be among them, because the check needs it.")


def _print_checks(checks: tuple[Any, ...], validation: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    found = Table(box=None, pad_edge=False, title="models that are not in the table", title_justify="left")
    for heading in ("model", "batch x steps", "measured ms", "predicted ms", "error"):
        found.add_column(heading, justify="left" if heading == "model" else "right")
    for check in checks:
        found.add_row(check.model, f"{check.batch} x {check.steps}", f"{check.measured_s * 1e3:.3g}",
                      f"{check.predicted_s * 1e3:.3g}", f"{check.error:+.0%}")  # fmt: skip
    Console().print(found)
    click.echo(
        f"Error of the predictions: median {validation['median_error']:.1%}, worst {validation['worst_error']:.1%} "
        f"({len(checks)} models)."
    )
