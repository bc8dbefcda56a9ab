"""Carried state: which outputs a streaming caller feeds back into which inputs.

The graph cannot tell a stream's state from an encoder's result that somebody else reads, so the pairs are declared: in
the model's metadata (our exporter writes them), by name, or by asking for all that the graph shows (`find_state`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from toolchain.graph.program import StatePair
from toolchain.graph.subgraphs import owners
from toolchain.recurrent import GATES, OUTPUTS, slot

_MOVES = frozenset({"Cast", "Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze",
                    "Transpose", "Unsqueeze"})  # fmt: skip


def find_state(graph: ir.Graph) -> tuple[StatePair, ...]:
    """Return every input that starts a recurrent node's state and is continued by an output of the same node."""
    found: dict[StatePair, None] = {}  # a set that keeps the graph's order
    owner = owners(graph)
    for node in graph.all_nodes():
        if node.op_type not in GATES:
            continue
        for name, output in (("initial_h", "Y_h"), ("initial_c", "Y_c")):
            index, place = slot(name), OUTPUTS.index(output)
            if index >= len(node.inputs) or place >= len(node.outputs):
                continue
            sources = [value for value in set(_backwards(node.inputs[index], owner)) if value in graph.inputs]
            targets = [value for value in set(_forwards(node.outputs[place], owner)) if value in graph.outputs]
            if len(sources) == len(targets) == 1 and _same_shape(sources[0], targets[0]):
                found[str(sources[0].name), str(targets[0].name)] = None
    return tuple(found)


def _backwards(value: ir.Value | None, owner: Mapping[ir.Graph | None, ir.Node]) -> Iterator[ir.Value]:
    """Yield a value and those that it is a rearrangement of, out of the bodies that it is given to."""
    if value is None:
        return
    yield value
    node = value.producer()
    if node is not None and node.op_type in _MOVES:
        yield from _backwards(node.inputs[0], owner)
    elif value.graph is not None and value.graph in owner and value.is_graph_input():
        around, place = owner[value.graph], value.graph.inputs.index(value)
        if place < len(around.inputs):  # Loop and Scan give their inputs to the body in the same order
            yield from _backwards(around.inputs[place], owner)


def _forwards(value: ir.Value, owner: Mapping[ir.Graph | None, ir.Node]) -> Iterator[ir.Value]:
    """Yield a value and its rearrangements, out of the bodies that return it."""
    yield value
    for reader, _ in value.uses():
        if reader.op_type in _MOVES:
            for output in reader.outputs:
                yield from _forwards(output, owner)
    if value.graph is not None and value.graph in owner and value.is_graph_output():
        around = owner[value.graph]
        place = value.graph.outputs.index(value) - (around.op_type == "Loop")  # whose body returns a condition first
        if 0 <= place < len(around.outputs):
            yield from _forwards(around.outputs[place], owner)


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return False
    lengths = zip(one.shape, other.shape, strict=True)
    return all(a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in lengths)
