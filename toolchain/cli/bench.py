"""`toolchain bench`: measure models in ONNX Runtime against a baseline."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from toolchain.bench.compare import BenchResult
    from toolchain.bench.plan import BenchPlan

FILE = click.Path(path_type=Path)
DEFAULT_STEPS, DEFAULT_BATCH = "1,35", "1"


def whole_numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Read a comma-separated list of whole numbers, each at least 1; repetitions are dropped."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers such as 1,35.", ctx, param) from error
    if min(numbers) < 1:
        raise click.BadParameter(f"{min(numbers)} is out of range; expected at least 1.", ctx, param)
    return numbers


def words(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Read a comma-separated list; repetitions are dropped."""
    return tuple(dict.fromkeys(part.strip() for part in (value or "").split(",") if part.strip()))


def share(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read `2%` or `0.02`."""
    return _positive(ctx, param, value, suffix="%", unit=0.01, example="2%")


def ratio(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read `10x` or `10`."""
    return _positive(ctx, param, value, suffix="x", unit=1.0, example="10x")


def _positive(
    ctx: click.Context, param: click.Parameter, value: str | None, *, suffix: str, unit: float, example: str
) -> float | None:
    if value is None:
        return None
    try:
        number = float(value.removesuffix(suffix)) * (unit if value.endswith(suffix) else 1.0)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a number such as {example}.", ctx, param) from error
    if not 0 < number < float("inf"):
        raise click.BadParameter(f"{value!r} is out of range; expected more than 0, such as {example}.", ctx, param)
    return number


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The files that a result is written to."""

    json: Path | None
    csv: Path | None
    markdown: Path | None
    html: Path | None

    def check(self) -> None:
        """Find out before the measurement which of them cannot be written."""
        report = importlib.import_module("toolchain.bench.report")
        for path in (self.json, self.csv, self.markdown, self.html):
            if path is not None:
                report.check_writable(path)

    def write(self, result: BenchResult) -> None:
        """Write those that were asked for."""
        report = importlib.import_module("toolchain.bench.report")
        content = {"layers": result.layers, "rooflines": result.rooflines}
        if self.json is not None:
            report.write_json(self.json, result.machine, result.rows, **content)
        if self.csv is not None:
            report.write_csv(self.csv, result.rows)
        if self.markdown is not None:
            markdown = importlib.import_module("toolchain.bench.markdown")
            report.write_text(self.markdown, markdown.render(result.machine, result.rows))
        if self.html is not None:
            page = importlib.import_module("toolchain.bench.page")
            document = report.document(result.machine, result.rows, **content)
            report.write_text(self.html, page.render(results=[document]))


@click.command(
    epilog="Also: `toolchain bench compare A.json B.json`, `toolchain bench table`; each has its own --help."
)
@click.argument("models", nargs=-1, metavar="[MODEL]...", type=FILE)
@click.option("--baseline", type=FILE, help="What the speedup is over.  [default: see below]")
@click.option("--device", default="cpu", show_default=True, help="Where to measure: `cpu` is this machine.")
@click.option("--steps", default=DEFAULT_STEPS, show_default=True, metavar="N[,N…]", callback=whole_numbers,
              help="Sequence lengths.")  # fmt: skip
@click.option("--batch", default=DEFAULT_BATCH, show_default=True, metavar="N[,N…]", callback=whole_numbers,
              help="Sequences at once.")  # fmt: skip
@click.option("--threads", default="1", show_default=True, metavar="N[,N…]", callback=whole_numbers,
              help="Threads per model.")  # fmt: skip
@click.option("--protocol", help="A published protocol instead of --steps and --batch: iss is 30 steps, 10 sequences.")
@click.option("--inputs", type=FILE, help="Real inputs: an .npz with one array per model input.")
@click.option("--variants", metavar="NAME[,NAME…]", callback=words,
              help="Make these of one MODEL and compare them: dense, shrunk, int8, shrunk-int8.")  # fmt: skip
@click.option("--runtimes", default="onnxruntime", show_default=True, metavar="NAME[,NAME…]", callback=words,
              help="What runs each model: onnxruntime, torch, torch-compile, openvino.")  # fmt: skip
@click.option(
    "--processes", default=8, show_default=True, type=click.IntRange(2, 1000), help="Fresh processes per row."
)
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(0.1, 3600),
              help="Time per row, about.")  # fmt: skip
@click.option("--precision", metavar="2%", callback=share,
              help="Go on until every speedup is known to plus or minus this.")  # fmt: skip
@click.option("--limit", default=120.0, show_default=True, type=click.FloatRange(0.1),
              help="Seconds after which --precision gives up.")  # fmt: skip
@click.option("--roofline", default="cached", show_default=True, type=click.Choice(["cached", "measure", "skip"]),
              help="Hold results against this machine's peaks, which are measured once in 3 s.")  # fmt: skip
@click.option("--fail-below", metavar="10x", callback=ratio, help="Exit 1 if any speedup is smaller.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of inputs and order.")
@click.option("--json", "json_path", type=FILE, help="Write rows, raw samples and machine to this file.")
@click.option("--csv", "csv_path", type=FILE, help="Write rows to this file.")
@click.option("--markdown", "markdown_path", type=FILE, help="Write the tables to this file.")
@click.option("--html", "html_path", type=FILE, help="Write one self-contained page with charts to this file.")
@click.pass_context
def bench(
    ctx: click.Context,
    models: tuple[Path, ...],
    baseline: Path | None,
    device: str,
    steps: tuple[int, ...],
    batch: tuple[int, ...],
    threads: tuple[int, ...],
    protocol: str | None,
    inputs: Path | None,
    variants: tuple[str, ...],
    runtimes: tuple[str, ...],
    processes: int,
    seconds: float,
    precision: float | None,
    limit: float,
    roofline: str,
    fail_below: float | None,
    seed: int,
    json_path: Path | None,
    csv_path: Path | None,
    markdown_path: Path | None,
    html_path: Path | None,
) -> None:
    """Measure MODELs in ONNX Runtime, in turns, against a baseline.

    Without MODEL: model.shrunk.onnx against model.onnx, both in this folder. Without --baseline,
    x.shrunk.onnx is compared with x.onnx beside it if there is one, else everything with the first MODEL.

    Dynamic axes take their length from --steps and --batch; a length that the file fixes stays as it is. With
    one step, the state that a model declares as carried is fed back from call to call.
    """
    _refuse_contradictions(ctx, models, baseline, variants)
    outputs = Outputs(json=json_path, csv=csv_path, markdown=markdown_path, html=html_path)
    outputs.check()
    plans = importlib.import_module("toolchain.bench.plan")
    if protocol is not None:
        published = importlib.import_module("toolchain.bench.protocols").protocol_named(protocol)
        steps, batch = (published.steps,), (published.batch,)
    effort = plans.Effort(processes=processes, seconds=seconds, seed=seed, precision=precision, limit_s=limit)
    shapes: dict[str, Any] = {"steps": steps, "batches": batch, "threads": threads, "inputs": inputs}
    asked: dict[str, Any] = {"device": device, "runtimes": runtimes, "protocol": protocol, "effort": effort}
    with _models(models, variants) as (files, names, notes):
        plan = importlib.import_module("toolchain.bench.compare").plan_comparison(
            files, baseline=baseline, names=names, **shapes, **asked
        )
        result = _measure(plan, roofline)
    _print(result, notes)
    outputs.write(result)
    if fail_below is not None:
        importlib.import_module("toolchain.bench.threshold").check_speedups(result.rows, fail_below)


def _refuse_contradictions(
    ctx: click.Context, models: Sequence[Path], baseline: Path | None, variants: Sequence[str]
) -> None:
    given = {
        name
        for name in ("steps", "batch", "protocol", "inputs")
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    for chooser in ("inputs", "protocol"):
        if chooser in given and len(given) > 1:
            other = min(given - {chooser})
            raise click.UsageError(f"--{chooser} decides steps and sequences; it cannot go with --{other}.")
    if variants and (len(models) > 1 or baseline is not None):
        raise click.UsageError("--variants are made of one MODEL and compared with the first of them.")


@contextmanager
def _models(
    models: tuple[Path, ...], variants: tuple[str, ...]
) -> Iterator[tuple[tuple[Path, ...], dict[Path, str], tuple[str, ...]]]:
    """Yield the files to measure, their names, and notes on them; variants live until the measurement ends."""
    if not variants:
        yield models, {}, ()
        return
    plans = importlib.import_module("toolchain.bench.plan")
    make = importlib.import_module("toolchain.bench.variants").make_variants
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        made = make(models[0] if models else plans.DEFAULT_BASELINE, variants, Path(folder))
        names = {variant.path: variant.name for variant in made}
        yield tuple(names), names, tuple(note for variant in made for note in variant.notes)


def _measure(plan: BenchPlan, rooflines: str) -> BenchResult:
    warn_about_cpus(max(case.threads for case in plan.cases))
    compare = importlib.import_module("toolchain.bench.compare")
    with progress_bar("measuring") as progress:
        result: BenchResult = compare.run_comparison(plan, progress, rooflines=rooflines)
    return result


def _print(result: BenchResult, notes: Sequence[str]) -> None:
    from rich.console import Console

    table = importlib.import_module("toolchain.bench.table")
    roofline = importlib.import_module("toolchain.bench.roofline")
    if result.rooflines:
        notes = (*notes, roofline.headline(result.rooflines))
    table.print_report(Console(), result.rows, notes=notes)


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
def progress_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show progress on stderr. It is drawn between replicates only, so as not to disturb the measurement."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(title), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    shown = console.is_terminal
    with Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not shown) as bar:
        task = bar.add_task("")

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what, refresh=True)

        yield progress
