"""Which neurons may be given up: those that only matrices read, in groups that share a size.

A *candidate* is a class of cells that share one fate (a unit, whatever moves it, the rows of all matrices that read it;
the sum of a residual connection). It can be given up when nothing but matrices reads it: then zeros in their rows end
all demand for it. Whoever else reads a member from outside the class (a softmax, a normalisation, an attention product,
the interface, an operator that is not understood) keeps it alive, and is named. Columns stay, too, where a table or
matrix is stored once and used for other neurons as well: to cut one use would be to store it twice. Hidden units go
all the same.

A *group* holds the candidates of one recurrent node, or of several that are coupled; its *sides* (the directions of a
bidirectional node) keep equally many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolchain.graph.cells import BoolArray, CellArray, Couple, Linear, Read
from toolchain.graph.layout import components
from toolchain.graph.program import Program, demanded
from toolchain.oneshot.matrices import Matrix
from toolchain.recurrent import GATES


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronGroup:
    """Candidates that are chosen among one another.

    Attributes:
        nodes: names of the nodes that own them.
        recurrent: whether they are hidden units, not the columns of a matrix or a table.
        candidates: the label of each candidate's class, shape `[num_candidates]`.
        sides: which side each is on, shape `[num_candidates]`.
        size: neurons on each side, those that cannot be given up included.
        directions: sides that a candidate count applies to.
    """

    nodes: tuple[str, ...]
    recurrent: bool
    candidates: CellArray
    sides: CellArray
    size: int

    @property
    def directions(self) -> int:
        """Sides of the group."""
        return int(self.sides.max()) + 1 if self.sides.size else 1


def classes(program: Program) -> CellArray:
    """Return the class of every cell: what one decision removes, carried state included; shape `[num_cells]`."""
    ports = [Couple(a=port.value.ravel(), b=port.unit.ravel()) for port in program.ports]
    return components(program.numbering.size, [*program.couples, *ports, *program.carried])


def find_groups(program: Program, matrices: Sequence[Matrix], labels: CellArray) -> tuple[NeuronGroup, ...]:
    """Return the groups of a graph, in its order."""
    held = _held(program, matrices, labels)
    inputs = [matrix.rows for matrix in matrices if matrix.part == "W"]
    feeds_recurrence = np.zeros(labels.size, dtype=np.bool_)
    feeds_recurrence[labels[np.concatenate([np.empty(0, np.intp), *inputs])]] = True
    owned: dict[int, tuple[str, bool, CellArray]] = {}  # [sides, neurons] of cells
    for number, (node, transfer) in enumerate(zip(program.nodes, program.transfers, strict=True)):
        if transfer.blocked is not None:
            continue
        name = node.node.name or str(node.node.outputs[0].name)
        if "units" in transfer.neurons and node.node.op_type in GATES:
            owned[number] = name, True, transfer.neurons["units"].cells
        elif "columns" in transfer.neurons and feeds_recurrence[labels[transfer.neurons["columns"].cells]].any():
            owned[number] = name, False, transfer.neurons["columns"].cells[None]
    shared = held | _stored_for_others(program, labels)
    found = []
    for members in _linked(owned, labels):
        recurrent = any(recurrent for _, recurrent, _ in members)
        group = _group(members, labels, held if recurrent else shared)
        found += [] if group is None else [group]
    return tuple(found)


def _held(program: Program, matrices: Sequence[Matrix], labels: CellArray) -> BoolArray:
    """Return which classes something other than a replaceable matrix reads, shape `[num_cells]` by label."""
    held = np.zeros(labels.size, dtype=np.bool_)
    for cells in program.roots:
        held[labels[cells]] = True
    rigid = np.zeros_like(held)
    plain = components(labels.size, program.couples)  # without carried state, which a gather can hold at its width
    for cells in program.fixed:
        rigid[plain[cells]] = True
    for space in program.neurons:
        held[labels[space.cells[rigid[plain[space.cells]]]]] = True
    demand = demanded(program)
    replaceable = np.zeros(labels.size, dtype=np.bool_)
    for matrix in matrices:
        replaceable[matrix.rows] = True
    for transfer in program.transfers:
        for statement in transfer.statements:
            if isinstance(statement, Read):
                foreign = demand[statement.reader] & (labels[statement.reader] != labels[statement.read])
                held[labels[statement.read[foreign]]] = True
            elif isinstance(statement, Linear):
                held[labels[statement.read[~replaceable[statement.read]]]] = True
    return held


def _stored_for_others(program: Program, labels: CellArray) -> BoolArray:
    """Return which classes have a row or column in a stored matrix that another node uses for other classes."""
    uses: dict[int, list[CellArray]] = {}
    for node, transfer in zip(program.nodes, program.transfers, strict=True):
        cells = [space.cells.ravel() for _, space in sorted(transfer.neurons.items())]
        mine = labels[np.concatenate([np.empty(0, np.intp), *cells])]
        for value in node.node.inputs:
            if value is not None and value.const_value is not None and len(value.const_value.shape) > 1:
                uses.setdefault(id(value), []).append(mine)
    shared = np.zeros(labels.size, dtype=np.bool_)
    for first, *others in uses.values():
        if not all(np.array_equal(first, other) for other in others):
            shared[np.concatenate([first, *others])] = True
    return shared


def _linked(
    owned: dict[int, tuple[str, bool, CellArray]], labels: CellArray
) -> list[list[tuple[str, bool, CellArray]]]:
    """Join nodes that share a class."""
    groups: list[tuple[set[int], list[tuple[str, bool, CellArray]]]] = []
    for member in owned.values():
        mine = set(labels[member[2]].ravel().tolist())
        joined = [group for group in groups if group[0] & mine]
        groups = [group for group in groups if not group[0] & mine]
        groups.append((mine.union(*(group[0] for group in joined)),
                       [*(one for group in joined for one in group[1]), member]))  # fmt: skip
    return [members for _, members in groups]


def _group(members: list[tuple[str, bool, CellArray]], labels: CellArray, held: BoolArray) -> NeuronGroup | None:
    """Return the candidates of nodes that belong together; None when there is none."""
    rows = [row for _, _, cells in members for row in labels[cells]]
    sides_of: dict[int, set[int]] = {}
    repeated: set[int] = set()
    for side, row in enumerate(rows):
        found, counts = np.unique(row, return_counts=True)
        repeated.update(found[counts > 1].tolist())
        for label in found.tolist():
            sides_of.setdefault(label, set()).add(side)
    allowed = [label for label in sides_of if not held[label] and label not in repeated]
    if not allowed:
        return None
    patterns = {pattern: index for index, pattern in enumerate(sorted({tuple(sorted(sides_of[a])) for a in allowed}))}
    return NeuronGroup(
        nodes=tuple(name for name, _, _ in members),
        recurrent=any(recurrent for _, recurrent, _ in members),
        candidates=np.array(allowed, dtype=np.intp),
        sides=np.array([patterns[tuple(sorted(sides_of[a]))] for a in allowed], dtype=np.intp),
        size=max(len(row) for row in rows),
    )
