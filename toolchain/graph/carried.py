"""Carried state: which outputs a streaming caller feeds back into which inputs.

The graph cannot tell a stream's state from an encoder's result that somebody else reads, so the pairs are declared: in
the model's metadata (our exporter writes them), by name, or by asking for all that the graph shows (`find_state`).

An input and an output are a pair where every position of the output is the final state of the very unit that the same
position of the input starts, or that position of the input itself. States are followed position by position through
whatever moves them, so it does not matter whether h and c, or several layers, share one tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from toolchain.graph.cells import BlockedError, BoolArray, CellArray, Read, Transfer
from toolchain.graph.nodes import NodeView, Numbering, static_shape
from toolchain.graph.operators import operator_of
from toolchain.graph.program import StatePair
from toolchain.recurrent import GATES, OUTPUTS, slot

_MOVES = frozenset({"Cast", "Concat", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape",
                    "Scatter", "ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Transpose",
                    "Unsqueeze"})  # fmt: skip
_NOWHERE = -1


def find_state(graph: ir.Graph) -> tuple[StatePair, ...]:
    """Return every input that starts recurrent nodes' states and is continued by an output of the same nodes."""
    states = list(_states(graph))
    numbering = Numbering()
    ends = [*graph.inputs, *graph.outputs, *(value for pair in states for value in pair)]
    for value in ends:
        numbering.of_value(value)
    source = _sources(graph, _moves(graph, states), numbering, ends)
    after = np.full(numbering.size, _NOWHERE)  # the input's cell that starts the unit whose final state a cell is
    for initial, final in states:
        after[numbering.of_value(final).cells] = source[numbering.of_value(initial).cells]
    for value in graph.inputs:
        cells = numbering.of_value(value).cells
        after[cells] = cells
    return tuple(_pairs(graph, numbering, source, after))


def _pairs(graph: ir.Graph, numbering: Numbering, source: CellArray, after: CellArray) -> Iterator[StatePair]:
    for output in graph.outputs:
        cells = source[numbering.of_value(output).cells]
        if (cells == _NOWHERE).any():
            continue
        for value in graph.inputs:
            same = np.array_equal(after[cells], numbering.of_value(value).cells) and not np.array_equal(
                cells, numbering.of_value(value).cells
            )
            if same and _same_shape(value, output):
                yield str(value.name), str(output.name)


def _states(graph: ir.Graph) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield the initial and the final state of every recurrent node that has both, with the same number of cells."""
    for node in graph:
        if node.op_type not in GATES:
            continue
        for name, output in (("initial_h", "Y_h"), ("initial_c", "Y_c")):
            index, place = slot(name), OUTPUTS.index(output)
            initial = node.inputs[index] if index < len(node.inputs) else None
            final = node.outputs[place] if place < len(node.outputs) else None
            if initial is None or final is None or not final.name:
                continue
            shapes = [static_shape(value) for value in (initial, final)]
            if None not in shapes and shapes[0] == shapes[1] and initial.const_value is None:
                yield initial, final


def _moves(graph: ir.Graph, states: Iterable[tuple[ir.Value, ir.Value]]) -> set[int]:
    """Return the ids of the nodes that move something, and nothing else, to recurrent states or to outputs."""
    found: set[int] = set()
    pending = [value.producer() for value in (*graph.outputs, *(initial for initial, _ in states))]
    while pending:
        node = pending.pop()
        if node is not None and node.op_type in _MOVES and id(node) not in found:
            found.add(id(node))
            pending += [None if value is None else value.producer() for value in node.inputs]
    return found


def _sources(graph: ir.Graph, moves: set[int], numbering: Numbering, ends: Iterable[ir.Value]) -> CellArray:
    """Return the cell whose content each cell holds unchanged, shape `[num_cells]`; `_NOWHERE` where it has no one."""
    opset = graph.opset_imports.get("", 1)
    transfers = [_transfer(NodeView(node, numbering, opset)) for node in graph if id(node) in moves]
    source = np.full(numbering.size, _NOWHERE)
    for value in ends:
        node = value.producer()
        if node is None or id(node) not in moves:
            cells = numbering.of_value(value).cells
            source[cells] = cells
    for transfer in transfers:
        reads = [statement for statement in transfer.statements if isinstance(statement, Read)]
        if reads:
            readers = np.concatenate([statement.reader for statement in reads])
            read = source[np.concatenate([statement.read for statement in reads])]
            several = _differ(readers, read, numbering.size)
            source[readers] = np.where(several[readers], _NOWHERE, read)
    return source


def _differ(readers: CellArray, read: CellArray, size: int) -> BoolArray:
    """Tell of every cell whether it reads more than one thing."""
    lowest, highest = np.full(size, np.iinfo(np.intp).max), np.full(size, np.iinfo(np.intp).min)
    np.minimum.at(lowest, readers, read)
    np.maximum.at(highest, readers, read)
    different: BoolArray = lowest < highest
    return different


def _transfer(node: NodeView) -> Transfer:
    operator = operator_of(node.node)
    try:
        return Transfer() if operator is None else operator.transfer(node)
    except BlockedError:
        return Transfer()  # what it returns is nobody's state


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return False
    lengths = zip(one.shape, other.shape, strict=True)
    return all(a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in lengths)
