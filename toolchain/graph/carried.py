"""Carried state: which outputs a streaming caller feeds back into which inputs.

The graph cannot tell a stream's state from an encoder's result that somebody else reads, so the pairs are declared: in
the model's metadata (our exporter writes them), by name, or by asking for all that the graph shows (`find_state`).

An input and an output are a pair where every position of the output is the final state of the very unit that the same
position of the input starts, or that position of the input itself. States are followed position by position through
whatever moves them, so it does not matter whether h and c, or several layers, share one tensor, and into and out of
the bodies of If, Loop and Scan: whichever branch runs, and however often.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from toolchain.graph.cells import BlockedError, CellArray, Read, Transfer
from toolchain.graph.nodes import NodeView, Numbering, static_shape
from toolchain.graph.operators import operator_of
from toolchain.graph.program import StatePair
from toolchain.graph.subgraphs import NUM_LOOP_INPUTS, bodies_of, in_order, owners
from toolchain.recurrent import GATES, OUTPUTS, slot

_MOVES = frozenset({"Cast", "Concat", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape",
                    "Scatter", "ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Transpose",
                    "Unsqueeze"})  # fmt: skip
_NOWHERE = -1
Ends = tuple[ir.Value, ir.Value]


def find_state(graph: ir.Graph) -> tuple[StatePair, ...]:
    """Return every input that starts recurrent nodes' states and is continued by an output of the same nodes."""
    states = _States(graph)
    held = states.held()
    return tuple(
        (str(value.name), str(output.name))
        for output in graph.outputs
        for value in graph.inputs
        if _same_shape(value, output) and states.continues(held, value, output)
    )


