"""Utterances are read as they are written, fetched once and checked; a file is scored alike whole and in a stream."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from toolchain.bench import vowels as bench_vowels
from toolchain.models import package_files, vowels
from toolchain.models.speaker import SpeakerNet, learn
from toolchain.models.vowels import Utterances, load_vowels, pad, read_utterances

from toolchain.errors import DatasetError
from toolchain.exporting import export
from toolchain.gates import gate, kept_neurons

LINE = ":".join(f"{channel}.5,{channel}.25" for channel in range(12)) + ":3"


def spoken(count: int = 36, seed: int = 0) -> Utterances:
    """Utterances of nine speakers, each with a channel of its own that is loud."""
    random = np.random.default_rng(seed)
    speakers = np.arange(count) % 9
    frames = [random.normal(0, 0.1, (random.integers(5, 9), 12)).astype(np.float32) for _ in speakers]
    for each, speaker in zip(frames, speakers, strict=True):
        each[:, speaker] += 1
    return Utterances(frames=tuple(frames), speakers=speakers.astype(np.int64))


def test_an_utterance_is_a_line_of_channels_with_its_speaker_last() -> None:
    found = read_utterances(f"#about\n@data\n{LINE}\n")
    np.testing.assert_array_equal(found.frames[0], [np.arange(12) + 0.5, np.arange(12) + 0.25])
    assert found.speakers.tolist() == [2]
    with pytest.raises(DatasetError, match=r"utterance 1: 12 channels of \[1, 2\] frames; expected 12 of equal length"):
        read_utterances(LINE.replace("0.5,0.25", "0.5"))
    with pytest.raises(DatasetError, match=r"utterance 1: 2 channels of \[1\] frames; expected 12"):
        read_utterances("1.0:2.0:1")


def test_shorter_utterances_are_filled_up_and_told_apart() -> None:
    padded, real = pad([np.full((2, 3), 5, np.float32), np.full((4, 3), 6, np.float32)])
    assert padded.shape == (4, 2, 3)
    assert real[..., 0].T.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert padded.sum() == 2 * 3 * 5 + 4 * 3 * 6


class Index:
    """Stands for pip: writes a wheel with one file, and counts how often it was asked."""

    def __init__(self, content: bytes, path: str = "aeon/a.ts", code: int = 0) -> None:
        self.content, self.path, self.code, self.asked = content, path, code, 0

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.asked += 1
        if self.code == 0:
            place = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(place / "aeon-1.6.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr(self.path, self.content)
        return subprocess.CompletedProcess(command, self.code, "", "pip is busy\nERROR: no such package\n")


def test_files_are_taken_out_of_a_package_and_kept_only_if_they_are_what_they_should_be(tmp_path, monkeypatch) -> None:
    right = hashlib.sha256(b"vowels").hexdigest()
    wanted = {"aeon/a.ts": (right, tmp_path / "kept" / "a.ts")}
    refusals = {
        r"aeon==1: pip cannot download it \(ERROR: no such package\); expected": Index(b"vowels", code=1),
        r"aeon-1.6.0-py3-none-any.whl: holds no aeon/a.ts; expected that file": Index(b"vowels", path="other"),
        rf"aeon==1: aeon/a.ts has sha256 [0-9a-f]+; expected {right}": Index(b"voices"),
    }
    for message, index in refusals.items():
        monkeypatch.setattr(package_files.subprocess, "run", index.run)
        with pytest.raises(DatasetError, match=message):
            package_files.fetch_files("aeon==1", wanted)
        assert not (tmp_path / "kept" / "a.ts").exists()
    monkeypatch.setattr(package_files.subprocess, "run", Index(b"vowels").run)
    package_files.fetch_files("aeon==1", wanted)
    assert (tmp_path / "kept" / "a.ts").read_bytes() == b"vowels"


def test_the_data_are_fetched_once_and_checked_again_when_they_are_read(tmp_path, monkeypatch) -> None:
    text = f"@data\n{LINE}\n".encode()
    digest = hashlib.sha256(text).hexdigest()
    index = Index(text, path="aeon/datasets/data/JapaneseVowels/both.ts")
    monkeypatch.setattr(package_files.subprocess, "run", index.run)
    monkeypatch.setenv("RNN_TOOLCHAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(vowels, "_FILES", {"train": ("both.ts", digest), "test": ("both.ts", digest)})
    assert len(load_vowels()[0].frames) == len(load_vowels()[1].frames) == 1
    assert index.asked == 1
    (tmp_path / "vowels" / "both.ts").write_text("@data\n")
    with pytest.raises(DatasetError, match=rf"both.ts: has sha256 [0-9a-f]+; expected {digest}. Delete it"):
        load_vowels()
    with pytest.raises(DatasetError, match=r"gone/both.ts: cannot be read \(No such file"):
        load_vowels(tmp_path / "gone")


def test_the_loop_learns_and_the_price_closes_gates() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dense, gated = SpeakerNet(torch.nn.GRU, 16, spoken()), gate(SpeakerNet(torch.nn.GRU, 16, spoken()))
    learn(dense, spoken(180), epochs=20)
    learn(gated, spoken(180), epochs=20, price=20.0)
    test = spoken(seed=1)
    frames, real = map(torch.from_numpy, pad(test.frames))
    found = (dense.eval()(frames)[0] * real).sum(0).argmax(1)
    assert float((found.numpy() == test.speakers).mean()) > 0.9
    assert sum(len(units) for units in kept_neurons(gated)[0].hidden) < 32


def test_accuracy_in_a_stream_is_that_of_whole_utterances_and_follows_the_labels(tmp_path) -> None:
    torch.manual_seed(0)
    model, path = SpeakerNet(torch.nn.LSTM, 8, spoken()).eval(), tmp_path / "m.onnx"
    test = spoken()
    export(model, path, example=torch.from_numpy(pad(test.frames[:2])[0]))
    with torch.no_grad():
        said = [int(model(torch.from_numpy(each)[:, None])[0].sum((0, 1)).argmax()) for each in test.frames]
    expected = float((np.array(said) == test.speakers).mean())
    assert bench_vowels.accuracy(path, test) == bench_vowels.accuracy(path, test, streaming=True) == expected
    agreed = Utterances(frames=test.frames, speakers=np.array(said))
    assert bench_vowels.accuracy(path, agreed, streaming=True) == 1.0


def test_what_is_recorded_is_trained_once_and_kept_for_verification(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(bench_vowels, "load_vowels", lambda: (spoken(), spoken(seed=1)))
    options = ["--cells", "gru", "--seeds", "0,1", "--epochs", "2", "--price", "3", "--hidden", "8", "--untimed"]
    places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path)]
    done = CliRunner().invoke(bench_vowels.main, [*options, *places], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "vowels.csv").open()))
    assert [(row["method"], row["seed"]) for row in rows] == [
        (method, seed) for seed in "01" for method in ("dense", "neuron-selection", "direct")
    ]
    kept = [row for row in rows if row["seed"] == "0"]
    for row in kept:
        assert hashlib.sha256((tmp_path / row["model"]).read_bytes()).hexdigest() == row["sha256"]
        assert row["test_accuracy"] == row["streaming_accuracy"]
        assert row["t1b1_p50_ms"] == ""
    assert not any(row["model"] for row in rows if row["seed"] == "1")
    dense, pruned, direct = (int(row["multiply_adds"]) for row in kept)
    assert direct <= pruned <= dense
    record = tmp_path / "runs" / "gru-dense-0" / "trained.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "training_s": 0.125}))
    CliRunner().invoke(bench_vowels.main, [*options, *places], catch_exceptions=False)
    assert next(csv.DictReader((tmp_path / "vowels.csv").open()))["training_s"] == "0.125"
