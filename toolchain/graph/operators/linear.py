"""Contractions with a constant matrix: MatMul, Gemm, Einsum, Conv, ConvTranspose, and the embedding table.

    z[.., n] = sum_k x[.., k] W[k, n] + b[n]     row k is read by column n where W[k, n] is not zero
    z[.., e] = table[index[..], e]               column e of the table is needed where z is; no input is cut

Cutting is slicing: `W' = W[rows][:, columns]`, `table' = table[:, columns]`.
"""

from __future__ import annotations

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


def is_linear(node: ir.Node) -> bool:
    """Tell whether a node multiplies by a constant matrix, or looks up a constant table."""
    places = {"MatMul": (0, 1), "Einsum": (0, 1), "Gemm": (1,), "Conv": (1,), "ConvTranspose": (1,), "Gather": (0,)}
    weights = [node.inputs[place] for place in places.get(node.op_type, ())]
    roots = [constant_of(value) for value in weights]
    return any(root is not None and root.const_value is not None and len(root.const_value.shape) > 1
               for root in roots)  # fmt: skip


def matmul(node: NodeView) -> Transfer:
    """Describe a product with a constant matrix on the right or on the left, or of two computed values."""
    if node.constant(1) is not None and node.weights(1).ndim == 2:
        W = node.weights(1)
        return _contraction(node, data=0, axis=-1, weights=W != 0)
    if node.constant(1) is not None and node.weights(1).ndim == 3:
        return grouped.matmul(node)
    if node.constant(0) is not None and node.weights(0).ndim == 2:
        W = node.weights(0)
        return _contraction(node, data=1, axis=-2, weights=W.T != 0)
    return _product(node)


def gemm(node: NodeView) -> Transfer:
    """Describe `alpha * A' @ B' + beta * C` with a constant B."""
    W = node.weights(1)
    W = W.T if node.attribute("transB", 0) else W
    return _contraction(node, data=0, axis=0 if node.attribute("transA", 0) else 1, weights=W != 0, bias=2)


def einsum(node: NodeView) -> Transfer:
    """Describe an equation that contracts one axis of a computed value with a constant matrix: `btk,kn->btn`."""
    x, matrix, summed, out = _contracted(node)
    W = node.weights(matrix)
    (new,) = set(_subscripts(node)[0][matrix]) - {summed}
    weights = W if _subscripts(node)[0][matrix].startswith(summed) else W.T
    return _contraction(node, data=1 - matrix, axis=x.index(summed), weights=weights != 0, out_axis=out.index(new))


def _contracted(node: NodeView) -> tuple[str, int, str, str]:
    """Return the value's subscripts, which operand is the matrix, the summed subscript, and the output's subscripts."""
    operands, out = _subscripts(node)
    constants = [index for index in range(len(operands)) if node.constant(index) is not None]
    if len(operands) != 2 or len(constants) != 1:
        raise BlockedError("it is not a product of one computed value and one constant")
    (matrix,) = constants
    x, W = operands[1 - matrix], operands[matrix]
    summed, new = set(W) & set(x), set(W) - set(x)
    plain = len(W) == 2 and len(summed) == len(new) == 1 and not summed & set(out) and "." not in x + W + out
    if not plain or [s for s in x if s not in summed] != [s for s in out if s not in new] or len(set(x)) < len(x):
        raise BlockedError("its equation is not a contraction of one axis with a matrix")
    return x, matrix, summed.pop(), out


def _subscripts(node: NodeView) -> tuple[list[str], str]:
    operands, arrow, out = str(node.attribute("equation")).replace(" ", "").partition("->")
    if not arrow:
        raise BlockedError("its equation does not name its output")
    return operands.split(","), out


def conv(node: NodeView) -> Transfer:
    """Describe a convolution between its channels; a kernel position other than zero counts as a read."""
    W = node.weights(1)
    if int(node.attribute("group", 1)) != 1:
        raise BlockedError("its channels are split into groups")
    spatial = tuple(range(2, W.ndim))
    reads = (W != 0).any(axis=spatial) if spatial else W != 0
    if node.node.op_type == "Conv":
        reads = reads.T  # [out, in, ...] -> [in, out]
    return _contraction(node, data=0, axis=1, weights=reads, bias=2, out_axis=1)


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


