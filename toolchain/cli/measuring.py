"""What every command that measures shows: a warning when the processors are busy, and its progress."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


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
