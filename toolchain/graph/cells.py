"""Cells: the positions that the surgery reasons about, and what one node does with them.

A *cell* is one position along the static axes of a value; an axis whose length is only known at run time counts as
one position, so a cell stands for all steps and all sequences of a batch. A *space* is the block of cells of one value,
of one use of a constant, or of a vector of neurons inside a node (the units of an LSTM, the columns of a MatMul).
All cells of a graph are numbered through, so that moving data around is moving integers around: the cells of
`Transpose(x)` are read from `x.cells.transpose(perm)`.

An operator is described by its *transfer*: a list of five kinds of statement about cells, and nothing else.

    Read(reader, read)            to compute cell `reader` one needs cell `read`
    Linear(reader, read, weights) the same through a weight matrix: zero weights are not read
    Drive(driven, by, weights)    what can make a cell other than zero; nothing is read
    Couple(a, b)                  cells kept or removed together, because the runtime pairs them by position
    Port(value, unit)             carried state: paired like Couple, or, if `value` cannot change, bridged by a gather
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

CellArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """A block of numbered cells; axes of run-time length have `dynamic` True and one position."""

    first: int
    shape: tuple[int, ...]
    dynamic: tuple[bool, ...]

    @property
    def size(self) -> int:
        """Number of cells."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def cells(self) -> CellArray:
        """The numbers of the cells, in the space's shape."""
        return np.arange(self.first, self.first + self.size, dtype=np.intp).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Read:
    """Cell `reader[i]` needs cell `read[i]`; both have shape `[num_pairs]`.

    With `keeps_zero`, a reader is zero for certain where all that it reads is zero for certain; with `absorbs_zero`
    already where something is.
    """

    reader: CellArray
    read: CellArray
    keeps_zero: bool = False
    absorbs_zero: bool = False

    def push(self, demand: BoolArray, nonzero: BoolArray) -> None:
        """Mark what the demanded readers read."""
        demand[self.read[demand[self.reader]]] = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Linear:
    """Cell `reader[i]` needs cell `read[j]` where `weights[i, j]` is True, unless `read[j]` is zero for certain."""

    reader: CellArray  # [num_readers]
    read: CellArray  # [num_read]
    weights: BoolArray  # [num_readers, num_read]

    def push(self, demand: BoolArray, nonzero: BoolArray) -> None:
        """Mark what the demanded readers read; readers may read one another, so repeat until nothing is new."""
        while True:
            wanted = self.weights[demand[self.reader]].any(axis=0) & nonzero[self.read]
            fresh = self.read[wanted & ~demand[self.read]]
            if not fresh.size:
                return
            demand[fresh] = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drive:
    """Cell `driven[i]` is zero for certain unless `moved[i]`, or a `by[j]` with `weights[i, j]` may be other than zero.

    Whatever else is said of a driven cell must keep zeros too.
    """

    driven: CellArray  # [num_driven]
    by: CellArray  # [num_by]
    weights: BoolArray  # [num_driven, num_by]
    moved: BoolArray  # [num_driven]

    def push(self, nonzero: BoolArray) -> None:
        """Mark what may be other than zero; driven cells may drive one another, so repeat until nothing is new."""
        nonzero[self.driven[self.moved]] = True
        while True:
            reached = self.weights[:, nonzero[self.by]].any(axis=1)
            if nonzero[self.driven[reached]].all():
                return
            nonzero[self.driven[reached]] = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Couple:
    """Cells `a[i]` and `b[i]` share one fate; both have shape `[num_pairs]`.

    A `severable` couple ends where nothing of `a` is kept: the rewriting then takes the operand that is `b` out.
    """

    a: CellArray
    b: CellArray
    severable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Port:
    """A state input or output of a recurrent node: `value` and `unit` have shape `[num_directions, batch, hidden]`.

    `index` is the input slot (`initial_h`) or, when `is_output`, the output slot (`Y_h`).
    """

    value: CellArray
    unit: CellArray
    index: int
    is_output: bool


Statement = Read | Linear | Drive | Couple | Port


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What one node does with cells.

    `statements` are ordered from outputs to inputs, so one pass pushes demand through the node. `fixed` cells are kept
    whatever happens. `neurons` names the node's own spaces for its rewriting (`units`, `inputs`, `rows`, `columns`).
    Of each of `never_empty` at least one cell is kept.
    `blocked` is why the node is not understood, None when it is; `mixes` why it reads what none of its results is made
    from, None when it does not.
    """

    statements: tuple[Statement, ...] = ()
    fixed: tuple[CellArray, ...] = ()
    neurons: dict[str, Space] = field(default_factory=dict)
    never_empty: tuple[CellArray, ...] = ()
    blocked: str | None = None
    mixes: str | None = None


def agree(one: Space, other: Space) -> bool:
    """Tell whether two spaces can be those of one tensor: equal lengths, where none is known at run time only."""
    lengths = zip(one.shape, one.dynamic, other.shape, other.dynamic, strict=False)
    return len(one.shape) == len(other.shape) and all(a == b or a_free or b_free for a, a_free, b, b_free in lengths)


class BlockedError(Exception):
    """A node cannot be described; the text is the reason shown to the user. Never leaves `toolchain.graph`."""


def pairs(reader: CellArray, read: CellArray, *, keeps_zero: bool = False) -> Read:
    """Return the statement that every cell of `reader` needs the cell at its place in `read` (broadcast to it)."""
    reader, read = np.broadcast_arrays(reader, read)
    return Read(reader=reader.ravel(), read=read.ravel(), keeps_zero=keeps_zero)


def couple(a: CellArray, b: CellArray, *, severable: bool = False) -> Couple:
    """Return the statement that `a` and `b`, broadcast to one another, share one fate place by place."""
    a, b = np.broadcast_arrays(a, b)
    return Couple(a=a.ravel(), b=b.ravel(), severable=severable)
