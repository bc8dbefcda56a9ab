"""Decide what every recurrent node loses (`plan_surgery`), and do it (`apply_surgery`)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from toolchain.graph.bridges import bridge
from toolchain.graph.cells import Transfer
from toolchain.graph.edits import Edits
from toolchain.graph.kept import Kept
from toolchain.graph.layout import Layout, decide_layout
from toolchain.graph.nodes import NodeView
from toolchain.graph.normalise import Normalised
from toolchain.graph.operators import operator_of
from toolchain.graph.program import Program, StatePair, demanded, describe
from toolchain.recurrent import GATES


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """Something that keeps units of a recurrent node alive or whole, and why."""

    node: str
    op_type: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChange:
    """One recurrent node before and after; `live` units are demanded, the rest of what stays fills blocks."""

    name: str
    op_type: str
    num_directions: int
    hidden_before: int
    hidden_after: int
    input_before: int
    input_after: int
    blocked_by: tuple[Blocker, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SurgeryPlan:
    """What to cut out of a graph."""

    program: Program
    layout: Layout
    changes: tuple[NodeChange, ...]

    @property
    def removes_something(self) -> bool:
        """Whether any recurrent node becomes smaller."""
        return any(self._removed(kind) for kind in ("units", "inputs"))

    @property
    def units_removed(self) -> int:
        """Hidden units that go, over all nodes and directions."""
        return self._removed("units")

    def _removed(self, kind: str) -> int:
        recurrent = (transfer for transfer in self.program.transfers if "units" in transfer.neurons)
        spaces = (transfer.neurons[kind] for transfer in recurrent)
        return sum(space.size - self.layout.kept.table(space).size for space in spaces)


def plan_surgery(graph: ir.Graph, *, carried: Sequence[StatePair], compact_state: bool) -> SurgeryPlan:
    """Decide what can go without changing an output; the graph is not changed.

    Args:
        graph: in normal form.
        carried: state inputs with the outputs that the caller feeds back.
        compact_state: let the carried state's own shapes shrink too.

    Raises:
        LayoutError: a recurrent node's weights have inconsistent shapes.
        ModelFileError: a carried pair does not exist.
    """
    program = describe(graph, carried=carried, compact_state=compact_state)
    layout = layout_of(program)
    changes = tuple(
        _change(program, node, transfer, layout.kept)
        for node, transfer in zip(program.nodes, program.transfers, strict=True)
        if node.node.op_type in GATES
    )
    return SurgeryPlan(program=program, layout=layout, changes=changes)


def layout_of(program: Program) -> Layout:
    """Return what stays of a described graph."""
    return decide_layout(
        demanded(program),
        couples=program.couples,
        ports=program.ports,
        fixed=program.fixed,
        neurons=program.neurons,
        spaces=program.numbering.spaces.values(),
    )


def apply_surgery(plan: SurgeryPlan, normalised: Normalised) -> ir.Model:
    """Cut the plan's graph, which is the normalised model's own; return the model.

    Every constant operand is sliced by its cells, each operator's rewrite updates what else mentions a width, and
    bridges go where carried state keeps its shape.
    """
    program, kept = plan.program, plan.layout.kept
    edits = Edits(program.graph)
    bridged = plan.layout.bridged
    for node, transfer in zip(program.nodes, program.transfers, strict=True):
        if transfer.blocked is not None or not _touched(program, node, transfer, kept):
            continue
        _slice_operands(program, node, kept, edits)
        operator = operator_of(node.node)
        if operator is not None:
            operator.rewrite(node, transfer.neurons, kept, edits)
        for port in bridged:
            if port in transfer.statements and not kept.whole(transfer.neurons["units"]):
                units = transfer.neurons["units"]
                bridge(node, port, units, kept.table(units) % units.shape[1], edits)
    _resize_values(program, kept)
    for value in program.graph.outputs:  # where an output keeps its shape, it is declared as the file declared it
        space = program.numbering.spaces.get(id(value))
        if space is None or kept.whole(space):
            value.shape = normalised.declared[str(value.name)]
    common.RemoveUnusedNodesPass()(normalised.model)
    return normalised.model


def _touched(program: Program, node: NodeView, transfer: Transfer, kept: Kept) -> bool:
    """Tell whether anything that a node reads, writes or owns was cut."""
    spaces = program.numbering.spaces
    keys: list[Hashable] = [(id(node.node), index) for index in range(len(node.node.inputs))]
    keys += [id(value) for value in (*node.node.inputs, *node.node.outputs) if value is not None]
    touching = [*transfer.neurons.values(), *(spaces[key] for key in keys if key in spaces)]
    return not all(kept.whole(space) for space in touching)


def _slice_operands(program: Program, node: NodeView, kept: Kept, edits: Edits) -> None:
    for index in range(len(node.node.inputs)):
        space = program.numbering.spaces.get((id(node.node), index))
        if space is not None and not kept.whole(space):
            edits.put(node.node, index, node.weights(index).reshape(-1)[kept.table(space)])


def _resize_values(program: Program, kept: Kept) -> None:
    """Bring the declared shapes up to date."""
    for value in _values(program.graph):
        space = program.numbering.spaces.get(id(value))
        if space is None or value.shape is None or kept.whole(space):
            continue
        lengths = kept.table(space).shape
        value.shape = ir.Shape([old if dynamic else new for old, new, dynamic
                                in zip(value.shape, lengths, space.dynamic, strict=True)])  # fmt: skip


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]


def _change(program: Program, node: NodeView, transfer: Transfer, kept: Kept) -> NodeChange:
    name = node.node.name or str(node.node.outputs[0].name)
    blockers = _blockers(program, node.node)
    if transfer.blocked is not None:
        W = node.node.inputs[1]
        shape = W.shape if W is not None else None
        input_size = int(shape[2]) if shape is not None and isinstance(shape[2], int) else 0
        hidden = int(node.attribute("hidden_size", 0))
        own = Blocker(node=name, op_type=node.node.op_type, reason=transfer.blocked)
        return NodeChange(name=name, op_type=node.node.op_type, num_directions=_num_directions(node),
                          hidden_before=hidden, hidden_after=hidden, input_before=input_size, input_after=input_size,
                          blocked_by=(own, *blockers))  # fmt: skip
    units, inputs = transfer.neurons["units"], transfer.neurons["inputs"]
    return NodeChange(name=name, op_type=node.node.op_type, num_directions=units.shape[0],
                      hidden_before=units.shape[1], hidden_after=kept.table(units).shape[1],
                      input_before=inputs.size, input_after=kept.table(inputs).size, blocked_by=blockers)  # fmt: skip


def _num_directions(node: NodeView) -> int:
    return 2 if node.attribute("direction", "forward") == "bidirectional" else 1


def _blockers(program: Program, recurrent: ir.Node) -> tuple[Blocker, ...]:
    """Follow a node's outputs to whatever is not understood, or to the interface; matrices end the walk."""
    transfers = {id(view.node): transfer for view, transfer in zip(program.nodes, program.transfers, strict=True)}
    fed_back = {int(cell) for pair in program.carried for cell in pair.b}
    found: dict[str, Blocker] = {}
    pending, seen = list(recurrent.outputs), set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if value.is_graph_output() and program.numbering.of_value(value).first not in fed_back:
            found[str(value.name)] = Blocker(node=str(value.name), op_type="graph output",
                                             reason="the model's interface returns these units")  # fmt: skip
        for reader, _ in value.uses():
            transfer = transfers.get(id(reader))
            if transfer is None or transfer.blocked is not None:
                name = reader.name or str(reader.outputs[0].name)
                reason = "it lies inside a subgraph" if transfer is None else str(transfer.blocked)
                found[name] = Blocker(node=name, op_type=reader.op_type, reason=reason)
            elif transfer.statements and not {"rows", "units"} & set(transfer.neurons):
                pending += reader.outputs
    return tuple(found.values())
