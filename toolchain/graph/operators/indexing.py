"""Operators that pick or replace positions by indices: Gather, GatherElements, GatherND, ScatterElements, ScatterND.

    constant indices      positions are moved, and the indices are renumbered by where those went
    indices at run time   any position of the addressed axes may be meant, so these share one fate; along the others
                          the operator is transparent (a time step picked by lengths, a cache updated at a slot)

A position of run-time length is one cell, whichever index addresses it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from toolchain.graph.cells import BlockedError, CellArray, Couple, Read, Space, Statement, Transfer, couple, pairs
from toolchain.graph.edits import Edits
from toolchain.graph.kept import Kept
from toolchain.graph.nodes import NodeView
from toolchain.graph.operators import linear

Neurons = dict[str, Space]
Indices = npt.NDArray[np.integer]
_UPDATES = 2


def moved(out: CellArray, read: CellArray) -> tuple[Read, Couple]:
    """Return the statements that each output cell is the input cell at its place (broadcast)."""
    return pairs(out, read, keeps_zero=True), couple(out, read)


def cut_alike(x: Space, axis: int) -> tuple[Statement, ...]:
    """Return what lets one list of positions along `axis` serve all lines of the axes in front of it."""
    lines = [other for other in range(axis) if x.shape[other] > 1]
    return tuple(couple(x.cells, x.cells.take([0], axis=other)) for other in lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Addressed:
    """Where constant indices point: `places` are flat positions of `whole`, one for each position of `part`.

    `axes` are those whose positions the indices number, and the last axis of the indices lists them if `listed`.
    """

    whole: Space
    part: Space
    places: CellArray
    axes: tuple[int, ...]
    listed: bool
    picked_rank: int  # leading axes of the part that the indices span; all of them for the Elements operators

    @property
    def cells(self) -> CellArray:
        return self.whole.first + self.places


def gather(node: NodeView) -> Transfer:
    """Describe Gather: an embedding table, constant indices, or indices known at run time."""
    data_rank = len(node.input(0).shape) if node.constant(0) is None else node.weights(0).ndim
    axis = node.axis("axis", 0, data_rank)
    table = linear.embedding(node, axis)
    if table is not None:
        return table
    x, out = node.input(0), node.output(0)
    indices = node.constant(1)
    if indices is None or x.dynamic[axis]:
        return Transfer(statements=_gathered_anywhere(x, out, axis))
    cells = x.cells.take(_from_front(indices, x, axis), axis=axis)
    return Transfer(statements=(*moved(out.cells, cells), *cut_alike(x, axis)))


def _from_front(indices: Indices, x: Space, axis: int) -> CellArray:
    """Return indices counted from the front; on an axis of run-time length all mean its one cell."""
    if x.dynamic[axis]:
        return np.zeros(indices.shape, dtype=np.intp)
    picked = np.where(indices < 0, indices + x.shape[axis], indices).astype(np.intp)
    if picked.size and not (picked.min() >= 0 and picked.max() < x.shape[axis]):
        raise BlockedError("an index lies outside of what it addresses")
    return picked


def _gathered_anywhere(x: Space, out: Space, axis: int) -> tuple[Statement, ...]:
    """Indices at run time may pick any position of the axis, so its positions share one fate.

    Where they pick from one cell, what is zero for certain stays so, whatever the indices are.
    """
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    indices = out.shape[axis : len(out.shape) - len(after)]
    source = x.cells.reshape((*before, 1, x.shape[axis], *after))
    target = out.cells.reshape((*before, int(np.prod(indices, dtype=np.int64)), 1, *after))
    read, together = moved(target, source)
    return replace(read, absorbs_zero=x.shape[axis] == 1), together


def rewrite_gather(node: NodeView, neurons: Neurons, kept: Kept, edits: Edits) -> None:
    """Slice the table's columns, or renumber the constant indices."""
    if "columns" in neurons:
        linear.rewrite_embedding(node, neurons, kept, edits)
        return
    x, out = node.input(0), node.output(0)
    axis = node.axis("axis", 0, len(x.shape))
    indices = node.constant(1)
    if indices is None or x.dynamic[axis]:
        return
    rank = indices.ndim
    picked = _from_front(indices, x, axis)
    lines = [kept.axis(out, axis + place) if not out.dynamic[axis + place] else np.arange(1) for place in range(rank)]
    if rank:
        picked = picked[np.ix_(*lines)]
    edits.put(node.node, 1, np.searchsorted(kept.axis(x, axis), picked).astype(indices.dtype))


