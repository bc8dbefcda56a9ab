"""Cutting calibration samples into windows, and asking a model for its answers to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import layer_with_head, recurrent_weights, save, value
from onnx import helper

from toolchain.interface import read_interface
from toolchain.oneshot.calibration import Calibration, run_calls, split
from toolchain.oneshot.windows import WINDOW_STEPS, Answers, batch_axes, cut_windows, with_own_state
from toolchain.runtime import open_session

CARRIED = (("h", "h_out"),)


def streaming(path: Path, batch: int | str = "B", hidden_size: int = 4) -> Path:
    """Write `X [T, batch, 5], h -> Y, h_out`."""
    node = helper.make_node("RNN", ["X", "W", "R", "B", "", "h"], ["Y", "h_out"], hidden_size=hidden_size)
    state = [1, batch, hidden_size]
    return save(path, [node], [value("X", ["T", batch, 5]), value("h", state)],
                [value("Y", ["T", 1, batch, hidden_size]), value("h_out", state)],
                recurrent_weights("RNN", input_size=5, hidden_size=hidden_size))  # fmt: skip


def stream(lengths: list[int], *, hidden_size: int | None = None) -> Calibration:
    """Return two equal streams of calls so long, with zero states where asked."""
    rng = np.random.default_rng(0)
    state = {} if hidden_size is None else {"h": np.zeros((1, 1, hidden_size), np.float32)}
    calls = tuple({"X": rng.standard_normal((length, 1, 5)).astype(np.float32), **state} for length in lengths)
    return Calibration(source="s", streams=(calls, calls), carried=() if hidden_size is None else CARRIED)


def test_calls_with_carried_state_fill_a_window(tmp_path: Path) -> None:
    windows = cut_windows(stream([30] * 7, hidden_size=4), read_interface(streaming(tmp_path / "m.onnx")))
    assert [len(window.calls) for window in windows] == [4, 3, 4, 3]
    assert [window.follows for window in windows] == [None, 0, None, 2]
    assert [window.steps for window in windows] == [120, 90, 120, 90]


def test_calls_without_state_are_windows_of_their_own(tmp_path: Path) -> None:
    windows = cut_windows(stream([30, 300]), read_interface(layer_with_head(tmp_path / "m.onnx")))
    assert [len(window.calls) for window in windows] == [1] * 4
    assert {window.follows for window in windows} == {None}
    assert [window.steps for window in windows] == [30, 300] * 2


def test_held_out_calls_are_windows_that_do_not_count(tmp_path: Path) -> None:
    path = streaming(tmp_path / "m.onnx")
    whole = stream([60] * 10, hidden_size=4)
    fit, _ = split(whole)  # calls 4, 9, 14 and 19 are held out; the last one of a stream is not even run
    windows = cut_windows(fit, read_interface(path))
    assert [window.counts for window in windows] == [True, True, False, True, True] * 2
    assert [len(window.calls) for window in windows] == [2, 2, 1, 2, 2] * 2
    assert [window.follows for window in windows] == [None, 0, 1, 2, 3, None, 5, 6, 7, 8]
    session = open_session(path, threads=1)
    answers = Answers(session, windows, ["Y"], CARRIED)
    expected = [call["Y"] for call in run_calls(session, whole, ["Y"])]
    actual = [call["Y"] for index, window in enumerate(windows) if window.counts for call in answers.of(index)]
    counted = [number for number in range(20) if number % 5 != 4]
    for one, number in zip(actual, counted, strict=True):
        np.testing.assert_allclose(one, expected[number], atol=1e-6)


def test_weights_are_chosen_by_windows_from_all_over_the_samples(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from toolchain.oneshot.gradient_steps import divided

    fit, _ = split(stream([100] * 25, hidden_size=4))
    windows = cut_windows(fit, read_interface(streaming(tmp_path / "m.onnx")))
    seen, unseen = divided(windows)
    assert sorted([*seen, *unseen]) == [index for index, window in enumerate(windows) if window.counts]
    assert len(unseen) == 4
    assert max(np.diff([0, *unseen, len(windows)])) < len(windows) // 2


def test_a_long_call_is_cut_in_time_and_nothing_is_lost(tmp_path: Path) -> None:
    calibration = stream([1050])
    windows = cut_windows(calibration, read_interface(layer_with_head(tmp_path / "m.onnx")))
    assert [window.steps for window in windows] == ([WINDOW_STEPS] * 9 + [150]) * 2
    pieces = np.concatenate([window.calls[0]["X"] for window in windows[:10]])
    np.testing.assert_array_equal(pieces, calibration.streams[0][0]["X"])


def test_a_long_call_stays_whole_where_the_file_fixes_its_length(tmp_path: Path) -> None:
    node = helper.make_node("RNN", ["X", "W", "R", "B"], ["Y"], hidden_size=4)
    path = save(tmp_path / "m.onnx", [node], [value("X", [1050, "B", 5])], [value("Y", None)],
                recurrent_weights("RNN", input_size=5, hidden_size=4))  # fmt: skip
    assert [window.steps for window in cut_windows(stream([1050]), read_interface(path))] == [1050, 1050]


def test_answers_are_those_of_one_long_run_with_and_without_memory(tmp_path: Path) -> None:
    path, calibration = streaming(tmp_path / "m.onnx"), stream([30] * 7, hidden_size=4)
    session = open_session(path, threads=1)
    windows = cut_windows(calibration, read_interface(path))
    expected = [call["Y"] for call in run_calls(session, calibration, ["Y"])]
    for kept_bytes in (0, 3000, 1 << 30):
        answers = Answers(session, windows, ["Y"], CARRIED, kept_bytes=kept_bytes)
        actual = [call["Y"] for index in range(len(windows)) for call in answers.of(index)]
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_windows_go_side_by_side_where_the_model_treats_sequences_alike(tmp_path: Path) -> None:
    path = streaming(tmp_path / "free.onnx")
    interface, window = read_interface(path), cut_windows(stream([30], hidden_size=4), read_interface(path))[0]
    axes = batch_axes(open_session(path, threads=1), window, interface, ["Y"], CARRIED)
    assert axes == {"X": 1, "h": 1, "Y": 2, "h_out": 1}


def test_windows_stay_apart_where_the_batch_is_fixed(tmp_path: Path) -> None:
    path = streaming(tmp_path / "fixed.onnx", batch=1)
    interface, window = read_interface(path), cut_windows(stream([30], hidden_size=4), read_interface(path))[0]
    assert batch_axes(open_session(path, threads=1), window, interface, ["Y"], CARRIED) is None


def test_windows_stay_apart_where_sequences_of_a_batch_depend_on_each_other(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("RNN", ["X", "W", "R", "B"], ["Y"], hidden_size=4),
        helper.make_node("Softmax", ["Y"], ["Z"], axis=2),
    ]
    path = save(tmp_path / "m.onnx", nodes, [value("X", ["T", "B", 5])], [value("Z", ["T", 1, "B", 4])],
                recurrent_weights("RNN", input_size=5, hidden_size=4))  # fmt: skip
    window = cut_windows(stream([30]), read_interface(path))[0]
    assert batch_axes(open_session(path, threads=1), window, read_interface(path), ["Z"], ()) is None


def test_carried_state_takes_the_shape_of_the_smaller_model(tmp_path: Path) -> None:
    small = ir.load(streaming(tmp_path / "small.onnx", hidden_size=3))
    calibration = stream([30], hidden_size=4)
    narrowed = with_own_state(calibration, small)
    assert narrowed.streams[0][0]["h"].shape == (1, 1, 3)
    np.testing.assert_array_equal(narrowed.streams[0][0]["X"], calibration.streams[0][0]["X"])
    assert calibration.streams[0][0]["h"].shape == (1, 1, 4)
