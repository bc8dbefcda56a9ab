"""Shapes of a graph, inferred from its inputs alone.

ONNX's own inference follows shape arithmetic (`Shape -> Gather -> Concat -> Reshape`) only in newer opsets. Where it
gives up on an output, the shape that its operator is given still tells the lengths that matter: `Concat(lengths,
[width])` has the static length `width` at the end, whatever the others are. What is found so is fed back, until nothing
new follows.
"""

from __future__ import annotations

import onnx

from toolchain.graph.lengths import Entries, Known, fold_lengths, known_lengths, shape_input
from toolchain.graph.stand_ins import put_stand_ins, take_stand_ins_out


def with_inferred_shapes(proto: onnx.ModelProto, *, folded: bool = False) -> onnx.ModelProto:
    """Forget every shape that is not an input's and infer anew, because exporters leave stale ones; changes `proto`.

    With `folded`, lengths that are known take the place of the nodes that compute them.
    """
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    opset = next((known.version for known in proto.opset_import if known.domain in ("", "ai.onnx")), 1)
    replaced = put_stand_ins(proto.graph, opset)
    inferred = _inferred(proto, folded=folded)
    take_stand_ins_out(inferred.graph, replaced)
    return inferred


def _inferred(proto: onnx.ModelProto, *, folded: bool) -> onnx.ModelProto:
    while True:
        try:
            proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except (RuntimeError, onnx.shape_inference.InferenceError):
            return proto  # shapes stay unknown: what depends on them is kept whole and named
        known = known_lengths(proto.graph)
        declared = _declare(proto.graph, known)
        if not (folded and fold_lengths(proto.graph, known)) and not declared:
            return proto


def _declare(graph: onnx.GraphProto, known: Known) -> bool:
    """Declare what follows for the outputs of the operators that are given a shape; tell whether any was news."""
    found = False
    for node in graph.node:
        index = shape_input(node)
        entries = None if index is None else known.of(node.input[index])
        data, value = known.values.get(node.input[0]) if node.input else None, known.values.get(node.output[0])
        shape = None if entries is None else _lengths(node, entries, data)
        if shape is None or data is None:
            continue
        if value is not None and _has_shape(value):
            found |= _fill_in(value, shape)
            continue
        value = value or graph.value_info.add()
        element = value.type.tensor_type.elem_type or _element(node, data)
        value.CopyFrom(onnx.helper.make_tensor_value_info(node.output[0], element, shape))
        found = True
    return found


def _fill_in(value: onnx.ValueInfoProto, shape: list[int | None]) -> bool:
    """Set the lengths that were not known before; tell whether there were any."""
    dims = value.type.tensor_type.shape.dim
    if len(dims) != len(shape):
        return False
    news = [(dim, length) for dim, length in zip(dims, shape, strict=True) if length and not dim.HasField("dim_value")]
    for dim, length in news:
        dim.dim_value = length
    return bool(news)


def _lengths(node: onnx.NodeProto, entries: Entries, data: onnx.ValueInfoProto | None) -> list[int | None] | None:
    """Return the output's lengths; those copied from the data, inferred or computed are not known."""
    lengths = [entry if isinstance(entry, int) and entry > 0 else None for entry in entries.ravel()]
    if node.op_type != "Expand":
        return lengths
    if data is None or not _has_shape(data):
        return None
    own = [dim.dim_value or None for dim in data.type.tensor_type.shape.dim]
    padded = [[1] * (max(len(own), len(lengths)) - len(some)) + some for some in (own, lengths)]
    return [_broadcast(one, other) for one, other in zip(*padded, strict=True)]


def _element(node: onnx.NodeProto, data: onnx.ValueInfoProto) -> int:
    """Return the number type of an output: the data's, or that of what a shape is filled with."""
    if node.op_type != "ConstantOfShape":
        return int(data.type.tensor_type.elem_type)
    return next((attribute.t.data_type for attribute in node.attribute), onnx.TensorProto.FLOAT)


def _broadcast(one: int | None, other: int | None) -> int | None:
    if one is not None and one > 1:
        return one
    return other if one == 1 or (other is not None and other > 1) else None


def _has_shape(value: onnx.ValueInfoProto | None) -> bool:
    return value is not None and value.type.tensor_type.HasField("shape")
