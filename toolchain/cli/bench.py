"""`toolchain bench`: measure models in ONNX Runtime against a baseline."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

FILE = click.Path(path_type=Path)


def whole_numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Read a comma-separated list of whole numbers, each at least 1; repetitions are dropped."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers such as 1,35.", ctx, param) from error
    if min(numbers) < 1:
        raise click.BadParameter(f"{min(numbers)} is out of range; expected at least 1.", ctx, param)
    return numbers


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...", type=FILE)
@click.option("--baseline", type=FILE, help="What the speedup is over.  [default: see below]")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Where: cpu, ssh://user@host, a profile, qemu:PROFILE, arm; see `toolchain devices`.",
)
@click.option(
    "--steps",
    default="1,35",
    show_default=True,
    metavar="N[,N…]",
    callback=whole_numbers,
    help="Sequence lengths.",
)
@click.option(
    "--batch",
    default="1",
    show_default=True,
    metavar="N[,N…]",
    callback=whole_numbers,
    help="Sequences at once.",
)
@click.option(
    "--threads",
    default="1",
    show_default=True,
    metavar="N[,N…]",
    callback=whole_numbers,
    help="Threads per model.",
)
@click.option(
    "--processes", default=8, show_default=True, type=click.IntRange(2, 1000), help="Fresh processes per row."
)
@click.option(
    "--seconds", default=4.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Time per row, about."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of inputs and order.")
@click.option("--json", "json_path", type=FILE, help="Write rows, raw samples and machine to this file.")
@click.option("--csv", "csv_path", type=FILE, help="Write rows to this file.")
def bench(
    models: tuple[Path, ...],
    baseline: Path | None,
    device: str,
    steps: tuple[int, ...],
    batch: tuple[int, ...],
    threads: tuple[int, ...],
    processes: int,
    seconds: float,
    seed: int,
    json_path: Path | None,
    csv_path: Path | None,
) -> None:
    """Measure MODELs in ONNX Runtime, in turns, against a baseline.

    Without MODEL: model.shrunk.onnx against model.onnx, both in this folder. Without --baseline,
    x.shrunk.onnx is compared with x.onnx beside it if there is one, else everything with the first MODEL.

    Dynamic axes take their length from --steps and --batch; a length that the file fixes stays as it is. With
    one step, the state that a model declares as carried is fed back from call to call.
    """
    compare = importlib.import_module("toolchain.bench.compare")
    plans = importlib.import_module("toolchain.bench.plan")
    report = importlib.import_module("toolchain.bench.report")
    table = importlib.import_module("toolchain.bench.table")
    naming = importlib.import_module("toolchain.bench.devices.naming")
    where = naming.resolve_device(device)
    if where.note is not None:
        click.echo(where.note)
    for path in (json_path, csv_path):
        if path is not None:
            report.check_writable(path)
    plan = compare.plan_comparison(
        models,
        baseline=baseline,
        device=device,
        steps=steps,
        batches=batch,
        threads=threads,
        effort=plans.Effort(processes=processes, seconds=seconds, seed=seed),
    )
    if where.method == "measured":
        warn_about_cpus(max(threads))
    with progress_bar() as progress:
        result = compare.run_comparison(plan, progress)
    from rich.console import Console

    if where.method in ("emulated", "estimated"):
        showing = importlib.import_module("toolchain.bench.devices.showing")
        showing.print_unmeasured(Console(), result.machine, result.rows)
    else:
        table.print_report(Console(), result.rows)
    if json_path is not None:
        report.write_json(json_path, result.machine, result.rows)
    if csv_path is not None:
        report.write_csv(csv_path, result.rows)


def warn_about_cpus(threads: int) -> None:
    """Warn when the threads, or the programs that already run, need more CPUs than there are."""
    runner = importlib.import_module("toolchain.bench.runner")
    cpus = len(runner.allowed_cpus())
    if threads > cpus:
        click.echo(f"warning: {threads} threads on {cpus} CPUs wait for each other. Use --threads {cpus}.", err=True)
    busy = importlib.import_module("toolchain.bench.busy").busy_cpus()
    if busy is not None and busy > cpus - max(threads, 0.5):
        click.echo(
            f"warning: {busy:.1f} CPUs of {cpus} are busy with other programs. Intervals will be wide; close them, or "
            "wait.",
            err=True,
        )


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """Show progress on stderr. It is drawn between replicates only, so as not to disturb the measurement."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("measuring"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    shown = console.is_terminal
    with Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not shown) as bar:
        task = bar.add_task("")

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what, refresh=True)

        yield progress
