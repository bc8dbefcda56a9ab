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
from click.testing import CliRunner
from graphs import GATES, constant, layer_with_head, recurrent_weights, save, value
from graphs import run as run_in_threads
from onnx import helper, numpy_helper
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import toolchain
from toolchain.cli.shrink import shrink as shrink_command
from toolchain.errors import ParityError
from toolchain.interface import read_interface
from toolchain.verification import prove, verify

INPUT_SIZE = 5
ADVICE = "shrink the float model first, then quantize the result"
CANDIDATE = {"LSTM": 3, "GRU": 2, "RNN": 0}  # the gate block, in the order of the operator's specification


class Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self._feeds = iter([{"X": random_input(6, 2, seed)} for seed in range(5)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def random_input(steps: int, batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((steps, batch, INPUT_SIZE)).astype(np.float32)


def run(path: Path, X: np.ndarray) -> np.ndarray:
    """Run as written, in one thread: no fused operator rounds, no batch is shared out."""
    options = SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    return InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(["Z"], {"X": X})[0]


def assert_equal(source: Path, shrunk: Path, atol: float) -> None:
    for steps, batch in ((1, 1), (7, 3)):
        X = random_input(steps, batch, seed=steps)
        np.testing.assert_allclose(run(shrunk, X), run(source, X), atol=atol)


def calibrated(path: Path, op_type: str, *, per_channel: bool = False) -> Path:
    """Quantize statically, in QDQ form, the recurrent node's weights too."""
    target = path.with_name("q.onnx")
    quantize_static(path, target, Calibration(), op_types_to_quantize=[op_type, "MatMul"], per_channel=per_channel,
                    quant_format=QuantFormat.QDQ)  # fmt: skip
    return target


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


# --- QDQ ---


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


# --- DynamicQuantizeLSTM ---


def zero_units(path: Path, *, op_type: str = "LSTM", hidden_size: int = 8, zero: Sequence[Sequence[int]] = ((1, 4),),
               bias: float = 0.0, **attributes: object) -> Path:  # fmt: skip
    """Write a layer some of whose units are zero at every step, though everybody reads them."""
    directions = len(zero)
    weights = recurrent_weights(op_type, input_size=INPUT_SIZE, hidden_size=hidden_size, directions=directions)
    for direction, units in enumerate(zero):
        rows = [CANDIDATE[op_type] * hidden_size + unit for unit in units]
        weights["W"][direction, rows] = weights["R"][direction, rows] = 0
        weights["B"][direction, rows] = bias
        weights["B"][direction, [GATES[op_type] * hidden_size + row for row in rows]] = 0
    head = np.random.default_rng(1).standard_normal((directions * hidden_size, 3)).astype(np.float32)
    attributes = {"hidden_size": hidden_size, "direction": "bidirectional" if directions == 2 else "forward",
                  **attributes}  # fmt: skip
    nodes = [
        helper.make_node(op_type, ["X", "W", "R", "B"], ["Y"], name="layer", **attributes),
        helper.make_node("Transpose", ["Y"], ["Yt"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["Yt", "flat"], ["M"]),
        helper.make_node("MatMul", ["M", "head"], ["Z"], name="head"),
    ]
    constants = {**weights, "head": head, "flat": np.array([0, 0, -1])}
    return save(path, nodes, [value("X", ["T", "B", INPUT_SIZE])], [value("Z", ["T", "B", 3])], constants)


def dynamic(path: Path, **options: object) -> Path:
    target = path.with_name("q.onnx")
    quantize_dynamic(path, target, **options)
    return target


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_units_that_are_always_zero_need_not_be_read(op_type: str, tmp_path: Path) -> None:
    source = zero_units(tmp_path / "m.onnx", op_type=op_type)
    result = toolchain.shrink(source)
    assert [node.hidden_after for node in result.nodes] == [6]
    assert result.output is not None
    assert_equal(source, result.output, atol=1e-6)


@pytest.mark.parametrize(("op_type", "size"), [("Div", 8), ("PRelu", 8), ("Div", 1)])
def test_zeros_stay_zero_through_a_constant_divisor_or_slope(op_type: str, size: int, tmp_path: Path) -> None:
    extra = {"one": np.array([1]), "mask": np.array([0, 1, 0, 1, 1, 1, 1, 1], np.float32),
             "by": np.linspace(0.5, 1.5, size, dtype=np.float32)}  # fmt: skip
    middle = [
        helper.make_node("Squeeze", ["Y", "one"], ["S"]),
        helper.make_node("Mul", ["S", "mask"], ["masked"]),
        helper.make_node(op_type, ["masked", "by"], ["M"]),
    ]
    source = layer_with_head(
        tmp_path / "m.onnx", dead=((0, 1, 2, 4, 5),), dead_rows=(1, 4, 5), middle=middle, extra=extra
    )
    result = toolchain.shrink(source)  # the head reads 0 and 2, which the mask makes zero
    assert [node.hidden_after for node in result.nodes] == [3]
    assert result.output is not None
    assert_equal(source, result.output, atol=1e-6)


@pytest.mark.parametrize(
    ("op_type", "options"),
    [
        ("LSTM", {"bias": 0.1}),
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Sigmoid"]}),
        ("LSTM", {"activations": ["Sigmoid", "Sigmoid", "Tanh"]}),
        ("GRU", {"activations": ["Sigmoid", "Sigmoid"]}),
        ("RNN", {"activations": ["Sigmoid"]}),
    ],
)
def test_units_moved_by_a_bias_or_a_function_are_not_zero(op_type: str, options: dict, tmp_path: Path) -> None:
    source = zero_units(tmp_path / "m.onnx", op_type=op_type, **options)
    assert toolchain.shrink(source).status == "nothing_to_remove"


def test_units_that_start_from_a_given_state_are_not_zero(tmp_path: Path) -> None:
    source = zero_units(tmp_path / "m.onnx")
    model = onnx.load(source)
    model.graph.node[0].input.extend(["", "", "c0"])
    model.graph.input.append(value("c0", [1, "B", 8]))
    onnx.save(model, source)
    assert toolchain.shrink(source).status == "nothing_to_remove"


@pytest.mark.parametrize("weight_type", [QuantType.QInt8, QuantType.QUInt8])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("operators", [["LSTM"], ["LSTM", "MatMul"]])
@pytest.mark.parametrize("zero", [((1, 4, 30),), ((1, 4, 30), (0, 2, 39))])
def test_a_dynamically_quantized_lstm_loses_units_that_are_always_zero(
    zero: Sequence[Sequence[int]], operators: list[str], per_channel: bool, weight_type: QuantType, tmp_path: Path
) -> None:
    path = zero_units(tmp_path / "m.onnx", hidden_size=40, zero=zero)
    source = dynamic(path, op_types_to_quantize=operators, per_channel=per_channel, weight_type=weight_type)
    result = toolchain.shrink(source)
    assert [(node.op_type, node.hidden_after) for node in result.nodes] == [("DynamicQuantizeLSTM", 37)]
    assert result.output is not None
    model = onnx.load(result.output)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    (lstm,) = [node for node in model.graph.node if node.op_type == "DynamicQuantizeLSTM"]
    assert [shapes[lstm.input[index]] for index in (1, 2)] == [(len(zero), 5, 148), (len(zero), 37, 148)]
    # Sums of integers have no order; those of the float head do.
    assert_equal(source, result.output, atol=0 if "MatMul" in operators else 1e-6)


def test_a_unit_that_counts_for_the_range_stays_and_the_advice_is_given(tmp_path: Path) -> None:
    path = layer_with_head(tmp_path / "m.onnx", dead=((1, 4, 5),))
    source = dynamic(path)
    called = CliRunner().invoke(shrink_command, [str(source)])
    assert called.exit_code == 3
    assert "DynamicQuantizeLSTM" in called.output
    result = toolchain.shrink(source)
    assert [(b.op_type, ADVICE in b.reason) for b in result.nodes[0].blocked_by] == [
        ("DynamicQuantizeLSTM", True), ("DynamicQuantizeLinear", True)]  # fmt: skip
    assert not list(tmp_path.glob("*.shrunk.onnx"))


def test_shrinking_before_quantizing_removes_the_dead_units(tmp_path: Path) -> None:
    path = layer_with_head(tmp_path / "m.onnx", dead=((1, 4, 5),))
    smaller = toolchain.shrink(path).output
    assert smaller is not None
    lstm = next(node for node in onnx.load(dynamic(smaller)).graph.node if node.op_type == "DynamicQuantizeLSTM")
    assert {attribute.name: attribute.i for attribute in lstm.attribute}["hidden_size"] == 5


def test_inputs_of_a_dynamically_quantized_lstm_go_where_they_are_always_zero(tmp_path: Path) -> None:
    path = zero_units(tmp_path / "m.onnx", zero=((),))
    model = onnx.load(path)
    model.graph.node[0].input[0] = "masked"
    model.graph.node.insert(0, helper.make_node("MatMul", ["X", "mixing"], ["mixed"], name="mixing"))
    model.graph.node.insert(1, helper.make_node("Mul", ["mixed", "mask"], ["masked"], name="mask"))
    model.graph.initializer.append(constant("mixing", random_input(1, 5)[0]))
    model.graph.initializer.append(constant("mask", np.array([1, 0, 1, 0, 1], dtype=np.float32)))
    onnx.save(model, path)
    result = toolchain.shrink(dynamic(path, op_types_to_quantize=["LSTM"]))
    assert [(node.input_before, node.input_after, node.hidden_after) for node in result.nodes] == [(5, 3, 8)]


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


# --- proof ---


STEP = 2.0**-6


def rounded_steps(path: Path, shift: float) -> Path:
    """Round odd multiples of half a step: `shift` decides to which side they fall."""
    nodes = [
        helper.make_node("Round", ["X"], ["whole"]),
        helper.make_node("Mul", ["whole", "step_and_a_half"], ["tie"]),
        helper.make_node("Add", ["tie", "shift"], ["shifted"]),
        helper.make_node("QuantizeLinear", ["shifted", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["Z"]),
    ]
    numbers = {"step_and_a_half": 1.5 * STEP, "shift": shift, "step": STEP}
    constants: dict[str, np.ndarray] = {name: np.array(number, np.float32) for name, number in numbers.items()}
    shape = ["T", "B", INPUT_SIZE]
    return save(path, nodes, [value("X", shape)], [value("Z", shape)], constants | {"zero": np.array(0, np.int8)})


def test_where_only_roundings_differ_the_graphs_are_proven_equal_without_them(tmp_path: Path) -> None:
    one, other = rounded_steps(tmp_path / "one.onnx", 0.0), rounded_steps(tmp_path / "other.onnx", 1e-6)
    with pytest.raises(ParityError, match=f"differs by {STEP:.3g}"):
        verify(read_interface(one), other)
    parity = prove(read_interface(one), other)
    assert parity.max_abs_diff == pytest.approx(1e-6, rel=0.1)
    assert parity.rounded is not None
    assert parity.rounded > 0.1  # one step of the few that these small numbers have
    same = prove(read_interface(one), one)
    assert (same.max_abs_diff, same.rounded) == (0.0, None)


def test_more_than_a_rounding_is_refused(tmp_path: Path) -> None:
    one, other = rounded_steps(tmp_path / "one.onnx", 0.0), rounded_steps(tmp_path / "other.onnx", 1e-3)
    with pytest.raises(ParityError, match=r"differs by 0\.001"):
        prove(read_interface(one), other)


def test_one_wrong_integer_is_not_taken_for_a_rounding(tmp_path: Path) -> None:
    source = calibrated(layer_with_head(tmp_path / "m.onnx", hidden_size=40), "LSTM")
    model = onnx.load(source)
    (R,) = [tensor for tensor in model.graph.initializer if tensor.name == "R_quantized"]
    wrong = numpy_helper.to_array(R).copy()
    wrong[0, 3, 7] += 40
    R.CopyFrom(numpy_helper.from_array(wrong, R.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(ParityError, match="output 'Z': differs by"):
        prove(read_interface(source), tmp_path / "wrong.onnx")


def test_a_float_model_that_differs_is_not_given_a_second_chance(tmp_path: Path) -> None:
    one = layer_with_head(tmp_path / "one.onnx")
    other = layer_with_head(tmp_path / "other.onnx", dead=((0,),))
    with pytest.raises(ParityError, match="expected at most"):
        prove(read_interface(one), other)


def test_the_twin_without_roundings_computes_what_the_float_model_does(tmp_path: Path) -> None:
    from toolchain.graph.unrounded import write_unrounded

    path = layer_with_head(tmp_path / "m.onnx", hidden_size=40)
    for name, source in (("static", calibrated(path, "LSTM")), ("dynamic", dynamic(path))):
        twin = tmp_path / f"{name}.onnx"
        assert write_unrounded(source, twin)
        kinds = {node.op_type for node in onnx.load(twin).graph.node}
        assert not kinds & {"QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeLSTM", "MatMulInteger"}
        X = random_input(3, 2)
        wanted = run_in_threads(path, {"X": X})["Z"]
        np.testing.assert_allclose(run(twin, X), wanted, atol=0.05 * np.abs(wanted).max())
        verify(read_interface(twin), twin)
    assert not write_unrounded(path, tmp_path / "none.onnx")
    assert not (tmp_path / "none.onnx").exists()
