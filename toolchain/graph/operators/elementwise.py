"""Operators that compute each output position from the input positions at the same place.

    z = f(x, y, ...)    z[p] reads x[p], y[p], ...  and the runtime pairs them by position, so they are cut alike
    z = x * c           z[p] does not read x[p] where the constant c[p] is zero (infinities and NaN in x apart)

Broadcasting: an operand of length 1 along an axis serves every position of that axis and is not cut along it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from toolchain.graph.cells import BlockedError, Couple, Read, Space, Statement, Transfer, couple, pairs
from toolchain.graph.nodes import NodeView

UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Cos", "Cosh",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu",
    "Log", "Mish", "Neg", "Not", "QuickGelu", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
    "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
VARIADIC = (
    "Add", "And", "BiasGelu", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "FastGelu",
    "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "PRelu",
    "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
# f(0, ..., 0) = 0.
_KEEPS_ZERO = frozenset({
    "Abs", "Add", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Dropout", "Elu", "Erf", "Floor",
    "Gelu", "HardSwish", "Identity", "LeakyRelu", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "QuickGelu", "Relu",
    "Round", "Selu", "Sign", "Sin", "Sinh", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh",
})  # fmt: skip
FIRST_INPUT_ONLY = ("CastLike", "Clip", "Dropout")  # their other inputs are scalars, or say a type


def transfer(node: NodeView) -> Transfer:
    """Describe an elementwise operator with broadcasting."""
    out = node.output(0)
    indices = [0] if node.node.op_type in FIRST_INPUT_ONLY else list(node.inputs())
    statements: list[Statement] = []
    for index in indices:
        operand = node.input(index)
        needed = _needed(node, index, out)
        read = _read(out, operand, needed)
        keeps_zero = node.node.op_type in _KEEPS_ZERO
        statements.append(replace(read, keeps_zero=keeps_zero, absorbs_zero=_absorbs_zero(node, index)))
        statements += _couple(out, operand)
    if node.has_output(1):  # the mask of Dropout
        statements.insert(0, Couple(a=node.output(1).cells.ravel(), b=out.cells.ravel()))
        statements.insert(0, Read(reader=node.output(1).cells.ravel(), read=out.cells.ravel()))
    return Transfer(statements=tuple(statements))


def _absorbs_zero(node: NodeView, index: int) -> bool:
    """Tell whether a zero at input `index` makes the output zero, whatever the other operand is there."""
    if node.node.op_type == "Div":
        divisor = node.constant(1)
        return index == 0 and divisor is not None and bool(np.all(divisor))
    return node.node.op_type == "Mul" or (node.node.op_type == "PRelu" and index == 0)


def _needed(node: NodeView, index: int, out: Space) -> np.ndarray | None:
    """Return where the output depends on input `index`, shape of `out`; None for everywhere.

    A product with a constant depends on the constant where that is zero, and on the other factor elsewhere.
    """
    if node.node.op_type == "Mul":
        own, other = node.constant(index), node.constant(1 - index)
        if own is not None:
            return _at_output(own == 0, out)
        return None if other is None else _at_output(other != 0, out)
    if node.node.op_type == "Where" and index in (1, 2):
        condition = node.constant(0)
        return None if condition is None else _at_output(condition if index == 1 else ~condition, out)
    return None


def _at_output(mask: np.ndarray, out: Space) -> np.ndarray | None:
    """Broadcast a constant's mask to the output's cells; None when an axis of run-time length is in the way."""
    lengths = (1,) * (len(out.shape) - mask.ndim) + mask.shape
    if any(dynamic and length != 1 for dynamic, length in zip(out.dynamic, lengths, strict=True)):
        return None
    return np.broadcast_to(mask, out.shape)


def _aligned(out: Space, operand: Space) -> np.ndarray:
    """Return the operand's cells with leading axes added until it has the output's rank."""
    missing = len(out.shape) - len(operand.shape)
    cells = operand.cells.reshape((1,) * missing + operand.shape)
    dynamic = (False,) * missing + operand.dynamic
    for axis, length in enumerate(out.shape):
        if dynamic[axis] and not out.dynamic[axis] and length > 1:
            raise BlockedError(f"axis {axis} of an operand has a run-time length and meets one of length {length}")
    return cells


def _read(out: Space, operand: Space, needed: np.ndarray | None) -> Read:
    reader, read = np.broadcast_arrays(out.cells, _aligned(out, operand))
    if needed is None or reader.shape != needed.shape:
        return pairs(reader, read)
    return pairs(reader[needed], read[needed])


def _couple(out: Space, operand: Space) -> list[Couple]:
    """Pair an operand's cells with the output cells that the runtime pairs them with.

    Axes along which the operand is repeated, right of one along which it is not, are paired at their first position
    only: `[channels, 1]` against `[channels, width]` must lose the same channels but leaves the width free.
    """
    if operand.size == 1:
        return []
    cells = _aligned(out, operand)
    window = out.cells
    first_own_axis = next(axis for axis, length in enumerate(cells.shape) if length > 1)
    for axis in range(first_own_axis, cells.ndim):
        if cells.shape[axis] == 1 and window.shape[axis] > 1:
            window = window.take([0], axis=axis)
    return [couple(window, cells)]
