"""What one inference costs by the graph: multiply-adds, and bytes of weights that must reach the processor.

For a recurrent node over T steps of B sequences, all directions together:

    multiply-adds = T * B * (|W| + |R|)          bytes moved = (T * |R| + |W|) * itemsize

`W` multiplies all steps in one matrix product and is read once; `R` is needed again at every step, from whichever
cache holds it. A matrix or a convolution is read once; a table is read by the rows that are gathered. Elementwise
work and activations are left out: next to the weights they are small, and they stay in the first cache.

How often a node runs is read from the shapes that follow from the inputs'. A node whose shapes cannot be known, that
lies inside If, Loop or Scan, or whose operator is not in the lists here is named in `not_counted`, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from toolchain.axes import constants_of, graphs_of
from toolchain.graph.inference import with_inferred_shapes
from toolchain.model_file import read_proto
from toolchain.recurrent import GATES, QUANTIZED_LSTM

Shape = tuple[int, ...]
SMALL = 1024  # elements; shapes and indices are smaller, and their values decide the shapes of other tensors
PRODUCTS = frozenset({"MatMul", "MatMulInteger", "Gemm"})
CONVOLUTIONS = frozenset({"Conv", "ConvInteger", "ConvTranspose"})
# These read weights too, in ways that are not described here.
OTHER_READERS = frozenset({
    "Attention", "DynamicQuantizeMatMul", "Einsum", "FusedMatMul", "MatMulIntegerToFloat", "MatMulNBits",
    "MultiHeadAttention", "QAttention", "QLinearConv", "QLinearMatMul",
})  # fmt: skip
_COUNTED = frozenset(GATES) | {QUANTIZED_LSTM} | PRODUCTS | CONVOLUTIONS | OTHER_READERS


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One node that reads weights, for one inference.

    Attributes:
        name: the node's name, or its first output's.
        op_type: the operator.
        input_size: columns of `W`; rows of a matrix; columns of a table.
        hidden_size: units per direction of a recurrent node, else 0.
        output_size: columns of a matrix or filters of a convolution, else 0.
        num_directions: 2 for a bidirectional node.
        dtype: of the weights, as numpy calls it.
        steps: times that `step_bytes` are read: T of a recurrent node, else 1.
        rows: rows of the left matrix in all, T * B for a layer that sees every step.
        parameters: numbers in its weights and biases.
        multiply_adds: with constant weights.
        once_bytes: read once per inference: `W`, a matrix, the rows of a table.
        step_bytes: read at every step: `R`.
    """

    name: str
    op_type: str
    input_size: int
    hidden_size: int = 0
    output_size: int = 0
    num_directions: int = 1
    dtype: str
    steps: int = 1
    rows: int
    parameters: int
    multiply_adds: int
    once_bytes: int
    step_bytes: int = 0

    @property
    def bytes_moved(self) -> int:
        """Bytes of weights that one inference reads."""
        return self.once_bytes + self.steps * self.step_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCosts:
    """All layers of a model at one input shape; `not_counted` names the nodes whose cost is not known."""

    layers: tuple[LayerCost, ...]
    not_counted: tuple[str, ...]

    @property
    def multiply_adds(self) -> int | None:
        """Multiply-adds of one inference; None unless every node is counted."""
        return None if self.not_counted else sum(layer.multiply_adds for layer in self.layers)

    @property
    def bytes_moved(self) -> int | None:
        """Bytes of weights that one inference reads; None unless every node is counted."""
        return None if self.not_counted else sum(layer.bytes_moved for layer in self.layers)


def read_costs(path: Path, shapes: Mapping[str, Sequence[int]]) -> ModelCosts:
    """Read what a model file costs when its inputs have these shapes.

    Raises:
        ModelFileError: there is no such file, or it is not an ONNX model.
    """
    return costs_of(read_proto(path), shapes)


