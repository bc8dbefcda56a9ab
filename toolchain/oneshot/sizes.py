"""What a model costs after its groups have given up so many neurons, without cutting it.

A matrix `[num_rows, num_out]` loses the rows of what it reads and the columns of what it says, so its cost is a product
of both shares. The table of an embedding is a matrix that costs parameters and no multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolchain.graph.cells import CellArray, Transfer
from toolchain.graph.nodes import NodeView
from toolchain.graph.program import Program
from toolchain.oneshot.allocation import Counts
from toolchain.oneshot.matrices import Matrix
from toolchain.oneshot.neurons import NeuronGroup
from toolchain.recurrent import slot

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """A matrix: shares of its rows and columns that belong to each group's candidates, shape `[num_groups]`."""

    rows: float
    columns: float
    row_shares: FloatArray
    column_shares: FloatArray
    multiplies: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeModel:
    """Costs by counts of removed candidates, one for each group; `fixed_*` is what no group changes."""

    products: tuple[_Product, ...]
    candidates: FloatArray  # of each group
    units: FloatArray  # hidden units that one candidate of each group removes
    total_units: int
    fixed_multiply_adds: int
    fixed_parameters: int

    def multiply_adds(self, counts: Counts) -> float:
        """Return the multiply-adds for one step of one sequence."""
        return self.fixed_multiply_adds + sum(self._size(p, counts) for p in self.products if p.multiplies)

    def parameters(self, counts: Counts) -> float:
        """Return the weights."""
        return self.fixed_parameters + sum(self._size(product, counts) for product in self.products)

    def cost(self, kind: str) -> Callable[[Counts], float]:
        """Return what a target of this kind is priced in: hidden units, parameters, or multiply-adds; see `latency`."""
        return {"ratio": self.share_kept, "parameters": self.parameters}.get(kind, self.multiply_adds)

    def share_kept(self, counts: Counts) -> float:
        """Return the share of the hidden units that stay, over all recurrent nodes and directions."""
        return 1 - float(self.units @ np.asarray(counts)) / max(1, self.total_units)

    def _size(self, product: _Product, counts: Counts) -> float:
        gone = np.asarray(counts) / self.candidates
        rows = product.rows * (1 - float(product.row_shares @ gone))
        return rows * product.columns * (1 - float(product.column_shares @ gone))


def size_model(
    program: Program,
    matrices: Sequence[Matrix],
    labels: CellArray,
    groups: Sequence[NeuronGroup],
    *,
    multiply_adds: int,
    parameters: int,
) -> SizeModel:
    """Describe the costs of a graph.

    Args:
        program: the graph.
        matrices: those of the graph.
        labels: class of every cell.
        groups: what may be given up.
        multiply_adds: of the whole graph now; parameters likewise.
        parameters: see above.
    """
    membership = np.full(labels.size, -1, dtype=np.intp)
    for number, group in enumerate(groups):
        membership[group.candidates] = number
    transfers = {id(node): transfer for node, transfer in zip(program.nodes, program.transfers, strict=True)}
    products = [_product(matrix, transfers[id(matrix.node)], labels, membership, len(groups)) for matrix in matrices]
    for node, transfer in zip(program.nodes, program.transfers, strict=True):
        if "units" in transfer.neurons:
            products.append(_biases(node, transfer, labels, membership, len(groups)))
        if set(transfer.neurons) == {"columns"}:
            products.append(_table(node, transfer, labels, membership, len(groups)))
    units = np.zeros(len(groups))
    total = 0
    for transfer in program.transfers:
        if "units" in transfer.neurons:
            cells = transfer.neurons["units"].cells
            total += cells.size
            owners = membership[labels[cells]]
            units += np.bincount(owners[owners >= 0], minlength=len(groups))
    sizes = np.array([float(group.candidates.size) for group in groups])
    return SizeModel(
        products=tuple(products),
        candidates=sizes,
        units=units / sizes,
        total_units=total,
        fixed_multiply_adds=multiply_adds - int(sum(p.rows * p.columns for p in products if p.multiplies)),
        fixed_parameters=parameters - int(sum(p.rows * p.columns for p in products)),
    )


def _shares(cells: CellArray, labels: CellArray, membership: npt.NDArray[np.intp], num_groups: int) -> FloatArray:
    owners = membership[labels[cells.ravel()]]
    return np.bincount(owners[owners >= 0], minlength=num_groups) / max(1, cells.size)


def _product(
    matrix: Matrix, transfer: Transfer, labels: CellArray, membership: npt.NDArray[np.intp], num_groups: int
) -> _Product:
    rows, columns = matrix.weights().shape
    neurons = transfer.neurons["units" if "units" in transfer.neurons else "columns"]
    said = neurons.cells[matrix.direction] if matrix.part.startswith("R") else neurons.cells
    return _Product(rows=rows, columns=columns, multiplies=True,
                    row_shares=_shares(matrix.rows, labels, membership, num_groups),
                    column_shares=_shares(said, labels, membership, num_groups))  # fmt: skip


def _table(
    node: NodeView, transfer: Transfer, labels: CellArray, membership: npt.NDArray[np.intp], num_groups: int
) -> _Product:
    rows, columns = node.weights(0).shape
    shares = _shares(transfer.neurons["columns"].cells, labels, membership, num_groups)
    return _Product(rows=rows, columns=columns, multiplies=False, row_shares=np.zeros(num_groups),
                    column_shares=shares)  # fmt: skip


def _biases(
    node: NodeView, transfer: Transfer, labels: CellArray, membership: npt.NDArray[np.intp], num_groups: int
) -> _Product:
    """Describe the biases and peepholes of a recurrent node."""
    stored = [node.constant(slot(name)) for name in ("B", "P")]
    shares = _shares(transfer.neurons["units"].cells, labels, membership, num_groups)
    return _Product(rows=1, columns=sum(array.size for array in stored if array is not None), multiplies=False,
                    row_shares=np.zeros(num_groups), column_shares=shares)  # fmt: skip
