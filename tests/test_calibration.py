"""Calibration samples: what is read, and one clear line for everything that does not fit the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import layer_with_head, recurrent_weights, run, save, value
from onnx import helper

from toolchain.errors import CalibrationError
from toolchain.interface import read_interface
from toolchain.oneshot.calibration import Calibration, limited, read_calibration, run_calls, split
from toolchain.runtime import open_session


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return layer_with_head(tmp_path / "m.onnx", dead=())


def samples(folder: Path, **arrays: np.ndarray) -> str:
    path = folder / "samples.npz"
    np.savez(path, **arrays)
    return str(path)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_each_sample_of_the_leading_axis_is_one_call(model: Path, tmp_path: Path) -> None:
    array = normal(7, 4, 2, 5)
    calibration = read_calibration(samples(tmp_path, X=array), read_interface(model), ())
    (stream,) = calibration.streams
    assert len(stream) == 7
    np.testing.assert_array_equal(stream[3]["X"], array[3])


def test_the_files_of_a_folder_are_streams_of_their_own(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "streams"
    folder.mkdir()
    for name, count in (("a", 2), ("b", 3)):
        np.savez(folder / f"{name}.npz", X=normal(count, 4, 2, 5))
    calibration = read_calibration(str(folder), read_interface(model), ())
    assert [len(stream) for stream in calibration.streams] == [2, 3]


def test_a_generator_yields_calls(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "calls.py"
    file.write_text("import numpy\ndef calls():\n    for _ in range(3):\n        yield {'X': numpy.ones((4, 2, 5))}\n")
    calibration = read_calibration(f"{file}:calls", read_interface(model), ())
    assert calibration.num_calls == 3
    assert calibration.streams[0][0]["X"].dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"Q": normal(2, 4, 2, 5)}, "names 'Q', which is no input of the model; expected X. Rename it."),
        ({"X": normal(2, 4, 2, 6)}, "sample 0 of 'X' has shape (4, 2, 6); expected [T, B, 5]."),
        ({"X": normal(2, 4, 5, 2, 1)}, "sample 0 of 'X' has shape (4, 5, 2, 1); expected [T, B, 5]."),
        ({"X": np.full((2, 4, 2, 5), np.nan, np.float32)}, "sample 0 of 'X' holds NaN or infinity; expected finite"),
        ({"X": np.full((2, 4, 2, 5), 1j)}, "sample 0 of 'X' is complex128; expected float32."),
        ({"X": normal(0, 4, 2, 5)}, "hold different numbers of samples, or none (X 0)"),
        ({}, "hold different numbers of samples, or none (no array)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(
    model: Path, tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    source = samples(tmp_path, **arrays)
    with pytest.raises(CalibrationError) as raised:
        read_calibration(source, read_interface(model), ())
    assert str(raised.value).startswith(source)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def calls():\n    raise OSError('no microphone')\n", "OSError: no microphone; expected a function that"),
        ("def calls():\n    yield [1]\n", "TypeError: yielded a list, not a dict of arrays; expected"),
        ("def other():\n    pass\n", "KeyError: 'calls'; expected a function that yields {input name: array}."),
        ("def calls():\n    yield {}\n", "has nothing for input 'X'; expected an array for each input"),
        ("def calls():\n    return iter(())\n", "holds no sample; expected at least one."),
    ],
)
def test_a_generator_that_fails_is_one_line(model: Path, tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "calls.py"
    file.write_text(content)
    with pytest.raises(CalibrationError) as raised:
        read_calibration(f"{file}:calls", read_interface(model), ())
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_no_calibration_is_refused(model: Path, tmp_path: Path) -> None:
    for source, message in (
        (tmp_path / "missing.npz", "no such file; expected an .npz of samples"),
        (tmp_path / "empty", "holds no .npz file; expected one per stream"),
        (tmp_path / "text.csv", "is no calibration; expected an .npz file, a folder of them, or path.py:function."),
        (tmp_path / "broken.npz", "cannot be read as .npz"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not a zip")
        with pytest.raises(CalibrationError, match=r"\.$") as raised:
            read_calibration(str(source), read_interface(model), ())
        assert message in str(raised.value)


def numbered(lengths: list[int], carried: tuple[tuple[str, str], ...] = ()) -> Calibration:
    """Return streams so long, of calls that are numbered throughout."""
    numbers = iter(range(sum(lengths)))
    streams = tuple(tuple({"X": np.array([next(numbers)])} for _ in range(length)) for length in lengths)
    return Calibration(source="samples", streams=streams, carried=carried)


def counting(calibration: Calibration) -> list[int]:
    """Return the numbers of the calls that count."""
    pairs = [
        pair for both in zip(calibration.streams, calibration.marks, strict=True) for pair in zip(*both, strict=True)
    ]
    return [int(call["X"][0]) for call, counts in pairs if counts]


@pytest.mark.parametrize("carried", [(), (("h", "h_out"),)])
@pytest.mark.parametrize("lengths", [[30], [7, 1, 22], [1] * 30])
def test_every_fifth_call_is_held_out_all_over_the_recording(
    lengths: list[int], carried: tuple[tuple[str, str], ...]
) -> None:
    fit, held_out = split(numbered(lengths, carried))
    assert counting(held_out) == [4, 9, 14, 19, 24, 29]
    assert counting(fit) == [number for number in range(30) if number % 5 != 4]


def test_of_a_long_recording_ten_stretches_are_held_out() -> None:
    fit, held_out = split(numbered([500]))
    assert counting(held_out) == [50 * part + 40 + number for part in range(10) for number in range(10)]
    assert fit.num_calls + held_out.num_calls == 500
    assert counting(split(numbered([2]))[1]) == [1]
    one = numbered([1])
    assert split(one) == (one, one)


def test_state_flows_through_the_calls_that_do_not_count(tmp_path: Path) -> None:
    weights = recurrent_weights("RNN", input_size=5, hidden_size=4)
    node = helper.make_node("RNN", ["X", "W", "R", "B", "", "h"], ["Y", "h_out"], hidden_size=4)
    path = save(tmp_path / "s.onnx", [node], [value("X", ["T", "B", 5]), value("h", [1, "B", 4])],
                [value("Y", ["T", 1, "B", 4]), value("h_out", [1, "B", 4])], weights)  # fmt: skip
    X, zero = normal(20, 3, 1, 5), np.zeros((1, 1, 4), np.float32)
    stream = tuple({"X": x, "h": zero} for x in X)
    whole = Calibration(source="samples", streams=(stream,), carried=(("h", "h_out"),))
    session = open_session(path, threads=1)
    expected = run(path, {"X": X.reshape(60, 1, 5), "h": zero})["Y"].reshape(20, 3, 1, 1, 4)
    for part, numbers in zip(split(whole), ([n for n in range(20) if n % 5 != 4], [4, 9, 14, 19]), strict=True):
        found = [call["Y"] for call in run_calls(session, part, ["Y"])]
        np.testing.assert_allclose(found, expected[numbers], atol=1e-6)


def test_a_few_calls_are_taken_from_the_whole_of_one_stream() -> None:
    assert counting(limited(numbered([40]), 5)) == [0, 10, 20, 29, 39]
    fit, _ = split(numbered([100], (("h", "h_out"),)))
    some = limited(fit, 20)
    assert [[int(call["X"][0]) for call in stream] for stream in some.streams] == [
        [10 * part, 10 * part + 1] for part in range(10)
    ]
    assert limited(fit, 80) is fit


def test_of_many_short_streams_a_few_are_taken_from_first_to_last() -> None:
    calls = [{"X": np.array([number])} for number in range(40)]
    calibration = Calibration(source="samples", streams=tuple((call,) for call in calls), carried=())
    assert [int(call["X"][0]) for (call,) in limited(calibration, 5).streams] == [0, 10, 20, 29, 39]
    assert limited(calibration, 40) is calibration