def gather_elements(node: NodeView) -> Transfer:
    """Describe `out[.., i, ..] = x[.., indices[.., i, ..], ..]`."""
    x, out = node.input(0), node.output(0)
    axis = node.axis("axis", 0, len(x.shape))
    addressed = _elements(node, x, out, axis)
    if addressed is not None:
        return Transfer(statements=moved(out.cells, addressed.cells))
    indices = node.input(1)
    return Transfer(
        statements=(
            pairs(out.cells, indices.cells),
            couple(out.cells, indices.cells),
            *moved(np.expand_dims(out.cells, axis + 1), _opposite(x, out, axis)),
        )
    )


def _opposite(x: Space, part: Space, axis: int) -> CellArray:
    """Return the cells of `x` that each position of `part` may stand for, with all of `axis` behind one of length 1."""
    cells = x.cells
    for other, length in enumerate(part.shape):
        if other != axis and not part.dynamic[other] and not x.dynamic[other]:
            if length > x.shape[other]:
                raise BlockedError("the shapes around it do not agree")
            cells = cells.take(np.arange(length), axis=other)
    return np.expand_dims(cells, axis)


def _elements(node: NodeView, whole: Space, part: Space, axis: int) -> _Addressed | None:
    """Return where constant indices of the shape of `part` point; None where that is not known."""
    indices = node.constant(1)
    if indices is None or whole.dynamic[axis]:
        return None
    if indices.shape != part.shape:
        raise BlockedError("the shapes around it do not agree")
    grid: list[CellArray] = [np.asarray(along, dtype=np.intp) for along in np.indices(indices.shape)]
    for other, dynamic in enumerate(whole.dynamic):
        if dynamic:
            grid[other] = np.zeros_like(grid[other])
    grid[axis] = _from_front(indices, whole, axis)
    places = np.arange(whole.size).reshape(whole.shape)[tuple(grid)]
    return _Addressed(whole=whole, part=part, places=places, axes=(axis,), listed=False, picked_rank=indices.ndim)


def gather_nd(node: NodeView) -> Transfer:
    """Describe `out[u.., p..] = x[indices[u..], p..]`."""
    x, out = node.input(0), node.output(0)
    if int(node.attribute("batch_dims", 0)) != 0:
        raise BlockedError("its indices are given for each sequence of the batch")
    addressed = _listed(node, x, out)
    if addressed is not None:
        return Transfer(statements=moved(out.cells, addressed.cells))
    source, target = _slots(node, x, out)
    return Transfer(statements=moved(target, source))


def _listed(node: NodeView, whole: Space, part: Space) -> _Addressed | None:
    """Return where constant indices, each a list of coordinates, point; None where that is not known."""
    indices = node.constant(1)
    if indices is None:
        return None
    axes = range(indices.shape[-1])
    grid = tuple(_from_front(indices[..., axis], whole, axis) for axis in axes)
    places = np.arange(whole.size).reshape(whole.shape)[grid]
    if places.shape != part.shape:
        raise BlockedError("the shapes around it do not agree")
    return _Addressed(whole=whole, part=part, places=places, axes=tuple(axes), listed=True,
                      picked_rank=indices.ndim - 1)  # fmt: skip


def _slots(node: NodeView, whole: Space, part: Space) -> tuple[CellArray, CellArray]:
    """Return the cells of whole and part as `[1, addressed, rest..]` and `[picked, 1, rest..]`."""
    shape = node.value(1).shape
    count = None if shape is None or not len(shape) else shape[-1]
    if not isinstance(count, int):
        raise BlockedError(f"the shape of its input {node.value(1).name!r} is not known")
    rest = whole.shape[count:]
    if part.shape[len(part.shape) - len(rest) :] != rest:
        raise BlockedError("the shapes around it do not agree")
    return whole.cells.reshape(1, -1, *rest), part.cells.reshape(-1, 1, *rest)


