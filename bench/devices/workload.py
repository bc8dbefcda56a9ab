"""What a graph does, as far as its time depends on it: matrix products with weights, and recurrent steps.

ONNX Runtime computes a recurrent node's input projection as one product of `seq_length*batch_size` rows with W, and
then, step by step, a product of `batch_size` rows with R. Everything else that multiplies by constant weights is one
product. Other operators are small beside these; those with weights that are not described are listed in `left_out`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from toolchain.errors import BenchError
from toolchain.graph.inference import with_inferred_shapes
from toolchain.interface import Feed, ModelInterface
from toolchain.model_file import read_proto
from toolchain.recurrent import GATES

SMALL = 1024  # numbers; a shape or a list of axes is shorter, and inference needs its values
SUBGRAPHS = frozenset({"If", "Loop", "Scan"})
QUANTIZED = frozenset({
    "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits",
    "QLinearMatMul",
})  # fmt: skip
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "Einsum"})
FLOAT_BYTES = 4

Shape = Sequence[int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """`repeats` times, one after the other: `rows` rows times a matrix of `weights` numbers."""

    name: str
    rows: int
    weights: int
    repeats: int = 1

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrix."""
        return self.weights * FLOAT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One call of a model. `unit_steps` counts hidden units x steps x sequences, `node_steps` recurrent steps."""

    products: tuple[Product, ...]
    unit_steps: int
    node_steps: int
    left_out: tuple[str, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices, each once."""
        return sum(product.weight_bytes for product in self.products)

    @property
    def moved_bytes(self) -> int:
        """Bytes of matrices read in one call: `(T*|R| + |W|)*4` for each recurrent node."""
        return sum(product.weight_bytes * product.repeats for product in self.products)


def read_workload(model: ModelInterface, feeds: Sequence[Feed]) -> Workload:
    """Read what one call does with inputs of these shapes.

    Raises:
        ModelFileError: the file is not an ONNX model.
        BenchError: the shape of a weight or of what it multiplies is not known, or weights are not float32.
    """
    proto = read_proto(model.path)
    shapes = {feed.name: feed.shape for feed in feeds}
    for value in proto.graph.input:
        if value.name in shapes:
            dimensions = value.type.tensor_type.shape
            dimensions.ClearField("dim")
            dimensions.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=length) for length in shapes[value.name])
    for tensor in proto.graph.initializer:
        if math.prod(tensor.dims) > SMALL:  # inference looks at the shape alone: spare copying the weights
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    return workload_of(with_inferred_shapes(proto).graph, name=model.name)


def workload_of(graph: onnx.GraphProto, *, name: str) -> Workload:
    """Return the workload of a graph whose shapes are known; `name` is the model's in messages."""
    shapes, constants = _Shapes(graph, name), _constants(graph)
    products: list[Product] = []
    unit_steps = node_steps = 0
    left_out: list[str] = []
    for node in graph.node:
        if node.op_type in QUANTIZED:
            raise BenchError(
                f"{name}: {node.op_type} {node.name!r} computes in 8 bits or fewer; expected float32, because no "
                "cycles of those loops are known. Count its instructions with --device qemu:PROFILE, or measure it."
            )
        if node.op_type in GATES:
            products += _recurrent_products(node, shapes)
            seq_length, batch_size, _ = shapes.of(node.input[0], rank=3)
            D, _, hidden_size = shapes.of(node.input[2], rank=3)
            unit_steps += D * hidden_size * seq_length * batch_size
            node_steps += D * seq_length
        elif node.op_type in ("MatMul", "Gemm") and node.input[1] in constants:
            weights = math.prod(shapes.of(node.input[1], rank=2))
            products.append(Product(name=node.name, rows=_rows(node, shapes.of(node.input[0])), weights=weights))
        elif node.op_type in CONVOLUTIONS | SUBGRAPHS:
            left_out.append(f"{node.op_type} {node.name}".strip())
    return Workload(products=tuple(products), unit_steps=unit_steps, node_steps=node_steps, left_out=tuple(left_out))


def _recurrent_products(node: onnx.NodeProto, shapes: _Shapes) -> list[Product]:
    """Return the input projection, all steps at once, and each direction's product with R, step by step."""
    seq_length, batch_size, _ = shapes.of(node.input[0], rank=3)
    D, rows, hidden_size = shapes.of(node.input[2], rank=3)
    W = math.prod(shapes.of(node.input[1], rank=3))
    step = Product(name=f"{node.name} R", rows=batch_size, weights=rows * hidden_size, repeats=seq_length)
    return [Product(name=f"{node.name} W", rows=seq_length * batch_size, weights=W), *[step] * D]


def _rows(node: onnx.NodeProto, X: tuple[int, ...]) -> int:
    """Return the rows that a matrix multiplies; Gemm may take them from the second axis."""
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return X[1] if node.op_type == "Gemm" and transposed else math.prod(X[:-1])


class _Shapes:
    """The shapes of a graph's values; `model` is named where one is not known."""

    def __init__(self, graph: onnx.GraphProto, model: str) -> None:
        self._model = model
        self._shapes: dict[str, Shape] = {
            value.name: [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.HasField("shape")
        }
        self._shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}

    def of(self, value: str, rank: int | None = None) -> tuple[int, ...]:
        """Return the shape of a value, of so many axes; raise BenchError where it does not follow from the inputs."""
        shape = self._shapes.get(value)
        lengths = tuple(length for length in shape or () if length is not None)
        if shape is None or len(lengths) != len(shape) or (rank is not None and len(shape) != rank):
            raise BenchError(
                f"{self._model}: the shape of {value!r} does not follow from the inputs' ({shape}); expected a known "
                "one to estimate with. Count its instructions with --device qemu:PROFILE, or measure it."
            )
        return lengths


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all values that no input can change."""
    inputs = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    known = {tensor.name for tensor in graph.initializer} - inputs
    for node in graph.node:
        if node.op_type == "Constant" or (node.input and all(not name or name in known for name in node.input)):
            known.update(node.output)
    return known
