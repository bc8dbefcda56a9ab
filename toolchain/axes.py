"""Find out which axis of a model's inputs is time and which is batch.

The operator's definition is the proof: `X` of LSTM, GRU and RNN is `[seq_length, batch_size, input_size]`,
`initial_h` is `[num_directions, batch_size, hidden_size]`. `trace_axes` carries these labels from each
recurrent node backwards to the graph's inputs. Whatever it cannot carry them through loses them, and then
a shared symbol, a telling name, or the position decides, in this order (`label_axes`).

Source: https://onnx.ai/onnx/operators/onnx__LSTM.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx

TIME, BATCH = "time", "batch"
REST = "rest"  # stands for the axes that a Reshape mixes, however many they are; always last
Label = str | int | None  # TIME, BATCH, a known length, or unknown
Labels = tuple[Label, ...]
Dimension = int | str | None  # static, symbolic, nameless
Role = Literal["sequence", "lengths", "state", "other"]

RECURRENT_OPS = frozenset({"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"})
# Each output position depends on the same position of the first input, or of every input when it broadcasts.
SAME_AXES = frozenset({
    "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "DequantizeLinear",
    "Div", "Dropout", "DynamicQuantizeLinear", "Elu", "Erf", "Exp", "Expand", "Gelu", "HardSigmoid",
    "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log", "Max", "MaxPool",
    "Min", "Mul", "Neg", "Not", "Pad", "Pow", "PRelu", "QuantizeLinear", "Relu", "Sigmoid",
    "SimplifiedLayerNormalization", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Sub", "Tanh",
    "Where",
})  # fmt: skip
SEVERAL_OPERANDS = frozenset({"Add", "Concat", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Where"})
# These keep the axes but not their lengths.
LENGTH_CHANGERS = frozenset({"AveragePool", "Concat", "Expand", "MaxPool", "Pad", "Slice", "Split"})
# These read a length, not a value: what comes out says nothing about the axes of what went in.
SHAPE_READERS = frozenset({"Shape", "Size", "ConstantOfShape", "Range", "RandomNormal", "RandomUniform"})

TIME_WORD = re.compile(r"seq|sequences?|times?|timesteps?|steps?|t|frames?|len|lengths?")
BATCH_WORD = re.compile(r"batch|batches|n|b|bs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What the graph itself says about one input; `rows` bounds the ids that an embedding table accepts."""

    role: Role = "other"
    labels: Labels = ()
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class _Claim:
    value: str
    labels: Labels
    role: Role
    rows: int | None


def trace_axes(graph: onnx.GraphProto, *, folder: Path) -> dict[str, Trace]:
    """Return what recurrent nodes and embedding tables demand of each graph input that they reach.

    Args:
        graph: of a model whose external files are as they should be.
        folder: where those files lie.
    """
    producers = {output: node for node in nodes_of(graph) for output in node.output if output}
    constants = {name: _with_integers(tensor, folder) for name, tensor in constants_of(graph).items()}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.input}
    found: dict[str, Trace] = {}
    pending = list(_first_claims(graph, constants))
    seen = set(pending)
    while pending:
        claim = pending.pop(0)
        if claim.value in ranks:
            found[claim.value] = _merge(found.get(claim.value, Trace()), claim, ranks[claim.value])
        elif claim.value in producers and claim.value not in constants:
            for earlier in _step_back(producers[claim.value], claim, constants):
                if earlier not in seen:
                    seen.add(earlier)
                    pending.append(earlier)
    return found


def label_axes(shapes: Mapping[str, Sequence[Dimension]], traces: Mapping[str, Trace]) -> dict[str, Labels]:
    """Label every axis of every input: by the trace, else a shared symbol, a name, or the position.

    Args:
        shapes: the declared shape of each graph input.
        traces: what is known about each of them, from `trace_axes`.

    Returns:
        For each input as many labels as it has axes; None where nothing is known.
    """
    labels = {name: traces[name].labels or (None,) * len(shape) for name, shape in shapes.items()}
    symbols = {
        dimension: label
        for name, shape in shapes.items()
        for dimension, label in zip(shape, labels[name], strict=True)
        if isinstance(dimension, str) and label in (TIME, BATCH)
    }
    for name, shape in shapes.items():
        known = [
            label if label is not None else symbols.get(dimension, _by_name(dimension))  # type: ignore[arg-type]
            for dimension, label in zip(shape, labels[name], strict=True)
        ]
        labels[name] = _by_position(shape, known, traces[name].role)
    return labels


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of every graph inside its nodes."""
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from nodes_of(inner)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from graphs_of(inner)


def constants_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return initializers and tensors of Constant nodes by name; their values may be in external files."""
    constants = {tensor.name: tensor for inner in graphs_of(graph) for tensor in inner.initializer}
    for node in nodes_of(graph):
        if node.op_type == "Constant" and (value := _attribute(node, "value")) is not None:
            constants[node.output[0]] = value.t
    return constants


