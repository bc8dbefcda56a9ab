"""int8: what becomes an integer and what stays, each said; ONNX Runtime on the source is the oracle of the error."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import layer_with_head, recurrent_weights, run, save, value
from onnx import TensorProto, helper, numpy_helper

from toolchain import quantiser
from toolchain.errors import CalibrationError, ModelFileError, OutputError, ParityError
from toolchain.graph import loading
from toolchain.interface import read_interface
from toolchain.oneshot.calibration import Calibration, random_calibration, read_calibration
from toolchain.quantisation import quantise

WORDS = 40


def constants(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def nodes(path: Path, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(path).graph.node if node.op_type == op_type]


def words_model(path: Path, *, cell: str = "LSTM", tied: bool = False) -> Path:
    """Write `tokens -> table -> layer -> head`; tied: the head is the table's transpose."""
    rng = np.random.default_rng(2)
    weights = recurrent_weights(cell, input_size=8, hidden_size=8)
    table = rng.standard_normal((WORDS, 8)).astype(np.float32)
    head = [helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0])] if tied else []
    graph = [
        helper.make_node("Gather", ["table", "tokens"], ["x"], name="lookup"),
        helper.make_node(cell, ["x", "W", "R", "B"], ["Y"], name="layer", hidden_size=8),
        helper.make_node("Squeeze", ["Y", "one"], ["y"]),
        *head,
        helper.make_node("MatMul", ["y", "head"], ["scores"], name="scores"),
    ]
    given = {**weights, "table": table, "one": np.array([1])}
    if not tied:
        given["head"] = rng.standard_normal((8, WORDS)).astype(np.float32)
    inputs = [value("tokens", ["T", "B"], TensorProto.INT64)]
    return save(path, graph, inputs, [value("scores", ["T", "B", WORDS])], given)


@pytest.mark.parametrize("directions", [1, 2])
def test_lstm_and_matrix_become_int8_with_a_scale_per_row_or_column(tmp_path: Path, directions: int) -> None:
    dead = ((1, 4, 5),) * directions  # rows and columns of zeros must not divide by zero
    source = layer_with_head(tmp_path / "m.onnx", directions=directions, dead=dead)
    before = source.read_bytes()
    result = quantise(source, tmp_path / "m.int8.onnx")
    assert source.read_bytes() == before
    assert [(node.name, node.op_type) for node in result.quantised] == [("layer", "LSTM"), ("head", "MatMul")]
    assert result.kept == ()
    (layer,) = nodes(tmp_path / "m.int8.onnx", "DynamicQuantizeLSTM")
    small, large = constants(tmp_path / "m.int8.onnx"), constants(source)
    for index, scale, name in ((1, 8, "W"), (2, 10, "R")):
        integers, scales = small[layer.input[index]], small[layer.input[scale]]  # [D, columns, 4H], [D, 4H]
        assert integers.dtype == np.int8
        assert scales.shape == large[name].shape[:2]
        restored = np.swapaxes(integers * scales[:, None, :], 1, 2)  # [D, 4H, columns]
        assert (np.abs(restored - large[name]) <= scales[:, :, None] / 2 + 1e-7).all()
    assert result.bytes_after == (tmp_path / "m.int8.onnx").stat().st_size
    assert result.bytes_before == source.stat().st_size


