"""Quantized graphs inside If and Scan: cut as integers there too, and proven in every branch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import constant, in_both_branches, layer_with_head, save, value
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from quantised_models import STEP, calibrated, dynamic, random_input, rounded_steps, zero_units

import toolchain
from toolchain.errors import ParityError
from toolchain.graph.branches import ELSE, THEN, Branch
from toolchain.interface import read_interface
from toolchain.verification import prove

BOTH = [(Branch(node="Z", part=part),) for part in (THEN, ELSE)]


def wrapped(source: Path) -> Path:
    """Write the model inside both branches of an If."""
    target = source.with_name("inside.onnx")
    onnx.save(in_both_branches(onnx.load(source)), target)
    return target


def run(path: Path, flag: bool) -> np.ndarray:
    """Run as written, in one thread: no fused operator rounds."""
    options = SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["Z"], {"X": random_input(6, 2), "flag": np.array(flag)})[0]


def assert_equal(source: Path, shrunk: Path | None) -> None:
    assert shrunk is not None
    for flag in (True, False):
        np.testing.assert_allclose(run(shrunk, flag), run(source, flag), atol=1e-6)


def test_qdq_weights_in_branches_are_cut_as_integers(tmp_path: Path) -> None:
    source = wrapped(calibrated(layer_with_head(tmp_path / "m.onnx", dead=((1, 4, 5),)), "LSTM"))
    result = toolchain.shrink(source)
    assert [node.hidden_after for node in result.nodes] == [5, 5]
    assert_equal(source, result.output)
    assert result.output is not None
    (choose,) = onnx.load(result.output).graph.node
    tensors = [tensor for branch in choose.attribute for tensor in branch.g.initializer]
    stored = {tuple(tensor.dims) for tensor in tensors
              if tensor.data_type in (TensorProto.INT8, TensorProto.UINT8) and len(tensor.dims) == 3}  # fmt: skip
    assert stored == {(1, 20, 5)}  # W and R both: five inputs, five units


def test_a_dynamically_quantized_lstm_in_branches_loses_units_that_are_always_zero(tmp_path: Path) -> None:
    path = zero_units(tmp_path / "m.onnx", hidden_size=40, zero=((1, 4, 30),))
    source = wrapped(dynamic(path, op_types_to_quantize=["LSTM"]))
    result = toolchain.shrink(source, explained=True)
    assert [(node.op_type, node.hidden_after) for node in result.nodes] == [("DynamicQuantizeLSTM", 37)] * 2
    assert [node.live for node in result.explanations] == [(37,)] * 2
    assert_equal(source, result.output)


def test_a_scan_over_batches_cuts_the_dynamically_quantized_lstm_in_it(tmp_path: Path) -> None:
    inner = onnx.load(dynamic(zero_units(tmp_path / "m.onnx", zero=((1, 4),)), op_types_to_quantize=["LSTM"])).graph
    del inner.input[:], inner.output[:]
    inner.input.append(helper.make_tensor_value_info("X", TensorProto.FLOAT, None))
    inner.output.append(helper.make_tensor_value_info("Z", TensorProto.FLOAT, None))
    inner = onnx.compose.add_prefix_graph(inner, "in/")
    nodes = [helper.make_node("Scan", ["XX"], ["ZZ"], name="walk", body=inner, num_scan_inputs=1)]
    shapes = [value("XX", ["N", "T", "B", 5])], [value("ZZ", ["N", "T", "B", 3])]
    source = save(tmp_path / "scan.onnx", nodes, *shapes, {})
    model = onnx.load(source)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, source)
    result = toolchain.shrink(source)
    assert [(node.input_after, node.hidden_after) for node in result.nodes] == [(5, 6)]


def test_a_quantized_matrix_that_one_branch_reads_stays_where_the_runtime_looks_for_it(tmp_path: Path) -> None:
    source = wrapped(calibrated(layer_with_head(tmp_path / "m.onnx", dead=((1, 4, 5),)), "MatMul"))
    result = toolchain.shrink(source, masked=tmp_path / "masked.onnx")
    assert [node.hidden_after for node in result.nodes] == [5, 5]
    assert_equal(source, result.output)


def test_a_quantized_matrix_that_a_branch_also_returns_stays_whole(tmp_path: Path) -> None:
    path = layer_with_head(tmp_path / "m.onnx", dead=((1, 4, 5),))
    model = onnx.load(path)
    (head,) = [tensor for tensor in model.graph.initializer if tensor.name == "head"]
    array = numpy_helper.to_array(head)
    scale = np.float32(np.abs(array).max() / 127)
    model.graph.initializer.remove(head)
    model.graph.initializer.extend([
        constant("head_q", np.round(array / scale).astype(np.int8)), constant("scale", np.array(scale)),
    ])  # fmt: skip
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["head_q", "scale"], ["head"]))
    model.graph.output.append(value("head", list(array.shape)))
    source = tmp_path / "inside.onnx"
    outside = in_both_branches(model)
    # Outside, some rows of the returned matrix are read, so that it has cells of its own, and dead ones among them.
    del outside.graph.output[1:]
    choose = outside.graph.node[0]
    choose.output[0], choose.output[1] = "chosen", "returned"
    outside.graph.node.extend([
        helper.make_node("Gather", ["returned", "live"], ["read"]),
        helper.make_node("ReduceSum", ["read", "zero"], ["total"], keepdims=0),
        helper.make_node("Add", ["chosen", "total"], ["Z"]),
    ])  # fmt: skip
    outside.graph.initializer.extend([constant("zero", np.array([0])), constant("live", np.array([0, 2, 3, 6, 7]))])
    onnx.save(outside, source)
    result = toolchain.shrink(source)
    assert_equal(source, result.output or source)


def test_where_only_roundings_differ_branches_are_proven_equal_without_them(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one = wrapped(rounded_steps(tmp_path / "one" / "m.onnx", 0.0))
    other = wrapped(rounded_steps(tmp_path / "other" / "m.onnx", 1e-6))
    parity = prove(read_interface(one), other, forced=BOTH)
    assert parity.max_abs_diff == pytest.approx(1e-6, rel=0.1)
    assert parity.rounded is not None
    assert {case.case.forced for case in parity.cases} == {(), *BOTH}
    wrong = wrapped(rounded_steps(tmp_path / "m.onnx", STEP / 9))
    with pytest.raises(ParityError, match="differs by"):
        prove(read_interface(one), wrong, forced=BOTH)
