"""The stage `inspect`: read one ONNX file and say what is recurrent in it, what that costs, and what is wrong.

Nothing is executed and nothing is written; of the weights only the shapes are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from toolchain.graph.carried import find_state
from toolchain.graph.costs import multiply_adds, multiply_adds_of, parameters
from toolchain.graph.diagnosis import Ill, Length, diagnose
from toolchain.graph.loading import load_model
from toolchain.graph.normalise import with_inferred_shapes
from toolchain.graph.program import StatePair
from toolchain.graph.unrolled import is_recurrent, name_of
from toolchain.recurrent import column_axis

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One input or output of the model; in `shape` a text is a run-time length, None one without a name."""

    name: str
    dtype: str
    shape: tuple[Length, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentNode:
    """One LSTM, GRU or RNN.

    Attributes:
        name: the node's name, or its first output's.
        inside: the subgraphs it lies in, `NODE.then_branch`, outermost first; empty for the main graph.
        op_type: the operator.
        direction: forward, reverse or bidirectional.
        input_size: None where the weights' shape is not known.
        hidden_size: units per direction; likewise.
        parameters: numbers in its weights, biases and peepholes.
        multiply_adds: for one step of one sequence, all directions.
    """

    name: str
    inside: tuple[str, ...]
    op_type: str
    direction: str
    input_size: int | None
    hidden_size: int | None
    parameters: int
    multiply_adds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What there is to know about a model before anything is done to it.

    `declared_state` are the carried pairs that the metadata declares, `visible_state` those that only the graph shows.
    """

    path: Path
    bytes: int
    producer: str
    opsets: tuple[tuple[str, int], ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: int
    recurrent: tuple[RecurrentNode, ...]
    parameters: int
    multiply_adds: int
    declared_state: tuple[StatePair, ...]
    visible_state: tuple[StatePair, ...]
    ills: tuple[Ill, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as plain data, by the schema in docs/inspect.md."""
        content = asdict(self)
        content["path"] = str(self.path)
        content["opsets"] = dict(self.opsets)
        return {"schema": SCHEMA, **content}


def inspect(path: str | Path) -> Inspection:
    """Read a model and look for what is recurrent, and for known ills.

    Raises:
        ModelFileError: there is no such file, it is not a complete ONNX model, or its weights file is missing.
    """
    model, interface = load_model(Path(path))
    producer = f"{model.producer_name or ''} {model.producer_version or ''}".strip()
    declared = {str(value.name): value.shape for value in model.graph.outputs}
    outputs = tuple(_port(value) for value in model.graph.outputs)
    model = with_inferred_shapes(model)
    graph = model.graph
    return Inspection(
        path=interface.path,
        bytes=interface.file_bytes,
        producer=producer,
        opsets=tuple(sorted(graph.opset_imports.items())),
        inputs=tuple(_port(value) for value in graph.inputs),
        outputs=outputs,
        nodes=sum(1 for _ in graph.all_nodes()),
        recurrent=tuple(_recurrent(node, inside) for node, inside in _nodes(graph, ()) if is_recurrent(node)),
        parameters=parameters(graph),
        multiply_adds=multiply_adds(graph),
        declared_state=interface.carried,
        visible_state=tuple(pair for pair in find_state(graph) if pair not in interface.carried),
        ills=diagnose(graph, inputs=interface.inputs, declared=declared),
    )


def _port(value: ir.Value) -> Port:
    shape = () if value.shape is None else value.shape
    lengths = tuple(length if isinstance(length, int) else length.value for length in shape)
    return Port(name=str(value.name), dtype="?" if value.dtype is None else value.dtype.name.lower(), shape=lengths)


def _nodes(graph: ir.Graph, inside: tuple[str, ...]) -> Iterator[tuple[ir.Node, tuple[str, ...]]]:
    """Yield every node with the nodes that it lies inside of."""
    for node in graph:
        yield node, inside
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                place = f"{name_of(node)}.{attribute.name}"
                yield from _nodes(attribute.as_graph(), (*inside, place))


def _recurrent(node: ir.Node, inside: tuple[str, ...]) -> RecurrentNode:
    W, R = (_shape(node, index) for index in (1, 2))
    weights = [_shape(node, index) for index in (1, 2, 3, 7)]
    hidden = node.attributes.get("hidden_size")
    direction = node.attributes.get("direction")
    return RecurrentNode(
        name=name_of(node),
        inside=inside,
        op_type=node.op_type,
        direction="forward" if direction is None else direction.as_string(),
        input_size=None if W is None else W[column_axis(node.op_type)],
        hidden_size=hidden.as_int() if hidden is not None else None if R is None else R[column_axis(node.op_type)],
        parameters=sum(math.prod(shape) for shape in weights if shape is not None),
        multiply_adds=multiply_adds_of(node),
    )


def _shape(node: ir.Node, index: int) -> tuple[int, ...] | None:
    """Return the static shape of an input, None when it is absent or not known."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.shape is None or not value.shape:
        return None
    lengths = tuple(length for length in value.shape if isinstance(length, int))
    return lengths if len(lengths) == len(value.shape) else None
