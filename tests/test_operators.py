"""Each operator between a recurrent layer and its head: the planted dead units go, or a named node keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import (
    constant,
    in_both_branches,
    kill,
    layer_with_head,
    recurrent_shapes,
    recurrent_weights,
    run,
    save,
    value,
)
from onnx import TensorProto, helper, numpy_helper
from operator_cases import BOTH, CASES, DEAD, DEAD_ROWS, LEFT, SQUEEZE, WHOLE, Case, array, node, write

import toolchain
from toolchain.errors import ModelFileError
from toolchain.graph.operators import OPERATORS
from toolchain.graph.support import support_table

rng = np.random.default_rng(5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_planted_dead_units_go_through(case: Case, tmp_path: Path) -> None:
    source = write(case, tmp_path / "m.onnx")
    result = toolchain.shrink(source)
    sizes = [node.hidden_after for node in result.nodes]
    assert sizes == [case.left], result.nodes
    assert (result.status == "written") == (case.left < WHOLE)
    if result.output is None:
        return
    assert recurrent_shapes(result.output) == [(5, case.left)]
    for steps, batch in ((1, 1), (6, 2)):
        X = np.random.default_rng(steps).standard_normal((steps, batch, 5)).astype(np.float32)
        expected, actual = run(source, {"X": X}), run(result.output, {"X": X})
        assert actual["Z"].shape == expected["Z"].shape
        np.testing.assert_allclose(actual["Z"], expected["Z"], atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_planted_dead_units_go_in_both_branches_of_an_if(case: Case, tmp_path: Path) -> None:
    source = tmp_path / "inside.onnx"
    onnx.save(in_both_branches(onnx.load(write(case, tmp_path / "m.onnx"))), source)
    result = toolchain.shrink(source)
    assert [node.hidden_after for node in result.nodes] == [case.left, case.left]
    assert (result.status == "written") == (case.left < WHOLE)


def test_a_class_of_units_from_both_directions_does_not_make_the_directions_one(tmp_path: Path) -> None:
    # Six forward units and one backward unit share one fate, so the backward direction takes five others to fill up.
    middle = (BOTH, node("Reshape", ["Yt", "side_by_side"], ["S"]),
              node("Gather", ["S", "chosen"], ["G"], axis=2), node("Softmax", ["G"], ["M"], axis=2))  # fmt: skip
    source = layer_with_head(
        tmp_path / "m.onnx", directions=2, dead=((2, 3), (0, 1, 2, 3, 4, 6, 7)), middle=middle, head_rows=7,
        dead_rows=(), extra={"side_by_side": array(0, 0, -1), "chosen": array(0, 1, 13, 4, 5, 6, 7)},
    )  # fmt: skip
    (recurrent,) = toolchain.shrink(source).nodes
    assert recurrent.hidden_after == 6


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("case", [case for case in CASES if case.opset >= 13], ids=lambda case: case.name)
def test_constants_that_are_quantized_are_cut_or_named(case: Case, axis: int | None, tmp_path: Path) -> None:
    source = with_quantized_constants(write(case, tmp_path / "m.onnx"), axis)
    result = toolchain.shrink(source)  # proves what it writes
    (recurrent,) = result.nodes
    assert recurrent.hidden_after >= case.left
    assert recurrent.hidden_after == case.left or recurrent.blocked_by


def with_quantized_constants(path: Path, axis: int | None) -> Path:
    """Store float constants of two axes or more as integers, with one scale or one per position of an axis."""
    model = onnx.load(path)
    graph = model.graph
    by = {} if axis is None else {"axis": axis}
    for tensor in list(graph.initializer):
        floats = numpy_helper.to_array(tensor)
        if floats.dtype != np.float32 or floats.ndim < 2:
            continue
        size = () if axis is None else (floats.shape[axis],)
        scale = rng.uniform(0.005, 0.02, size).astype(np.float32)
        along = scale if axis is None else scale.reshape([-1 if a == axis else 1 for a in range(floats.ndim)])
        integers = np.clip(np.round(floats / along), -127, 127).astype(np.int8)
        graph.initializer.remove(tensor)
        graph.initializer.extend([constant(f"{tensor.name}_q", integers), constant(f"{tensor.name}_scale", scale)])
        names = [f"{tensor.name}_q", f"{tensor.name}_scale"]
        graph.node.insert(0, helper.make_node("DequantizeLinear", names, [tensor.name], **by))
    onnx.save(model, path)
    return path


def test_the_documented_table_is_the_code(request: pytest.FixtureRequest) -> None:
    documented = request.config.rootpath / "docs" / "operators.md"
    assert documented.read_text() == support_table(), "run python -m toolchain.graph.support > docs/operators.md"
    assert all(name in support_table() for name in OPERATORS)


def test_a_direction_that_dies_takes_its_own_activations_with_it(tmp_path: Path) -> None:
    weights = recurrent_weights("GRU", input_size=3, hidden_size=4, directions=2)
    head = rng.standard_normal((8, 2)).astype(np.float32)
    kill(head, range(4), axis=0)  # of the first direction, whose alpha comes before those of the second
    nodes = [
        node("GRU", ["X", "W", "R", "B"], ["Y"], hidden_size=4, direction="bidirectional",
             activations=["Sigmoid", "LeakyRelu", "Elu", "LeakyRelu"], activation_alpha=[0.1, 0.7, 0.4]),
        BOTH, node("Reshape", ["Yt", "shape"], ["M"]), node("MatMul", ["M", "head"], ["Z"]),
    ]  # fmt: skip
    constants = {**weights, "head": head, "shape": array(0, 0, 8)}
    source = save(tmp_path / "m.onnx", nodes, [value("X", ["T", "B", 3])], [value("Z", [None] * 3)], constants)
    result = toolchain.shrink(source)
    recurrent = onnx.load(result.output).graph.node[0]
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in recurrent.attribute}
    assert (attributes["direction"], attributes["activations"]) == (b"reverse", [b"Elu", b"LeakyRelu"])
    np.testing.assert_allclose(attributes["activation_alpha"], [0.7, 0.4])
    feeds = {"X": rng.standard_normal((5, 2, 3)).astype(np.float32)}
    np.testing.assert_allclose(run(result.output, feeds)["Z"], run(source, feeds)["Z"], atol=1e-6)


def test_a_weight_under_two_names_is_cut_once_and_stays_one(tmp_path: Path) -> None:
    weights = recurrent_weights("GRU", input_size=3, hidden_size=8)
    kill(weights["R"], DEAD)
    head = np.where(np.isin(np.arange(8), DEAD)[:, None], 0, rng.random((8, 2))).astype(np.float32)
    nodes = [node("Identity", [name], [f"{name}_again"]) for name in weights]
    nodes += [
        node("GRU", ["X", "W", "R", "B"], ["Y"], hidden_size=8), node("Neg", ["X"], ["N"]),
        node("GRU", ["N", "W_again", "R_again", "B_again"], ["V"], hidden_size=8), node("Sub", ["Y", "V"], ["D"]),
        node("Squeeze", ["D", "one"], ["M"]), node("MatMul", ["M", "head"], ["Z"]),
    ]  # fmt: skip
    constants = {**weights, "head": head, "one": array(1)}
    source = save(tmp_path / "m.onnx", nodes, [value("X", ["T", "B", 3])], [value("Z", [None] * 3)], constants)
    result = toolchain.shrink(source)
    first, second = (node for node in onnx.load(result.output).graph.node if node.op_type == "GRU")
    assert list(first.input)[1:4] == list(second.input)[1:4]
    assert recurrent_shapes(result.output) == [(3, LEFT), (3, LEFT)]


@pytest.mark.parametrize(("op_type", "said"), [("LSTM", "does not support double yet"), ("RNN", "implementation for")])
def test_double_precision_is_refused_in_one_line_because_onnx_runtime_does_not_run_it(
    tmp_path: Path, op_type: str, said: str
) -> None:
    weights = recurrent_weights(op_type, input_size=3, hidden_size=8, dtype=np.float64)
    kill(weights["R"], DEAD)
    head = np.where(np.isin(np.arange(8), DEAD)[:, None], 0, rng.random((8, 2)))
    nodes = [node(op_type, ["X", "W", "R"], ["Y"], hidden_size=8), SQUEEZE, node("MatMul", ["S", "head"], ["Z"])]
    ends = [value("X", ["T", "B", 3], TensorProto.DOUBLE)], [value("Z", [None] * 3, TensorProto.DOUBLE)]
    source = save(tmp_path / "m.onnx", nodes, *ends, {**weights, "head": head, "one": array(1)})
    with pytest.raises(ModelFileError, match=said) as error:
        toolchain.shrink(source)
    assert str(error.value).startswith(str(source))
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_what_the_optimiser_of_onnx_runtime_wrote_is_understood(tmp_path: Path) -> None:
    gelu = (
        node("Div", ["S", "root2"], ["d"]), node("Erf", ["d"], ["e"]), node("Add", ["e", "one_"], ["p"]),
        node("Mul", ["S", "p"], ["m"]), node("Mul", ["m", "half"], ["G"]),
        node("Transpose", ["G"], ["C"], perm=[1, 2, 0]), node("Conv", ["C", "kernel"], ["K"]),
        node("Relu", ["K"], ["R_"]), node("Transpose", ["R_"], ["M"], perm=[2, 0, 1]),
    )  # fmt: skip
    numbers = {"root2": np.float32(2**0.5), "one_": np.float32(1), "half": np.float32(0.5)}
    extra = {**numbers, "one": array(1), "kernel": DEAD_ROWS.T[..., None].copy()}
    source = layer_with_head(tmp_path / "m.onnx", dead=(DEAD,), middle=(SQUEEZE, *gelu), extra=extra, dead_rows=())
    optimised = optimise(source, tmp_path / "optimised.onnx")
    fused = {known.op_type for known in onnx.load(optimised).graph.node if known.domain == "com.microsoft"}
    assert fused == {"Gelu", "FusedConv"}
    result = toolchain.shrink(optimised)
    assert recurrent_shapes(result.output) == [(5, LEFT)]
    feeds = {"X": rng.standard_normal((5, 2, 5)).astype(np.float32)}
    np.testing.assert_allclose(run(result.output, feeds)["Z"], run(source, feeds)["Z"], atol=1e-6)


def optimise(source: Path, target: Path) -> Path:
    """Let ONNX Runtime write the model as it would run it, with operators fused."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return target
