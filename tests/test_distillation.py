"""Distillation on small recurrent graphs: what it trains, what it leaves, and when it is not kept."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graphs import constant, initializer, layer_with_head, recurrent_weights, run, save, value
from onnx import helper, numpy_helper

from toolchain.errors import DistillationError, MissingExtraError
from toolchain.interface import read_interface
from toolchain.oneshot.calibration import Calibration, run_calls, split
from toolchain.oneshot.distillation import DistillationResult, distil, trained_weights
from toolchain.oneshot.gradient_steps import structural_mask
from toolchain.oneshot.output_error import output_kinds, output_statistics
from toolchain.oneshot.selection import Probe
from toolchain.runtime import open_session

CARRIED = (("h", "h_out"), ("c", "c_out"))
STEPS = 60
RATE = 3e-3  # networks of 8 units take larger steps than those of hundreds


def perturbed(path: Path, *, seed: int = 7, size: float = 0.15) -> Path:
    """Write a model whose weights are a little off, exact zeros apart."""
    rng = np.random.default_rng(seed)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            noise = size * rng.standard_normal(array.shape) * (array != 0)
            tensor.CopyFrom(constant(tensor.name, (array + noise).astype(np.float32)))
    other = path.with_name(f"perturbed-{path.name}")
    onnx.save(model, other)
    return other


def streaming(path: Path, op_type: str) -> Path:
    """Write a network that carries its state: `X [T, B, 5], h, (c) -> Z, h_out, (c_out)`."""
    states = ["h", "c"] if op_type == "LSTM" else ["h"]
    weights = recurrent_weights(op_type, input_size=5, hidden_size=8)
    head = np.random.default_rng(1).standard_normal((8, 3)).astype(np.float32)
    outputs = [f"{state}_out" for state in states]
    nodes = [
        helper.make_node(op_type, ["X", "W", "R", "B", "", *states], ["Y", *outputs], hidden_size=8),
        helper.make_node("Squeeze", ["Y", "one"], ["S"]),
        helper.make_node("MatMul", ["S", "head"], ["Z"]),
    ]
    constants = {**weights, "head": head, "one": np.array([1])}
    inputs = [value("X", ["T", "B", 5]), *(value(s, [1, "B", 8]) for s in states)]
    return save(
        path, nodes, inputs, [value("Z", ["T", "B", 3]), *(value(f"{s}_out", [1, "B", 8]) for s in states)], constants
    )


def samples(path: Path, carried: tuple[tuple[str, str], ...] = (), *, calls: int = 20) -> Calibration:
    """Return one stream of smooth random inputs, so that the steps of a sequence have to do with one another."""
    rng = np.random.default_rng(5)
    states = {i.name: np.zeros([1, 1, 8], np.float32) for i in read_interface(path).inputs if i.name != "X"}
    noise = rng.standard_normal((calls * 25 + 4, 1, 5))
    X = sum(noise[k : k + calls * 25] for k in range(4)).astype(np.float32) / 2
    stream = tuple({"X": part, **states} for part in np.split(X, calls))
    return Calibration(source="samples", streams=(stream,), carried=carried)


def distilled(
    original: Path,
    small: Path,
    *,
    carried: tuple[tuple[str, str], ...] = (),
    steps: int = STEPS,
    learning_rate: float = RATE,
    numbers: list[int] | None = None,
) -> DistillationResult:
    fit, held = split(samples(original, carried))
    interface, model, session = read_interface(original), ir.load(small), open_session(original, threads=1)
    kinds = output_kinds(model.graph, interface, carried)
    answers = run_calls(session, samples(original, carried), list(kinds))
    probe = Probe(calibration=held, expected=tuple(run_calls(session, held, list(kinds))), kinds=kinds,
                  spreads=output_statistics(answers, kinds).spreads)  # fmt: skip
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result = distil(model, session, interface=interface, fit=fit, held_out=probe, steps=steps, threads=1,
                    learning_rate=learning_rate,
                    on_step=lambda number, loss: None if numbers is None else numbers.append(number))  # fmt: skip
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before, "the argument is never changed"
    return result


def written(result: DistillationResult, path: Path) -> Path:
    ir.save(result.model, path)
    onnx.checker.check_model(path, full_check=True)
    return path


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "GRU reset after", "RNN"])
def test_the_held_out_error_falls(op_type: str, directions: int, tmp_path: Path) -> None:
    kind, _, variant = op_type.partition(" ")
    original = layer_with_head(tmp_path / "m.onnx", op_type=kind, directions=directions, dead=((),) * directions)
    if variant:
        model = onnx.load(original)
        model.graph.node[0].attribute.append(helper.make_attribute("linear_before_reset", 1))
        onnx.save(model, original)
    numbers: list[int] = []
    result = distilled(original, perturbed(original), numbers=numbers)
    assert result.kept
    assert result.error_after < 0.5 * result.error_before
    assert numbers == list(range(1, result.steps + 1))
    assert set(result.trained) == {"W", "R", "B", "head"}
    smaller = written(result, tmp_path / "distilled.onnx")
    held_out = split(samples(original))[1].streams[0]
    X = np.concatenate([call["X"] for call in held_out], axis=1)  # the oracle: ONNX Runtime, side by side
    truth, off, near = (run(path, {"X": X})["Z"] for path in (original, perturbed(original), smaller))
    assert np.square(near - truth).mean() < 0.5 * np.square(off - truth).mean()


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_the_held_out_error_falls_where_state_is_carried(op_type: str, tmp_path: Path) -> None:
    original = streaming(tmp_path / "m.onnx", op_type)
    result = distilled(original, perturbed(original), carried=CARRIED[: 2 if op_type == "LSTM" else 1])
    assert result.kept
    assert result.error_after < 0.5 * result.error_before


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    original = layer_with_head(tmp_path / "m.onnx", dead=((),))
    first, second = (distilled(original, perturbed(original), steps=5) for _ in range(2))
    for name in first.trained:
        one, two = (result.model.graph.initializers[name].const_value.numpy() for result in (first, second))
        np.testing.assert_array_equal(one, two)


def test_a_model_that_does_not_get_better_stays_as_it_was(tmp_path: Path) -> None:
    original = layer_with_head(tmp_path / "m.onnx", dead=((),))
    fit_model = ir.load(original)
    result = distilled(original, original, steps=10)
    assert not result.kept
    assert result.error_after >= result.error_before == pytest.approx(0, abs=1e-12)
    for name, kept in result.model.graph.initializers.items():
        np.testing.assert_array_equal(kept.const_value.numpy(), fit_model.graph.initializers[name].const_value.numpy())


@pytest.mark.parametrize("carries", [False, True])
def test_a_rate_that_destroys_is_lowered_until_the_error_falls(carries: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    original = streaming(path, "LSTM") if carries else layer_with_head(path, dead=((),))
    small = perturbed(original, size=0.02)
    result = distilled(original, small, carried=CARRIED if carries else (), learning_rate=0.3, steps=100)
    assert result.error_after < result.error_before
    assert result.learning_rate < 0.3


def test_a_rate_that_gives_no_number_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    original = streaming(tmp_path / "m.onnx", "LSTM")
    result = distilled(original, perturbed(original), carried=CARRIED, learning_rate=1e30, steps=100)
    assert not result.kept
    assert result.error_after == result.error_before
    assert result.steps < 100


def test_dead_rows_and_columns_stay_exactly_zero(tmp_path: Path) -> None:
    dead = [1, 4, 5]
    original = layer_with_head(tmp_path / "m.onnx", dead=(dead,))
    result = distilled(original, perturbed(original))
    assert result.kept
    smaller = written(result, tmp_path / "distilled.onnx")
    R, head = initializer(smaller, "R"), initializer(smaller, "head")
    assert not R[:, :, dead].any()
    assert not head[dead].any()
    assert not np.array_equal(R, initializer(perturbed(original), "R"))


def test_a_shared_weight_stays_shared(tmp_path: Path) -> None:
    weights = recurrent_weights("LSTM", input_size=5, hidden_size=5)
    nodes = [
        helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], name="first", hidden_size=5),
        helper.make_node("Squeeze", ["Y", "one"], ["S"]),
        helper.make_node("LSTM", ["S", "W", "R", "B"], ["Y2"], name="second", hidden_size=5),
        helper.make_node("MatMul", ["Y2", "head"], ["Z"]),
    ]
    head = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    original = save(tmp_path / "m.onnx", nodes, [value("X", ["T", "B", 5])], [value("Z", [None] * 4)],
                    {**weights, "head": head, "one": np.array([1])})  # fmt: skip
    result = distilled(original, perturbed(original))
    assert result.kept
    graph = onnx.load(written(result, tmp_path / "distilled.onnx")).graph
    assert [list(node.input[1:4]) for node in graph.node if node.op_type == "LSTM"] == [["W", "R", "B"]] * 2
    assert sorted(tensor.name for tensor in graph.initializer) == ["B", "R", "W", "head", "one"]


def test_what_is_trained_ends_at_the_first_matrix_behind_a_recurrent_node(tmp_path: Path) -> None:
    weights = recurrent_weights("GRU", input_size=4, hidden_size=8)
    nodes = [
        helper.make_node("MatMul", ["X", "before"], ["P"]),
        helper.make_node("GRU", ["P", "W", "R", "B"], ["Y"], hidden_size=8),
        helper.make_node("Transpose", ["Y"], ["M"], perm=[0, 1, 3, 2]),
        helper.make_node("Transpose", ["M"], ["N"], perm=[0, 1, 3, 2]),
        helper.make_node("Relu", ["N"], ["Q"]),
        helper.make_node("MatMul", ["Q", "reader"], ["U"]),
        helper.make_node("Add", ["U", "bias"], ["V"]),
        helper.make_node("Tanh", ["V"], ["V2"]),
        helper.make_node("MatMul", ["V2", "behind"], ["Z"]),
    ]
    plain = {"before": (5, 4), "reader": (8, 6), "bias": (6,), "behind": (6, 2)}
    constants = weights | {name: np.ones(shape, np.float32) for name, shape in plain.items()}
    path = save(tmp_path / "m.onnx", nodes, [value("X", ["T", "B", 5])], [value("Z", None)], constants)
    assert trained_weights(ir.load(path).graph) == {
        "W": (-2, -1), "R": (-2, -1), "B": None, "reader": (-2, -1), "bias": None
    }  # fmt: skip


def test_a_mask_holds_whole_rows_and_columns_and_no_single_zeros() -> None:
    R = torch.ones(2, 4, 4)
    R[0, :, 1] = 0
    R[1, 2, 3] = 0
    mask = structural_mask(R, (-2, -1))
    assert mask is not None
    assert not mask[0, :, 1].any()
    assert mask[1].all()
    assert structural_mask(torch.zeros(1, 8), None) is None
    conv = torch.ones(3, 4, 1)
    conv[:, 2] = 0
    mask = structural_mask(conv, (0, 1))
    assert mask is not None
    assert mask[:, :, 0].sum(0).tolist() == [3, 3, 0, 3]


def test_an_operator_that_cannot_be_differentiated_is_refused(tmp_path: Path) -> None:
    middle = [
        helper.make_node("Squeeze", ["Y", "one"], ["S"]),
        helper.make_node("Trilu", ["S"], ["M"], name="triangle"),
    ]
    original = layer_with_head(tmp_path / "m.onnx", middle=middle, extra={"one": np.array([1])}, dead=((),))
    with pytest.raises(DistillationError, match=r"^node 'triangle': Trilu is not among the") as caught:
        distilled(original, original)
    assert "\n" not in str(caught.value)


def test_a_model_without_recurrent_weights_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["X", "head"], ["Z"])
    original = save(tmp_path / "m.onnx", [node], [value("X", ["T", "B", 5])], [value("Z", None)],
                    {"head": np.ones((5, 2), np.float32)})  # fmt: skip
    with pytest.raises(DistillationError, match=r"^the model: no recurrent node keeps its weights as constants"):
        distilled(original, original)


def test_without_pytorch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = layer_with_head(tmp_path / "m.onnx", dead=((),))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"^torch: not installed; this command needs the extra `train`"):
        distilled(original, original)


def test_pytorch_is_not_imported_before_a_model_is_distilled() -> None:
    code = "import sys, toolchain.oneshot.distillation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
