"""Decide what every recurrent node loses (`plan_surgery`), and do it (`apply_surgery`)."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from toolchain.graph.bridges import bridge
from toolchain.graph.cells import Transfer
from toolchain.graph.edits import Edits
from toolchain.graph.kept import Kept
from toolchain.graph.layout import Layout, decide_layout
from toolchain.graph.nodes import NodeView
from toolchain.graph.normalise import Normalised
from toolchain.graph.operators import operator_of
from toolchain.graph.program import NOTHING, Program, StatePair, demanded, describe, joint_decisions
from toolchain.graph.subgraphs import bodies_of, graphs_in, lower_quantized, owners, remove_unused, values_of
from toolchain.recurrent import GATES, column_axis


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
    """What to cut out of a graph; `left_alone` are the graphs in which nothing may change, with the reason."""

    program: Program
    layout: Layout
    changes: tuple[NodeChange, ...]
    left_alone: Mapping[ir.Graph, str]

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


def plan_surgery(
    graph: ir.Graph,
    *,
    carried: Sequence[StatePair],
    compact_state: bool,
    left_alone: Mapping[ir.Graph, str] = NOTHING,
) -> SurgeryPlan:
    """Decide what can go without changing an output; the graph is not changed.

    Args:
        graph: in normal form.
        carried: state inputs with the outputs that the caller feeds back.
        compact_state: let the carried state's own shapes shrink too.
        left_alone: graphs inside of which nothing may change, with the reason.

    Raises:
        LayoutError: a recurrent node's weights have inconsistent shapes.
        ModelFileError: a carried pair does not exist.
    """
    program = describe(graph, carried=carried, compact_state=compact_state, left_alone=left_alone)
    layout = layout_of(program)
    blockers = _blockers(program)
    changes = tuple(
        _change(node, transfer, layout.kept, blockers)
        for node, transfer in zip(program.nodes, program.transfers, strict=True)
        if node.node.op_type in GATES
    )
    return SurgeryPlan(program=program, layout=layout, changes=changes, left_alone=left_alone)


def layout_of(program: Program) -> Layout:
    """Return what stays of a described graph."""
    demand = demanded(program)
    return decide_layout(
        demand,
        couples=(*program.couples, *joint_decisions(program, demand)),
        ports=program.ports,
        fixed=program.fixed,
        never_empty=[cells for transfer in program.transfers for cells in transfer.never_empty],
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
        operator = operator_of(node.node)
        if operator is None or transfer.blocked is not None or not touched(program, node, transfer, kept):
            continue
        _slice_operands(program, node, kept, edits)
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
    remove_unused(normalised.model)
    lower_quantized(normalised.model)
    return normalised.model


def touched(program: Program, node: NodeView, transfer: Transfer, kept: Kept) -> bool:
    """Tell whether anything that a node reads, writes or owns was cut."""
    spaces = program.numbering.spaces
    keys: list[Hashable] = [(id(node.node), index) for index in range(len(node.node.inputs))]
    returned = [value for body in bodies_of(node.node) for value in (*body.inputs, *body.outputs)]
    keys += [id(value) for value in (*node.node.inputs, *node.node.outputs, *returned) if value is not None]
    touching = [*transfer.neurons.values(), *(spaces[key] for key in keys if key in spaces)]
    return not all(kept.whole(space) for space in touching)


def _slice_operands(program: Program, node: NodeView, kept: Kept, edits: Edits) -> None:
    for index in range(len(node.node.inputs)):
        space = program.numbering.spaces.get((id(node.node), index))
        if space is not None and not kept.whole(space):
            edits.put(node.node, index, node.weights(index).reshape(-1)[kept.table(space)])


def _resize_values(program: Program, kept: Kept) -> None:
    """Bring the declared shapes up to date."""
    for value in (value for graph in graphs_in(program.graph) for value in values_of(graph)):
        space = program.numbering.spaces.get(id(value))
        if space is None or value.shape is None or kept.whole(space):
            continue
        lengths = kept.table(space).shape
        value.shape = ir.Shape([old if dynamic else new for old, new, dynamic
                                in zip(value.shape, lengths, space.dynamic, strict=True)])  # fmt: skip


def _change(node: NodeView, transfer: Transfer, kept: Kept, behind: Mapping[int, tuple[Blocker, ...]]) -> NodeChange:
    name = node.node.name or str(node.node.outputs[0].name)
    blockers = tuple(dict.fromkeys(blocker for value in node.node.outputs for blocker in behind[id(value)]))
    if transfer.mixes is not None:
        blockers = (Blocker(node=name, op_type=node.node.op_type, reason=transfer.mixes), *blockers)
    if transfer.blocked is not None:
        W = node.node.inputs[1]
        columns = None if W is None or W.shape is None else W.shape[column_axis(node.node.op_type)]
        input_size = columns if isinstance(columns, int) else 0
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


def _blockers(program: Program) -> dict[int, tuple[Blocker, ...]]:
    """Return, by the value's id, whatever is not understood behind each value, or the interface; matrices end the walk.

    What lies behind a value is the union of what lies behind those that follow, so one pass backwards finds all.
    """
    transfers = {view.node: transfer for view, transfer in zip(program.nodes, program.transfers, strict=True)}
    owner = owners(program.graph)
    fed_back = {int(cell) for pair in program.carried for cell in pair.b}
    values = (value for graph in graphs_in(program.graph) for value in values_of(graph))
    steps = {id(value): _step(program, value, transfers, owner, fed_back) for value in values}
    bits: dict[Blocker, int] = {}
    behind = {}
    for key, (blockers, _) in steps.items():
        behind[key] = sum(1 << bits.setdefault(blocker, len(bits)) for blocker in set(blockers))
    settled = False
    while not settled:
        settled = True
        for key, (_, followers) in reversed(steps.items()):
            joined = behind[key]
            for value in followers:
                joined |= behind[id(value)]
            settled &= joined == behind[key]
            behind[key] = joined
    return {key: tuple(blocker for blocker, bit in bits.items() if bitset >> bit & 1) for key, bitset in behind.items()}


def _step(
    program: Program,
    value: ir.Value,
    transfers: Mapping[ir.Node, Transfer],
    owner: Mapping[ir.Graph | None, ir.Node],
    fed_back: Collection[int],
) -> tuple[list[Blocker], list[ir.Value]]:
    """Return what blocks a value itself, and the values that its units go on to."""
    found: list[Blocker] = []
    followers: list[ir.Value] = []
    returned = value.is_graph_output()
    if returned and value.graph is program.graph and program.numbering.of_value(value).first not in fed_back:
        found.append(Blocker(node=str(value.name), op_type="graph output",
                             reason="the model's interface returns these units"))  # fmt: skip
    readers = [reader for reader, _ in value.uses()]
    for reader in [*readers, owner[value.graph]] if returned and value.graph in owner else readers:
        transfer = transfers[reader]
        reason = transfer.mixes if transfer.blocked is None else transfer.blocked
        if reason is not None:
            name = reader.name or str(reader.outputs[0].name)
            found.append(Blocker(node=name, op_type=reader.op_type, reason=reason))
        if transfer.blocked is None and transfer.statements and not {"rows", "units"} & set(transfer.neurons):
            outputs = reader.outputs if transfer.mixes is None else reader.outputs[:1]  # the rest is its range
            followers += [*outputs, *(given for body in bodies_of(reader) for given in body.inputs)]
    return found, followers