def _with_integers(tensor: onnx.TensorProto, folder: Path) -> onnx.TensorProto:
    """Return a tensor of integers, as shapes and axes are, with its numbers, which may be in an external file."""
    from onnx import numpy_helper

    if tensor.data_location != tensor.EXTERNAL or tensor.data_type != tensor.INT64 or len(tensor.dims) > 1:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor, str(folder)), tensor.name)


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that lie in a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    return next((attribute for attribute in node.attribute if attribute.name == name), None)


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    attribute = _attribute(node, name)
    return default if attribute is None else attribute.i


def _dims(constants: Mapping[str, onnx.TensorProto], name: str) -> tuple[int, ...]:
    return tuple(constants[name].dims) if name in constants else ()


def _integers(node: onnx.NodeProto, name: str, position: int, constants: Mapping[str, onnx.TensorProto]) -> list[int]:
    """Read integers that newer opsets take as input `position` and older ones as attribute `name`."""
    from onnx import numpy_helper

    attribute = _attribute(node, name)
    if attribute is not None:
        return list(attribute.ints)
    if len(node.input) > position and node.input[position] in constants:
        return [int(value) for value in numpy_helper.to_array(constants[node.input[position]]).ravel()]
    return []


def _first_claims(graph: onnx.GraphProto, constants: Mapping[str, onnx.TensorProto]) -> Iterator[_Claim]:
    """Yield what is known at the inputs of recurrent nodes and at the indices of embedding tables."""
    for node in nodes_of(graph):
        if node.op_type in RECURRENT_OPS:
            yield from _claims_of_recurrent(node, constants)
        elif node.op_type == "Gather" and _integer(node, "axis", 0) == 0:
            rows = _dims(constants, node.input[0])
            if len(rows) == 2:  # a table [rows, columns]; a vector is shape arithmetic
                yield _Claim(node.input[1], (), "other", rows[0])