def test_the_error_is_the_mean_squared_difference_over_the_variance(tmp_path: Path) -> None:
    source = layer_with_head(tmp_path / "m.onnx")
    X = np.random.default_rng(3).standard_normal((6, 20, 4, 5)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", X=X)
    samples = read_calibration(str(tmp_path / "samples.npz"), read_interface(source), ())
    result = quantise(source, tmp_path / "small.onnx", calibration=samples)
    wanted, got = (np.stack([run(path, {"X": x})["Z"] for x in X]).astype(np.float64)
                   for path in (source, tmp_path / "small.onnx"))  # fmt: skip
    assert result.error == pytest.approx(np.square(got - wanted).mean() / wanted.var(), rel=1e-6)
    assert 0 < result.error < 1e-3
    assert (result.measured_on, result.calls) == (str(tmp_path / "samples.npz"), 6)
    assert quantise(source, tmp_path / "small.onnx").measured_on == "random inputs"


@pytest.mark.parametrize("cell", ["GRU", "RNN"])
def test_gru_and_rnn_stay_and_it_is_said_why(tmp_path: Path, cell: str) -> None:
    result = quantise(words_model(tmp_path / "m.onnx", cell=cell), tmp_path / "small.onnx")
    assert {node.op_type for node in result.quantised} == {"Gather", "MatMul"}
    assert [(n.name, n.op_type, n.reason) for n in result.kept] == [
        ("layer", cell, f"ONNX Runtime has no quantized {cell}")
    ]
    assert nodes(tmp_path / "small.onnx", cell)


def test_without_a_node_to_quantise_nothing_is_written(tmp_path: Path) -> None:
    weights = recurrent_weights("GRU", input_size=5, hidden_size=8)
    node = helper.make_node("GRU", ["X", "W", "R", "B"], ["Y"], name="layer", hidden_size=8)
    source = save(tmp_path / "m.onnx", [node], [value("X", ["T", "B", 5])], [value("Y", [None] * 4)], weights)
    result = quantise(source, tmp_path / "small.onnx")
    assert (result.output, result.quantised, result.error) == (None, (), None)
    assert result.bytes_after == result.bytes_before
    assert os.listdir(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_table_becomes_int8_and_scores_are_compared_as_predictions(tmp_path: Path, tied: bool) -> None:
    result = quantise(words_model(tmp_path / "m.onnx", tied=tied), tmp_path / "small.onnx")
    assert {node.name for node in result.quantised} == {"lookup", "layer", "scores"}
    (lookup,) = nodes(tmp_path / "small.onnx", "Gather")
    assert constants(tmp_path / "small.onnx")[lookup.input[0]].dtype == np.uint8
    assert result.error is not None
    assert 0 < result.error < 1e-2
    assert not [array for array in constants(tmp_path / "small.onnx").values()
                if array.dtype == np.float32 and array.size > 100]  # fmt: skip


def test_layers_that_share_weights_are_both_quantised_and_stored_once(tmp_path: Path) -> None:
    weights = recurrent_weights("LSTM", input_size=8, hidden_size=32)
    layers = [helper.make_node("LSTM", [x, "W", "R", "B"], [f"Y_{x}"], name=f"layer_{x}", hidden_size=32) for x in "ab"]
    inputs, outputs = [value(x, ["T", "B", 8]) for x in "ab"], [value(f"Y_{x}", [None] * 4) for x in "ab"]
    source = save(tmp_path / "m.onnx", layers, inputs, outputs, weights)
    result = quantise(source, tmp_path / "small.onnx")
    assert len(result.quantised) == 2
    assert result.error is not None
    assert result.error < 1e-3
    one, other = nodes(tmp_path / "small.onnx", "DynamicQuantizeLSTM")
    assert list(one.input[1:3]) == list(other.input[1:3])


def test_a_gemm_is_quantised_unless_it_scales(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in ("A", "B")}
    graph = [
        helper.make_node("Gemm", ["X", "A", "c"], ["H"], name="usual", transB=1),
        helper.make_node("Gemm", ["H", "B"], ["Z"], name="scaled", alpha=0.5),
    ]
    inputs, outputs = [value("X", ["B", 8])], [value("Z", ["B", 8])]
    source = save(tmp_path / "m.onnx", graph, inputs, outputs, {**given, "c": np.ones(8, np.float32)})
    result = quantise(source, tmp_path / "small.onnx")
    assert [node.name for node in result.quantised] == ["usual"]
    assert [(node.name, node.reason) for node in result.kept] == [("scaled", "is a Gemm with alpha 0.5")]
    assert result.error is not None
    assert result.error < 1e-3


def test_nodes_without_a_name_and_matrices_of_other_ranks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    graph = [
        helper.make_node("MatMul", ["X", "A"], ["H"]),
        helper.make_node("MatMul", ["H", "B"], ["G"]),
        helper.make_node("MatMul", ["G", "C"], ["F"], name="batched"),
        helper.make_node("MatMul", ["D", "F"], ["Z"], name="left"),
    ]
    shapes = {"A": (8, 8), "B": (8, 8), "C": (2, 8, 8), "D": (7, 7)}
    given = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    source = save(tmp_path / "m.onnx", graph, [value("X", [2, 7, 8])], [value("Z", [2, 7, 8])], given)
    result = quantise(source, tmp_path / "small.onnx")
    assert len({node.name for node in result.quantised}) == 2
    assert [node.reason for node in result.kept] == [
        "its weights have the shape [2,8,8]; only matrices of two axes are quantized",
        "its matrix is the left operand; only right ones are quantized",
    ]


def test_an_old_opset_is_raised_to_one_that_has_quantisation(tmp_path: Path) -> None:
    middle = [helper.make_node("Squeeze", ["Y"], ["M"], axes=[1])]
    source = layer_with_head(tmp_path / "m.onnx", opset=9, middle=middle)
    result = quantise(source, tmp_path / "small.onnx")
    assert {node.op_type for node in result.quantised} == {"LSTM", "MatMul"}
    opsets = {entry.domain: entry.version for entry in onnx.load(tmp_path / "small.onnx").opset_import}
    assert opsets[""] == quantiser.LOWEST_OPSET


def test_a_layer_inside_a_branch_stays_and_is_named(tmp_path: Path) -> None:
    weights = recurrent_weights("LSTM", input_size=5, hidden_size=8)
    head = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
    inside = helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y_in"], name="inner", hidden_size=8)
    branches = [
        helper.make_graph([inside], "then", [], [value("Y_in", [None] * 4)]),
        helper.make_graph([helper.make_node("Identity", ["Y"], ["Y_out"])], "else", [], [value("Y_out", [None] * 4)]),
    ]
    graph = [
        helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], name="outer", hidden_size=8),
        helper.make_node("If", ["flag"], ["Z"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("MatMul", ["Z", "head"], ["S"], name="head"),
    ]
    inputs = [value("X", ["T", "B", 5]), value("flag", [], TensorProto.BOOL)]
    source = save(tmp_path / "m.onnx", graph, inputs, [value("S", [None] * 4)], {**weights, "head": head})
    result = quantise(source, tmp_path / "small.onnx")
    assert {node.name for node in result.quantised} == {"outer", "head"}
    assert [(node.name, node.reason) for node in result.kept] == [
        ("inner", "is inside a subgraph (If, Loop or Scan), which the quantizer leaves alone")
    ]
    feeds = {"X": np.ones((3, 2, 5), np.float32), "flag": np.array(True)}
    np.testing.assert_allclose(run(tmp_path / "small.onnx", feeds)["S"], run(source, feeds)["S"], atol=0.05)


def test_quantising_twice_says_that_it_is_done(tmp_path: Path) -> None:
    quantise(layer_with_head(tmp_path / "m.onnx"), tmp_path / "small.onnx")
    again = quantise(tmp_path / "small.onnx", tmp_path / "smaller.onnx")
    assert again.output is None
    assert [(node.op_type, node.reason) for node in again.kept] == [("DynamicQuantizeLSTM", "is quantized already")]


def test_weights_outside_of_the_file_are_read_and_too_large_ones_written_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = words_model(tmp_path / "inside.onnx")
    onnx.save(onnx.load(source), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=100)
    inside = quantise(source, tmp_path / "one.onnx")
    outside = quantise(tmp_path / "m.onnx", tmp_path / "two.onnx")
    assert outside.error == inside.error
    monkeypatch.setattr(loading, "MAX_EMBEDDED_BYTES", 100)
    monkeypatch.setattr(quantiser, "MAX_EMBEDDED_BYTES", 100)
    large = quantise(tmp_path / "m.onnx", tmp_path / "three.onnx")
    assert large.error == inside.error
    assert (tmp_path / "three.onnx.data").is_file()
    assert sorted(os.listdir(tmp_path)) == [
        "inside.onnx", "m.onnx", "one.onnx", "three.onnx", "three.onnx.data", "two.onnx", "w.bin",
    ]  # fmt: skip


def test_metadata_stays_and_nothing_of_the_quantiser_is_added(tmp_path: Path) -> None:
    model = onnx.load(layer_with_head(tmp_path / "m.onnx"))
    helper.set_model_props(model, {"task": "words"})
    onnx.save(model, tmp_path / "m.onnx")
    quantise(tmp_path / "m.onnx", tmp_path / "small.onnx")
    keys = {entry.key for entry in onnx.load(tmp_path / "small.onnx").metadata_props}
    assert keys == {"task"}


def test_states_that_were_compacted_start_at_zero_again(tmp_path: Path) -> None:
    wide, narrow = (streaming(tmp_path / f"{hidden}.onnx", hidden=hidden) for hidden in (8, 6))
    samples = random_calibration(read_interface(wide), read_interface(wide).carried)
    result = quantise(narrow, tmp_path / "small.onnx", calibration=samples)
    assert result.error is not None
    assert 0 < result.error < 1e-3


def test_state_that_the_caller_declares_is_fed_back_and_not_compared(tmp_path: Path) -> None:
    source = streaming(tmp_path / "m.onnx", hidden=8)
    declared = quantise(source, tmp_path / "one.onnx")
    model = onnx.load(source)
    del model.metadata_props[:]
    onnx.save(model, source)
    pairs = [("h", "hn"), ("c", "cn")]
    assert quantise(source, tmp_path / "two.onnx", carried=pairs).error == declared.error
    samples = random_calibration(read_interface(source), pairs)
    assert quantise(source, tmp_path / "three.onnx", calibration=samples).error == declared.error
    assert quantise(source, tmp_path / "four.onnx").error != declared.error


def streaming(path: Path, *, hidden: int) -> Path:
    weights = recurrent_weights("LSTM", input_size=5, hidden_size=hidden)
    node = helper.make_node("LSTM", ["X", "W", "R", "B", "", "h", "c"], ["Y", "hn", "cn"], hidden_size=hidden)
    states = [value(name, [1, "B", hidden]) for name in ("h", "c")]
    ends = [value(name, [1, "B", hidden]) for name in ("hn", "cn")]
    save(path, [node], [value("X", ["T", "B", 5]), *states], [value("Y", [None] * 4), *ends], weights)
    model = onnx.load(path)
    helper.set_model_props(model, {"toolchain.carried_state": '[["h", "hn"], ["c", "cn"]]'})
    onnx.save(model, path)
    return path


def test_a_model_that_refuses_random_inputs_is_written_with_no_error_given(tmp_path: Path) -> None:
    middle = [helper.make_node("Squeeze", ["Y", "one"], ["y"]), helper.make_node("Add", ["y", "twenty"], ["M"])]
    extra = {"one": np.array([1]), "twenty": np.zeros((20, 1, 8), np.float32)}
    source = layer_with_head(tmp_path / "m.onnx", middle=middle, extra=extra)
    result = quantise(source, tmp_path / "small.onnx")
    assert result.error is None
    assert result.measured_on.startswith("not measured: random inputs: the model fails on call 0")
    wrong = Calibration(source="mine", streams=(({"X": np.zeros((7, 1, 5), np.float32)},),), carried=())
    with pytest.raises(CalibrationError, match="mine: the model fails on call 0"):
        quantise(source, tmp_path / "other.onnx", calibration=wrong)
    assert not (tmp_path / "other.onnx").exists()


def test_a_quantiser_that_fails_is_one_clear_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("Unable to find\ndata type")

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", fail)
    expected = (
        r"m.onnx: ONNX Runtime's quantizer does not take it \(RuntimeError: Unable to find data type\); expected a "
        r"graph that it can quantize\. Leave out --int8"
    )
    with pytest.raises(ModelFileError, match=expected):
        quantise(layer_with_head(tmp_path / "m.onnx"), tmp_path / "small.onnx")
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_a_result_that_is_no_number_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.quantization import quantize_dynamic  # before it is replaced

    def spoil(source: Path, target: Path, **options: object) -> None:
        quantize_dynamic(source, target, **options)
        model = onnx.load(target)
        for tensor in model.graph.initializer:
            if tensor.name.endswith("_scale"):
                array = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, np.nan), tensor.name))
        onnx.save(model, target)

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", spoil)
    with pytest.raises(ParityError, match="output 'Z': has infinities or NaN"):
        quantise(layer_with_head(tmp_path / "m.onnx"), tmp_path / "small.onnx")
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_the_input_is_never_the_output(tmp_path: Path) -> None:
    source = layer_with_head(tmp_path / "m.onnx")
    with pytest.raises(OutputError, match="is the model to quantize; expected another file"):
        quantise(source, source)


def test_the_result_is_plain_data(tmp_path: Path) -> None:
    source = words_model(tmp_path / "m.onnx", cell="GRU")
    result = quantise(source).to_json()
    assert result["output"] == str(tmp_path / "m.int8.onnx")
    assert list(result["kept"]) == [{"name": "layer", "op_type": "GRU", "reason": "ONNX Runtime has no quantized GRU"}]
