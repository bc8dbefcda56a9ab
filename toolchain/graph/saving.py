"""Write a model with its weights inside one file, one weight at a time.

Protobuf's own writer builds the whole file in memory, beside a message that holds all weights once more. The format is
simple enough to do without: a message is its fields one after the other, in any order, each a number, a length and so
many bytes.

    ModelProto   every field but the graph, then   7: graph
    GraphProto   all but the large initializers, then for each   5: initializer
    TensorProto  name, dims, type, then   9: raw_data

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

# From this size on a tensor is written by itself; below, copies of all of them together cost little.
LARGE_BYTES = 1 << 20
_LENGTH_DELIMITED = 2


def save_embedded(model: ir.Model, path: Path) -> None:
    """Write a model as one file; of the large weights no copy is made, or one of one at a time."""
    large = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= LARGE_BYTES
    }
    proto = _without(model, large)
    heads = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.name in large}
    fields = {name: _initializer(heads[name], tensor.nbytes) for name, tensor in large.items()}
    others = [tensor for tensor in proto.graph.initializer if tensor.name not in large]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(others)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    size = len(graph) + sum(len(fields[name]) + tensor.nbytes for name, tensor in large.items())
    with path.open("wb") as file:
        file.write(proto.SerializeToString() + _field(onnx.ModelProto.GRAPH_FIELD_NUMBER, size) + graph)
        for name, tensor in large.items():
            file.write(fields[name])
            file.write(tensor.tobytes())


def _without(model: ir.Model, large: dict[str, ir.TensorProtocol]) -> onnx.ModelProto:
    """Return the model's message with nothing in the large initializers; the model is as before."""
    values = model.graph.initializers
    try:
        for name, tensor in large.items():
            values[name].const_value = ir.ExternalTensor("", 0, 0, tensor.dtype, shape=tensor.shape, name=name)  # type: ignore[arg-type]
        return ir.to_proto(model)
    finally:
        for name, tensor in large.items():
            values[name].const_value = tensor


def _initializer(head: onnx.TensorProto, num_bytes: int) -> bytes:
    """Return what comes before the numbers of an initializer."""
    head.ClearField("external_data")
    head.ClearField("data_location")
    start = bytes(head.SerializeToString()) + _field(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, num_bytes)
    return _field(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, len(start) + num_bytes) + start


def _field(number: int, length: int) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(number: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first, each but the last with its high bit set."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