class _States:
    """What each cell holds of the model's inputs, as far as only recurrent nodes and moves lie between.

    An input's cell `c` where it holds that unchanged; `c + num_cells` where it holds the final state of the unit that
    `c` starts; `_NOWHERE` otherwise.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._ends = {node: tuple(_ends(node)) for node in in_order(graph) if node.op_type in GATES}
        starts = [initial for pairs in self._ends.values() for initial, _ in pairs]
        self._numbering = Numbering()
        opset = graph.opset_imports.get("", 1)
        moves = _moves(graph, starts)
        self._transfers = {node: _transfer(NodeView(node, self._numbering, opset)) for node in moves}
        inside = [value for node in moves for body in bodies_of(node) for value in (*body.inputs, *body.outputs)]
        outside = [value for node in moves if bodies_of(node) for value in (*node.inputs, *node.outputs)]
        finals = [final for pairs in self._ends.values() for _, final in pairs]
        for value in (*graph.inputs, *graph.outputs, *starts, *finals, *inside, *outside):
            if value is not None:
                self._numbering.of_value(value)

    def held(self) -> CellArray:
        """Return what each cell holds, shape `[num_cells]`."""
        held = np.full(self._numbering.size, _NOWHERE)
        for value in self._graph.inputs:
            held[self._cells(value)] = self._cells(value)
        self._follow(self._graph, held)
        return held

    def continues(self, held: CellArray, value: ir.Value, output: ir.Value) -> bool:
        """Tell whether an output holds, position by position, what follows an input; not just the input itself."""
        found, started = held[self._cells(output)], self._cells(value)
        if found.shape != started.shape or (found == _NOWHERE).any():
            return False
        return bool((found % held.size == started).all() and (found != started).any())

    def _cells(self, value: ir.Value) -> CellArray:
        return self._numbering.of_value(value).cells

    def _follow(self, graph: ir.Graph, held: CellArray) -> None:
        for node in graph:
            if node in self._transfers and bodies_of(node):
                self._through_bodies(node, held)
            elif node in self._transfers:
                _hand_on(held, [(s.reader, s.read) for s in self._transfers[node].statements if isinstance(s, Read)])
            for initial, final in self._ends.get(node, ()):
                start = held[self._cells(initial)]
                is_input = (start != _NOWHERE) & (start < held.size)
                held[self._cells(final)] = np.where(is_input, start + held.size, _NOWHERE)

    def _through_bodies(self, node: ir.Node, held: CellArray) -> None:
        """Follow states into the bodies and out of them, or past a Loop that makes no step."""
        returned: list[tuple[CellArray, CellArray]] = []
        for body in bodies_of(node):
            for value, inner in _given(node, body):
                _hand_on(held, self._alike([(inner, value)]))
            self._follow(body, held)
            returned += self._alike(_returned(node, body))
            firsts = [value for value, _ in _given(node, body)]
            returned += self._alike(zip(node.outputs, firsts, strict=False))
        _hand_on(held, returned)

    def _alike(self, values: Iterable[Ends]) -> list[tuple[CellArray, CellArray]]:
        """Return readers with what they read, of those that have the same shape."""
        cells = [(self._cells(reader), self._cells(read)) for reader, read in values]
        return [(reader.ravel(), read.ravel()) for reader, read in cells if reader.shape == read.shape]


def _hand_on(held: CellArray, reads: Sequence[tuple[CellArray, CellArray]]) -> None:
    """Let each reader hold what it reads, where all of that follows one and the same cell of an input."""
    if not reads:
        return
    readers = np.concatenate([reader for reader, _ in reads])
    found = held[np.concatenate([read for _, read in reads])]
    cell = np.where(found == _NOWHERE, _NOWHERE, found % held.size)
    least, most, last = np.full_like(held, np.iinfo(held.dtype).max), np.full_like(held, _NOWHERE), held.copy()
    last[readers] = _NOWHERE
    np.minimum.at(least, readers, cell)
    np.maximum.at(most, readers, cell)
    np.maximum.at(last, readers, found)
    held[readers] = np.where((least == most)[readers], last[readers], _NOWHERE)


def _ends(node: ir.Node) -> Iterator[Ends]:
    """Yield the initial and the final states of a recurrent node that have the same number of cells."""
    for name, output in (("initial_h", "Y_h"), ("initial_c", "Y_c")):
        index, place = slot(name), OUTPUTS.index(output)
        initial = node.inputs[index] if index < len(node.inputs) else None
        final = node.outputs[place] if place < len(node.outputs) else None
        if initial is None or final is None or not final.name:
            continue
        shapes = [static_shape(value) for value in (initial, final)]
        if None not in shapes and shapes[0] == shapes[1] and initial.const_value is None:
            yield initial, final


def _given(node: ir.Node, body: ir.Graph) -> list[Ends]:
    """Return the states that a Loop or Scan starts with, and what they are in its body."""
    if node.op_type == "If":
        return []
    skipped = NUM_LOOP_INPUTS if node.op_type == "Loop" else 0
    scanned = node.attributes["num_scan_inputs"].as_int() if node.op_type == "Scan" else 0
    pairs = list(zip(node.inputs, body.inputs, strict=False))[skipped : len(body.inputs) - scanned]
    return [(value, inner) for value, inner in pairs if value is not None]


def _returned(node: ir.Node, body: ir.Graph) -> list[Ends]:
    """Return the results of a node, and what they are in its body; of a Loop or Scan the states alone."""
    if node.op_type == "If":
        return list(zip(node.outputs, body.outputs, strict=True))
    results = body.outputs[node.op_type == "Loop" :]  # a Loop's body returns a condition first
    return list(zip(node.outputs, results, strict=False))[: len(_given(node, body))]


def _moves(graph: ir.Graph, starts: Sequence[ir.Value]) -> tuple[ir.Node, ...]:
    """Return the nodes that move something, and nothing else, to recurrent states or to outputs, with those around."""
    owner = owners(graph)
    found: dict[ir.Node, None] = {}
    pending: list[ir.Value | None] = [*graph.outputs, *starts]
    while pending:
        value = pending.pop()
        node = None if value is None else value.producer() or owner.get(value.graph)
        if node is None or node in found:
            continue
        bodies = bodies_of(node)
        if bodies or node.op_type in _MOVES:
            found[node] = None
            pending += [*node.inputs, *(output for body in bodies for output in body.outputs)]
    return tuple(found)


def _transfer(node: NodeView) -> Transfer:
    operator = None if bodies_of(node.node) else operator_of(node.node)
    try:
        return Transfer() if operator is None else operator.transfer(node)
    except BlockedError:
        return Transfer()  # what it returns is nobody's state


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return False
    lengths = zip(one.shape, other.shape, strict=True)
    return all(a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in lengths)
