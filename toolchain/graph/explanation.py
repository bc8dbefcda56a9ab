"""Why a recurrent node keeps what it keeps: live units, what it is coupled with, what blocks it and at what price.

The price of a blocker is found by planning again without it:

    an operator that is not understood   passes each position on to the same place (same shape, or same last axis)
    a graph output                       is not read, and may change its shape

and counting how many more units of the whole model would go. Where a blocker can be replaced by neither, the price is
not known, and None says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from toolchain.graph.cells import BoolArray, CellArray, Couple, Space, Statement, Transfer, couple, pairs
from toolchain.graph.layout import components
from toolchain.graph.program import Program, demanded, joint_decisions
from toolchain.graph.subgraphs import bodies_of
from toolchain.graph.surgery import Blocker, NodeChange, SurgeryPlan, layout_of
from toolchain.graph.unrolled import name_of
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
    places, prices = _Places(program, _classes(plan, demand)), _Prices(program)
    recurrent = [transfer for view, transfer in zip(program.nodes, program.transfers, strict=True)
                 if view.node.op_type in GATES]  # fmt: skip
    return tuple(
        _explanation(change, transfer, demand, places, prices)
        for change, transfer in zip(plan.changes, recurrent, strict=True)
    )


def _explanation(
    change: NodeChange, transfer: Transfer, demand: BoolArray, places: _Places, prices: _Prices
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
        coupled_with=() if units is None else places.coupled_with(units),
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


class _Places:
    """Everything that units can be coupled with, found by the classes of its cells."""

    def __init__(self, program: Program, labels: CellArray) -> None:
        self._labels = labels
        self._places = tuple(_places(program))
        self._of_class: dict[int, list[int]] = {}
        for number, (space, _) in enumerate(self._places):
            for label in np.unique(labels[space.cells]).tolist():
                self._of_class.setdefault(label, []).append(number)

    def coupled_with(self, units: Space) -> tuple[Coupling, ...]:
        """Return what shares a class with a node's units, in the graph's order."""
        classes = np.unique(self._labels[units.cells]).tolist()
        numbers = sorted({number for label in classes for number in self._of_class.get(label, ())})
        return tuple(coupling for space, coupling in map(self._places.__getitem__, numbers) if space != units)


def _places(program: Program) -> Iterator[tuple[Space, Coupling]]:
    for view, transfer in zip(program.nodes, program.transfers, strict=True):
        for part, kind in (("units", "units"), ("inputs", "input")):
            space = transfer.neurons.get(part) if view.node.op_type in GATES else None
            if space is not None:
                yield space, Coupling(name=name_of(view.node), part=kind)
    for values, kind in ((program.graph.inputs, "graph input"), (program.graph.outputs, "graph output")):
        for value in values:
            space = program.numbering.spaces.get(id(value))
            if space is not None:
                yield space, Coupling(name=str(value.name), part=kind)


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
    if node.op_type in GATES or bodies_of(node) or len(node.outputs) != 1 or not computed:
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
