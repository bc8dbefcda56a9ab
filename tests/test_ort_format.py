"""The .ort file computes what its source does, and ONNX Runtime's own build reads the list of its operators."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from graphs import layer_with_head, recurrent_weights, run, save, value
from onnx import helper
from onnxruntime.tools.reduced_build_config_parser import parse_config

from toolchain import ort_format
from toolchain.errors import ModelFileError, OutputError, ParityError
from toolchain.ort_format import to_ort_format
from toolchain.quantisation import quantise


def with_convolution(path: Path) -> Path:
    """Write a model whose convolution ONNX Runtime lays out anew for the processor it runs on."""
    rng = np.random.default_rng(0)
    kernels = {f"K{layer}": rng.standard_normal((32, 32, 3, 3)).astype(np.float32) / 10 for layer in range(3)}
    shapes = {"flat": np.array([0, 0, -1]), "one": np.array([1])}
    graph = []
    for layer in range(3):
        x = "X" if layer == 0 else f"x{layer}"
        graph += [helper.make_node("Conv", [x, f"K{layer}"], [f"y{layer}"], pads=[1, 1, 1, 1]),
                  helper.make_node("Relu", [f"y{layer}"], [f"x{layer + 1}"])]  # fmt: skip
    graph += [
        helper.make_node("Transpose", ["x3"], ["frames"], perm=[3, 0, 1, 2]),
        helper.make_node("Reshape", ["frames", "flat"], ["flat_frames"]),
        helper.make_node("LSTM", ["flat_frames", "W", "R", "B"], ["Y"], name="layer", hidden_size=8),
        helper.make_node("Squeeze", ["Y", "one"], ["Z"]),
    ]
    given = {**recurrent_weights("LSTM", input_size=128, hidden_size=8), **kernels, **shapes}
    return save(path, graph, [value("X", ["B", 32, 4, "T"])], [value("Z", ["T", "B", 8])], given)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("make", [layer_with_head, with_convolution])
def test_the_file_equals_its_source_to_the_last_bit(tmp_path: Path, make: object, int8: bool) -> None:
    source = make(tmp_path / "m.onnx")  # type: ignore[operator]
    if int8:
        quantise(source, tmp_path / "int8.onnx")
        source = tmp_path / "int8.onnx"
    before = source.read_bytes()
    result = to_ort_format(source)
    assert source.read_bytes() == before
    assert result.output == source.with_suffix(".ort")
    assert result.bytes == result.output.stat().st_size
    assert result.parity.max_abs_diff == 0
    assert len({(case.case.steps, case.case.batch) for case in result.parity.cases}) == 6
    X = np.random.default_rng(1).standard_normal((6, 32, 4, 9) if make is with_convolution else (9, 6, 5))
    feeds = {
        "X": X.astype(np.float32)
    }  # the plain session may lay convolutions out for the processor: last bits differ
    np.testing.assert_allclose(run(result.output, feeds)["Z"], run(source, feeds)["Z"], atol=0.05 if int8 else 1e-5)


def test_onnx_runtimes_build_reads_the_operators_and_their_types(tmp_path: Path) -> None:
    source = layer_with_head(tmp_path / "m.onnx")
    result = to_ort_format(source, tmp_path / "small.ort")
    assert result.config == tmp_path / "small.required_operators_and_types.config"
    operators, types = parse_config(result.config, enable_type_reduction=True)
    names = {name for by_opset in operators.values() for names in by_opset.values() for name in names}
    assert {"LSTM", "MatMul"} <= names
    assert types is not None
    assert "MatMul" in result.config.read_text()
    quantise(source, tmp_path / "int8.onnx")
    text = to_ort_format(tmp_path / "int8.onnx").config.read_text()
    assert "com.microsoft;1;DynamicQuantizeLSTM" in text
    assert ";LSTM" not in text
    assert str(tmp_path) not in text


def test_the_logging_of_the_process_stays_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    handlers = list(logging.root.handlers)
    to_ort_format(layer_with_head(tmp_path / "m.onnx"))
    assert logging.root.handlers == handlers
    assert capfd.readouterr() == ("", "")


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = layer_with_head(tmp_path / "m.onnx")
    other = layer_with_head(tmp_path / "other.onnx", dead=((0, 2),))
    convert = ort_format._convert
    monkeypatch.setattr(ort_format, "_convert", lambda path, output: convert(other, output))
    with pytest.raises(ParityError, match="output 'Z': differs by"):
        to_ort_format(source)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "other.onnx"]


def test_what_cannot_be_converted_is_one_line(tmp_path: Path) -> None:
    source = layer_with_head(tmp_path / "m.onnx")
    with pytest.raises(OutputError, match=r"m\.bin: has another ending; expected \.ort"):
        to_ort_format(source, tmp_path / "m.bin")
    with pytest.raises(ModelFileError, match="no such file"):
        to_ort_format(tmp_path / "gone.onnx")
    node = helper.make_node("Unheard", ["X"], ["Z"], name="strange")
    strange = save(tmp_path / "strange.onnx", [node], [value("X", ["B"])], [value("Z", ["B"])], {})
    with pytest.raises(ModelFileError, match=r"strange\.onnx: ONNX Runtime .* does not convert it \(.*Unheard"):
        to_ort_format(strange)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "strange.onnx"]


def test_the_result_is_plain_data(tmp_path: Path) -> None:
    result = to_ort_format(layer_with_head(tmp_path / "m.onnx")).to_json()
    assert result["output"] == str(tmp_path / "m.ort")
    assert result["parity"]["max_abs_diff"] == 0
