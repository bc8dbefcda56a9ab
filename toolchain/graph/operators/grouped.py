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


def matmul(node: NodeView) -> Transfer:
    """Describe `x @ W` with a constant `W` of shape `[G, K, N]`."""
    W = node.weights(1)
    x, out = node.input(0), node.output(0)
    G, K, N = W.shape
    grouped = len(x.shape) >= 3 and x.shape[-3:] == (G, x.shape[-2], K) and not (x.dynamic[-3] or x.dynamic[-1])
    if not grouped or out.shape != (*x.shape[:-1], N) or out.dynamic[-1]:
        raise BlockedError("its matrix has an axis of groups that what it multiplies does not have")
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