def _contraction(
    node: NodeView,
    *,
    data: int,
    axis: int,
    weights: np.ndarray,
    bias: int | None = None,
    out_axis: int | None = None,
) -> Transfer:
    """Describe `out[.., n] = sum_k data[.., k] weights[k, n]` along one axis of data and output."""
    x, out = node.input(data), node.output(0)
    rank = len(x.shape)
    if rank < 2 or len(out.shape) != rank:
        raise BlockedError("it multiplies by a vector")
    in_axis = axis % rank
    to = in_axis if out_axis is None else out_axis
    if node.node.op_type == "Gemm":
        to = 1
    if (x.shape[in_axis], out.shape[to]) != weights.shape or x.dynamic[in_axis] or out.dynamic[to]:
        raise BlockedError("the shapes around it do not agree with its matrix")
    rows, columns = node.neurons("rows", weights.shape[0]), node.neurons("columns", weights.shape[1])
    out_column, x_row = _along(columns, to, rank), _along(rows, in_axis, rank)
    statements: list[Statement] = [pairs(out.cells, out_column), couple(out.cells, out_column)]
    if bias is not None and node.has_input(bias):
        statements += _bias(node, bias, columns)
    statements += [
        Linear(reader=columns.cells, read=rows.cells, weights=weights.T),
        pairs(x_row, x.cells, keeps_zero=True),
        couple(x.cells, x_row),
    ]
    return Transfer(statements=tuple(statements), neurons={"rows": rows, "columns": columns})


def _along(vector: Space, axis: int, rank: int) -> CellArray:
    """Return a vector's cells shaped to broadcast along one axis of a tensor of `rank` axes."""
    return vector.cells.reshape([-1 if position == axis else 1 for position in range(rank)])


def _bias(node: NodeView, index: int, columns: Space) -> list[Statement]:
    bias = node.input(index)
    reader, read = np.broadcast_arrays(columns.cells, bias.cells)
    statements: list[Statement] = [Read(reader=reader.ravel(), read=read.ravel())]
    if bias.size > 1:
        if bias.shape[-1] != columns.size or bias.dynamic[-1]:
            raise BlockedError("its bias is not one number per column")
        statements.append(couple(columns.cells, bias.cells))
    return statements


def _product(node: NodeView) -> Transfer:
    """Describe a product of two computed values: the summed axis is needed whole, the outer axes pass through."""
    a, b, out = node.input(0), node.input(1), node.output(0)
    if len(a.shape) < 2 or not len(a.shape) == len(b.shape) == len(out.shape) or a.shape[:-2] != b.shape[:-2]:
        raise BlockedError("it multiplies two computed values of different ranks")
    if (a.shape[-2], b.shape[-1]) != out.shape[-2:] or a.shape[-1] != b.shape[-2]:
        raise BlockedError("the shapes around it do not agree")
    if out.size * a.shape[-1] > MAX_CELLS:
        raise BlockedError("it multiplies two computed values of more positions than are tracked")
    left, right, product = a.cells, b.cells, out.cells  # [.., n, k], [.., k, m], [.., n, m]
    return Transfer(
        statements=(
            pairs(product[..., :, None, :], left[..., :, :, None]),
            pairs(product[..., :, None, :], right[..., None, :, :]),
            couple(product[..., :, 0], left[..., :, 0]),
            couple(product[..., 0, :], right[..., 0, :]),
            couple(left[..., :, :1], left),
            couple(right[..., :1, :], right),
        )
    )


def rewrite(node: NodeView, neurons: dict[str, Space], kept: Kept, edits: Edits) -> None:
    """Slice the matrix of a contraction; a bias is sliced with every other constant operand."""
    if len(neurons["rows"].shape) > 1:
        grouped.rewrite(node, neurons, kept, edits)
        return
    rows, columns = kept.table(neurons["rows"]), kept.table(neurons["columns"])
    op_type = node.node.op_type
    if op_type == "Einsum":
        _, matrix, summed, _ = _contracted(node)
        by_rows = _subscripts(node)[0][matrix].startswith(summed)
        first, second = (rows, columns) if by_rows else (columns, rows)
        edits.cut(node.node, matrix, lambda W: W[first][:, second])
        return
    on_the_left = op_type == "MatMul" and node.constant(1) is None
    index = 0 if on_the_left else 1
    transposed = on_the_left or op_type == "Conv" or (op_type == "Gemm" and bool(node.attribute("transB", 0)))
    first, second = (columns, rows) if transposed else (rows, columns)
    edits.cut(node.node, index, lambda W: W[first][:, second])


def rewrite_embedding(node: NodeView, neurons: dict[str, Space], kept: Kept, edits: Edits) -> None:
    """Keep the table's columns that are read."""
    columns = kept.table(neurons["columns"])
    edits.cut(node.node, 0, lambda table: table[:, columns])
