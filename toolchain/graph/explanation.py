"""Why a recurrent node keeps what it keeps: live units, what it is coupled with, what blocks it and at what price.

The price of a blocker is found by planning again without it:

    an operator that is not understood   passes each position on to the same place (same shape, or same last axis)
    a graph output                       is not read, and may change its shape

and counting how many more units of the whole model would go. Where a blocker can be replaced by neither, the price is
not known, and None says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from toolchain.graph.cells import BoolArray, CellArray, Couple, Space, Statement, Transfer, couple, pairs
from toolchain.graph.layout import components
from toolchain.graph.program import Program, demanded, joint_decisions
from toolchain.graph.surgery import Blocker, NodeChange, SurgeryPlan, layout_of
from toolchain.graph.unrolled import is_recurrent, name_of
from toolchain.recurrent import GATES

# Each price costs one more plan; beyond so many distinct ones the rest stay unknown.
MAX_PLANS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Coupling:
    """What must lose the same positions as a node's units: `part` is units, input, graph input or graph output."""

    name: str
    part: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedBlocker:
    """A blocker, and how many more units of the model would go without it; None where that cannot be told."""

    node: str
    op_type: str
    reason: str
    would_free: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeExplanation:
    """One recurrent node.

    Attributes:
        name: the node.
        op_type: LSTM, GRU, RNN or DynamicQuantizeLSTM.
        hidden_size: units per direction before.
        live: units per direction that an output can depend on, one number per direction.
        kept: units per direction that stay; more than are live where couplings or blockers hold them.
        coupled_with: what must lose the same positions.
        blocked_by: what keeps units, each with its price.
        would_free_together: the price of all blockers whose price is known, at once; None where there is none.
    """

    name: str
    op_type: str
    hidden_size: int
    live: tuple[int, ...]
    kept: int
    coupled_with: tuple[Coupling, ...]
    blocked_by: tuple[PricedBlocker, ...]
    would_free_together: int | None


def explain(plan: SurgeryPlan) -> tuple[NodeExplanation, ...]:
    """Explain every recurrent node of a plan; the graph and the plan are not changed."""
    program = plan.program
    demand = demanded(program)
    labels = _classes(plan, demand)
    prices = _Prices(program)
    recurrent = [(view.node, transfer) for view, transfer in zip(program.nodes, program.transfers, strict=True)
                 if view.node.op_type in GATES]  # fmt: skip
    return tuple(
        _explanation(program, change, node, transfer, demand, labels, prices)
        for change, (node, transfer) in zip(plan.changes, recurrent, strict=True)
    )


def left_whole(graph: ir.Graph) -> tuple[Blocker, ...]:
    """Return the recurrent nodes that the surgery does not plan for, and why."""
    return tuple(
        Blocker(node=name_of(node), op_type=node.op_type, reason="it lies inside a subgraph (If, Loop or Scan)")
        for node in graph.all_nodes()
        if is_recurrent(node) and node.graph is not graph
    )


def _explanation(
    program: Program,
    change: NodeChange,
    node: ir.Node,
    transfer: Transfer,
    demand: BoolArray,
    labels: CellArray,
    prices: _Prices,
) -> NodeExplanation:
    units = transfer.neurons.get("units")
    known = [blocker for blocker in change.blocked_by if prices.of([blocker]) is not None]
    return NodeExplanation(
        name=change.name,
        op_type=change.op_type,
        hidden_size=change.hidden_before,
        live=(change.hidden_before,) * change.num_directions if units is None
        else tuple(int(count) for count in demand[units.cells].sum(axis=1)),
        kept=change.hidden_after,
        coupled_with=() if units is None else _couplings(program, node, units, labels),
        blocked_by=tuple(PricedBlocker(node=blocker.node, op_type=blocker.op_type, reason=blocker.reason,
                                       would_free=prices.of([blocker])) for blocker in change.blocked_by),
        would_free_together=prices.of(known) if known else None,
    )  # fmt: skip


def _classes(plan: SurgeryPlan, demand: BoolArray) -> CellArray:
    """Return the class of every cell; state ports that are bridged tie nothing together."""
    joined = [Couple(a=port.value.ravel(), b=port.unit.ravel()) for port in plan.program.ports
              if port not in plan.layout.bridged]  # fmt: skip
    couples = [*plan.program.couples, *joint_decisions(plan.program, demand), *joined]
    return components(plan.program.numbering.size, couples)