def costs_of(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> ModelCosts:
    """Return what `read_costs` does, of a model in memory; the model is left as it is."""
    known = _KnownShapes(model, shapes)
    layers: list[LayerCost] = []
    not_counted: list[str] = []
    for node in model.graph.node:
        try:
            layers.extend(_costs(node, known))
        except _UnknownShapeError:
            not_counted.append(f"{node.op_type} {_name(node)}")
    fixed = known.constant | constants_of(model.graph).keys()
    not_counted += [
        f"{node.op_type} {_name(node)}"
        for inner in islice(graphs_of(model.graph), 1, None)  # the first is the model's own
        for node in inner.node
        if node.op_type in _COUNTED and not fixed.isdisjoint(node.input)
    ]
    return ModelCosts(layers=tuple(layers), not_counted=tuple(not_counted))


class _UnknownShapeError(Exception):
    """A shape does not follow from the inputs' shapes."""


class _KnownShapes:
    """Shapes and number types of a model's tensors, and which of them are constant."""

    def __init__(self, model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
        graph = with_inferred_shapes(_without_weights(model, shapes)).graph
        self._shapes: dict[str, Shape] = {}
        self._types: dict[str, int] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            dims = value.type.tensor_type.shape.dim
            self._types[value.name] = value.type.tensor_type.elem_type
            if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
                self._shapes[value.name] = tuple(dim.dim_value for dim in dims)
        for tensor in model.graph.initializer:
            self._shapes[tensor.name] = tuple(tensor.dims)
            self._types[tensor.name] = tensor.data_type
        self.constant = _constant_names(model.graph)

    def of(self, name: str) -> Shape:
        """Return a tensor's shape."""
        if name not in self._shapes:
            raise _UnknownShapeError(name)
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """Return a tensor's number type as numpy calls it."""
        return str(helper.tensor_dtype_to_np_dtype(self._types.get(name, TensorProto.FLOAT)))

    def bytes_of(self, name: str) -> int:
        """Return the size of a tensor."""
        itemsize: int = helper.tensor_dtype_to_np_dtype(self._types.get(name, TensorProto.FLOAT)).itemsize
        return math.prod(self.of(name)) * itemsize


def _without_weights(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """Return a small copy for shape inference: inputs of these shapes, large tensors declared instead of stored."""
    graph = onnx.GraphProto()
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    dims = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in graph.node:
        if node.op_type == QUANTIZED_LSTM and {node.input[1], node.input[2]} <= dims.keys():
            _as_float_lstm(node, dims)
    large = {tensor.name for tensor in model.graph.initializer if math.prod(tensor.dims) > SMALL}
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in large)
    for value in model.graph.input:
        if value.name not in dims:
            element, lengths = value.type.tensor_type.elem_type, shapes.get(value.name)
            graph.input.append(
                value if lengths is None else helper.make_tensor_value_info(value.name, element, lengths)
            )
    for tensor in model.graph.initializer:
        if tensor.name in large:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, dims[tensor.name]))
    copy = helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions)
    copy.ir_version = model.ir_version
    return copy


def _as_float_lstm(node: onnx.NodeProto, dims: dict[str, list[int]]) -> None:
    """Turn a quantized LSTM into the one that shape inference knows: W [D, input, 4*H] is [D, 4*H, input] there."""
    node.op_type, node.domain = "LSTM", ""
    del node.input[8:]  # scales and zero points
    for name in (node.input[1], node.input[2]):
        dims[name] = [dims[name][0], dims[name][2], dims[name][1]]


