"""Tiny recurrent models for the bench's tests, written with onnx.helper and random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None]


def constant(name: str, shape: Sequence[int]) -> onnx.TensorProto:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values * 0.1, name)


def indices(name: str, values: Sequence[int] | int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=np.int64), name)


def recurrent(op_type: str, X: str, *, hidden: int, inputs: int, rest: Sequence[str] = ()) -> tuple[
    onnx.NodeProto, list[onnx.TensorProto]
]:  # fmt: skip
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type]
    node = helper.make_node(op_type, [X, "W", "R", "B", *rest], ["Y", "Y_h"], name="recurrent", hidden_size=hidden)
    weights = [
        constant("W", (1, gates * hidden, inputs)),
        constant("R", (1, gates * hidden, hidden)),
        constant("B", (1, 2 * gates * hidden)),
    ]
    return node, weights


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto],
    inputs: Sequence[tuple[str, int, Shape]],
    outputs: Sequence[str],
    carried: Sequence[tuple[str, str]] = (),
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(name, element, list(shape)) for name, element, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        list(initializers),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if carried:
        helper.set_model_props(model, {"toolchain.carried_state": json.dumps([list(pair) for pair in carried])})
    onnx.save_model(model, path)
    return path


def lstm(path: Path, *, hidden: int = 8, inputs: int = 4, shape: Shape = ("s0", "s1", 4)) -> Path:
    """Time-major; the names of its dynamic axes tell nothing."""
    node, weights = recurrent("LSTM", "X", hidden=hidden, inputs=inputs)
    return save(path, [node], weights, [("X", TensorProto.FLOAT, shape)], ["Y"])


def batch_first(path: Path) -> Path:
    node, weights = recurrent("GRU", "X_time_first", hidden=8, inputs=4)
    transpose = helper.make_node("Transpose", ["X"], ["X_time_first"], perm=[1, 0, 2])
    return save(path, [transpose, node], weights, [("X", TensorProto.FLOAT, ("s0", "s1", 4))], ["Y"])


def tokens(path: Path, *, rows: int = 11) -> Path:
    node, weights = recurrent("LSTM", "embedded", hidden=8, inputs=4)
    gather = helper.make_node("Gather", ["table", "ids"], ["embedded"])
    inputs = [("ids", TensorProto.INT64, (None, None))]
    return save(path, [gather, node], [constant("table", (rows, 4)), *weights], inputs, ["Y"])


def static_gru(path: Path, *, steps: int = 6) -> Path:
    node, weights = recurrent("GRU", "X", hidden=8, inputs=4)
    return save(path, [node], weights, [("X", TensorProto.FLOAT, (steps, 2, 4))], ["Y"])


def streaming_gru(path: Path) -> Path:
    """Two layers' state in one input `[2, B, 8]`, of which the only node reads the first."""
    node, weights = recurrent("GRU", "X", hidden=8, inputs=4, rest=["", "initial"])
    gather = helper.make_node("Gather", ["state", "first"], ["picked"], axis=0)
    unsqueeze = helper.make_node("Unsqueeze", ["picked", "axis"], ["initial"])
    next_state = helper.make_node("Concat", ["Y_h", "Y_h"], ["state_next"], axis=0)
    inputs = [("X", TensorProto.FLOAT, ("a", "b", 4)), ("state", TensorProto.FLOAT, (2, "c", 8))]
    return save(
        path,
        [gather, unsqueeze, node, next_state],
        [indices("first", 0), indices("axis", [0]), *weights],
        inputs,
        ["Y", "state_next"],
        carried=[("state", "state_next")],
    )