def _couplings(program: Program, node: ir.Node, units: Space, labels: CellArray) -> tuple[Coupling, ...]:
    own = set(labels[units.cells.ravel()].tolist())

    def shares(space: Space) -> bool:
        return not own.isdisjoint(labels[space.cells.ravel()].tolist())

    found = []
    for view, transfer in zip(program.nodes, program.transfers, strict=True):
        for part, kind in (("units", "units"), ("inputs", "input")):
            other = transfer.neurons.get(part) if view.node.op_type in GATES else None
            if other is not None and other != units and shares(other):
                found.append(Coupling(name=name_of(view.node), part=kind))
    for values, kind in ((program.graph.inputs, "graph input"), (program.graph.outputs, "graph output")):
        spaces = {str(value.name): program.numbering.spaces.get(id(value)) for value in values}
        found += [Coupling(name=name, part=kind) for name, space in spaces.items() if space and shares(space)]
    return tuple(found)


class _Prices:
    """Plans again without blockers, once for each set of them."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._removed = _units_removed(program)
        self._known: dict[tuple[str, ...], int | None] = {}

    def of(self, blockers: Sequence[Blocker]) -> int | None:
        """Return how many more units go without these blockers."""
        key = tuple(sorted(f"{blocker.op_type} {blocker.node}" for blocker in blockers))
        if key not in self._known:
            self._known[key] = self._plan(blockers) if len(self._known) < MAX_PLANS else None
        return self._known[key]

    def _plan(self, blockers: Sequence[Blocker]) -> int | None:
        program: Program | None = self._program
        for blocker in blockers:
            program = None if program is None else _without(program, blocker)
        return None if program is None else _units_removed(program) - self._removed


def _units_removed(program: Program) -> int:
    kept = layout_of(program).kept
    units = [transfer.neurons["units"] for transfer in program.transfers if "units" in transfer.neurons]
    return sum(space.size - kept.table(space).size for space in units)


def _without(program: Program, blocker: Blocker) -> Program | None:
    """Return the program as it would be without a blocker, None when that cannot be told."""
    if blocker.op_type == "graph output":
        return _without_output(program, blocker.node)
    for place, (view, transfer) in enumerate(zip(program.nodes, program.transfers, strict=True)):
        if transfer.blocked is not None and name_of(view.node) == blocker.node:
            transparent = _transparent(program, view.node)
            return None if transparent is None else _replaced(program, place, transparent)
    return None


def _without_output(program: Program, name: str) -> Program | None:
    space = next(program.numbering.of_value(value) for value in program.graph.outputs if value.name == name)

    def others(groups: Sequence[CellArray]) -> tuple[CellArray, ...]:
        return tuple(cells for cells in groups if not cells.size or int(cells[0]) != space.first)

    roots = others(program.roots)
    if not any(cells.size for cells in roots):
        return None  # it is all that the model returns
    return replace(program, roots=roots, fixed=others(program.fixed))


def _replaced(program: Program, place: int, transfer: Transfer) -> Program:
    """Put another transfer in the place of a blocked one."""
    freed = {id(cells) for cells in program.transfers[place].fixed}
    return replace(
        program,
        transfers=(*program.transfers[:place], transfer, *program.transfers[place + 1 :]),
        fixed=tuple(cells for cells in program.fixed if id(cells) not in freed),
        couples=(*program.couples, *(statement for statement in transfer.statements if isinstance(statement, Couple))),
    )


def _transparent(program: Program, node: ir.Node) -> Transfer | None:
    """Describe a node as if each output position came from the input position at its place.

    Shapes must be the same, or at least their last axes, then taken to be the neurons'.
    """
    computed = [value for value in node.inputs if value is not None and value.const_value is None]
    if node.op_type in GATES or len(node.outputs) != 1 or not computed:
        return None
    spaces = [program.numbering.spaces.get(id(value)) for value in (node.outputs[0], *computed)]
    out = spaces[0]
    statements: list[Statement] = []
    for read in spaces[1:]:
        if out is None or read is None or not out.shape or not read.shape:
            return None
        if read.shape == out.shape:
            statements += [pairs(out.cells, read.cells), couple(out.cells, read.cells)]
        elif read.shape[-1] == out.shape[-1] and not read.dynamic[-1] and not out.dynamic[-1]:
            above, below = out.cells.reshape(-1, out.shape[-1]), read.cells.reshape(-1, out.shape[-1])
            statements += [pairs(above, below[:1]), couple(above, below[:1])]
            statements += [pairs(below[:1], below), couple(below[:1], below)]
        else:
            return None
    return Transfer(statements=tuple(statements))
