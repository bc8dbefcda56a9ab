"""A result as Markdown: for a pull request, an issue, a README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .cells import Cells, latency_cells, model_cells
from .charts import shape_of
from .devices.naming import MEASURED
from .devices.showing import headline, unmeasured_cells, unmeasured_notes, unmeasured_warnings
from .report import Row
from .table import verdict


def render(machine: dict[str, Any], rows: Sequence[Row]) -> str:
    """Return one table per shape, what follows from them, and where that was."""
    parts = _measured(machine, rows) if rows[0]["method"] in MEASURED else _unmeasured(machine, rows)
    return "\n\n".join(parts) + "\n"


def _measured(machine: dict[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    for cells in latency_cells(rows, shape_of):
        yield f"**{cells.title}**\n\n{_table(cells)}"
    yield _table(model_cells(rows))
    yield "\n".join(f"{line}  " for line in verdict(rows).splitlines())
    yield (
        f"{machine.get('cpu_model') or 'unknown CPU'}, {machine.get('cpus')} CPUs, {machine.get('os')}, "
        f"ONNX Runtime {machine.get('onnxruntime')}."
    )


def _unmeasured(machine: dict[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    yield headline(machine, rows)
    for cells in unmeasured_cells(rows, shape_of):
        yield f"**{cells.title}**\n\n{_table(cells)}"
    yield from unmeasured_notes(machine, rows)
    yield from (f"Warning: {warning}" for warning in unmeasured_warnings(rows))


def _table(cells: Cells) -> str:
    rule = ["---", *("---:" for _ in cells.columns[1:])]
    lines = (cells.columns, rule, *cells.rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
