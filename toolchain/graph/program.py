"""A graph as statements about cells, and the demand that follows from them.

    describe    every node's transfer, the interface, the carried state     (reads the graph, changes nothing)
    demanded    which cells can still change an output                      (a least fixpoint, backwards)

What no statement describes demands everything it reads and keeps its shapes: correct, and named with its reason. The
nodes inside If, Loop and Scan are described with the others, each body before the node that it belongs to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from toolchain.errors import ModelFileError
from toolchain.graph.cells import (
    BlockedError,
    BoolArray,
    CellArray,
    Couple,
    Drive,
    Linear,
    Port,
    Read,
    Space,
    Transfer,
    agree,
    couple,
    pairs,
)
from toolchain.graph.dequantized import constant_of, quantized
from toolchain.graph.nodes import NodeView, Numbering
from toolchain.graph.operators import operator_of
from toolchain.graph.operators.control import decided_by
from toolchain.graph.operators.linear import is_linear
from toolchain.graph.operators.recurrence import shared_weights
from toolchain.graph.subgraphs import bodies_of, in_order, owners
from toolchain.recurrent import GATES, check_shapes, slot

NOTHING: Mapping[ir.Graph, str] = MappingProxyType({})
UNKNOWN = ()  # the shape of the one cell that stands for a value of unknown shape; no state is a scalar
StatePair = tuple[str, str]  # graph input, graph output that the caller feeds back into it


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A described graph.

    `nodes` are those of the graph and of the graphs inside it. `fixed` cells are the interface's and those of blocked
    nodes; `roots` are the outputs' cells, and those that decide what runs; `carried` pairs the cells of a state input
    with those of its output, position by position.
    """

    graph: ir.Graph
    nodes: tuple[NodeView, ...]
    transfers: tuple[Transfer, ...]
    numbering: Numbering
    roots: tuple[CellArray, ...]
    fixed: tuple[CellArray, ...]
    carried: tuple[Couple, ...]
    couples: tuple[Couple, ...]

    @property
    def ports(self) -> tuple[Port, ...]:
        """Every state port of every recurrent node."""
        return tuple(s for transfer in self.transfers for s in transfer.statements if isinstance(s, Port))

    @property
    def neurons(self) -> tuple[Space, ...]:
        """The nodes' own spaces."""
        return tuple(space for transfer in self.transfers for space in transfer.neurons.values())


def describe(
    graph: ir.Graph,
    *,
    carried: Sequence[StatePair],
    compact_state: bool,
    left_alone: Mapping[ir.Graph, str] = NOTHING,
) -> Program:
    """Describe a normalised graph.

    Args:
        graph: in normal form, see `toolchain.graph.normalise`.
        carried: state inputs with the outputs that the caller feeds back.
        compact_state: let the carried state's own shapes shrink.
        left_alone: graphs inside of which nothing may change, at any depth, with the reason.

    Raises:
        LayoutError: a recurrent node's weights have inconsistent shapes.
        ModelFileError: a carried pair does not exist or its shapes differ.
    """
    numbering = Numbering()
    opset = graph.opset_imports.get("", 1)
    nodes = tuple(NodeView(node, numbering, opset) for node in in_order(graph))
    relevant = neighbourhood(graph)
    alone = {id(node): reason for inner, reason in left_alone.items() for node in inner.all_nodes()}
    # Dequantized constants come last: whether their cells matter is known once their readers are described.
    ordered = sorted(nodes, key=lambda node: quantized(node.node.outputs[0]) is not None)
    described = {
        id(node.node): _transfer(node, numbering, alone.get(id(node.node)))
        for node in ordered
        if id(node.node) in relevant
    }
    outside = {id(node.node): _outside(node.node, numbering) for node in nodes if id(node.node) not in relevant}
    both = described | outside
    transfers = tuple(both[id(node.node)] for node in nodes)
    inputs = {value.name: numbering.of_value(value) for value in graph.inputs}
    outputs = {value.name: numbering.of_value(value) for value in graph.outputs}
    state = tuple(_state_couple(pair, inputs, outputs) for pair in carried)
    fed_back = {output for _, output in carried}
    free = {name for pair in carried for name in pair} if compact_state else set()
    couples = [s for transfer in transfers for s in transfer.statements if isinstance(s, Couple)]
    return Program(
        graph=graph,
        nodes=nodes,
        transfers=transfers,
        numbering=numbering,
        roots=(
            *(space.cells.ravel() for name, space in outputs.items() if name not in fed_back),
            *(cells for transfer in outside.values() for cells in transfer.fixed),
            *_deciding(nodes, described, numbering),
        ),
        fixed=(
            *(cells for transfer in transfers for cells in transfer.fixed),
            *(space.cells.ravel() for name, space in {**inputs, **outputs}.items() if name not in free),
        ),
        carried=state,
        couples=(*couples, *(state if compact_state else ())),
    )


