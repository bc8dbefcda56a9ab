"""Operators that ONNX's shape inference does not know, and operators of the standard whose outputs are shaped alike.

ONNX Runtime writes fused operators into the models that it optimises, of its own domain or before the standard had
them, and quantized ones. While shapes are inferred each has a stand-in: `Gelu -> Identity`, `FusedConv -> Conv`,
`DynamicQuantizeLSTM -> LSTM`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import helper

from toolchain.graph.lengths import bodies_of
from toolchain.recurrent import NUM_LSTM_INPUTS, QUANTIZED_LSTM

MICROSOFT = "com.microsoft"
MATRIX_RANK = 2
# Each output has the shape of the first input.
_SAME_SHAPE = frozenset({"BiasGelu", "FastGelu", "Gelu", "QuickGelu", "SimplifiedLayerNormalization",
                         "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})  # fmt: skip
_SKIP_NORMALIZATIONS = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})
_SUM_OUTPUT = 3  # of the skip normalisations: the sum before it is normalised; those between are statistics
_LAYER_NORMALIZATION_OPSET = 17


def put_stand_ins(graph: onnx.GraphProto, opset: int) -> dict[str, onnx.NodeProto]:
    """Replace operators that inference does not know, at any depth; return them by `_key`. Changes `graph`."""
    replaced: dict[str, onnx.NodeProto] = {}
    nodes: list[onnx.NodeProto] = []
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    ranks |= {value.name: len(value.type.tensor_type.shape.dim) for value in graph.input}
    for node in graph.node:
        stand_ins = _stand_ins(node, opset, ranks)
        if stand_ins:
            replaced[_key(node)] = _copy(node)
        nodes += stand_ins or [node]
    if replaced:
        _put_nodes(graph, nodes)
    for body in (body for node in graph.node for body in bodies_of(node)):
        replaced |= put_stand_ins(body, opset)
    return replaced


def take_stand_ins_out(graph: onnx.GraphProto, replaced: Mapping[str, onnx.NodeProto]) -> None:
    """Put the operators back that stand-ins stand for. Changes `graph`."""
    if not replaced:
        return
    if any(_key(node) in replaced for node in graph.node):
        others = {name for key, node in replaced.items() for name in node.output if name not in ("", key)}
        _put_nodes(graph, [replaced.get(_key(node), node) for node in graph.node if _key(node) not in others])
    for body in (body for node in graph.node for body in bodies_of(node)):
        take_stand_ins_out(body, replaced)


def _key(node: onnx.NodeProto) -> str:
    """Return a node's first output that is used: no two values of a model share a name."""
    return next(filter(None, node.output), "")


def _put_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    nodes = [_copy(node) for node in nodes]  # those that are in the graph end with it
    del graph.node[:]
    graph.node.extend(nodes)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _stand_ins(node: onnx.NodeProto, opset: int, ranks: Mapping[str, int]) -> Sequence[onnx.NodeProto]:
    early = node.op_type == "LayerNormalization" and opset < _LAYER_NORMALIZATION_OPSET
    if early or node.op_type == "SimplifiedLayerNormalization":
        return [helper.make_node("Identity", node.input[:1], node.output[:1])]
    if node.domain != MICROSOFT:
        return []
    if node.op_type in _SAME_SHAPE:
        places = (0, _SUM_OUTPUT) if node.op_type in _SKIP_NORMALIZATIONS else (0,)
        names = [node.output[place] for place in places if place < len(node.output) and node.output[place]]
        return [helper.make_node("Identity", node.input[:1], [name]) for name in names]
    if node.op_type == "FusedMatMul":
        return _matrix_product(node, ranks)
    if node.op_type in ("FusedConv", "FusedGemm"):
        plain = _copy(node)
        plain.op_type, plain.domain = node.op_type.removeprefix("Fused"), ""
        kept = [attribute for attribute in node.attribute if not attribute.name.startswith("activation")]
        del plain.attribute[:], plain.input[3:]
        plain.attribute.extend(kept)
        return [plain]
    if node.op_type == QUANTIZED_LSTM:
        plain = _copy(node)
        plain.op_type, plain.domain = "LSTM", ""
        del plain.input[NUM_LSTM_INPUTS:]
        return [plain]
    return []


def _matrix_product(node: onnx.NodeProto, ranks: Mapping[str, int]) -> Sequence[onnx.NodeProto]:
    """`A' @ B'` with either turned; what turns leading axes as well has no stand-in."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    if given.get("transBatchA") or given.get("transBatchB"):
        return []
    if not given.get("transA") and not given.get("transB"):
        return [helper.make_node("MatMul", node.input, node.output)]
    a, b = "km" if given.get("transA") else "mk", "nk" if given.get("transB") else "kn"
    leading = ["" if ranks.get(name) == MATRIX_RANK else "..." for name in node.input]  # inference does not broadcast
    equation = f"{leading[0]}{a},{leading[1]}{b}->{max(leading)}mn"
    return [helper.make_node("Einsum", node.input, node.output, equation=equation)]
