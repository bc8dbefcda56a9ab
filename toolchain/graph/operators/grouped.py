"""A product with a matrix per group: the hidden axis split into groups, each with weights of its own.

    z[.., g, m, n] = sum_k x[.., g, m, k] W[g, k, n]      G block matrices; the groups are the last axis but two

Each group keeps positions of its own, and all groups equally many, because what is left must be a tensor again. No
group vanishes: `x`, `W` and `z` would have to lose it together.
"""

from __future__ import annotations

import numpy as np

from toolchain.graph.cells import BlockedError, Linear, Space, Transfer, couple, pairs
from toolchain.graph.edits import Edits
from toolchain.graph.kept import Kept
from toolchain.graph.nodes import NodeView

_NUM_AXES = 3  # of the constant: groups, rows, columns


def is_grouped(node: NodeView) -> bool:
    """Tell whether a product is one of groups, each of which may keep positions of its own.

    Other stacks of matrices are cut alike; so are matrices with a scale per row or column, which serves all of them.
    """
    W, x = node.constant(1), node.input(0)
    if node.node.op_type != "MatMul" or W is None or W.ndim != _NUM_AXES or len(x.shape) < _NUM_AXES:
        return False
    if node.quantized_axis(1) not in (None, 0):
        return False
    G, K, _ = W.shape
    return G > 1 and x.shape[-3:] == (G, x.shape[-2], K) and not (x.dynamic[-3] or x.dynamic[-1])


def matmul(node: NodeView) -> Transfer:
    """Describe `x @ W` with a constant `W` of shape `[G, K, N]`."""
    W = node.weights(1)
    x, out = node.input(0), node.output(0)
    G, K, N = W.shape
    if out.shape != (*x.shape[:-1], N) or out.dynamic[-1]:
        raise BlockedError("the shapes around it do not agree with its matrix")
    rows, columns = node.neurons("rows", G, K), node.neurons("columns", G, N)
    row, column = rows.cells[:, None, :], columns.cells[:, None, :]  # [G, 1, ..], against [.., G, m, ..]
    return Transfer(
        statements=(
            pairs(out.cells, column),
            couple(out.cells, column),
            *(Linear(reader=columns.cells[g], read=rows.cells[g], weights=W[g].T != 0) for g in range(G)),
            pairs(np.broadcast_to(row, x.shape), x.cells, keeps_zero=True),
            couple(x.cells, row),
        ),
        neurons={"rows": rows, "columns": columns},
        never_empty=(*rows.cells, *columns.cells),
    )


def rewrite(node: NodeView, neurons: dict[str, Space], kept: Kept, edits: Edits) -> None:
    """Slice every group's matrix to its own rows and columns."""
    rows, columns = (kept.table(neurons[name]) % neurons[name].shape[1] for name in ("rows", "columns"))  # [G, kept]
    groups = np.arange(rows.shape[0])[:, None, None]
    edits.cut(node.node, 1, lambda W: W[groups, rows[:, :, None], columns[:, None, :]])
