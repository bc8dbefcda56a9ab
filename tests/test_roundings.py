"""Quantized models that differ by roundings alone are proven equal without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import layer_with_head
from graphs import run as run_in_threads
from onnx import numpy_helper
from quantised_models import STEP, calibrated, dynamic, random_input, rounded_steps, run

from toolchain.errors import ParityError
from toolchain.interface import read_interface
from toolchain.verification import prove, verify


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
