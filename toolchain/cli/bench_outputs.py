"""Where a bench's result goes: the terminal, and the files that were asked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolchain.cli.bench_options import FILE, Command, with_options
from toolchain.files import write_text

if TYPE_CHECKING:
    from toolchain.bench.bench_result import BenchResult

FILES = (
    click.option("--json", type=FILE, help="Write rows, raw samples and machine to this file."),
    click.option("--csv", type=FILE, help="Write rows to this file."),
    click.option("--markdown", type=FILE, help="Write the tables to this file."),
    click.option("--html", type=FILE, help="Write one self-contained page with charts to this file."),
)


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
            write_text(self.markdown, markdown.render(result.machine, result.rows))
        if self.html is not None:
            page = importlib.import_module("toolchain.bench.page")
            document = report.document(result.machine, result.rows, **content)
            write_text(self.html, page.render(results=[document]))


def output_files(command: Command) -> Command:
    """Give a command the options of `FILES`; it gets them as `outputs`, which can all be written."""

    def with_outputs(**values: Any) -> Any:
        outputs = Outputs(**{field.name: values.pop(field.name) for field in fields(Outputs)})
        outputs.check()
        return command(outputs=outputs, **values)

    return with_options(FILES, update_wrapper(with_outputs, command))


def print_result(result: BenchResult, notes: Sequence[str] = ()) -> None:
    """Print a result's tables in the form of its method."""
    from rich.console import Console

    naming = importlib.import_module("toolchain.bench.devices.naming")
    if result.rows[0]["method"] not in naming.MEASURED:
        showing = importlib.import_module("toolchain.bench.devices.showing")
        showing.print_unmeasured(Console(), result.machine, result.rows, notes=notes)
        return
    if result.rooflines:
        roofline = importlib.import_module("toolchain.bench.roofline")
        notes = (*notes, roofline.headline(result.rooflines))
    importlib.import_module("toolchain.bench.table").print_report(Console(), result.rows, notes=notes)
