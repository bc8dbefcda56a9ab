"""Make what a table compares: a trained model's shrunk file and its 8-bit copy, each with what it costs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import click

from toolchain.graph.surgery import NodeChange
from toolchain.recurrent import GATES

from .result_file import Row

SIZES = ("input_sizes", "hidden_sizes", "parameters", "multiply_adds", "recurrent_multiply_adds", "bytes")


def shrunk_files(name: str, source: Path, folder: Path, *, int8: bool) -> Iterator[tuple[Path, Row]]:
    """Yield `NAME.onnx`, proven equal to the source, and `NAME.int8.onnx`, each with `weights` and `SIZES`.

    Multiply-adds are those of one step of every node. A model that has no 8-bit copy is named on stderr.
    """
    from toolchain.quantisation import quantise
    from toolchain.shrinking import shrink

    file = folder / f"{name}.onnx"
    result = shrink(source, file)
    if result.status == "nothing_to_remove":
        shutil.copyfile(source, file)
    sizes = {
        "input_sizes": "+".join(str(node.input_after) for node in result.nodes),
        "hidden_sizes": "+".join(str(node.hidden_after) for node in result.nodes),
        "parameters": result.after.parameters,
        "multiply_adds": result.after.multiply_adds,
        "recurrent_multiply_adds": sum(_recurrent_multiply_adds(node) for node in result.nodes),
    }
    yield file, {"weights": "fp32", **sizes, "bytes": file.stat().st_size}
    if not int8:
        return
    target = folder / f"{name}.int8.onnx"
    if quantise(file, target, threads=1).output is None:
        click.echo(f"{name}: nothing in it can be quantized, so it has no int8 row.", err=True)
        return
    yield target, {"weights": "int8", **sizes, "bytes": target.stat().st_size}


def _recurrent_multiply_adds(node: NodeChange) -> int:
    gates = len(GATES[node.op_type])
    return gates * node.num_directions * node.hidden_after * (node.input_after + node.hidden_after)
