"""Contractions with a constant matrix: MatMul, Gemm and their fused forms, and the embedding table.

    z[.., n] = sum_k x[.., k] W[k, n] + b[n]     row k is read by column n where W[k, n] is not zero
    z[.., e] = table[index[..], e]               column e of the table is needed where z is; no input is cut
    z = sum_k x[k] y[k], both computed           position k is read unless one of its factors is zero for certain

Cutting is slicing: `W' = W[rows][:, columns]`, `table' = table[:, columns]`. A constant of more axes is a stack of
matrices, all of which are cut alike: row k is read by column n where any of them reads it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from toolchain.graph.cells import (
    BlockedError,
    CellArray,
    Linear,
    Read,
    Space,
    Statement,
    Transfer,
    couple,
    pairs,
)
from toolchain.graph.dequantized import constant_of
from toolchain.graph.edits import Edits
from toolchain.graph.kept import Kept
from toolchain.graph.nodes import MAX_CELLS, NodeView
from toolchain.graph.operators import grouped

_PRODUCTS = ("MatMul", "FusedMatMul")
_PLACES = {**dict.fromkeys((*_PRODUCTS, "Einsum"), (0, 1)), "Gather": (0,),
           **dict.fromkeys(("Gemm", "FusedGemm", "Conv", "ConvTranspose", "FusedConv"), (1,))}  # fmt: skip


def is_linear(node: ir.Node) -> bool:
    """Tell whether a node multiplies by a constant matrix, or looks up a constant table."""
    weights = [node.inputs[place] for place in _PLACES.get(node.op_type, ())]
    roots = [constant_of(value) for value in weights]
    return any(root is not None and root.const_value is not None and len(root.const_value.shape) > 1
               for root in roots)  # fmt: skip


def matmul(node: NodeView) -> Transfer:
    """Describe a product with a constant matrix or vector on the right or on the left, or of two computed values."""
    constant = _constant_factor(node)
    if constant is None:
        return _product(node)
    if grouped.is_grouped(node):
        return grouped.matmul(node)
    W = _matrix(node, constant)
    reads = (W != 0).any(axis=tuple(range(W.ndim - 2)))
    is_vector = node.weights(constant).ndim == 1
    data = 1 - constant
    summed = -1 if (data == 0) != _turned(node, data) or len(node.input(data).shape) == 1 else -2
    out_axis = -1 if constant == 1 or len(node.input(data).shape) == 1 else -2
    return contraction(node, data=data, axis=summed, weights=reads, out_axis=None if is_vector else out_axis)


def _constant_factor(node: NodeView) -> int | None:
    """Return which factor of a product is constant, None when neither is."""
    return next((index for index in (1, 0) if node.is_constant(index)), None)


def _turned(node: NodeView, index: int) -> bool:
    """Tell whether a fused product turns the last two axes of a factor."""
    if node.attribute("transBatchA", 0) or node.attribute("transBatchB", 0):
        raise BlockedError("it turns the leading axes of a factor")
    return bool(node.attribute(("transA", "transB")[index], 0))


def _matrix(node: NodeView, index: int) -> np.ndarray:
    """Return a constant factor as `[.., rows, columns]`: rows are summed over, columns are the output's."""
    W = node.weights(index)
    if W.ndim < 1:
        raise BlockedError("it multiplies by a number")
    if W.ndim == 1:
        return W[:, None]
    return W.swapaxes(-1, -2) if _turned(node, index) != (index == 0) else W


def gemm(node: NodeView) -> Transfer:
    """Describe `alpha * A' @ B' + beta * C` with a constant B."""
    W = node.weights(1)
    W = W.T if node.attribute("transB", 0) else W
    return contraction(node, data=0, axis=0 if node.attribute("transA", 0) else 1, weights=W != 0, out_axis=1, bias=2)


def embedding(node: NodeView, axis: int) -> Transfer | None:
    """Describe `Gather` of a constant table on its first axis by computed indices; None when it is something else."""
    table = node.constant(0)
    if table is None or table.ndim != 2 or axis != 0 or node.constant(1) is not None:
        return None
    out = node.output(0)
    columns = node.neurons("columns", table.shape[1])
    return Transfer(
        statements=(pairs(out.cells, columns.cells), couple(out.cells, columns.cells)),
        neurons={"columns": columns},
    )


def contraction(
    node: NodeView,
    *,
    data: int,
    axis: int,
    weights: np.ndarray,
    out_axis: int | None,
    bias: int | None = None,
) -> Transfer:
    """Describe `out[.., n] = sum_k data[.., k] weights[k, n]` along one axis of data and of output.

    Without an `out_axis` there is one column, and the output has no axis for it.
    """
    x, out = node.input(data), node.output(0)
    in_axis = axis % max(len(x.shape), 1)
    to = None if out_axis is None or not out.shape else out_axis % len(out.shape)
    columns_out = 1 if to is None else out.shape[to]
    if not x.shape or (x.shape[in_axis], columns_out) != weights.shape or x.dynamic[in_axis]:
        raise BlockedError("the shapes around it do not agree with its matrix")
    if to is not None and out.dynamic[to]:
        raise BlockedError("the shapes around it do not agree with its matrix")
    rows, columns = node.neurons("rows", weights.shape[0]), node.neurons("columns", weights.shape[1])
    x_row = along(rows, in_axis, len(x.shape))
    out_column = columns.cells if to is None else along(columns, to, len(out.shape))
    statements: list[Statement] = [pairs(out.cells, out_column), couple(out.cells, out_column)]
    if bias is not None and node.has_input(bias):
        statements += bias_of(node, bias, columns)
    statements += [
        Linear(reader=columns.cells, read=rows.cells, weights=weights.T),
        pairs(x_row, x.cells, keeps_zero=True),
        couple(x.cells, x_row),
    ]
    return Transfer(statements=tuple(statements), neurons={"rows": rows, "columns": columns})