def nonzero_cells(program: Program) -> BoolArray:
    """Return which cells may be other than zero, shape `[num_cells]`: one pass forwards from the constants."""
    nonzero = np.ones(program.numbering.size, dtype=np.bool_)
    for node in program.nodes:
        for index in node.inputs():
            space = program.numbering.spaces.get((id(node.node), index))
            array = None if space is None else node.constant(index)
            if space is not None and array is not None:
                nonzero[space.cells] = array.reshape(space.shape) != 0
    for transfer in program.transfers:
        forwards = [statement for statement in reversed(transfer.statements) if isinstance(statement, Read | Drive)]
        for statement in forwards:
            if isinstance(statement, Drive):
                nonzero[statement.driven] = False
            elif statement.keeps_zero:
                nonzero[statement.reader] = False
        for statement in forwards:
            if isinstance(statement, Drive):
                statement.push(nonzero)
            else:
                nonzero[statement.reader[nonzero[statement.read] | (not statement.keeps_zero)]] = True
        for statement in forwards:
            if isinstance(statement, Read) and statement.absorbs_zero:
                nonzero[statement.reader[~nonzero[statement.read]]] = False
    return nonzero


def demanded(program: Program) -> BoolArray:
    """Return which cells can still change an output, shape `[num_cells]`."""
    demand = np.zeros(program.numbering.size, dtype=np.bool_)
    nonzero = nonzero_cells(program)
    for cells in program.roots:
        demand[cells] = True
    while True:
        before = int(demand.sum())
        for transfer in reversed(program.transfers):
            for statement in transfer.statements:
                if isinstance(statement, Read | Linear):
                    statement.push(demand, nonzero)
        for state in program.carried:  # the caller feeds the output back, so it is read where the input is
            demand[state.b[demand[state.a]]] = True
        if int(demand.sum()) == before:
            return demand


def neighbourhood(graph: ir.Graph) -> set[int]:
    """Return the ids of the nodes that a cut can reach.

    All that follows a recurrent node, and backwards from there everything up to the nearest matrix, whose columns can
    be cut. What lies before (the convolutions of a large front end, say) keeps its shapes and need not be described.
    A node with graphs inside is reached with all that is in them, and by any of it.
    """
    owner = owners(graph)
    relevant: set[int] = set()
    pending = [node for node in graph.all_nodes() if node.op_type in GATES]
    while pending:  # forwards
        node = pending.pop()
        if id(node) not in relevant:
            relevant.add(id(node))
            pending += [reader for value in node.outputs for reader, _ in value.uses()]
            pending += _inside_and_around(node, owner)
    pending = [node for node in graph.all_nodes() if id(node) in relevant]
    while pending:  # backwards
        for value in pending.pop().inputs:
            producer = None if value is None else value.producer()
            reached = [] if producer is None else [producer, *_inside_and_around(producer, owner)]
            fresh = [node for node in reached if id(node) not in relevant]
            relevant |= {id(node) for node in fresh}
            pending += [node for node in fresh if not is_linear(node)]
    return relevant


def _inside_and_around(node: ir.Node, owner: Mapping[ir.Graph | None, ir.Node]) -> list[ir.Node]:
    """Return the nodes of the graphs inside a node, at any depth, and the node around its own graph."""
    inside = [inner for body in bodies_of(node) for inner in body.all_nodes()]
    return inside if node.graph not in owner else [*inside, owner[node.graph]]


def _outside(node: ir.Node, numbering: Numbering) -> Transfer:
    """A node that is not described keeps whatever it shares with those that are."""
    touched = [value for value in (*node.inputs, *node.outputs) if value is not None]
    spaces = [numbering.spaces[id(value)] for value in touched if id(value) in numbering.spaces]
    return Transfer(fixed=tuple(space.cells.ravel() for space in spaces))


def _transfer(node: NodeView, numbering: Numbering, left_alone: str | None) -> Transfer:
    """Describe one node, or say why it cannot be."""
    _check_recurrent(node)
    if left_alone is not None:
        return _blocked(node, numbering, left_alone)
    operator = operator_of(node.node)
    if operator is None:
        return _blocked(node, numbering, "no transfer function is known for this operator")
    try:
        return _with_other_inputs(node, operator.transfer(node), numbering)
    except BlockedError as reason:
        return _blocked(node, numbering, str(reason))


