"""A few calls cut into pieces: what is cut, that nothing is lost, and what stays whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import layer_with_head, recurrent_weights, save, value
from onnx import helper

from toolchain.interface import read_interface
from toolchain.oneshot.calibration import Calibration, run_calls, split
from toolchain.oneshot.pieces import LEAST_STEPS, MOST_PIECES, in_pieces
from toolchain.runtime import open_session

CARRIED = (("h", "h_out"),)


def one_call(length: int, batch: int, *, calls: int = 1, hidden_size: int | None = None) -> Calibration:
    """Return one stream of calls of random numbers, with zero states where asked."""
    rng = np.random.default_rng(0)
    state = {} if hidden_size is None else {"h": np.zeros((1, batch, hidden_size), np.float32)}
    stream = tuple({"X": rng.standard_normal((length, batch, 5)).astype(np.float32), **state} for _ in range(calls))
    return Calibration(source="s", streams=(stream,), carried=() if hidden_size is None else CARRIED)


def streaming(path: Path) -> Path:
    node = helper.make_node("RNN", ["X", "W", "R", "B", "", "h"], ["Y", "h_out"], hidden_size=4)
    return save(path, [node], [value("X", ["T", "B", 5]), value("h", [1, "B", 4])],
                [value("Y", ["T", 1, "B", 4]), value("h_out", [1, "B", 4])],
                recurrent_weights("RNN", input_size=5, hidden_size=4))  # fmt: skip


def test_the_sequences_of_one_call_become_streams_and_say_what_they_said(tmp_path: Path) -> None:
    path, calibration = streaming(tmp_path / "m.onnx"), one_call(30, 6, calls=2, hidden_size=4)
    cut = in_pieces(calibration, read_interface(path))
    assert [len(stream) for stream in cut.streams] == [2] * 6
    assert cut.in_pieces
    session = open_session(path, threads=1)
    whole, pieces = ([call["Y"] for call in run_calls(session, c, ["Y"])] for c in (calibration, cut))
    for number in range(2):
        joined = np.concatenate(pieces[number::2], axis=2)
        np.testing.assert_allclose(joined, whole[number], atol=1e-5)
    assert split(cut)[1].num_calls == 2


@pytest.mark.parametrize("length", [2 * LEAST_STEPS, 1003, 20_000])
def test_a_long_call_becomes_calls_that_state_flows_through(tmp_path: Path, length: int) -> None:
    path, calibration = streaming(tmp_path / "m.onnx"), one_call(length, 1, hidden_size=4)
    cut = in_pieces(calibration, read_interface(path))
    assert cut.num_calls == min(MOST_PIECES, length // LEAST_STEPS)
    assert len(cut.streams) == 1
    session = open_session(path, threads=1)
    (whole,), pieces = ([call["Y"] for call in run_calls(session, c, ["Y"])] for c in (calibration, cut))
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)


def test_two_long_sequences_are_cut_both_ways(tmp_path: Path) -> None:
    path, calibration = layer_with_head(tmp_path / "m.onnx"), one_call(100, 2)
    cut = in_pieces(calibration, read_interface(path))
    assert [len(stream) for stream in cut.streams] == [4, 4]
    joined = [np.concatenate([call["X"] for call in stream]) for stream in cut.streams]
    np.testing.assert_array_equal(np.concatenate(joined, axis=1), calibration.streams[0][0]["X"])


def test_enough_calls_stay_as_they_are(tmp_path: Path) -> None:
    calibration = one_call(1000, 4, calls=5)
    assert in_pieces(calibration, read_interface(layer_with_head(tmp_path / "m.onnx"))) is calibration


def test_what_cannot_be_cut_stays_whole(tmp_path: Path) -> None:
    weights = recurrent_weights("RNN", input_size=5, hidden_size=4)
    node = helper.make_node("RNN", ["X", "W", "R", "B"], ["Y"], hidden_size=4)
    fixed = save(tmp_path / "fixed.onnx", [node], [value("X", [1000, 1, 5])], [value("Y", None)], weights)
    short = layer_with_head(tmp_path / "short.onnx")
    lengths = helper.make_node("RNN", ["X", "W", "R", "B", "lengths"], ["Y"], hidden_size=4)
    stated = save(tmp_path / "stated.onnx", [lengths], [value("X", ["T", 1, 5]), value("lengths", [1], 6)],
                  [value("Y", None)], weights)  # fmt: skip
    for path, calibration in ((fixed, one_call(1000, 1)), (short, one_call(2 * LEAST_STEPS - 1, 1))):
        assert in_pieces(calibration, read_interface(path)) is calibration
    (call,) = one_call(1000, 1).streams[0]
    told = Calibration(source="s", streams=(({**call, "lengths": np.array([900], np.int32)},),), carried=())
    assert in_pieces(told, read_interface(stated)) is told


def test_sequences_that_depend_on_each_other_stay_together(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("RNN", ["X", "W", "R", "B"], ["Y"], hidden_size=4),
        helper.make_node("Softmax", ["Y"], ["Z"], axis=2),
    ]
    path = save(tmp_path / "m.onnx", nodes, [value("X", ["T", "B", 5])], [value("Z", ["T", 1, "B", 4])],
                recurrent_weights("RNN", input_size=5, hidden_size=4))  # fmt: skip
    calibration = one_call(20, 8)
    assert in_pieces(calibration, read_interface(path)) is calibration


def test_a_model_that_fails_on_pieces_keeps_its_call(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("RNN", ["X", "W", "R", "B"], ["Y"], hidden_size=4),
        helper.make_node("Reshape", ["Y", "shape"], ["Z"]),
    ]
    constants = {**recurrent_weights("RNN", input_size=5, hidden_size=4), "shape": np.array([-1, 800])}
    path = save(tmp_path / "m.onnx", nodes, [value("X", ["T", "B", 5])], [value("Z", [None, 800])], constants)
    calibration = one_call(200, 1)
    assert in_pieces(calibration, read_interface(path)) is calibration