def _claims_of_recurrent(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Iterator[_Claim]:
    W = _dims(constants, node.input[1])
    input_axis = 1 if node.op_type == "DynamicQuantizeLSTM" else 2  # its W is [num_directions, input_size, 4*hidden]
    input_size = W[input_axis] if len(W) == 3 else None
    num_directions = W[0] if len(W) == 3 else None
    hidden_size = _integer(node, "hidden_size", 0) or None
    sequence: Labels = (TIME, BATCH, input_size)
    state: Labels = (num_directions, BATCH, hidden_size)
    if _integer(node, "layout", 0) == 1:
        sequence, state = (BATCH, TIME, input_size), (BATCH, num_directions, hidden_size)
    ends: list[tuple[int, Labels, Role]] = [
        (0, sequence, "sequence"), (4, (BATCH,), "lengths"), (5, state, "state"), (6, state, "state")
    ]  # fmt: skip
    for position, labels, role in ends:
        if position < len(node.input) and node.input[position]:
            yield _Claim(node.input[position], labels, role, None)


def _step_back(node: onnx.NodeProto, claim: _Claim, constants: Mapping[str, onnx.TensorProto]) -> Iterator[_Claim]:
    """Yield what a claim about a node's output says about its inputs."""
    if node.op_type in RECURRENT_OPS or node.op_type in SHAPE_READERS:
        return
    if node.op_type == "If":
        position = list(node.output).index(claim.value)
        for branch in inner_graphs(node):
            yield _Claim(branch.output[position].name, claim.labels, claim.role, claim.rows)
        return
    if node.op_type == "Gather" and node.input[0] in constants:
        rows = _dims(constants, node.input[0])
        labels = claim.labels[: len(claim.labels) - len(rows) + 1]
        table_rows = rows[0] if _integer(node, "axis", 0) == 0 and len(rows) == 2 else None
        yield _Claim(node.input[1], labels, claim.role, table_rows)
        return
    labels = _labels_before(node, claim.labels, constants)
    operands = node.input if node.op_type in SEVERAL_OPERANDS | {"MatMul"} else node.input[:1]
    for name in operands:
        if name and name not in constants:
            yield _Claim(name, labels, claim.role, claim.rows)


def _labels_before(node: onnx.NodeProto, labels: Labels, constants: Mapping[str, onnx.TensorProto]) -> Labels:
    """Return the labels of a node's data input, given those of its output; empty when they are lost."""
    if node.op_type in LENGTH_CHANGERS:
        return tuple(None if isinstance(label, int) else label for label in labels)
    if not labels or node.op_type in SAME_AXES:
        return labels
    if labels[-1] == REST:
        return ()
    rank = len(labels)
    if node.op_type == "Transpose":
        perm = _integers(node, "perm", 1, constants) or list(range(rank))[::-1]
        return tuple(labels[perm.index(axis)] for axis in range(rank)) if len(perm) == rank else ()
    if node.op_type == "Squeeze" and (axes := _integers(node, "axes", 1, constants)):
        rest = iter(labels)
        gone = {axis % (rank + len(axes)) for axis in axes}
        return tuple(1 if axis in gone else next(rest) for axis in range(rank + len(axes)))
    if node.op_type == "Unsqueeze" and (axes := _integers(node, "axes", 1, constants)):
        gone = {axis % rank for axis in axes}
        return tuple(label for axis, label in enumerate(labels) if axis not in gone)
    if node.op_type == "Gather":  # of a value, with constant indices: one layer's state out of all layers'
        axis, indices_rank = _integer(node, "axis", 0), len(_dims(constants, node.input[1]))
        return (*labels[:axis], None, *labels[axis + indices_rank :]) if axis >= 0 else ()
    if node.op_type in ("MatMul", "Gemm"):
        weight = _dims(constants, node.input[1])
        transposed = node.op_type == "Gemm" and _integer(node, "transB", 0) == 1
        return (*labels[:-1], weight[-1 if transposed else -2] if len(weight) >= 2 else None)
    if node.op_type == "Conv":
        weight = _dims(constants, node.input[1])
        channels = weight[1] * _integer(node, "group", 1) if weight else None
        return (labels[0], channels, *(TIME if label == TIME else None for label in labels[2:]))
    if node.op_type == "Reshape":  # a 0 copies the axis; from the first other number on, axes are mixed
        shape = _integers(node, "shape", 1, constants)
        copied = next((axis for axis, length in enumerate(shape) if length != 0), len(shape))
        return (*labels[:copied], REST)
    return ()


def _merge(known: Trace, claim: _Claim, rank: int) -> Trace:
    """Join a claim about an input to what is known: a sequence outranks the rest, the first label stays."""
    ranking: tuple[Role, ...] = ("sequence", "lengths", "state", "other")
    labels = zip(known.labels or (None,) * rank, _fit(claim.labels, rank), strict=True)
    rows = [rows for rows in (known.rows, claim.rows) if rows is not None]
    return Trace(
        role=min(known.role, claim.role, key=ranking.index),
        labels=tuple(old if old is not None else new for old, new in labels),
        rows=min(rows, default=None),
    )


def _fit(labels: Labels, rank: int) -> Labels:
    """Return one label per axis; labels of another rank came through a branch not taken."""
    if labels and labels[-1] == REST:
        labels = (*labels[:-1], *(None,) * rank)[:rank]
    return labels if len(labels) == rank else (None,) * rank


def _by_name(dimension: Dimension) -> Label:
    if not isinstance(dimension, str):
        return None
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", dimension).lower())
    if any(TIME_WORD.fullmatch(word) for word in words):
        return TIME
    return BATCH if any(BATCH_WORD.fullmatch(word) for word in words) else None


def _by_position(shape: Sequence[Dimension], labels: Sequence[Label], role: Role) -> Labels:
    """Label the dynamic axes that are left: time before batch; a state's batch is its last but one axis."""
    result = list(labels)
    left = [axis for axis, label in enumerate(labels) if label is None and not isinstance(shape[axis], int)]
    wanted = [label for label in (TIME, BATCH) if label not in labels]
    if role in ("state", "lengths"):
        wanted = [label for label in wanted if label == BATCH]
        left = [axis for axis in left if axis == max(len(shape) - 2, 0)]
    elif len(left) == 1 and len(wanted) == 2:
        alone = left[0] != 0 or len(shape) == 1 or shape[1] == 1  # [T], [T, 1, F], [1, T, F]; else [B, 10, F]
        wanted = [TIME] if alone else [BATCH]
    for axis, label in zip(left, wanted, strict=False):
        result[axis] = label
    return tuple(result)
