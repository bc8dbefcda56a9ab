"""Matrices outside recurrent nodes: MatMul, Gemm and Conv of kernel 1.

MatMul    x @ W, or W @ x         no bias of its own: an Add with a constant behind it, an existing one if there is
Gemm      alpha x @ W + beta C    W or its transpose
Conv      one position wide       W [num_out, num_rows, 1, ..]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.graph.edits import Edits
from toolchain.graph.nodes import NodeView

FloatArray = npt.NDArray[np.floating]
CONV_BIAS = GEMM_BIAS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainMatrix:
    """Where a node keeps its matrix, and along which axis of input `data` it reads; `transposed` is `[out, rows]`."""

    index: int
    data: int
    axis: int
    transposed: bool


def find_matrix(node: NodeView) -> PlainMatrix | None:
    """Return how a node holds one constant matrix of float numbers, None when it does not."""
    op_type = node.node.op_type
    if op_type == "MatMul":
        if _is_matrix(node, 1):
            return PlainMatrix(index=1, data=0, axis=-1, transposed=False)
        return PlainMatrix(index=0, data=1, axis=-2, transposed=True) if _is_matrix(node, 0) else None
    if op_type == "Gemm" and _is_matrix(node, 1):
        axis = 0 if node.attribute("transA", 0) else 1
        return PlainMatrix(index=1, data=0, axis=axis, transposed=bool(node.attribute("transB", 0)))
    pointwise = op_type == "Conv" and _is_initializer(node, 1) and set(node.weights(1).shape[2:]) <= {1}
    if pointwise and int(node.attribute("group", 1)) == 1:
        return PlainMatrix(index=1, data=0, axis=1, transposed=True)
    return None


def matrix_content(node: NodeView) -> FloatArray:
    """Return the content, shape `[num_rows, num_out]`, with Gemm's `alpha` in it."""
    plain = _matrix_of(node)
    array = node.weights(plain.index)
    array = array.reshape(array.shape[:2])
    return (array.T if plain.transposed else array) * _alpha(node)


def replace_matrix(node: NodeView, weights: FloatArray, shift: FloatArray, edits: Edits) -> None:
    """Write new content, shape `[num_rows, num_out]`, and add `shift`, shape `[num_out]`, to what the node says."""
    plain = _matrix_of(node)
    old = node.weights(plain.index)
    content = weights / _alpha(node)
    content = content.T if plain.transposed else content
    edits.put(node.node, plain.index, content.reshape(old.shape).astype(old.dtype))
    shift = shift.astype(old.dtype)
    if not shift.any():
        return
    if node.node.op_type == "Conv":
        _add_to_input(node, CONV_BIAS, shift, edits)
    elif node.node.op_type == "Gemm" and float(node.attribute("beta", 1.0)) and _constant_or_none(node, GEMM_BIAS):
        _add_to_input(node, GEMM_BIAS, shift / old.dtype.type(node.attribute("beta", 1.0)), edits)
    else:
        left = plain.index == 0  # W @ x: one number per row of what comes out
        _add_behind(node.node, shift[:, None] if left else shift, edits)


def _matrix_of(node: NodeView) -> PlainMatrix:
    plain = find_matrix(node)
    assert plain is not None, "only matrices that were found are read and replaced"
    return plain


def _is_matrix(node: NodeView, index: int) -> bool:
    return _is_initializer(node, index) and node.weights(index).ndim == 2


def _is_initializer(node: NodeView, index: int) -> bool:
    """Tell whether an input is stored in the file as floating-point numbers."""
    value = node.node.inputs[index] if node.has_input(index) else None
    return value is not None and value.const_value is not None and node.weights(index).dtype.kind == "f"


def _constant_or_none(node: NodeView, index: int) -> bool:
    return not node.has_input(index) or node.constant(index) is not None


def _alpha(node: NodeView) -> float:
    return float(node.attribute("alpha", 1.0)) if node.node.op_type == "Gemm" else 1.0


def _add_to_input(node: NodeView, index: int, shift: FloatArray, edits: Edits) -> None:
    if index >= len(node.node.inputs):
        node.node.resize_inputs(index + 1)
    old = node.constant(index)
    edits.put(node.node, index, shift if old is None else np.asarray(old + shift))


def _add_behind(node: ir.Node, shift: FloatArray, edits: Edits) -> None:
    """Add to an existing `Add` of a constant when it is the only reader, else insert one."""
    output = node.outputs[0]
    users = list(output.uses())
    if len(users) == 1 and users[0].node.op_type == "Add" and not output.is_graph_output():
        add, place = users[0]
        other = add.inputs[1 - place]
        if other is not None and other.const_value is not None:
            edits.put(add, 1 - place, other.const_value.numpy() + shift)
            return
    _, (shifted,) = edits.after(node, "Add", [output, edits.constant(shift, stem=f"{output.name}_shift")], {})
    shifted.shape, shifted.type = output.shape, output.type
    graph_output = output.is_graph_output()
    name = output.name
    add_node = shifted.producer()
    output.replace_all_uses_with(shifted, replace_graph_outputs=graph_output)
    assert add_node is not None
    add_node.replace_input_with(0, output)
    if graph_output:  # the interface's name stays with what the interface returns
        output.name = edits.fresh(f"{name}_unshifted")
        shifted.name = name
