"""Which cells stay, and how a space looks once the others are gone.

A tensor is a block, so what is kept of a space must be one: whole rows of every axis (`[:, kept]`), or along one axis
an equal number per row of the others, as in the units of a bidirectional LSTM, where each direction keeps its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolchain.graph.cells import BoolArray, CellArray, Space


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The cells that stay, over the whole graph; `mask` has shape `[num_cells]`."""

    mask: BoolArray

    def of(self, space: Space) -> BoolArray:
        """Return which cells of a space stay, in the space's shape."""
        return self.mask[space.first : space.first + space.size].reshape(space.shape)

    def whole(self, space: Space) -> bool:
        """Tell whether nothing is removed from a space."""
        return bool(self.of(space).all())

    def table(self, space: Space) -> CellArray:
        """Return the old flat position of every new position; its shape is the space's new shape."""
        table = as_block(self.of(space))
        assert table is not None, "the layout stage leaves every space a block"
        return table

    def axis(self, space: Space, axis: int) -> CellArray:
        """Return the old positions kept along one axis, shape `[num_kept]`."""
        others = tuple(other for other in range(len(space.shape)) if other != axis)
        return np.flatnonzero(self.of(space).any(axis=others))


def as_block(mask: BoolArray) -> CellArray | None:
    """Lay what is kept out as a tensor.

    Args:
        mask: True where a position is kept, at least one of them.

    Returns:
        The flat old position at every new position, or None when what is kept is not a block.
    """
    lines = [np.flatnonzero(_count(mask, axis)) for axis in range(mask.ndim)]
    block = mask[np.ix_(*lines)]
    positions = np.arange(mask.size).reshape(mask.shape)[np.ix_(*lines)]
    if block.all():
        return positions
    # The longest axis first: it is the neurons', the others are directions, groups or layers.
    for axis in sorted(range(mask.ndim), key=lambda axis: -mask.shape[axis]):
        counts = block.sum(axis=axis)
        if counts.min() == counts.max() > 0:
            rows = np.moveaxis(positions, axis, -1)[np.moveaxis(block, axis, -1)]  # row-major: sorted in each row
            return np.moveaxis(rows.reshape(*counts.shape, -1), -1, axis)
    return None


def missing_from_block(mask: BoolArray) -> BoolArray:
    """Return the positions to add so that rows along the longest axis keep equally many, shape of `mask`.

    An empty space gains its first position: no runtime runs a tensor of length zero.
    """
    missing = np.zeros_like(mask)
    if not mask.any():
        missing.flat[0] = True
        return missing
    if mask.ndim == 0 or as_block(mask) is not None:
        return missing
    axis = int(np.argmax(mask.shape))
    rows, added = np.moveaxis(mask, axis, -1), np.moveaxis(missing, axis, -1)
    short = rows.sum(axis=-1).max() - rows.sum(axis=-1)  # how many each row lacks
    rank_of_free = np.cumsum(~rows, axis=-1)  # 1 for a row's first free position
    added[...] = ~rows & (rank_of_free <= short[..., None])
    return missing


def _count(mask: BoolArray, axis: int) -> CellArray:
    others = tuple(other for other in range(mask.ndim) if other != axis)
    return np.asarray(mask.sum(axis=others))