def _with_other_inputs(node: NodeView, transfer: Transfer, numbering: Numbering) -> Transfer:
    """Add that what the transfer does not speak of (indices, lengths, bounds, conditions) is read whole."""
    values = [node.value(index) for index in node.inputs() if index not in node.described]
    values = list(dict.fromkeys((*values, *decided_by(node.node))))
    others = [numbering.of_value(value).cells.ravel() for value in values if constant_of(value) is None]
    if not others:
        return transfer
    whole = node.neurons("whole", 1).cells
    outputs = [numbering.of_value(value).cells.ravel() for value in node.node.outputs]
    return replace(
        transfer,
        statements=(
            *(pairs(cells, whole) for cells in outputs),
            *transfer.statements,
            *(pairs(whole, cells) for cells in others),
        ),
        fixed=(*transfer.fixed, *others),
    )


def _blocked(node: NodeView, numbering: Numbering, reason: str) -> Transfer:
    """Any output needs every input, whole; nothing around the node changes shape.

    The same holds between the node and the graphs inside it: what they are given, and what they return.
    """
    whole = node.neurons("whole", 1).cells
    bodies = bodies_of(node.node)
    given = [value for body in bodies for value in body.inputs]
    returned = [value for body in bodies for value in body.outputs]
    made = [numbering.of_value(value).cells.ravel() for value in (*node.node.outputs, *given)]
    values = [value for value in (*node.node.inputs, *returned) if value is not None and value.const_value is None]
    read = [numbering.of_value(value).cells.ravel() for value in values]
    return Transfer(
        statements=(*(pairs(cells, whole) for cells in made), *(pairs(whole, cells) for cells in read)),
        fixed=(*made, *read),
        blocked=reason,
    )


def _deciding(nodes: Sequence[NodeView], described: Collection[int], numbering: Numbering) -> tuple[CellArray, ...]:
    """Return the cells of what decides which described graphs run: a dead loop must still come to its end."""
    values = [value for node in nodes if id(node.node) in described for value in decided_by(node.node)]
    return tuple(numbering.of_value(value).cells.ravel() for value in values)


def _check_recurrent(node: NodeView) -> None:
    if node.node.op_type not in GATES or node.node.domain not in ("", "ai.onnx"):
        return
    W, R, B, P = (_constant_shape(node, name) for name in ("W", "R", "B", "P"))
    if W is not None and R is not None:
        name = str(node.node.name or node.node.outputs[0].name)
        check_shapes(name, node.node.op_type, hidden_size=node.attribute("hidden_size"), W=W, R=R, B=B, P=P)


def _constant_shape(node: NodeView, name: str) -> tuple[int, ...] | None:
    array = node.constant(slot(name))
    return None if array is None else array.shape


def joint_decisions(program: Program, demand: BoolArray) -> tuple[Couple, ...]:
    """Couple recurrent nodes that share a weight: cut alike, they go on sharing it.

    A node that no output depends on has no say: most often it vanishes from the graph.
    """
    owner: dict[int, Transfer] = {}
    couples: list[Couple] = []
    for node, transfer in zip(program.nodes, program.transfers, strict=True):
        if "units" not in transfer.neurons or not demand[transfer.neurons["units"].cells].any():
            continue
        for name in ("W", "R"):
            first = owner.setdefault(id(constant_of(node.value(slot(name)))), transfer)
            same = first is not transfer and all(
                first.neurons[kind].shape == transfer.neurons[kind].shape for kind in ("units", "inputs")
            )
            couples += shared_weights(first, transfer) if same else []
    return tuple(couples)


def _state_couple(pair: StatePair, inputs: dict[str | None, Space], outputs: dict[str | None, Space]) -> Couple:
    state_in, state_out = pair
    for name, known, kind in ((state_in, inputs, "input"), (state_out, outputs, "output")):
        if name not in known:
            raise ModelFileError(
                f"carried state {state_in}={state_out}: the model has no {kind} {name!r}; expected one "
                f"of {', '.join(sorted(map(str, known)))}. Correct --carried."
            )
    one, other = inputs[state_in], outputs[state_out]
    if UNKNOWN not in (one.shape, other.shape) and not agree(one, other):
        raise ModelFileError(
            f"carried state {state_in}={state_out}: the shapes {inputs[state_in].shape} and "
            f"{outputs[state_out].shape} differ; expected equal ones. Correct --carried."
        )
    return couple(inputs[state_in].cells, outputs[state_out].cells)
