"""Shapes of a graph, inferred from its inputs alone.

ONNX's own inference follows shape arithmetic (`Shape -> Gather -> Concat -> Reshape`) only in newer opsets. Where it
gives up on a Reshape, the shape's constant pieces still tell the lengths that matter: `Concat(lengths, [width])` has
the static length `width` at the end, whatever the others are. What is found so is fed back, until nothing new follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import numpy_helper

from toolchain.recurrent import QUANTIZED_LSTM

Piece = Sequence[int | None]  # one entry of a shape each, None when it is computed


def with_inferred_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Forget every shape that is not an input's and infer anew, because exporters leave stale ones; changes `proto`.

    ONNX's inference does not know DynamicQuantizeLSTM; its outputs are those of LSTM.
    """
    quantized = [place for place, node in enumerate(proto.graph.node) if node.op_type == QUANTIZED_LSTM]
    domains = [proto.graph.node[place].domain for place in quantized]
    for place in quantized:
        proto.graph.node[place].op_type, proto.graph.node[place].domain = "LSTM", ""
    proto = _inferred(proto)
    for place, domain in zip(quantized, domains, strict=True):
        proto.graph.node[place].op_type, proto.graph.node[place].domain = QUANTIZED_LSTM, domain
    return proto


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    while True:
        try:
            proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except (RuntimeError, onnx.shape_inference.InferenceError):
            return proto  # shapes stay unknown: what depends on them is kept whole and named
        if not _add_reshaped(proto.graph):
            return proto


def _add_reshaped(graph: onnx.GraphProto) -> bool:
    """Declare the output of each Reshape of unknown result by the pieces of its shape; tell whether any was."""
    known = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    found = False
    for node in graph.node:
        if node.op_type != "Reshape" or len(node.input) < 2 or _has_shape(known.get(node.output[0])):
            continue
        data, concat = known.get(node.input[0]), producers.get(node.input[1])
        if data is None or concat is None or concat.op_type != "Concat":
            continue
        pieces = [_piece(name, known, constants) for name in concat.input]
        lengths = [entry for piece in pieces if piece is not None for entry in piece]
        if None not in pieces:
            element = data.type.tensor_type.elem_type
            shape = [length if length is not None and length > 0 else None for length in lengths]
            declared = onnx.helper.make_tensor_value_info(node.output[0], element, shape)
            known.setdefault(node.output[0], graph.value_info.add()).CopyFrom(declared)
            found = True
    return found


def _has_shape(value: onnx.ValueInfoProto | None) -> bool:
    return value is not None and value.type.tensor_type.HasField("shape")


def _piece(
    name: str, known: Mapping[str, onnx.ValueInfoProto], constants: Mapping[str, onnx.TensorProto]
) -> Piece | None:
    """Return the entries that a piece adds to a shape; None when not even their number is known."""
    if name in constants:
        return [int(entry) for entry in numpy_helper.to_array(constants[name]).ravel()]
    value = known.get(name)
    if value is None or len(value.type.tensor_type.shape.dim) != 1:
        return None
    (axis,) = value.type.tensor_type.shape.dim
    return [None] * axis.dim_value if axis.dim_value else None
