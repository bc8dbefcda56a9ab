"""What an inference costs, against the formulas written out by hand."""

from __future__ import annotations

import bench_models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from toolchain.bench.costs import costs_of, read_costs

from toolchain.quantisation import quantise

T, B = 5, 3


def test_a_recurrent_node_reads_r_at_every_step_and_w_once(tmp_path):
    path = bench_models.lstm(tmp_path / "m.onnx", hidden=8, inputs=4)
    costs = read_costs(path, {"X": (T, B, 4)})
    W, R = 4 * 8 * 4, 4 * 8 * 8
    assert costs.not_counted == ()
    assert costs.multiply_adds == T * B * (W + R)
    assert costs.bytes_moved == (T * R + W) * 4
    (layer,) = costs.layers
    assert (layer.op_type, layer.input_size, layer.hidden_size, layer.steps, layer.rows) == ("LSTM", 4, 8, T, T * B)
    assert layer.parameters == W + R + 2 * 4 * 8


def test_a_table_costs_the_rows_that_are_looked_up_and_no_multiplication(tmp_path):
    costs = read_costs(bench_models.tokens(tmp_path / "m.onnx", rows=50), {"ids": (T, B)})
    table, lstm = costs.layers
    assert (table.op_type, table.once_bytes, table.multiply_adds) == ("Gather", T * B * 4 * 4, 0)
    assert costs.multiply_adds == lstm.multiply_adds
    small, _ = read_costs(bench_models.tokens(tmp_path / "s.onnx", rows=11), {"ids": (T, B)}).layers
    assert small.once_bytes == 11 * 4 * 4  # no more than there is


def test_a_transposed_input_keeps_time_and_batch_apart(tmp_path):
    (layer,) = read_costs(bench_models.batch_first(tmp_path / "m.onnx"), {"X": (B, T, 4)}).layers
    assert (layer.steps, layer.rows) == (T, T * B)


def test_a_stale_shape_in_the_file_does_not_count(tmp_path):
    """Exporters store the lengths of their example, here 99 steps of 7 sequences."""
    model = onnx.load(bench_models.lstm(tmp_path / "m.onnx"))
    model.graph.node[0].input[0] = "seen"
    model.graph.node.insert(0, helper.make_node("Identity", ["X"], ["seen"]))
    model.graph.value_info.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT, (99, 7, 4)))
    (layer,) = costs_of(model, {"X": (T, B, 4)}).layers
    assert (layer.steps, layer.rows) == (T, T * B)


@pytest.mark.parametrize(
    ("node", "shape", "X"),
    [
        (helper.make_node("MatMul", ["X", "weight"], ["Y"]), (4, 7), (T, B, 4)),
        (helper.make_node("MatMul", ["weight", "X"], ["Y"]), (7, 4), (4, T * B)),
        (helper.make_node("Gemm", ["X", "weight"], ["Y"]), (4, 7), (T * B, 4)),
        (helper.make_node("Gemm", ["X", "weight"], ["Y"], transB=1), (7, 4), (T * B, 4)),
        (helper.make_node("Gemm", ["weight", "X"], ["Y"], transA=1), (4, 7), (4, T * B)),
    ],
)
def test_a_matrix_is_read_once_and_multiplied_by_every_row(node, shape, X):
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["a", *["b"] * (len(X) - 1)])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [bench_models.constant("weight", shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (layer,) = costs_of(model, {"X": X}).layers
    assert (layer.input_size, layer.output_size, layer.rows) == (4, 7, T * B)
    assert (layer.multiply_adds, layer.bytes_moved) == (T * B * 28, 28 * 4)


def test_a_quantized_model_multiplies_as_much_and_moves_a_quarter(tmp_path):
    path = bench_models.lstm(tmp_path / "m.onnx", hidden=8, inputs=4)
    quantise(path, tmp_path / "q.onnx")
    before, after = (read_costs(tmp_path / name, {"X": (T, B, 4)}) for name in ("m.onnx", "q.onnx"))
    assert after.layers[0].op_type == "DynamicQuantizeLSTM"
    assert after.multiply_adds == before.multiply_adds
    assert after.bytes_moved * 4 == before.bytes_moved


def test_what_lies_in_a_branch_is_named_and_not_guessed(tmp_path):
    node, weights = bench_models.recurrent("LSTM", "X", hidden=8, inputs=4)
    branch = helper.make_graph([node], "b", [], [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)], weights)
    other = helper.make_graph(
        [helper.make_node("Identity", ["X"], ["Z"])], "o", [], [helper.make_tensor_value_info("Z", 1, None)]
    )
    choice = helper.make_node("If", ["flag"], ["out"], then_branch=branch, else_branch=other)
    inputs = [("X", TensorProto.FLOAT, ("a", "b", 4)), ("flag", TensorProto.BOOL, ())]
    path = bench_models.save(tmp_path / "m.onnx", [choice], [], inputs, ["out"])
    costs = read_costs(path, {"X": (T, B, 4), "flag": ()})
    assert costs.not_counted == ("LSTM recurrent",)
    assert (costs.multiply_adds, costs.bytes_moved) == (None, None)


def test_weights_that_are_computed_from_constants_are_weights(tmp_path):
    path = bench_models.lstm(tmp_path / "m.onnx", hidden=8, inputs=4)
    model = onnx.load(path)
    model.graph.node[0].input[1] = "W_same"
    model.graph.node.insert(0, helper.make_node("Identity", ["W"], ["W_same"]))
    assert costs_of(model, {"X": (T, B, 4)}).bytes_moved == read_costs(path, {"X": (T, B, 4)}).bytes_moved
    assert np.prod(model.graph.initializer[0].dims) == 128  # the model itself still has its weights
