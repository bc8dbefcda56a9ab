"""Einsum of one computed value, alone or with a constant: a rearrangement, a sum, or a contraction.

    tbk->btk        positions are moved
    tbk->tk         an axis is summed
    tbk,kn->tbn     subscripts of both that the output lacks are rows of a matrix, those of the constant alone columns

Subscripts of constant, value and output at once number a stack of matrices, all of which are cut alike. An ellipsis
stands for leading axes of the value.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

import numpy as np

from toolchain.graph.cells import BlockedError, CellArray, Linear, Space, Statement, Transfer, couple, pairs
from toolchain.graph.dequantized import SHRINK_FIRST
from toolchain.graph.edits import Edits
from toolchain.graph.kept import Kept
from toolchain.graph.nodes import NodeView

_ELLIPSIS = "..."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Equation:
    """Subscripts, one letter per axis; `matrix` is the constant's operand, None when there is none."""

    x: str
    W: str
    out: str
    matrix: int | None

    @property
    def rows(self) -> str:
        return "".join(letter for letter in self.W if letter in self.x and letter not in self.out)

    @property
    def columns(self) -> str:
        return "".join(letter for letter in self.W if letter not in self.x)

    @property
    def stack(self) -> str:
        return "".join(letter for letter in self.W if letter in self.x and letter in self.out)


def einsum(node: NodeView) -> Transfer:
    """Describe an equation of one computed value."""
    equation = _equation(node)
    x, out = node.input(0 if equation.matrix is None else 1 - equation.matrix), node.output(0)
    if len(x.shape) != len(equation.x) or len(out.shape) != len(equation.out):
        raise BlockedError("the shapes around it do not agree with its equation")
    if equation.matrix is None:
        summed = [equation.x.index(letter) for letter in equation.x if letter not in equation.out]
        read = np.moveaxis(_to(equation.out, equation.x, x.cells), range(-len(summed), 0), range(len(summed)))
        return Transfer(statements=(pairs(out.cells, read, keeps_zero=True), couple(out.cells, read)))
    return _contraction(node, equation, x, out)


def _contraction(node: NodeView, equation: _Equation, x: Space, out: Space) -> Transfer:
    assert equation.matrix is not None
    W = node.weights(equation.matrix)
    if node.quantized_axis(equation.matrix) is not None and max(len(equation.rows), len(equation.columns)) > 1:
        raise BlockedError(f"its constant has a scale per position of one of several axes; {SHRINK_FIRST}")
    lengths = dict(zip(equation.W, W.shape, strict=True))
    for letters, space in ((equation.x, x), (equation.out, out)):
        found = zip(letters, space.shape, space.dynamic, strict=True)
        if any(letter in lengths and (dynamic or length != lengths[letter]) for letter, length, dynamic in found):
            raise BlockedError("the shapes around it do not agree with its equation")
    rows = node.neurons("rows", *(lengths[letter] for letter in equation.rows))
    columns = node.neurons("columns", *(lengths[letter] for letter in equation.columns))
    reads = (_stacked(equation, W) != 0).any(axis=0)  # [rows, columns]
    x_row = _to(equation.x, equation.rows, rows.cells)
    out_column = _to(equation.out, equation.columns, columns.cells)
    statements: list[Statement] = [
        pairs(out.cells, out_column),
        couple(out.cells, out_column),
        Linear(reader=columns.cells.ravel(), read=rows.cells.ravel(), weights=reads.T),
        pairs(x_row, x.cells, keeps_zero=True),
        couple(x.cells, x_row),
    ]
    return Transfer(statements=tuple(statements), neurons={"rows": rows, "columns": columns})


def _to(target: str, letters: str, cells: CellArray) -> CellArray:
    """Turn axes to where `target` has their letters, one long where it has others; what it lacks comes last."""
    order = [letters.index(letter) for letter in target if letter in letters]
    rest = [axis for axis in range(len(letters)) if axis not in order]
    turned = cells.transpose([*order, *rest])
    lengths = iter(turned.shape)
    placed = [next(lengths) if letter in letters else 1 for letter in target]
    return turned.reshape(*placed, *lengths)


def _stacked(equation: _Equation, W: np.ndarray) -> np.ndarray:
    """Return the constant as `[stack, rows, columns]`."""
    groups = (equation.stack, equation.rows, equation.columns)
    turned = W.transpose([equation.W.index(letter) for letters in groups for letter in letters])
    lengths = dict(zip(equation.W, W.shape, strict=True))
    return turned.reshape([int(np.prod([lengths[letter] for letter in letters], dtype=np.int64)) for letters in groups])


def _equation(node: NodeView) -> _Equation:
    left, arrow, out = str(node.attribute("equation")).replace(" ", "").partition("->")
    operands = left.split(",")
    constants = [index for index in range(len(operands)) if node.is_constant(index)]
    if not arrow:
        raise BlockedError("its equation does not name its output")
    if (len(operands), len(constants)) not in ((1, 0), (2, 1)):
        raise BlockedError("it is not an equation of one computed value and at most one constant")
    matrix = constants[0] if constants else None
    place = 0 if matrix is None else 1 - matrix
    W = "" if matrix is None else operands[matrix]
    x, out = _without_ellipsis(operands[place], out, len(node.input(place).shape))
    equation = _Equation(x=x, W=W, out=out, matrix=matrix)
    _check(equation)
    return equation


def _without_ellipsis(x: str, out: str, rank: int) -> tuple[str, str]:
    """Give the leading axes letters of their own."""
    unused = [letter for letter in string.ascii_letters if letter not in x + out]
    leading = "".join(unused[: rank - len(x.replace(_ELLIPSIS, ""))])
    return x.replace(_ELLIPSIS, leading), out.replace(_ELLIPSIS, leading)


def _check(equation: _Equation) -> None:
    x, W, out = equation.x, equation.W, equation.out
    if "." in x + W + out or any(len(set(letters)) < len(letters) for letters in (x, W, out)):
        raise BlockedError("its equation repeats a subscript")
    if W and (not equation.rows or not set(equation.columns) <= set(out) or not set(x) <= set(W) | set(out)):
        raise BlockedError("its equation is not a contraction with a matrix")
    if not set(out) <= set(x) | set(W):
        raise BlockedError("its equation returns an axis that it does not read")


def rewrite(node: NodeView, neurons: dict[str, Space], kept: Kept, edits: Edits) -> None:
    """Slice the constant of a contraction."""
    if "rows" not in neurons:
        return
    equation = _equation(node)
    assert equation.matrix is not None
    rows, columns = kept.table(neurons["rows"]), kept.table(neurons["columns"])
    letters = equation.stack + equation.rows + equation.columns

    def pick(W: np.ndarray) -> np.ndarray:
        sliced = _stacked(equation, W)[:, rows.ravel()][:, :, columns.ravel()]
        stack = [W.shape[equation.W.index(letter)] for letter in equation.stack]
        turned = sliced.reshape(*stack, *rows.shape, *columns.shape)
        return turned.transpose([letters.index(letter) for letter in equation.W])

    edits.cut(node.node, equation.matrix, pick)
