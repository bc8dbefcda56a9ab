"""Operators of quantized graphs: a static scale moves nothing, a scale taken from the data at run time reads it all.

    QuantizeLinear      q[p] = round(x[p] / scale) + zero_point      scale per tensor or per position of one axis: per
    DequantizeLinear    x[p] = (q[p] - zero_point) * scale           position, like any elementwise operator

    DynamicQuantizeLinear    scale and zero point from the least and the largest of 0 and all of x: a position that
                             nobody reads still counts, unless it is zero for certain
    MatMulInteger            z[.., n] = sum_k (a[.., k] - a_zero) (b[k, n] - b_zero[n]): row k is not read by column n
    QLinearMatMul            where b[k, n] is its zero point

A constant behind DequantizeLinear is cut by whoever multiplies by it (see `toolchain.graph.dequantized`), and by its
own cells where it is one operand of an elementwise operator.

Source: https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html
"""

from __future__ import annotations

import numpy as np

from toolchain.graph.cells import BlockedError, CellArray, Linear, Space, Statement, Transfer, couple, pairs
from toolchain.graph.dequantized import SHRINK_FIRST
from toolchain.graph.edits import Edits
from toolchain.graph.kept import Kept
from toolchain.graph.nodes import NodeView

RANGE = f"its scale is the range of all positions, zeros apart; {SHRINK_FIRST}"
# They take ranges or scale by them in ways that are not described.
REFUSED = (
    "ConvInteger", "QLinearConv", "com.microsoft.DynamicQuantizeMatMul", "com.microsoft.MatMulIntegerToFloat",
    "com.microsoft.MatMulNBits", "com.microsoft.QAttention", "com.microsoft.QGemm", "com.microsoft.QLinearAdd",
    "com.microsoft.QLinearConcat", "com.microsoft.QLinearMul", "com.microsoft.QLinearSigmoid",
)  # fmt: skip
# Where each integer product takes its matrix, its matrix's zero point, and what else has one number per column.
_MATRIX = {"MatMulInteger": 1, "QLinearMatMul": 3}
_ZERO_POINT = {"MatMulInteger": 3, "QLinearMatMul": 5}
_PER_COLUMN = {"MatMulInteger": (3,), "QLinearMatMul": (4, 5)}


def refused(node: NodeView) -> Transfer:
    """Describe nothing: the operator works on quantized numbers."""
    raise BlockedError(f"it computes on quantized numbers; {SHRINK_FIRST}")


def linear_scale(node: NodeView) -> Transfer:
    """Describe QuantizeLinear and DequantizeLinear."""
    constant = all(node.is_constant(index) for index in node.inputs())
    if constant and not node.numbered():
        return Transfer()  # whoever multiplies by it cuts it
    x, out = node.input(0), node.output(0)
    if x.shape != out.shape:
        raise BlockedError("the shapes around it do not agree")
    zero_point = node.constant(2) if node.has_input(2) else np.zeros(1)
    symmetric = zero_point is not None and not np.any(zero_point)
    statements: list[Statement] = [pairs(out.cells, x.cells, keeps_zero=symmetric), couple(out.cells, x.cells)]
    for index in (1, 2):
        if node.has_input(index):
            statements += _per_position(node, index, out)
    shared = constant and len(node.node.outputs[0].uses()) + node.node.outputs[0].is_graph_output() > 1
    return Transfer(statements=tuple(statements), fixed=(out.cells.ravel(),) if shared else ())


def _per_position(node: NodeView, index: int, out: Space) -> list[Statement]:
    """Pair the numbers of a scale or a zero point with the positions of their axis."""
    numbers = node.input(index)
    if numbers.size == 1:
        return [pairs(out.cells, numbers.cells.reshape(()))]
    axis = node.axis("axis", 1, len(out.shape))
    if len(numbers.shape) != 1 or numbers.size != out.shape[axis]:
        raise BlockedError(f"it is quantized in blocks; {SHRINK_FIRST}")
    cells = _along(numbers, axis, len(out.shape))
    return [pairs(out.cells, cells), couple(out.cells, cells)]


def _along(vector: Space, axis: int, rank: int) -> CellArray:
    return vector.cells.reshape([-1 if position == axis else 1 for position in range(rank)])


def dynamic(node: NodeView) -> Transfer:
    """Describe DynamicQuantizeLinear: its range reads every position that may be other than zero."""
    x, out = node.input(0), node.output(0)
    ranges = np.concatenate([node.output(index).cells.ravel() for index in (1, 2)])
    return Transfer(
        statements=(
            pairs(out.cells, x.cells),
            couple(out.cells, x.cells),
            pairs(out.cells, node.output(1).cells.reshape(())),
            Linear(reader=ranges, read=x.cells.ravel(), weights=np.ones((ranges.size, x.size), dtype=np.bool_)),
        ),
        mixes=RANGE,
    )


def integer_matmul(node: NodeView) -> Transfer:
    """Describe a product of quantized numbers with a constant matrix."""
    op_type = node.node.op_type
    matrix = node.weights(_MATRIX[op_type])
    zero = node.weights(_ZERO_POINT[op_type]) if node.has_input(_ZERO_POINT[op_type]) else np.zeros(1)
    x, out = node.input(0), node.output(0)
    rank = len(x.shape)
    if matrix.ndim != 2 or rank < 2 or (x.shape[-1], out.shape[-1]) != matrix.shape or len(out.shape) != rank:
        raise BlockedError("the shapes around it do not agree with its matrix")
    rows, columns = node.neurons("rows", matrix.shape[0]), node.neurons("columns", matrix.shape[1])
    reads = (matrix != zero.ravel()).T  # [columns, rows]
    statements: list[Statement] = [pairs(out.cells, columns.cells), couple(out.cells, columns.cells)]
    for index in _PER_COLUMN[op_type]:
        if node.has_input(index):
            numbers = node.input(index)
            if numbers.size not in (1, columns.size):
                raise BlockedError("its scales are not one number per column")
            statements.append(pairs(columns.cells, numbers.cells.ravel()))
            if numbers.size > 1:
                statements.append(couple(columns.cells, numbers.cells.ravel()))
    statements += [
        Linear(reader=columns.cells, read=rows.cells, weights=reads),
        _read_rows(node, rows, x),
        couple(x.cells, rows.cells),
    ]
    return Transfer(statements=tuple(statements), neurons={"rows": rows, "columns": columns})


def _read_rows(node: NodeView, rows: Space, x: Space) -> Statement:
    """Read `x`; where it was quantized just before, read what that was, because its zeros add nothing."""
    source = node.value(0).producer()
    if source is not None and source.op_type == "DynamicQuantizeLinear" and node.has_input(2):
        before = node.space_of(source.inputs[0])
        if node.value(2) is source.outputs[2] and before is not None and before.shape == x.shape:
            return pairs(rows.cells, before.cells, keeps_zero=True)
    return pairs(rows.cells, x.cells)


def rewrite_integer_matmul(node: NodeView, neurons: dict[str, Space], kept: Kept, edits: Edits) -> None:
    """Slice the matrix; scales and zero points per column are sliced with every other constant operand."""
    rows, columns = kept.table(neurons["rows"]), kept.table(neurons["columns"])
    edits.cut(node.node, _MATRIX[node.node.op_type], lambda b: b[rows][:, columns])
