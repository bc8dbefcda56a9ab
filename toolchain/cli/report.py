"""`toolchain report`: training runs and bench results as one HTML page."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from toolchain.files import write_text


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="RUN_OR_JSON...", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True,
              help="File to write.")  # fmt: skip
def report(sources: tuple[Path, ...], output: Path) -> None:
    """Write training runs (folders) and results of `toolchain bench --json` (files) as one self-contained HTML page.

    A run shows neurons kept and perplexity, or a reader's scores, over epochs, also while it trains; a result shows
    what `toolchain bench --html` shows.
    """
    reports = importlib.import_module("toolchain.bench.report")
    reports.check_writable(output)
    results, runs = [], []
    for source in sources:
        if source.is_dir():
            runs.append(importlib.import_module("toolchain.bench.run_charts").read_run(source))
        else:
            stored = importlib.import_module("toolchain.bench.stored").read_result_file(source)
            results.append(stored.content)
    page = importlib.import_module("toolchain.bench.page").render(results=results, runs=runs)
    write_text(output, page)
    click.echo(f"Written: {output}. Open it in a browser; it needs no network.")
