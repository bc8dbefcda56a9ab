"""Scores of classes count as often as their class is predicted; plain numbers count alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import recurrent_weights, save, value
from onnx import helper
from toolchain.bench.random_lm import write_language_model

from toolchain.graph.carried import find_state
from toolchain.graph.loading import load_model
from toolchain.graph.normalise import normalise
from toolchain.oneshot.calibration import random_calibration
from toolchain.oneshot.predictions import class_predictions, weighed
from toolchain.oneshot.selection import Analysis, Method, analyse
from toolchain.oneshot.survey import survey

UNITS, CLASSES, INPUT = 4, 6, 5


def test_a_weighed_matrix_says_the_divergence_of_the_predictions() -> None:
    rng = np.random.default_rng(0)
    scores, W, x = rng.standard_normal(50), rng.standard_normal((3, 50)), 1e-3 * rng.standard_normal(3)
    p = np.exp(scores) / np.exp(scores).sum()
    moved = scores + x @ W
    q = np.exp(moved) / np.exp(moved).sum()
    divergence = float((p * np.log(p / q)).sum())
    assert np.square(x @ weighed(W, p)).mean() / 2 == pytest.approx(divergence, rel=1e-2)


def classifier(path: Path, *, softmax: bool) -> Path:
    """Write `X -> LSTM -> scores (-> Softmax) -> Z`; unit 0 is read most, but by a class that is next to impossible."""
    constants = recurrent_weights("LSTM", input_size=INPUT, hidden_size=UNITS, seed=0)
    constants["R"] = np.zeros_like(constants["R"])
    head = 0.1 * np.random.default_rng(1).standard_normal((UNITS, CLASSES)).astype(np.float32)
    head[0] = 0
    head[0, 5] = 3
    constants |= {"head": head, "bias": np.array([0, 0, 0, 0, 0, -30], np.float32)}
    scores = "scores" if softmax else "Z"
    nodes = [
        helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], name="lstm", hidden_size=UNITS),
        helper.make_node("Squeeze", ["Y", "one"], ["y"]),
        helper.make_node("MatMul", ["y", "head"], ["said"], name="head"),
        helper.make_node("Add", ["said", "bias"], [scores]),
    ]
    nodes += [helper.make_node("Softmax", ["scores"], ["Z"])] if softmax else []
    constants["one"] = np.array([1])
    return save(path, nodes, [value("X", ["T", "B", INPUT])], [value("Z", ["T", "B", CLASSES])], constants)


def analysed(path: Path) -> Analysis:
    model, interface = load_model(path)
    return analyse(normalise(model).model, interface, random_calibration(interface, (), seed=0), Method())


@pytest.mark.parametrize("softmax", [True, False])
def test_a_unit_that_only_an_impossible_class_reads_goes_first(tmp_path: Path, softmax: bool) -> None:
    first = analysed(classifier(tmp_path / "m.onnx", softmax=softmax)).groups[0].elimination.order[0]
    assert (first == 0) == softmax


def test_the_matrix_that_says_the_words_of_a_language_model_is_found(tmp_path: Path) -> None:
    path = tmp_path / "lm.onnx"
    write_language_model(path, vocabulary=40, embedding=8, hidden=(12, 10))
    model = normalise(load_model(path)[0]).model
    surveyed = survey(model, find_state(model.graph), columns=True)
    scores = next(str(output.name) for output in model.graph.outputs if output.shape[-1] == 40)
    average = np.random.default_rng(0).dirichlet(np.ones(40))
    found = class_predictions(surveyed, {scores: average})
    assert [matrix.weights().shape for matrix in found] == [(10, 40)]
    np.testing.assert_array_equal(next(iter(found.values())), average)
    assert not class_predictions(surveyed, {})
