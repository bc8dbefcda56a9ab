"""Recurrence without a recurrent operator, found by what it computes: no name survives every exporter.

    LSTM cell   h = o * tanh(f * c + i * g)        o, f, i gates (Sigmoid), g a Tanh
    GRU cell    h = n + z * (h - n), or (1 - z) * n + z * h        z a gate, n a Tanh
    chain       x = f(R x) again and again         one matrix applied at least three times to what it helped to compute
    loop        a Loop or Scan whose state goes through a constant matrix

Such a model runs, but no unit of it can be cut: what would be one row of `R` is spread over every step's operators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from toolchain.graph.subgraphs import bodies_of, in_order
from toolchain.recurrent import GATES, QUANTIZED_LSTM

REMEDY = ("Export nn.LSTM, nn.GRU or nn.RNN as one node, not as cells or a loop; of PyTorch's exporters, dynamo=False "
          "writes one node for each")  # fmt: skip
# A matrix applied twice in a row may be two tied layers; three such layers are a recurrence in all but name.
MIN_CHAIN = 3
_MOVES = frozenset({"Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
                    "Unsqueeze"})  # fmt: skip
_GATES = frozenset({"HardSigmoid", "Sigmoid"})
# Layers that share weights (as in ALBERT) are separated by one of these; the steps of a recurrence are not.
_BETWEEN_LAYERS = frozenset({"Div", "LayerNormalization", "SimplifiedLayerNormalization", "Softmax"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrolled:
    """A recurrence written out; `node` is the first of its nodes, `count` how often the step is written."""

    what: str
    node: str
    count: int

    def __str__(self) -> str:
        """Describe the recurrence in a few words."""
        times = f", {self.count} times" if self.count > 1 else ""
        return f"{self.what} at node {self.node!r}{times}"


def find_unrolled(graph: ir.Graph) -> tuple[Unrolled, ...]:
    """Return the recurrences of a graph, and of the graphs inside it, that no recurrent operator computes.

    Constants must be initializers, see `toolchain.graph.normalise`. One pass per matrix that is used three times or
    more, so linear in the graph for any one model.
    """
    found = [*_cells(graph)] or [*_chains(graph)]
    for node in graph:
        bodies = bodies_of(node)
        if node.op_type in ("Loop", "Scan") and any(_is_recurrent_body(node, body) for body in bodies):
            found.append(
                Unrolled(what=f"a {node.op_type} with its state in plain matrices", node=name_of(node), count=1)
            )
        else:
            found += [inner for body in bodies for inner in find_unrolled(body)]
    return tuple(found)


def is_recurrent(node: ir.Node) -> bool:
    """Tell whether a node is an LSTM, GRU or RNN, quantized or not."""
    return node.op_type == QUANTIZED_LSTM or (node.op_type in GATES and node.domain in ("", "ai.onnx"))


def name_of(node: ir.Node) -> str:
    """Return a node's name, or that of its first output where it has none."""
    return node.name or str(node.outputs[0].name)


def constant_root(value: ir.Value | None) -> ir.Value | None:
    """Return the constant that a value is a rearrangement or dequantization of, None when it is computed."""
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None or node.op_type not in _MOVES | {"DequantizeLinear"}:
            return None
        value = node.inputs[0]
    return value


def _cells(graph: ir.Graph) -> Iterator[Unrolled]:
    for what, is_cell in (("an LSTM cell in plain operators", _is_lstm), ("a GRU cell in plain operators", _is_gru)):
        cells = [node for node in graph if is_cell(node)]
        if cells:
            yield Unrolled(what=what, node=name_of(cells[0]), count=len(cells))


def _is_lstm(node: ir.Node) -> bool:
    factors = _sources(node) if node.op_type == "Mul" else []
    squashed = [source for source in factors if source.op_type == "Tanh"]
    if not squashed or not any(source.op_type in _GATES for source in factors):
        return False
    terms = [source for cell in _sources(squashed[0]) if cell.op_type == "Add" for source in _sources(cell)]
    gated = [{factor.op_type for factor in _sources(term)} for term in terms if term.op_type == "Mul"]
    return len(gated) == 2 and all(kinds & _GATES for kinds in gated) and any("Tanh" in kinds for kinds in gated)


