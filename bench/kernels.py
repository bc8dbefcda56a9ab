"""Single-node models for the latency table, and stacks of nodes to check it on; random weights, in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from toolchain.quantiser import PREPARED
from toolchain.recurrent import GATES

from .latency_table import MATRIX
from .random_lm import IR_VERSION, OPSET

IDENTITY = "Identity"  # a call that computes nothing: what every call costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kind of node at one size; `hidden_size` is the number of columns of a matrix."""

    op_type: str
    dtype: str = "float32"
    num_directions: int = 1
    input_size: int
    hidden_size: int


def kernel_model(kernel: Kernel, *, seed: int) -> bytes:
    """Return a serialized model of this node alone; X is `[T, B, input_size]`."""
    if kernel.op_type == IDENTITY:
        return bytes(_stack([], kernel.input_size, None, seed).SerializeToString())
    if kernel.op_type == MATRIX:
        model = _stack([], kernel.input_size, kernel.hidden_size, seed)
    else:
        model = _stack([kernel], kernel.input_size, None, seed)
    return _quantized(model) if kernel.dtype == "int8" else bytes(model.SerializeToString())


def stack_model(layers: Sequence[Kernel], *, output_size: int, seed: int) -> onnx.ModelProto:
    """Return recurrent layers on top of each other with a matrix at the end."""
    return _stack(layers, layers[0].input_size, output_size, seed)


def _stack(layers: Sequence[Kernel], input_size: int, output_size: int | None, seed: int) -> onnx.ModelProto:
    random = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        scale = shape[-1] ** -0.5
        values = (random.random(shape, dtype=np.float32) - 0.5) * np.float32(scale)
        tensors.append(numpy_helper.from_array(values, name))
        return name

    tensors.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), "joined"))
    value, width = "X", input_size
    for number, layer in enumerate(layers):
        gates, D, H = len(GATES[layer.op_type.removeprefix("DynamicQuantize")]), layer.num_directions, layer.hidden_size
        inputs = [
            value,
            weight(f"W{number}", D, gates * H, width),
            weight(f"R{number}", D, gates * H, H),
            weight(f"B{number}", D, 2 * gates * H),
        ]
        extra: dict[str, Any] = {"linear_before_reset": 1} if layer.op_type == "GRU" else {}  # as PyTorch exports it
        direction = "bidirectional" if D == 2 else "forward"
        nodes += [
            helper.make_node(
                layer.op_type.removeprefix("DynamicQuantize"),
                inputs,
                [f"Y{number}"],
                name=f"recurrent_{number}",
                hidden_size=H,
                direction=direction,
                **extra,
            ),
            helper.make_node("Transpose", [f"Y{number}"], [f"T{number}"], perm=[0, 2, 1, 3]),  # [T, B, D, H]
            helper.make_node("Reshape", [f"T{number}", "joined"], [f"Z{number}"]),
        ]
        value, width = f"Z{number}", D * H
    if output_size is not None:
        nodes += [
            helper.make_node("MatMul", [value, weight("weight", width, output_size)], ["product"], name="output"),
            helper.make_node("Add", ["product", weight("bias", output_size)], ["scores"]),
        ]
        value, width = "scores", output_size
    nodes.append(helper.make_node("Identity", [value], ["result"]))
    graph = helper.make_graph(
        nodes,
        "kernel",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["seq_length", "batch_size", input_size])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, ["seq_length", "batch_size", width])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _quantized(model: onnx.ModelProto) -> bytes:
    """Return what `toolchain shrink --int8` makes of a kernel, without the proof that it gives of a user's model."""
    from onnxruntime.quantization import quantize_dynamic

    helper.set_model_props(model, dict([PREPARED]))
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_dynamic(source, target, per_channel=True)
        return target.read_bytes()