def along(vector: Space, axis: int, rank: int) -> CellArray:
    """Return a vector's cells shaped to broadcast along one axis of a tensor of `rank` axes."""
    return vector.cells.reshape([-1 if position == axis else 1 for position in range(rank)])


def bias_of(node: NodeView, index: int, columns: Space) -> list[Statement]:
    """Describe one number per column, or one for all, that is added to the columns."""
    bias = node.input(index)
    if bias.size > 1 and (bias.shape[-1] != columns.size or bias.dynamic[-1]):
        raise BlockedError("its bias is not one number per column")
    reader, read = np.broadcast_arrays(columns.cells.ravel(), bias.cells)
    statements: list[Statement] = [Read(reader=reader.ravel(), read=read.ravel())]
    return [*statements, couple(columns.cells.ravel(), bias.cells)] if bias.size > 1 else statements


def _product(node: NodeView) -> Transfer:
    """Describe a product of two computed values: term by term if it is one cell, else the summed axis whole."""
    a, b, out = node.input(0), node.input(1), node.output(0)
    rank = len(out.shape)
    if min(len(a.shape), len(b.shape)) < 2:
        raise BlockedError("it multiplies by a computed vector")
    left, right = (_with_rank(space.cells.swapaxes(-1, -2) if _turned(node, index) else space.cells, rank)
                   for index, space in enumerate((a, b)))  # fmt: skip
    outer = zip(left.shape[:-2], right.shape[:-2], out.shape[:-2], strict=True)
    fits = all(one in (1, to) and other in (1, to) for one, other, to in outer)
    if not fits or (left.shape[-2], right.shape[-1]) != out.shape[-2:] or left.shape[-1] != right.shape[-2]:
        raise BlockedError("the shapes around it do not agree")
    if out.size * left.shape[-1] > MAX_CELLS:
        raise BlockedError("it multiplies two computed values of more positions than are tracked")
    if out.size == 1:
        return _terms(node, left.ravel(), right.ravel())
    product = out.cells  # left [.., n, k], right [.., k, m], product [.., n, m]
    one_term = left.shape[-1] == 1
    return Transfer(
        statements=(
            replace(pairs(product[..., :, None, :], left[..., :, :, None]), keeps_zero=one_term, absorbs_zero=one_term),
            replace(
                pairs(product[..., :, None, :], right[..., None, :, :]), keeps_zero=one_term, absorbs_zero=one_term
            ),
            couple(product[..., :, 0], left[..., :, 0]),
            couple(product[..., 0, :], right[..., 0, :]),
            couple(left[..., :, :1], left),
            couple(right[..., :1, :], right),
        )
    )


def _terms(node: NodeView, left: CellArray, right: CellArray) -> Transfer:
    """Describe a sum of products, all outer axes being of one cell (of run-time length, most often)."""
    terms = node.neurons("terms", left.size).cells
    factors = (replace(pairs(terms, factor), keeps_zero=True, absorbs_zero=True) for factor in (left, right))
    every = np.ones((1, terms.size), dtype=np.bool_)
    return Transfer(
        statements=(
            Linear(reader=node.output(0).cells.ravel(), read=terms, weights=every),
            *factors,
            couple(terms, left),
            couple(terms, right),
        ),
        never_empty=(terms,),
    )


def _with_rank(cells: CellArray, rank: int) -> CellArray:
    return cells.reshape((1,) * (rank - cells.ndim) + cells.shape)


def rewrite(node: NodeView, neurons: dict[str, Space], kept: Kept, edits: Edits) -> None:
    """Slice the matrix of a contraction; a bias is sliced with every other constant operand."""
    if "rows" not in neurons:
        return  # a product of two computed values: its factors are cut where they are made
    if len(neurons["rows"].shape) > 1:
        grouped.rewrite(node, neurons, kept, edits)
        return
    rows, columns = kept.table(neurons["rows"]), kept.table(neurons["columns"])
    index, turned = 1, bool(node.attribute("transB", 0))
    if node.node.op_type in _PRODUCTS:
        index = 1 if _constant_factor(node) == 1 else 0
        turned = _turned(node, index) != (index == 0)
    first, second = (columns, rows) if turned else (rows, columns)
    edits.cut(node.node, index, lambda W: W[rows] if W.ndim == 1 else W[..., first, :][..., second])


def rewrite_embedding(node: NodeView, neurons: dict[str, Space], kept: Kept, edits: Edits) -> None:
    """Keep the table's columns that are read."""
    columns = kept.table(neurons["columns"])
    edits.cut(node.node, 0, lambda table: table[:, columns])