def _is_gru(node: ir.Node) -> bool:
    terms = _sources(node) if node.op_type == "Add" else []
    factors = [_sources(term) for term in terms if term.op_type == "Mul"]
    kinds = [{source.op_type for source in sources} for sources in factors]
    if len(factors) == 1:  # n + z * (h - n)
        return any(term.op_type == "Tanh" for term in terms) and "Sub" in kinds[0] and bool(kinds[0] & _GATES)
    if len(factors) != 2:
        return False
    for (kept, fresh), names in (((factors[0], factors[1]), kinds[1]), ((factors[1], factors[0]), kinds[0])):
        gates = {id(source) for source in kept if source.op_type in _GATES}
        complements = [source for source in fresh if source.op_type == "Sub"]
        if "Tanh" in names and any(id(gate) in gates for sub in complements for gate in _sources(sub)):
            return True  # z * h + (1 - z) * n
    return False


def _sources(node: ir.Node) -> list[ir.Node]:
    """Return the nodes that compute a node's inputs, looking through rearrangements."""
    found = []
    for value in node.inputs:
        producer = None if value is None else value.producer()
        while producer is not None and producer.op_type in _MOVES and producer.inputs[0] is not None:
            producer = producer.inputs[0].producer()
        if producer is not None:
            found.append(producer)
    return found


def _chains(graph: ir.Graph) -> Iterator[Unrolled]:
    matrices = {id(node): matrix for node in graph if (matrix := _matrix(node)) is not None}
    uses = Counter(matrices.values())
    for matrix, count in uses.items():
        if count >= MIN_CHAIN:
            depth = max(_applications(graph, matrix, matrices, {}).values(), default=0)
            if depth >= MIN_CHAIN:
                first = next(node for node in graph if matrices.get(id(node)) is matrix)
                yield Unrolled(what="one matrix applied to its own result", node=name_of(first), count=depth)


def _matrix(node: ir.Node) -> ir.Value | None:
    """Return the constant matrix that a node multiplies by."""
    places = {"MatMul": (1, 0), "Gemm": (1,)}.get(node.op_type, ())
    for root in (constant_root(node.inputs[place]) for place in places):
        if root is not None and root.shape is not None and len(root.shape) == 2:
            return root
    return None


def _applications(
    graph: ir.Graph, matrix: ir.Value | None, matrices: Mapping[int, ir.Value], start: Mapping[ir.Value, int]
) -> dict[ir.Value, int]:
    """Return how often `matrix` (None for any) was applied on the longest way to each value that `start` reaches.

    Without `start` every value begins at zero.
    """
    depth = dict(start)
    for node in in_order(graph):
        read = (*node.inputs, *(value for body in bodies_of(node) for value in body.outputs))
        before = [depth[value] for value in read if value in depth]
        if (start and not before) or node.op_type in _BETWEEN_LAYERS:
            continue
        applied = id(node) in matrices and (matrix is None or matrices[id(node)] is matrix)
        depth |= dict.fromkeys(node.outputs, max(before, default=0) + applied)
    return depth


def _is_recurrent_body(node: ir.Node, body: ir.Graph) -> bool:
    """Tell whether a Loop's or Scan's state goes through a constant matrix, and no recurrent node is inside."""
    if any(is_recurrent(inner) for inner in body.all_nodes()):
        return False
    if node.op_type == "Loop":  # inputs: iteration, condition, state; outputs: condition, state, collected
        states, results = body.inputs[2:], body.outputs[1 : len(body.inputs) - 1]
    else:
        count = len(node.inputs) - node.attributes["num_scan_inputs"].as_int()
        states, results = body.inputs[:count], body.outputs[:count]
    matrices = {id(inner): matrix for inner in in_order(body) if (matrix := _matrix(inner)) is not None}
    depth = _applications(body, None, matrices, dict.fromkeys(states, 0))
    return bool(states) and any(depth.get(value, 0) for value in results)