def scatter_elements(node: NodeView) -> Transfer:
    """Describe a copy of the data in which `out[.., indices[.., i, ..], ..] = updates[.., i, ..]`."""
    out, updates = node.output(0), node.input(_UPDATES)
    axis = node.axis("axis", 0, len(out.shape))
    addressed = _elements(node, out, updates, axis)
    if addressed is not None:
        whole = not any(dynamic for other, dynamic in enumerate(out.dynamic) if other != axis)
        return _replaced(node, addressed, whole=whole)
    indices, target = node.input(1), _opposite(out, updates, axis)
    sources = (np.expand_dims(updates.cells, axis + 1), np.expand_dims(indices.cells, axis + 1))
    return _updated(node, target, *sources)


def scatter_nd(node: NodeView) -> Transfer:
    """Describe a copy of the data in which `out[indices[u..], p..] = updates[u.., p..]`."""
    out, updates = node.output(0), node.input(_UPDATES)
    addressed = _listed(node, out, updates)
    if addressed is not None:
        return _replaced(node, addressed, whole=not any(out.dynamic[axis] for axis in addressed.axes))
    target, source = _slots(node, out, updates)
    return _updated(node, target, source)


def _replaced(node: NodeView, addressed: _Addressed, *, whole: bool) -> Transfer:
    """Where updates are known to go, the data is not read; `whole` says that no sequence or step is left out."""
    data, out, updates = node.input(0), addressed.whole, addressed.part
    stays = np.ones(out.size, dtype=np.bool_)
    if whole and node.attribute("reduction", "none") == "none":
        stays[addressed.places.ravel()] = False
    mask = stays.reshape(out.shape)
    return Transfer(
        statements=(
            pairs(out.cells[mask], data.cells[mask], keeps_zero=True),
            pairs(addressed.cells, updates.cells, keeps_zero=True),
            couple(out.cells, data.cells),
            couple(addressed.cells, updates.cells),
        )
    )


def _updated(node: NodeView, target: CellArray, *sources: CellArray) -> Transfer:
    """Any of the updates may go to any addressed position."""
    data, out = node.input(0), node.output(0)
    return Transfer(
        statements=(
            *moved(out.cells, data.cells),
            *(statement for source in sources for statement in moved(target, source)),
        )
    )


def rewrite(node: NodeView, neurons: Neurons, kept: Kept, edits: Edits) -> None:
    """Renumber constant indices by where the positions that they address went."""
    elements = node.node.op_type in ("GatherElements", "ScatterElements", "Scatter")
    gathers = node.node.op_type in ("GatherElements", "GatherND")
    whole, part = (node.input(0), node.output(0)) if gathers else (node.output(0), node.input(_UPDATES))
    axis = node.axis("axis", 0, len(whole.shape))
    addressed = _elements(node, whole, part, axis) if elements else _listed(node, whole, part)
    if addressed is not None:
        edits.put(node.node, 1, _renumbered(node.weights(1), addressed, kept))


def _renumbered(indices: Indices, addressed: _Addressed, kept: Kept) -> Indices:
    before = kept.table(addressed.whole)  # the old position at each new one
    after = np.zeros(addressed.whole.size, dtype=np.intp)
    after[before.ravel()] = np.arange(before.size)
    left = kept.table(addressed.part)
    coordinates = np.unravel_index(after[addressed.places.ravel()[left]], before.shape)
    first = (slice(None),) * addressed.picked_rank + (0,) * (left.ndim - addressed.picked_rank)
    if not addressed.listed:
        return coordinates[addressed.axes[0]].astype(indices.dtype)
    lines = [kept.axis(addressed.part, axis) for axis in range(addressed.picked_rank)]
    same = indices[np.ix_(*lines, np.arange(indices.shape[-1]))] if lines else indices  # for run-time axes
    columns = [same[..., axis] if addressed.whole.dynamic[axis] else coordinates[axis][first]
               for axis in addressed.axes]  # fmt: skip
    return np.stack(columns, axis=-1).astype(indices.dtype)