def _constant_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of tensors that depend on no input; ONNX Runtime computes them once, when it loads."""
    constant = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if all(not name or name in constant for name in node.input) and not any(
            attribute.HasField("g") for attribute in node.attribute
        ):
            constant.update(node.output)
    return constant


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])


def _costs(node: onnx.NodeProto, known: _KnownShapes) -> Iterator[LayerCost]:
    """Yield what a node costs; nothing for a node that reads no weights at run time."""
    if all(output in known.constant for output in node.output):
        return
    constants = [index for index, name in enumerate(node.input) if name in known.constant]
    if node.op_type in GATES or node.op_type == QUANTIZED_LSTM:
        yield _recurrent(node, known)
    elif node.op_type in PRODUCTS and {0, 1} & set(constants):
        yield _product(node, known, 1 if 1 in constants else 0)
    elif node.op_type in CONVOLUTIONS and 1 in constants:
        yield _convolution(node, known)
    elif node.op_type == "Gather" and constants == [0] and len(known.of(node.input[0])) > 1:
        yield _table(node, known)
    elif node.op_type in OTHER_READERS and constants:
        raise _UnknownShapeError(node.op_type)


def _recurrent(node: onnx.NodeProto, known: _KnownShapes) -> LayerCost:
    X, W, R = (known.of(name) for name in node.input[:3])  # X: [T, B, input_size]
    quantized = node.op_type == QUANTIZED_LSTM
    direction = 1 if quantized else 2  # W: [D, gates*H, input_size]; quantized [D, input_size, 4*H]
    biases = [known.of(name) for index, name in enumerate(node.input) if name and index in (3, 7)]
    rows = X[0] * X[1]
    return LayerCost(
        name=_name(node),
        op_type=node.op_type,
        input_size=W[direction],
        hidden_size=R[direction],
        num_directions=W[0],
        dtype=known.dtype(node.input[1]),
        steps=_steps(node, X),
        rows=rows,
        parameters=sum(map(math.prod, (W, R, *biases))),
        multiply_adds=rows * (math.prod(W) + math.prod(R)),
        once_bytes=known.bytes_of(node.input[1]),
        step_bytes=known.bytes_of(node.input[2]),
    )


def _steps(node: onnx.NodeProto, X: Shape) -> int:
    layout = next((attribute.i for attribute in node.attribute if attribute.name == "layout"), 0)
    return X[1] if layout == 1 else X[0]


def _product(node: onnx.NodeProto, known: _KnownShapes, weight: int) -> LayerCost:
    """Return the cost of `A @ B`; with `Gemm` either may be transposed."""
    shape, result = known.of(node.input[weight]), known.of(node.output[0])
    transposed = any(
        attribute.name == ("transA", "transB")[weight] and attribute.i == 1 for attribute in node.attribute
    )
    inner_axis = len(shape) - 1 if (weight == 0) != transposed else max(len(shape) - 2, 0)
    inner = shape[inner_axis]
    outer = math.prod(shape[-2:]) // inner if len(shape) > 1 else 1
    return LayerCost(
        name=_name(node),
        op_type=node.op_type,
        input_size=inner,
        output_size=outer,
        dtype=known.dtype(node.input[weight]),
        rows=math.prod(result) // outer,
        parameters=math.prod(shape),
        multiply_adds=math.prod(result) * inner,
        once_bytes=known.bytes_of(node.input[weight]),
    )


def _convolution(node: onnx.NodeProto, known: _KnownShapes) -> LayerCost:
    """Return the cost of a convolution; W: [filters, channels / group, ...], or its transpose."""
    shape = known.of(node.input[1])
    swept = known.of(node.input[0] if node.op_type == "ConvTranspose" else node.output[0])
    return LayerCost(
        name=_name(node),
        op_type=node.op_type,
        input_size=shape[1],
        output_size=shape[0],
        dtype=known.dtype(node.input[1]),
        rows=math.prod(swept) // shape[0],
        parameters=math.prod(shape),
        multiply_adds=math.prod(swept) * math.prod(shape[1:]),
        once_bytes=known.bytes_of(node.input[1]),
    )


def _table(node: onnx.NodeProto, known: _KnownShapes) -> LayerCost:
    """Return the cost of looking rows up; no more is read than there is."""
    table, result = known.of(node.input[0]), known.of(node.output[0])
    size = known.bytes_of(node.input[0])
    return LayerCost(
        name=_name(node),
        op_type=node.op_type,
        input_size=table[-1],
        dtype=known.dtype(node.input[0]),
        rows=math.prod(result) // table[-1],
        parameters=math.prod(table),
        multiply_adds=0,
        once_bytes=min(size, math.prod(result) * (size // math.prod(table))),
    )
