"""The verifier is shown to fail on what it is there to catch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import constant, layer_with_head, value
from onnx import numpy_helper

from toolchain.errors import ModelFileError, ParityError
from toolchain.interface import read_interface
from toolchain.verification import Parity
from toolchain.verification import verify as verify_interface


def with_constant(source: Path, target: Path, name: str, change: object) -> Path:
    """Write a copy of a model with one constant changed by a function."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(constant(name, change(numpy_helper.to_array(tensor).copy())))  # type: ignore[operator]
    onnx.save(model, target)
    return target


def verify(reference: Path, candidate: Path) -> Parity:
    return verify_interface(read_interface(reference), candidate)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return layer_with_head(tmp_path / "m.onnx")


def test_a_model_equals_itself_exactly(model: Path) -> None:
    parity = verify(model, model)
    assert parity.max_abs_diff == 0
    assert len({(result.case.steps, result.case.batch) for result in parity.cases}) == 6


def test_swapped_gates_are_caught(model: Path, tmp_path: Path) -> None:
    def swap(R: np.ndarray) -> np.ndarray:
        R[:, :16] = np.concatenate([R[:, 8:16], R[:, :8]], axis=1)  # i and o
        return R

    with pytest.raises(ParityError, match="output 'Z': differs by"):
        verify(model, with_constant(model, tmp_path / "other.onnx", "R", swap))


def test_one_perturbed_weight_is_caught(model: Path, tmp_path: Path) -> None:
    def perturb(W: np.ndarray) -> np.ndarray:
        W[0, 0, 0] += 1e-3
        return W

    with pytest.raises(ParityError, match="output 'Z': differs by"):
        verify(model, with_constant(model, tmp_path / "other.onnx", "W", perturb))


def test_nan_is_caught(model: Path, tmp_path: Path) -> None:
    def poison(head: np.ndarray) -> np.ndarray:
        head[0, 0] = np.nan
        return head

    with pytest.raises(ParityError, match="infinities or NaN"):
        verify(model, with_constant(model, tmp_path / "other.onnx", "head", poison))


def test_a_wrong_shape_is_caught(model: Path, tmp_path: Path) -> None:
    other = with_constant(model, tmp_path / "other.onnx", "head", lambda head: head[:, :2])
    with pytest.raises(
        ParityError,
        match=r"output 'Z': is float32\[1, 1, 2\] at 1 steps x batch 1; expected float32\[1, 1, 3\]",
    ):
        verify(model, other)


def test_a_model_that_only_returns_nan_proves_nothing(model: Path, tmp_path: Path) -> None:
    broken = with_constant(model, tmp_path / "other.onnx", "head", lambda head: head * np.nan)
    with pytest.raises(ModelFileError, match="no finite number"):
        verify(broken, broken)


def test_lengths_fixed_by_the_file_are_tried_at_those_only(tmp_path: Path) -> None:
    source = layer_with_head(tmp_path / "m.onnx")
    model = onnx.load(source)
    model.graph.input[0].CopyFrom(value("X", [4, 2, 5]))
    onnx.save(model, source)
    (result,) = verify(source, source).cases
    assert (result.case.steps, result.case.batch) == (4, 2)
