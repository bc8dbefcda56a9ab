"""`toolchain inspect`: the command line of `toolchain.inspection`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolchain.cli.json_file import check_json, write_json
from toolchain.errors import ToolchainError

if TYPE_CHECKING:
    from rich.console import Console

    from toolchain.inspection import Inspection, Port

_WIDTH = 100  # the table is made for a terminal of this many columns where the output is not one


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result as JSON.")
def inspect(model: Path, json_file: Path | None) -> None:
    """Say what is recurrent in the ONNX model MODEL, what it costs, and what is wrong with it.

    Nothing is run and nothing is changed. Exit status: 0 inspected, whatever was found; 1 an error; 2 wrong usage.
    """
    from rich.console import Console

    from toolchain import inspection

    check_json(json_file, model)
    try:
        found = inspection.inspect(model)
    except ToolchainError as error:
        write_json(json_file, {"schema": inspection.SCHEMA, "message": str(error)})
        raise
    write_json(json_file, found.to_json())
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for line in _lines(found):
        console.print(line)
    if found.recurrent:
        _print_nodes(found)
    for line in (*_state(found), *_diagnosis(found), f"Next: {_next(found)}"):
        console.print(line)


def _lines(found: Inspection) -> list[str]:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in found.opsets)
    return [
        f"{found.path}  {found.bytes:,} bytes",
        f"producer   {found.producer or 'not named'}",
        f"opset      {opsets}",
        *_ports("input", found.inputs),
        *_ports("output", found.outputs),
        f"nodes      {found.nodes:,}, of which recurrent: {len(found.recurrent)}",
        f"costs      {found.parameters:,} parameters, {found.multiply_adds:,} multiply-adds per step",
    ]


def _ports(kind: str, ports: Sequence[Port]) -> list[str]:
    shapes = [", ".join("?" if length is None else str(length) for length in port.shape) for port in ports]
    return [f"{kind:<10} {port.name} [{shape}] {port.dtype}" for port, shape in zip(ports, shapes, strict=True)]


def _print_nodes(found: Inspection) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in ("recurrent node", "direction", "input", "hidden", "parameters", "multiply-adds"):
        table.add_column(column, justify="left" if column in ("recurrent node", "direction") else "right",
                         overflow="fold")  # fmt: skip
    for node in found.recurrent:
        place = f"\n  in {node.inside[-1]}" if node.inside else ""
        table.add_row(Text(f"{node.op_type} {node.name}{place}"), node.direction, _number(node.input_size),
                      _number(node.hidden_size), _share(node.parameters, found.parameters),
                      _share(node.multiply_adds, found.multiply_adds))  # fmt: skip
    console: Console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(table)


def _number(size: int | None) -> str:
    return "?" if size is None else str(size)


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.0%})" if whole else f"{part:,}"


def _state(found: Inspection) -> list[str]:
    lines = []
    if found.declared_state:
        lines.append(f"Carried state, declared in the metadata: {_pairs(found.declared_state)}")
    if found.visible_state:
        lines.append(f"Carried state, visible but not declared: {_pairs(found.visible_state)}. If the caller feeds it "
                     "back, say --carried auto to shrink.")  # fmt: skip
    return lines


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{state_in} <- {state_out}" for state_in, state_out in pairs)


def _diagnosis(found: Inspection) -> list[str]:
    if not found.recurrent and not found.ills:
        return ["Diagnosis: no recurrence was found."]
    if not found.ills:
        return ["Diagnosis: fine; none of the known ills."]
    return ["Diagnosis:", *(f"  {ill.severity:<8} {ill}" for ill in found.ills)]


def _next(found: Inspection) -> str:
    if any(ill.severity == "error" for ill in found.ills):
        return "correct the errors, then inspect the new file."
    if any(node.op_type != "DynamicQuantizeLSTM" for node in found.recurrent):
        carried = " --carried auto" if found.visible_state else ""
        return f"toolchain shrink {found.path} --dry-run --explain{carried}"
    if found.recurrent:
        return "toolchain shrink, on the float model that this one was quantized from."
    if any(ill.kind == "unrolled" for ill in found.ills):
        return "export the recurrence as one node, then inspect the new file."
    return "nothing; this toolchain makes recurrent models smaller, and this is none."
