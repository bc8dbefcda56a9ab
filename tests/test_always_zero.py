"""Units that are always zero go although they are read, also where a range is taken over all units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import constant, layer_with_head, value
from onnx import helper
from onnxruntime.quantization import QuantType
from quantised_models import ADVICE, assert_equal, dynamic, random_input, zero_units

import toolchain
from toolchain.cli.shrink import shrink as shrink_command


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
