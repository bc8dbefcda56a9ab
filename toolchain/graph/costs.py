"""What a graph costs: weights, and multiply-adds with constant weights for one step of one sequence.

Constants count wherever they lie: initializers, Constant nodes, the graphs inside If, Loop and Scan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from toolchain.graph.dequantized import constant_of
from toolchain.recurrent import GATES

# Where each operator takes the matrix that it multiplies by.
_WEIGHTS = {
    "MatMul": (0, 1), "MatMulInteger": (0, 1), "DynamicQuantizeMatMul": (1,), "MatMulIntegerToFloat": (1,),
    "QLinearMatMul": (3,), "Gemm": (1,), "Einsum": (0, 1), "Conv": (1,), "ConvInteger": (1,),
    "QLinearConv": (3,), "ConvTranspose": (1,),
    **dict.fromkeys(GATES, (1, 2)),
}  # fmt: skip
_STRUCTURE = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.STRING})


def multiply_adds(graph: ir.Graph) -> int:
    """Return the multiply-adds with constant weights for one step of one sequence."""
    return sum(multiply_adds_of(node) for node in graph.all_nodes())


def multiply_adds_of(node: ir.Node) -> int:
    """Return one node's share of `multiply_adds`; a recurrent node's weights count even where they are computed."""
    recurrent = node.op_type in GATES
    places = [index for index in _WEIGHTS.get(node.op_type, ()) if index < len(node.inputs)]
    return sum(_size(node.inputs[index], computed=recurrent) for index in places)


def _size(value: ir.Value | None, *, computed: bool) -> int:
    """Return how many numbers a weight has, 0 for a computed value unless those count."""
    root = constant_of(value)
    tensor = None if root is None else root.const_value
    shape = tensor.shape if tensor is not None else value.shape if value is not None and computed else None
    if shape is None:
        return 0
    lengths = [length for length in shape if isinstance(length, int)]
    return math.prod(lengths) if len(lengths) == len(shape) else 0


def parameters(graph: ir.Graph) -> int:
    """Return the number of constants that are weights: not shapes, indices or flags."""
    return sum(tensor.size for tensor in _constants(graph) if tensor.dtype not in _STRUCTURE)


def _constants(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    for inner in (graph, *graph.subgraphs()):
        yield from (value.const_value for value in inner.initializers.values() if value.const_value is not None)
    for node in graph.all_nodes():
        if node.op_type == "Constant" and "value" in node.attributes:
            yield node.attributes["value"].as_tensor()
