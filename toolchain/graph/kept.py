"""Which cells stay, and how a space looks once the others are gone.

A tensor is a block, so what is kept of a space must be one: whole rows of every axis (`[:, kept]`), or along one axis
an equal number per row of the others, as in the units of a bidirectional LSTM, where each direction keeps its own, and
in a hidden axis split into groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolchain.graph.cells import BoolArray, CellArray, Space

NO_ROW = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The cells that stay, over the whole graph.

    `mask` has shape `[num_cells]`. `rows` numbers the rows of units (one direction, one group of a node) and says of
    every cell to which it belongs, `NO_ROW` where to none: only along one row may positions close ranks, each row by
    itself.
    """

    mask: BoolArray
    rows: CellArray

    def of(self, space: Space) -> BoolArray:
        """Return which cells of a space stay, in the space's shape."""
        return self.mask[space.first : space.first + space.size].reshape(space.shape)

    def rows_of(self, space: Space) -> CellArray:
        """Return the row of units to which each cell belongs, in the space's shape."""
        return self.rows[space.first : space.first + space.size].reshape(space.shape)

    def whole(self, space: Space) -> bool:
        """Tell whether nothing is removed from a space."""
        return bool(self.of(space).all())

    def table(self, space: Space) -> CellArray:
        """Return the old flat position of every new position; its shape is the space's new shape."""
        table = as_block(self.of(space), self.rows_of(space))
        assert table is not None, "the layout stage leaves every space a block"
        return table

    def axis(self, space: Space, axis: int) -> CellArray:
        """Return the old positions kept along one axis, shape `[num_kept]`."""
        others = tuple(other for other in range(len(space.shape)) if other != axis)
        return np.flatnonzero(self.of(space).any(axis=others))


def as_block(mask: BoolArray, rows: CellArray) -> CellArray | None:
    """Lay what is kept out as a tensor.

    Args:
        mask: True where a position is kept, at least one of them.
        rows: the row of units to which each position belongs, shape of `mask`.

    Returns:
        The flat old position at every new position, or None when what is kept is not a block.
    """
    lines = _lines(mask)
    block = mask[lines]
    positions = np.arange(mask.size).reshape(mask.shape)[lines]
    if block.all():
        return positions
    axis = _ragged_axis(block, rows[lines])
    if axis is None:
        return None
    counts = block.sum(axis=axis)
    if counts.min() != counts.max():
        return None
    ragged = np.moveaxis(positions, axis, -1)[np.moveaxis(block, axis, -1)]  # row-major: sorted in each row
    return np.moveaxis(ragged.reshape(*counts.shape, -1), -1, axis)


def missing_from_block(mask: BoolArray, rows: CellArray) -> BoolArray:
    """Return the positions to add so that the rows of units keep equally many, shape of `mask`.

    Lines of which nothing is kept stay away. An empty space gains its first position: no runtime runs a tensor of
    length zero.
    """
    missing = np.zeros_like(mask)
    if not mask.any():
        missing.flat[0] = True
        return missing
    if mask.ndim == 0 or as_block(mask, rows) is not None:
        return missing
    lines = _lines(mask)
    block = mask[lines]
    axis = _ragged_axis(block, rows[lines])
    if axis is None:
        missing[lines] = ~block
        return missing
    # The lines of that axis which nobody keeps may serve as well as any other to fill a row.
    lines = np.ix_(*(np.arange(mask.shape[a]) if a == axis else line.ravel() for a, line in enumerate(lines)))
    free = ~np.moveaxis(mask[lines], axis, -1)
    short = free.sum(axis=-1) - free.sum(axis=-1).min()  # how many each row lacks
    added = free & (np.cumsum(free, axis=-1) <= short[..., None])  # its first free positions
    missing[lines] = np.moveaxis(added, -1, axis)
    return missing


def _ragged_axis(block: BoolArray, rows: CellArray) -> int | None:
    """Return the axis along which each row of units may keep its own positions: the longest that leaves no row.

    Along it either all positions of a line belong to one row, or every row lies within one line: several groups of
    one direction, side by side.
    """
    inside = [
        axis
        for axis in range(block.ndim)
        if (block != block.take([0], axis=axis)).any()
        and ((rows == rows.take([0], axis=axis)).all() or _within_lines(rows, axis))
    ]
    return max(inside, key=lambda axis: (block.shape[axis], axis), default=None)


def _within_lines(rows: CellArray, axis: int) -> bool:
    """Tell whether no row has positions on two lines along an axis."""
    lines = np.moveaxis(rows, axis, -1).reshape(-1, rows.shape[axis])
    line_of = np.broadcast_to(np.arange(lines.shape[0])[:, None], lines.shape)
    belongs = np.unique(np.stack([lines.ravel(), line_of.ravel()]), axis=1)  # each row with each of its lines, once
    return NO_ROW not in belongs[0] and np.unique(belongs[0]).size == belongs.shape[1]


def _lines(mask: BoolArray) -> tuple[CellArray, ...]:
    """Return the positions along each axis of which anything is kept, as an index into `mask`."""
    return np.ix_(*(np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
                    for axis in range(mask.ndim)))  # fmt: skip
