"""From demand to layout: cells that the runtime pairs share one fate, and every tensor stays a block.

    classes   connected components of the coupled cells; a class is kept if any member is demanded or fixed; an
              operand that nobody reads is severed from its operator, so it does not tie the others' widths
    ports     carried state joins the classes, unless its value cannot change: then it is bridged by a gather
    blocks    rows that keep fewer than their neighbours gain positions until each space is a tensor again

Keeping more is always correct, so each step only ever adds, and the last one repeats until nothing is added.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from toolchain.graph.cells import BoolArray, CellArray, Couple, Port, Space
from toolchain.graph.kept import NO_ROW, Kept, missing_from_block


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What is kept, and which ports are bridged because their value keeps its full width."""

    kept: Kept
    bridged: tuple[Port, ...]


def decide_layout(
    demand: BoolArray,
    *,
    couples: Sequence[Couple],
    ports: Sequence[Port],
    fixed: Sequence[CellArray],
    never_empty: Sequence[CellArray],
    neurons: Collection[Space],
    spaces: Collection[Space],
) -> Layout:
    """Choose the cells to keep.

    Args:
        demand: True where a cell can still change an output, shape `[num_cells]`.
        couples: cells that are paired by position.
        ports: state inputs and outputs of recurrent nodes.
        fixed: cells that stay whatever happens.
        never_empty: sets of cells of which at least one stays.
        neurons: the nodes' own spaces, made blocks first, along their own axis.
        spaces: every space.
    """
    held = np.zeros_like(demand)
    for cells in fixed:
        held[cells] = True
    rigid = _spread(held, components(demand.size, couples))
    bridged = tuple(port for port in ports if rigid[port.value].any())
    joined = [Couple(a=port.value.ravel(), b=port.unit.ravel()) for port in ports if not rigid[port.value].any()]
    for port in bridged:
        held[port.value] = True
    # A bridge needs a unit of each direction, shape [hidden].
    needed = [*never_empty, *(direction for port in bridged for direction in port.unit[:, 0])]
    severed = [pair for pair in couples if pair.severable]
    while True:
        apart = {id(pair) for pair in severed}
        tied = [*(pair for pair in couples if id(pair) not in apart), *joined]
        labels = components(demand.size, tied)
        rows = _rows(neurons, tied, labels)
        kept = _spread(demand | held, labels)
        for direction in needed:
            kept[direction[0]] |= not kept[direction].any()
        kept = _spread(kept, labels)
        for group in (tuple(neurons), tuple(spaces)):
            kept = _complete(kept, rows, labels, group)
        dead = [pair for pair in severed if not kept[pair.a].any()]
        if len(dead) == len(severed):
            return Layout(kept=Kept(mask=kept, rows=rows), bridged=bridged)
        severed = dead


def _rows(neurons: Collection[Space], couples: Sequence[Couple], labels: CellArray) -> CellArray:
    """Number the rows of units; return to which one each cell belongs, `NO_ROW` where to none.

    A cell belongs to the row of the units in its class. A class that has units of two rows of one node (directions that
    are added, a softmax over some of each) is torn: each of its cells belongs to the row of the nearest unit. Where the
    rows of several nodes cross (directions of one, groups of another), every part that they have in common is a row.
    """
    spaces = [space for space in neurons if len(space.shape) > 1]
    rows_of = [np.broadcast_to(np.arange(space.shape[0])[:, None], space.shape).ravel() for space in spaces]
    last = np.full_like(labels, NO_ROW)
    torn = np.zeros(labels.size, dtype=np.bool_)  # by the class's smallest cell
    for space, own in zip(spaces, rows_of, strict=True):
        classes = labels[space.cells].ravel()
        last[classes] = own
        torn[classes[last[classes] != own]] = True
    crossing = [pair for pair in couples if torn[labels[pair.a]].any()] if torn.any() else []
    neighbours, first = _neighbours(crossing, labels.size)
    items = np.where(torn[labels], np.arange(labels.size), labels)
    of_item = np.full_like(labels, NO_ROW)
    for number, (space, own) in enumerate(zip(spaces, rows_of, strict=True)):
        cells = space.cells.ravel()
        if torn[labels[cells]].any():
            cells, own = _nearest(cells, own, neighbours, first)
        found = items[cells]
        _, part = np.unique(np.stack([of_item[found], own]), axis=1, return_inverse=True)
        of_item[found] = number * labels.size + part.ravel()  # parts are fewer than cells
    return of_item[items]


def _neighbours(couples: Sequence[Couple], size: int) -> tuple[CellArray, CellArray]:
    """Return every cell's neighbours, those of cell `i` at `first[i]` to `first[i + 1]`, and `first`."""
    nobody = np.empty(0, np.intp)
    a = np.concatenate([nobody, *(pair.a for pair in couples), *(pair.b for pair in couples)])
    b = np.concatenate([nobody, *(pair.b for pair in couples), *(pair.a for pair in couples)])
    order = np.argsort(a, kind="stable")
    return b[order], np.searchsorted(a[order], np.arange(size + 1))


def _nearest(cells: CellArray, rows: CellArray, neighbours: CellArray, first: CellArray) -> tuple[CellArray, CellArray]:
    """Return the cells within reach and the row of each: of the nearest of `cells`, the lowest of those as near."""
    of_cell = np.full(first.size - 1, NO_ROW, dtype=rows.dtype)
    of_cell[cells] = rows
    reached = [cells]
    while cells.size:
        counts = first[cells + 1] - first[cells]
        ahead = neighbours[np.repeat(first[cells] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())]
        rows = np.repeat(of_cell[cells], counts)
        new = of_cell[ahead] == NO_ROW
        order = np.lexsort((rows[new], ahead[new]))
        cells, lowest = np.unique(ahead[new][order], return_index=True)
        of_cell[cells] = rows[new][order][lowest]
        reached.append(cells)
    found = np.concatenate(reached)
    return found, of_cell[found]


def components(size: int, couples: Sequence[Couple]) -> CellArray:
    """Return the smallest cell of each cell's class, shape `[size]`.

    Source: label propagation with pointer jumping (Shiloach and Vishkin 1982), logarithmic in the longest chain.
    """
    labels = np.arange(size, dtype=np.intp)
    a = np.concatenate([np.empty(0, np.intp), *(pair.a for pair in couples)])
    b = np.concatenate([np.empty(0, np.intp), *(pair.b for pair in couples)])
    while True:
        low = np.minimum(labels[a], labels[b])
        hooked = labels.copy()
        np.minimum.at(hooked, labels[a], low)
        np.minimum.at(hooked, labels[b], low)
        while not np.array_equal(jumped := hooked[hooked], hooked):
            hooked = jumped
        if np.array_equal(hooked, labels):
            return labels
        labels = hooked


def _spread(marked: BoolArray, labels: CellArray) -> BoolArray:
    """Mark every class that has a marked member."""
    classes = np.zeros_like(marked)
    classes[labels[marked]] = True
    return classes[labels]


def _complete(kept: BoolArray, rows: CellArray, labels: CellArray, spaces: Sequence[Space]) -> BoolArray:
    """Add cells until each of the spaces is a block."""
    while True:
        added = np.zeros_like(kept)
        for space in spaces:
            own = slice(space.first, space.first + space.size)
            if not kept[own].all():
                missing = missing_from_block(kept[own].reshape(space.shape), rows[own].reshape(space.shape))
                added[own] |= missing.ravel()
        if not added.any():
            return kept
        kept = _spread(kept | added, labels)
