"""`toolchain shrink --family`: several models from one analysis, and their table."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.cli.json_file import write_json
from toolchain.cli.prune_options import warning_lines
from toolchain.cli.smaller import smaller_json, smaller_lines
from toolchain.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from toolchain.cli.smaller import Smaller
    from toolchain.oneshot.pruning import Pruning
    from toolchain.shrink_result import ShrinkResult

WIDTH = 80  # the table is made for a terminal of this many columns where the output is not one


def shrink_family(
    model: Path,
    ratios: tuple[float, ...],
    pruning: Pruning,
    output: Path | None,
    *,
    carried: object,
    compact_state: bool,
    dry_run: bool,
    json_file: Path | None,
    html: Path | None,
    make_smaller: Callable[[ShrinkResult], Smaller],
) -> None:
    """Write the members of a family, each with what `make_smaller` makes of it, a table, and the next step."""
    from rich.console import Console

    from toolchain import family
    from toolchain.shrink_result import SCHEMA

    with Console(stderr=True).status("reading") as status:
        results = family.shrink_family(model, ratios, pruning, output, carried=carried, compact_state=compact_state,  # type: ignore[arg-type]
                                dry_run=dry_run, progress=status.update)  # fmt: skip
    smaller = [(None, None) if dry_run else make_smaller(result) for result in results]
    members = [{**result.to_json(), **smaller_json(made)} for result, made in zip(results, smaller, strict=True)]
    write_json(json_file, {"schema": SCHEMA, "family": members})
    if html is not None:
        write_text(html, importlib.import_module("toolchain.bench.page").render(families=[members]))
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(family_table(results))
    warnings = warning_lines(results[0].pruned) if results[0].pruned is not None else []
    for line in (*warnings, *(line for made in smaller for line in smaller_lines(*made))):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    written = [str(each.output) for result, (int8, _) in zip(results, smaller, strict=True) for each in (result, int8)
               if each is not None and each.output is not None]  # fmt: skip
    if written:
        console.print(f"Next: toolchain bench {' '.join(written)} --baseline {model} --device cpu", highlight=False,
                      soft_wrap=True)  # fmt: skip


def family_table(results: Sequence[ShrinkResult]) -> Table:
    """Return one row for each member of a family."""
    from rich.table import Table

    table = Table(title=results[0].source.name, title_justify="left")
    for column in ("model", "units", "parameters", "multiply-adds", "bytes", "error"):
        table.add_column(column, justify="left" if column == "model" else "right", overflow="fold")
    units = sum(node.hidden_before * node.num_directions for node in results[0].nodes)
    before = results[0].before
    table.add_row(results[0].source.name, f"{units:,}", f"{before.parameters:,}", f"{before.multiply_adds:,}",
                  f"{before.bytes:,}", "")  # fmt: skip
    for result in results:
        left = sum(node.hidden_after * node.num_directions for node in result.nodes)
        error = f"{result.pruned.error:.3g}" if result.pruned is not None else ""
        size = f"{result.after.bytes:,}" if result.status == "written" else ""
        table.add_row(result.output.name if result.output is not None else "", f"{left:,}",
                      f"{result.after.parameters:,}", f"{result.after.multiply_adds:,}", size, error)  # fmt: skip
    return table
