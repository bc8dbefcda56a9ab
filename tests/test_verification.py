"""The verifier is shown to fail on what it is there to catch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import constant, layer_with_head, value
from onnx import helper, numpy_helper

from toolchain.comparison import NOISE_FACTOR, NOISE_LIMIT, TOLERANCE
from toolchain.errors import ModelFileError, ParityError, ToleranceError
from toolchain.graph.last_bits import write_moved
from toolchain.interface import read_interface
from toolchain.verification import Parity, prove
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


def amplifying(path: Path, gain: float) -> Path:
    """Write an RNN whose state is multiplied by about `gain` at each step."""
    source = layer_with_head(path, op_type="RNN", hidden_size=64, dead=())
    return with_constant(source, path, "R", lambda R: R * (gain / np.linalg.norm(R[0], 2) * 2))


def reordered(source: Path, target: Path) -> Path:
    """Write the same network with its units in another order: sums round otherwise, nothing else differs."""
    order = np.random.default_rng(3).permutation(64)
    with_constant(source, target, "R", lambda R: R[:, order][:, :, order])
    with_constant(target, target, "W", lambda W: W[:, order])
    with_constant(target, target, "B", lambda B: np.concatenate([B[:, order], B[:, 64 + order]], axis=1))
    return with_constant(target, target, "head", lambda head: head[order])


def test_a_network_that_amplifies_rounding_is_held_against_what_rounding_does_to_it(tmp_path: Path) -> None:
    model = amplifying(tmp_path / "m.onnx", gain=4.0)
    same = reordered(model, tmp_path / "same.onnx")
    with pytest.raises(ToleranceError, match="differs by"):
        verify(model, same)
    parity = prove(read_interface(model), same)
    assert parity.amplified is not None
    assert parity.amplified > TOLERANCE["float32"] / NOISE_FACTOR
    assert TOLERANCE["float32"] < parity.max_rel_diff <= NOISE_LIMIT
    assert max(result.noise or 0 for result in parity.cases if result.case.steps == 1) < parity.amplified


@pytest.mark.parametrize("change", [1e-3, 1e-4])
def test_what_is_more_than_rounding_is_caught_in_a_network_that_amplifies_it(change: float, tmp_path: Path) -> None:
    model = amplifying(tmp_path / "m.onnx", gain=4.0)

    def perturb(W: np.ndarray) -> np.ndarray:
        W[0, 0, 0] += change
        return W

    with pytest.raises(ToleranceError, match="differs by"):
        prove(read_interface(model), with_constant(model, tmp_path / "other.onnx", "W", perturb))


def test_beyond_the_limit_rounding_proves_nothing(tmp_path: Path) -> None:
    model = amplifying(tmp_path / "m.onnx", gain=10.0)
    with pytest.raises(ToleranceError, match="differs by"):
        prove(read_interface(model), reordered(model, tmp_path / "same.onnx"))


def test_last_bits_move_weights_and_nothing_else(model: Path, tmp_path: Path) -> None:
    write_moved(model, tmp_path / "moved.onnx", seed=0)
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (model, tmp_path / "moved.onnx")
    )
    for name in ("W", "R", "head"):
        live = before[name] != 0
        np.testing.assert_array_max_ulp(before[name], after[name], maxulp=2)
        assert (before[name] != after[name])[live].mean() > 0.9
        assert (after[name][~live] == 0).all()


def test_a_shape_that_last_bits_change_excuses_nothing(tmp_path: Path) -> None:
    """The number of positive values of an amplified state depends on last bits: one line, not a failed subtraction."""
    model = onnx.load(amplifying(tmp_path / "m.onnx", gain=10.0))
    model.graph.node.extend(
        [
            helper.make_node("Greater", ["Z", "zero"], ["positive"]),
            helper.make_node("Compress", ["Z", "flat"], ["chosen"]),
        ]
    )
    model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Reshape", ["positive", "all"], ["flat"]))
    model.graph.initializer.extend([constant("zero", np.float32(0)), constant("all", np.array([-1]))])
    model.graph.output[0].CopyFrom(value("chosen", [None]))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ParityError, match=r"output 'chosen': (is float32|differs by)"):
        prove(read_interface(tmp_path / "m.onnx"), reordered(tmp_path / "m.onnx", tmp_path / "same.onnx"))
