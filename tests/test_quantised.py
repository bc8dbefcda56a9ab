"""Quantized graphs: weights are cut as integers, units that count for a range stay, and the advised order works.

The models are made by `onnxruntime.quantization` from float models with planted dead units; the oracle is ONNX Runtime
on the quantized model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import GATES, layer_with_head, recurrent_weights, save, value
from onnx import helper, numpy_helper
from quantised_models import ADVICE, INPUT_SIZE, assert_equal, calibrated

import toolchain


def dequantized_weights(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the integers and the scale of every constant behind a DequantizeLinear, by the reader's input."""
    model = onnx.load(path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    behind = {node.output[0]: node.input for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return {
        f"{node.op_type}.{index}": (constants[behind[name][0]], constants[behind[name][1]])
        for node in model.graph.node
        for index, name in enumerate(node.input)
        if name in behind and behind[name][0] in constants
    }


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_qdq_weights_are_cut_as_integers(op_type: str, directions: int, per_channel: bool, tmp_path: Path) -> None:
    dead = ((1, 4, 5), (0, 2, 30))[:directions]
    path = layer_with_head(tmp_path / "m.onnx", op_type=op_type, directions=directions, hidden_size=40, dead=dead)
    source = calibrated(path, op_type, per_channel=per_channel)
    result = toolchain.shrink(source)
    assert [(node.hidden_before, node.hidden_after, node.blocked_by) for node in result.nodes] == [(40, 37, ())]
    assert result.output is not None
    weights, rows = dequantized_weights(result.output), GATES[op_type] * 37
    shapes = {name: integers.shape for name, (integers, _) in weights.items()}
    assert shapes == {f"{op_type}.1": (directions, rows, 5), f"{op_type}.2": (directions, rows, 37),
                      f"{op_type}.3": (directions, 2 * rows), "MatMul.1": (37 * directions, 3)}  # fmt: skip
    assert {integers.dtype for integers, _ in weights.values()} <= {np.dtype(np.int8), np.dtype(np.int32)}
    assert result.after.parameters < result.before.parameters
    assert_equal(source, result.output, atol=1e-6)


def test_every_kept_integer_is_the_one_that_was_there(tmp_path: Path) -> None:
    path = layer_with_head(tmp_path / "m.onnx", hidden_size=8, dead=((1, 4, 5),))
    source = calibrated(path, "LSTM")
    result = toolchain.shrink(source)
    assert result.output is not None
    before, after = dequantized_weights(source), dequantized_weights(result.output)
    live = [0, 2, 3, 6, 7]
    rows = [gate * 8 + unit for gate in range(4) for unit in live]
    np.testing.assert_array_equal(after["LSTM.1"][0], before["LSTM.1"][0][:, rows])
    np.testing.assert_array_equal(after["LSTM.2"][0], before["LSTM.2"][0][:, rows][:, :, live])
    np.testing.assert_array_equal(after["MatMul.1"][0], before["MatMul.1"][0][live])


def scaled_layer(
    path: Path, *, scale_shape: Sequence[int], dead: Sequence[Sequence[int]], opset: int = 17, **attributes: int
) -> Path:
    """One layer of two directions whose `R` is quantized with the given scales, some weights away from zero."""
    rng = np.random.default_rng(3)
    weights = recurrent_weights("LSTM", input_size=INPUT_SIZE, hidden_size=8, directions=2)
    R = rng.integers(-90, 90, (2, 32, 8)).astype(np.int8)
    head = rng.standard_normal((16, 3)).astype(np.float32)
    zero = np.int8(7)
    for direction, units in enumerate(dead):
        R[direction][:, list(units)] = zero
        head[[direction * 8 + unit for unit in units]] = 0
    constants = {
        "W": weights["W"], "B": weights["B"], "R": R, "head": head, "flat": np.array([0, 0, -1]),
        "scale": rng.uniform(0.001, 0.01, scale_shape).astype(np.float32), "zero": np.full(scale_shape, zero),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["R", "scale", "zero"], ["Rf"], name="dequantize", **attributes),
        helper.make_node("LSTM", ["X", "W", "Rf", "B"], ["Y"], name="layer", hidden_size=8, direction="bidirectional"),
        helper.make_node("Transpose", ["Y"], ["Yt"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["Yt", "flat"], ["M"]),
        helper.make_node("MatMul", ["M", "head"], ["Z"], name="head"),
    ]
    return save(path, nodes, [value("X", ["T", "B", INPUT_SIZE])], [value("Z", ["T", "B", 3])], constants, opset=opset)


@pytest.mark.parametrize(
    ("scale_shape", "axis", "left"),
    [((), 1, 5), ((2,), 0, 5), ((32,), 1, 6), ((8,), 2, 6)],
    ids=["per tensor", "per direction", "per row, for both directions", "per column, for both directions"],
)
def test_scales_go_with_the_axis_that_is_cut(
    scale_shape: tuple[int, ...], axis: int, left: int, tmp_path: Path
) -> None:
    source = scaled_layer(tmp_path / "m.onnx", scale_shape=scale_shape, dead=((1, 4, 5), (1, 5, 6)), axis=axis)
    result = toolchain.shrink(source)  # one scale per unit serves both directions: only 1 and 5 are dead in both
    assert [node.hidden_after for node in result.nodes] == [left]
    assert result.output is not None
    integers, scale = dequantized_weights(result.output)["LSTM.2"]
    assert (integers.dtype, integers.shape) == (np.int8, (2, 4 * left, left))
    assert scale.size == {(): 1, (2,): 2, (32,): 4 * left, (8,): left}[scale_shape]
    assert_equal(source, result.output, atol=1e-5)


def test_weights_quantized_in_blocks_are_left_whole_and_named(tmp_path: Path) -> None:
    source = scaled_layer(
        tmp_path / "m.onnx", scale_shape=(2, 16, 8), dead=((1,), (1,)), opset=21, axis=1, block_size=2
    )
    result = toolchain.shrink(source)
    assert result.status == "nothing_to_remove"
    (blocker,) = result.nodes[0].blocked_by
    assert blocker.reason == f"its input 'Rf' is quantized in blocks; {ADVICE}"


def test_a_quantized_vector_is_cut_by_its_cells(tmp_path: Path) -> None:
    extra = {"one": np.array([1]), "q": np.arange(-4, 4, dtype=np.int8), "by": np.float32(0.1).reshape(())}
    middle = [
        helper.make_node("Squeeze", ["Y", "one"], ["S"]),
        helper.make_node("DequantizeLinear", ["q", "by"], ["v"], name="dequantize"),
        helper.make_node("Add", ["S", "v"], ["M"]),
    ]
    source = layer_with_head(tmp_path / "m.onnx", middle=middle, extra=extra)
    result = toolchain.shrink(source)
    assert [node.hidden_after for node in result.nodes] == [5]
    assert result.output is not None
    np.testing.assert_array_equal(dequantized_weights(result.output)["Add.1"][0], np.array([-4, -2, -1, 2, 3]))
    assert_equal(source, result.output, atol=1e-6)


def test_a_quantized_vector_that_several_read_stays_whole(tmp_path: Path) -> None:
    extra = {"one": np.array([1]), "q": np.arange(-4, 4, dtype=np.int8), "by": np.float32(0.1).reshape(())}
    middle = [
        helper.make_node("Squeeze", ["Y", "one"], ["S"]),
        helper.make_node("DequantizeLinear", ["q", "by"], ["v"], name="dequantize"),
        helper.make_node("Add", ["S", "v"], ["A"]),
        helper.make_node("Mul", ["A", "v"], ["M"]),
    ]
    source = layer_with_head(tmp_path / "m.onnx", middle=middle, extra=extra)
    assert toolchain.shrink(source).status == "nothing_to_remove"


def test_scales_per_unit_of_an_activation_are_cut_with_it(tmp_path: Path) -> None:
    extra = {"one": np.array([1]), "by": np.linspace(0.01, 0.02, 8, dtype=np.float32), "z": np.zeros(8, np.int8)}
    middle = [
        helper.make_node("Squeeze", ["Y", "one"], ["S"]),
        helper.make_node("QuantizeLinear", ["S", "by", "z"], ["Q"], name="quantize", axis=-1),
        helper.make_node("DequantizeLinear", ["Q", "by", "z"], ["M"], name="dequantize", axis=-1),
    ]
    source = layer_with_head(tmp_path / "m.onnx", middle=middle, extra=extra)
    result = toolchain.shrink(source)
    assert [node.hidden_after for node in result.nodes] == [5]
    assert result.output is not None
    assert_equal(source, result.output, atol=1e-6)


def test_quantized_operators_that_are_not_described_are_named_with_the_advice(tmp_path: Path) -> None:
    weights = {"Wq": np.ones((8, 3), dtype=np.int8), "by": np.float32(0.1).reshape(()), "one": np.array([1])}
    middle = [
        helper.make_node("Squeeze", ["Y", "one"], ["S"]),
        helper.make_node("DynamicQuantizeMatMul", ["S", "Wq", "by"], ["M"], domain="com.microsoft", name="fused"),
    ]
    source = layer_with_head(tmp_path / "m.onnx", middle=middle, extra=weights, head_rows=3, dead_rows=())
    (blocker,) = toolchain.shrink(source).nodes[0].blocked_by
    assert (blocker.node, blocker.reason) == ("fused", f"it computes on quantized numbers; {ADVICE}")


def test_a_static_integer_product_loses_the_rows_that_are_not_read(tmp_path: Path) -> None:
    scale, zero = np.float32(0.01).reshape(()), np.uint8(128).reshape(())
    b = np.random.default_rng(2).integers(0, 255, (8, 4)).astype(np.uint8)
    b[[1, 4, 5]] = 128
    extra = {"one": np.array([1]), "s": scale, "z": zero, "b": b, "bs": np.full(4, scale), "bz": np.full(4, zero)}
    middle = [
        helper.make_node("Squeeze", ["Y", "one"], ["S"]),
        helper.make_node("QuantizeLinear", ["S", "s", "z"], ["Q"], name="quantize"),
        helper.make_node("QLinearMatMul", ["Q", "s", "z", "b", "bs", "bz", "s", "z"], ["P"], name="product"),
        helper.make_node("DequantizeLinear", ["P", "s", "z"], ["M"], name="dequantize"),
    ]
    source = layer_with_head(tmp_path / "m.onnx", middle=middle, extra=extra, head_rows=4, dead_rows=(2,))
    result = toolchain.shrink(source)
    assert [node.hidden_after for node in result.nodes] == [5]
    assert result.output is not None
    assert [t.dims for t in onnx.load(result.output).graph.initializer if t.name.startswith("b_kept")] == [[5, 3]]
    assert_equal(source, result.output, atol=1e-6)
