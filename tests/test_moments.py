"""What `R` reads, by an independent account: the states of ONNX Runtime, one step earlier, the initial one included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import layer_with_head, recurrent_weights, run, save, value
from onnx import helper

from toolchain.graph.loading import load_model
from toolchain.graph.normalise import normalise
from toolchain.oneshot.calibration import read_calibration
from toolchain.oneshot.moments import watch
from toolchain.oneshot.survey import survey
from toolchain.runtime import open_session

CALLS, STEPS, BATCH, INPUT, HIDDEN = 3, 4, 2, 5, 6


def layer(path: Path, op_type: str, direction: str, initial: str) -> Path:
    """Write one layer whose state starts at zero, at a constant, or where the caller says."""
    directions = 2 if direction == "bidirectional" else 1
    constants = recurrent_weights(op_type, input_size=INPUT, hidden_size=HIDDEN, directions=directions)
    inputs = [value("X", [STEPS, BATCH, INPUT])]
    start = np.random.default_rng(1).standard_normal((directions, BATCH, HIDDEN)).astype(np.float32)
    if initial == "constant":
        constants["h"] = start
    elif initial == "fed":
        inputs.append(value("h", list(start.shape)))
    nodes = [
        helper.make_node(op_type, ["X", "W", "R", "B", "", "" if initial == "zero" else "h"], ["Y"], name="layer",
                         hidden_size=HIDDEN, direction=direction),
        helper.make_node("ReduceSum", ["Y", "axes"], ["Z"], keepdims=0),
    ]  # fmt: skip
    outputs = [value("Y", [STEPS, directions, BATCH, HIDDEN]), value("Z", [None] * 3)]
    return save(path, nodes, inputs, outputs, constants | {"axes": np.array([1])})


@pytest.mark.parametrize("initial", ["zero", "constant", "fed"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_r_reads_the_state_one_step_earlier(tmp_path: Path, op_type: str, direction: str, initial: str) -> None:
    path = layer(tmp_path / "m.onnx", op_type, direction, initial)
    rng = np.random.default_rng(0)
    directions = 2 if direction == "bidirectional" else 1
    samples = {"X": rng.standard_normal((CALLS, STEPS, BATCH, INPUT)).astype(np.float32)}
    if initial == "fed":
        samples["h"] = rng.standard_normal((CALLS, directions, BATCH, HIDDEN)).astype(np.float32)
    np.savez(tmp_path / "s.npz", **samples)
    model, interface = load_model(path)
    surveyed = survey(normalise(model).model, (), columns=True)
    recurrent = [matrix for matrix in surveyed.matrices if matrix.part in ("R", "R zr")]
    moments = watch(surveyed.model, recurrent, read_calibration(str(tmp_path / "s.npz"), interface, ()))
    assert len(recurrent) == directions
    for matrix in recurrent:
        read = []
        for call in range(CALLS):
            feeds = {name: array[call] for name, array in samples.items()}
            Y = run(path, feeds)["Y"][:, matrix.direction]
            start = np.zeros((1, BATCH, HIDDEN), np.float32)
            if initial != "zero":
                given = feeds["h"] if initial == "fed" else np.random.default_rng(1).standard_normal(
                    (directions, BATCH, HIDDEN)).astype(np.float32)  # fmt: skip
                start = given[matrix.direction][None]
            backwards = direction == "reverse" or matrix.direction == 1
            read.append(np.concatenate([Y[1:], start] if backwards else [start, Y[:-1]]).reshape(-1, HIDDEN))
        rows = np.concatenate(read).astype(np.float64)
        found = moments[matrix.source]
        assert found.count == CALLS * STEPS * BATCH
        np.testing.assert_allclose(found.mean, rows.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True), atol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_the_reset_state_of_a_gru_is_that_of_its_cell(tmp_path: Path, direction: str) -> None:
    path = layer(tmp_path / "m.onnx", "GRU", direction, "constant")
    X = np.random.default_rng(0).standard_normal((1, STEPS, BATCH, INPUT)).astype(np.float32)
    np.savez(tmp_path / "s.npz", X=X)
    model, interface = load_model(path)
    surveyed = survey(normalise(model).model, (), columns=True)
    candidate = [matrix for matrix in surveyed.matrices if matrix.part == "R h"]
    moments = watch(surveyed.model, candidate, read_calibration(str(tmp_path / "s.npz"), interface, ()))
    Y = run(path, {"X": X[0]})["Y"]
    directions = Y.shape[1]
    weights = recurrent_weights("GRU", input_size=INPUT, hidden_size=HIDDEN, directions=directions)
    start = np.random.default_rng(1).standard_normal((directions, BATCH, HIDDEN)).astype(np.float32)
    for matrix in candidate:
        d = matrix.direction
        W, R, B = (np.asarray(weights[name][d], np.float64) for name in "WRB")
        r = slice(HIDDEN, 2 * HIDDEN)  # gates stand as z, r, h
        states = [start[d], *Y[:-1, d]] if d == 0 else [*Y[1:, d], start[d]]
        rows = np.concatenate([
            h / (1 + np.exp(-(X[0, t] @ W[r].T + h @ R[r].T + B[r] + B[3 * HIDDEN :][r]))) for t, h in enumerate(states)
        ])  # fmt: skip
        np.testing.assert_allclose(moments[matrix.source].mean, rows.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(moments[matrix.source].covariance, np.cov(rows.T, bias=True), atol=1e-6)


def test_neurons_that_hardly_move_have_a_covariance_all_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = layer(tmp_path / "m.onnx", "RNN", "forward", "zero")
    X = (0.3 + 1e-5 * rng.standard_normal((200, STEPS, BATCH, INPUT))).astype(np.float32)
    np.savez(tmp_path / "s.npz", X=X)
    model, interface = load_model(path)
    surveyed = survey(normalise(model).model, (), columns=True)
    moments = watch(surveyed.model, surveyed.matrices, read_calibration(str(tmp_path / "s.npz"), interface, ()))
    (found,) = [moments[matrix.source] for matrix in surveyed.matrices if matrix.part == "W"]
    rows = X.reshape(-1, INPUT).astype(np.float64)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True), atol=1e-3 * rows.var())


def test_what_only_other_outputs_need_is_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = layer_with_head(tmp_path / "m.onnx", dead=((),))
    np.savez(tmp_path / "s.npz", X=np.random.default_rng(0).standard_normal((CALLS, STEPS, BATCH, INPUT)).astype("f"))
    model, interface = load_model(path)
    surveyed = survey(normalise(model).model, (), columns=True)
    calibration = read_calibration(str(tmp_path / "s.npz"), interface, ())
    computed: list[str] = []

    def spy(file: Path, **options: Any) -> Any:
        graph = onnx.load(file).graph
        computed.extend([*(node.op_type for node in graph.node), *(tensor.name for tensor in graph.initializer)])
        return open_session(file, **options)

    monkeypatch.setattr("toolchain.oneshot.moments.open_session", spy)
    recurrent = [matrix for matrix in surveyed.matrices if matrix.part == "R"]
    before = ir.to_proto(surveyed.model).SerializeToString(deterministic=True)
    (found,) = watch(surveyed.model, recurrent, calibration).values()
    assert "LSTM" in computed
    assert not {"MatMul", "head"} & set(computed)
    assert ir.to_proto(surveyed.model).SerializeToString(deterministic=True) == before
    assert found.count == CALLS * STEPS * BATCH
