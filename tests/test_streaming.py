"""Carried state: its shape stays or is narrowed, and the stream computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import (
    recurrent_shapes,
    recurrent_weights,
    run,
    save,
    value,
)
from onnx import helper
from shrinking_models import streaming_model

import toolchain
from toolchain.errors import ModelFileError


def stream(path: Path, state: np.ndarray, calls: int = 4) -> list[np.ndarray]:
    h, c, outputs = state, state / 2, []
    for call in range(calls):
        X = np.random.default_rng(call).standard_normal((3, 2, 5)).astype(np.float32)
        results = run(path, {"X": X, "h": h, "c": c})
        h, c = results["h_out"], results["c_out"]
        outputs.append(results["Z"])
    return outputs


@pytest.mark.parametrize("directions", [1, 2])
def test_declared_carried_state_keeps_its_shape_and_the_stream_its_outputs(tmp_path: Path, directions: int) -> None:
    source = streaming_model(tmp_path / "m.onnx", directions=directions)
    result = toolchain.shrink(source)
    assert recurrent_shapes(result.output) == [(5, 5)]
    state = np.random.default_rng(3).uniform(-1, 1, (directions, 2, 8)).astype(np.float32)
    for expected, actual in zip(stream(source, state), stream(result.output, state), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    onnx.checker.check_model(onnx.load(result.output), full_check=True)


@pytest.mark.parametrize("directions", [1, 2])
def test_compact_state_narrows_the_interface(tmp_path: Path, directions: int) -> None:
    source = streaming_model(tmp_path / "m.onnx", directions=directions)
    result = toolchain.shrink(source, compact_state=True)
    model = onnx.load(result.output)
    widths = {v.name: v.type.tensor_type.shape.dim[2].dim_value for v in [*model.graph.input, *model.graph.output]}
    assert {name: widths[name] for name in ("h", "c", "h_out", "c_out")} == dict.fromkeys(
        ("h", "c", "h_out", "c_out"), 5
    )
    wide = stream(source, np.zeros((directions, 2, 8), np.float32))
    narrow = stream(result.output, np.zeros((directions, 2, 5), np.float32))
    for expected, actual in zip(wide, narrow, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_undeclared_state_is_kept_whole_and_the_flag_that_frees_it_is_known(tmp_path: Path) -> None:
    source = streaming_model(tmp_path / "m.onnx", declare=False)
    result = toolchain.shrink(source)
    assert result.status == "nothing_to_remove"
    assert result.undeclared == (("h", "h_out"), ("c", "c_out"))
    assert result.undeclared_units == 3
    assert toolchain.shrink(source, carried="auto").status == "written"


def test_declaring_every_output_as_state_is_refused(tmp_path: Path) -> None:
    weights = recurrent_weights("GRU", input_size=5, hidden_size=8)
    nodes = [helper.make_node("GRU", ["X", "W", "R", "B", "", "h"], ["", "h_out"], hidden_size=8)]
    source = save(tmp_path / "m.onnx", nodes, [value("X", ["T", "B", 5]), value("h", [1, "B", 8])],
                  [value("h_out", [1, "B", 8])], weights)  # fmt: skip
    with pytest.raises(ModelFileError, match=r"all of its outputs \(h_out\) are carried state"):
        toolchain.shrink(source, carried="auto")


def test_a_state_of_fixed_batch_fits_an_output_of_unknown_batch(tmp_path: Path) -> None:
    """Behind an operator without known shapes the state comes out as [1, ?, 8], and goes in as [1, 2, 8]."""
    source = streaming_model(tmp_path / "m.onnx")
    model = onnx.load(source)
    model.graph.node[0].input[0] = "G"
    model.graph.node.insert(0, helper.make_node("Gelu", ["X"], ["G"], name="odd_one", domain="com.microsoft"))
    for known in (*model.graph.input, *model.graph.output):
        for axis in known.type.tensor_type.shape.dim:
            if axis.dim_param == "B":
                axis.dim_value = 2
    onnx.save(model, source)
    assert toolchain.shrink(source, carried="auto").status == "written"
