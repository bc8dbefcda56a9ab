"""What a graph costs: weights, and multiply-adds with constant weights for one step of one sequence.

Constants count wherever they lie: initializers, Constant nodes, the graphs inside If, Loop and Scan.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from toolchain.recurrent import GATES

QUANTIZED_LSTM = "DynamicQuantizeLSTM"  # of domain com.microsoft: W [D, input, 4*H], R [D, H, 4*H], int8
# Where each operator takes the matrix that it multiplies by.
_WEIGHTS = {
    "MatMul": (0, 1), "MatMulInteger": (0, 1), "DynamicQuantizeMatMul": (1,), "MatMulIntegerToFloat": (1,),
    "QLinearMatMul": (3,), "Gemm": (1,), "Conv": (1,), "ConvInteger": (1,), "QLinearConv": (3,), "ConvTranspose": (1,),
    **dict.fromkeys((*GATES, QUANTIZED_LSTM), (1, 2)),
}  # fmt: skip
_STRUCTURE = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.STRING})


def multiply_adds(graph: ir.Graph) -> int:
    """Return the multiply-adds with constant weights for one step of one sequence."""
    return sum(multiply_adds_of(node) for node in graph.all_nodes())


def multiply_adds_of(node: ir.Node) -> int:
    """Return one node's share of `multiply_adds`; a weight that is moved or dequantized first counts too."""
    total = 0
    for index in _WEIGHTS.get(node.op_type, ()):
        value = node.inputs[index] if index < len(node.inputs) else None
        tensor = None if value is None else value.const_value
        total += 0 if tensor is None else tensor.size
    return total


def parameters(graph: ir.Graph) -> int:
    """Return the number of constants that are weights: not shapes, indices or flags."""
    return sum(tensor.size for tensor in _constants(graph) if tensor.dtype not in _STRUCTURE)


def _constants(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    for inner in (graph, *graph.subgraphs()):
        yield from (value.const_value for value in inner.initializers.values() if value.const_value is not None)
    for node in graph.all_nodes():
        if node.op_type == "Constant" and "value" in node.attributes:
            yield node.attributes["value"].as_tensor()
