"""`toolchain shrink`: the command line of `toolchain.shrinking`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolchain.cli.family import shrink_family
from toolchain.cli.json_file import check_json, write_json
from toolchain.cli.prune_options import PruneOptions, curve_lines, distilled_line, prune_options, report_lines
from toolchain.cli.smaller import make_smaller, smaller_json, smaller_lines
from toolchain.errors import ToolchainError
from toolchain.memory import keep_freed_memory

if TYPE_CHECKING:
    from toolchain.cli.smaller import Smaller
    from toolchain.shrink_result import ShrinkResult

NOTHING_TO_SHRINK = 3
_WIDTH = 80  # the table is made for a terminal of this many columns where the output is not one


def _state_pairs(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> object:
    """Turn `--carried` into None, "auto" or a list of pairs."""
    if not values:
        return None
    if "auto" in values:
        if len(values) > 1:
            raise click.BadParameter("'auto' takes every pair; name pairs or say auto, not both")
        return "auto"
    pairs = [value.split("=", 1) for value in values]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise click.BadParameter("expected auto, or IN=OUT with the names of a graph input and a graph output")
    return [tuple(pair) for pair in pairs]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write [beside MODEL: *.shrunk.onnx].")
@click.option("--dry-run", is_flag=True, help="Decide and print; write no model.")
@click.option("--carried", multiple=True, callback=_state_pairs, metavar="auto|IN=OUT",
              help="State that the caller feeds back [what the model's metadata declares].")  # fmt: skip
@click.option("--compact-state", is_flag=True, help="Let the carried state's own shapes shrink too.")
@click.option("--masked", type=click.Path(path_type=Path), help="Also write the model just before the cut.")
@click.option("--explain", is_flag=True, help="Say why each recurrent node keeps what it keeps.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result as JSON.")
@prune_options
@click.option("--int8", is_flag=True, help="Then quantize: LSTM, matrices and tables as 8-bit integers.")
@click.option("--ort", is_flag=True, help="Then also write ONNX Runtime's own format.")
def shrink(
    model: Path,
    output: Path | None,
    dry_run: bool,
    carried: object,
    compact_state: bool,
    masked: Path | None,
    explain: bool,
    json_file: Path | None,
    int8: bool,
    ort: bool,
    **pruning_options: Any,
) -> None:
    """Rewrite the ONNX model MODEL with smaller recurrent tensors.

    Hidden units and inputs that no output can depend on are cut out of every LSTM, GRU and RNN. The new model is run
    against the old one before it is written; the old one is never changed.

    With a target (--ratio, --keep-macs, ...) living units are given up as well, those that cost the outputs least.

    Exit status: 0 written, 1 an error, 2 wrong usage, 3 nothing to remove.
    """
    from rich.console import Console

    from toolchain import shrinking
    from toolchain.shrink_result import SCHEMA

    check_json(json_file, model, output or shrinking.default_output(model), masked)
    messages = Console(stderr=True)
    options = PruneOptions(**pruning_options)
    pruning = options.pruning(int8=int8)
    quantising = partial(make_smaller, int8=int8, ort=ort, calibration=options.calibration)
    if pruning is not None:
        keep_freed_memory()
    if pruning is not None and options.family:
        _refuse_beside_family(("--masked", masked), ("--explain", explain))
        shrink_family(model, options.family, pruning, output, carried=carried, compact_state=compact_state,
                      dry_run=dry_run, json_file=json_file, html=options.html, make_smaller=quantising)  # fmt: skip
        return
    try:
        with messages.status("reading") as status:
            result = shrinking.shrink(model, output, carried=carried, compact_state=compact_state,  # type: ignore[arg-type]
                                      dry_run=dry_run, masked=masked, explained=explain, pruning=pruning,
                                      progress=status.update)  # fmt: skip
    except ToolchainError as error:
        write_json(json_file, {"schema": SCHEMA, "status": "error", "message": str(error)})
        raise
    smaller = quantising(result) if not dry_run else (None, None)
    write_json(json_file, {**result.to_json(), **smaller_json(smaller)})
    again = [*options.flags(), *(["--int8"] if int8 else []), *(["--ort"] if ort else [])]
    _print(result, _again(model, output, carried, compact_state, masked, again), smaller)
    if result.status == "nothing_to_remove" and smaller == (None, None):
        sys.exit(NOTHING_TO_SHRINK)


def _refuse_beside_family(*options: tuple[str, object]) -> None:
    given = [name for name, value in options if value]
    if given:
        raise click.UsageError(
            f"{' and '.join(given)}: is about one model, --family writes several; expected one of the two. Use --ratio."
        )


def _again(
    model: Path, output: Path | None, carried: object, compact_state: bool, masked: Path | None, others: list[str]
) -> str:
    """Return the command that does what a dry run showed."""
    pairs = ["auto"] if carried == "auto" else [f"{one}={other}" for one, other in carried or ()]  # type: ignore[attr-defined]
    options = [*(f"--carried {pair}" for pair in pairs), *(["--compact-state"] if compact_state else [])]
    options += [f"{option} {path}" for option, path in (("-o", output), ("--masked", masked)) if path is not None]
    return " ".join(["toolchain shrink", str(model), *options, *others])


def _print(result: ShrinkResult, again: str, smaller: Smaller) -> None:
    """Print the table, the costs, the explanations, the outcome and the next step."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, _WIDTH)
    table = Table(title=f"{result.source.name}", title_justify="left")
    for column, justify in (("node", "left"), ("input", "right"), ("hidden", "right"), ("kept by", "left")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for node in result.nodes:
        directions = " x 2" if node.num_directions == 2 else ""
        table.add_row(f"{node.op_type} {node.name}", _change(node.input_before, node.input_after),
                      _change(node.hidden_before, node.hidden_after) + directions,
                      "\n".join(f"{b.op_type} {b.node}: {b.reason}" for b in node.blocked_by[:3]))  # fmt: skip
    if result.nodes:
        console.print(table)
    before, after = result.before, result.after
    for name, one, other in (("parameters", before.parameters, after.parameters),
                             ("multiply-adds per step", before.multiply_adds, after.multiply_adds)):  # fmt: skip
        console.print(f"{name:<24}{one:>14,} -> {other:>14,}  {_percent(one, other)}", highlight=False)
    if result.status == "written":
        console.print(f"{'bytes':<24}{before.bytes:>14,} -> {after.bytes:>14,}  {_percent(before.bytes, after.bytes)}",
                      highlight=False)  # fmt: skip
    distilled = [distilled_line(result.distilled)] if result.distilled is not None else []
    for line in (
        *_explanations(result),
        *_pruned(result),
        _outcome(result),
        *distilled,
        *smaller_lines(*smaller),
        *_advice(result, again, smaller),
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _change(before: int, after: int) -> str:
    return f"{before}" if before == after else f"{before} -> {after}"


def _percent(before: int, after: int) -> str:
    return f"({after / before:.1%})" if before else ""


def _outcome(result: ShrinkResult) -> str:
    if result.parity is not None:
        return (f"Proven equal in ONNX Runtime at {len(result.parity.cases)} input shapes: largest difference "
                f"{result.parity.max_abs_diff:.2g} ({result.parity.max_rel_diff:.2g} of the output's size)"
                f"{_rounded(result.parity.rounded)}{_amplified(result.parity.amplified)}.\n"
                f"Written: {result.output}")  # fmt: skip
    if result.status == "dry_run":
        return "Dry run: nothing was written."
    if not result.nodes:
        return "Nothing to remove: the graph has no LSTM, GRU or RNN node."
    if any(node.blocked_by for node in result.nodes):
        explain = "" if result.explanations else f" (more: toolchain shrink {result.source} --dry-run --explain)"
        return f"Nothing to remove: every unit is read, or kept by what is named above{explain}."
    return ("Nothing to remove: every unit is read. Zeros decide: train with gates (`toolchain train`), or zero the "
            "weights that read a unit.")  # fmt: skip


def _rounded(share: float | None) -> str:
    """Say how far a quantized graph is moved by roundings that fall the other way."""
    return "" if share is None else f" without the graph's int8 roundings, {share:.2g} with them"


def _amplified(share: float | None) -> str:
    """Say why a larger difference than usual counts as equal."""
    return "" if share is None else f"; the last bits of its weights alone move the original by {share:.2g}"


def _explanations(result: ShrinkResult) -> list[str]:
    """Return a paragraph for each recurrent node."""
    lines = []
    for node in result.explanations:
        live = " + ".join(map(str, node.live))
        lines.append(f"{node.op_type} {node.name}: {live} of {node.hidden_size} units are live, {node.kept} stay"
                     f"{' in each direction' if len(node.live) > 1 else ''}")  # fmt: skip
        coupled = [f"{coupling.part} {coupling.name}" if coupling.part.startswith("graph")
                   else f"the {coupling.part} of {coupling.name}" for coupling in node.coupled_with]  # fmt: skip
        lines.append(f"  coupled with: {', '.join(coupled) or 'nothing'}")
        lines += [f"  blocked by {blocker.op_type} {blocker.node}: {blocker.reason}; {_price(blocker.would_free)}"
                  for blocker in node.blocked_by] or ["  blocked by: nothing"]  # fmt: skip
        if len(node.blocked_by) > 1:
            lines.append(f"  without all of them {_price(node.would_free_together)}")
    return lines


def _pruned(result: ShrinkResult) -> list[str]:
    if result.pruned is None:
        return []
    return [*report_lines(result.pruned), *(curve_lines(result.pruned) if result.explanations else [])]


def _price(units: int | None) -> str:
    if units is None:
        return "how many units would go without it is not known"
    return f"{units} more {'unit' if units == 1 else 'units'} would go"


def _advice(result: ShrinkResult, again: str, smaller: Smaller) -> list[str]:
    from toolchain.graph.unrolled import REMEDY

    lines = [f"Left whole: {recurrence}. {REMEDY}." for recurrence in result.unrolled]
    if result.undeclared_units:
        pairs = " ".join(f"--carried {state_in}={state_out}" for state_in, state_out in result.undeclared)
        lines.append(f"{result.undeclared_units} more units would go if the caller feeds the state back: say "
                     f"`--carried auto` ({pairs}).")  # fmt: skip
    if result.not_simplified:
        lines.append(f"onnxsim could not simplify the graph ({result.not_simplified}); it was used as it is.")
    quantised = smaller[0].output if smaller[0] is not None else None
    if result.status == "written" or quantised is not None:
        default = quantised is None and (result.source.name, str(result.output)) == ("model.onnx", "model.shrunk.onnx")
        written = " ".join(str(path) for path in (result.output, quantised) if path is not None)
        models = "" if default else f" {written} --baseline {result.source}"
        lines.append(f"Next: toolchain bench{models} --device cpu")
    elif result.status == "dry_run":
        lines.append(f"Next: {again}")
    return lines
