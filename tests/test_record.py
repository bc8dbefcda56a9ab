"""A run's row says what the run wrote, and nothing for a run that did not finish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from toolchain.bench.record import main, record_row

from toolchain.errors import BenchError

RECIPE = """# a book: 10 + 5 + 5 tokens
# rnn-toolchain 0.1.0, torch 2.13.0

[model]
hidden_sizes = [8, 6]
dropout = 0.1
[optim]
epochs = 2
[gates]
keep = 0.5
[run]
method = "neuron-selection"
seed = 3
precision = "float32"
"""


def finished_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "metrics.csv").write_text("epoch,seconds\n1,10.0\n2,5.5\n")
    result = {"perplexity": 70.12345, "onnx_perplexity": 70.1235, "test_tokens": 5, "share": 0.49, "speed_ratio": 1.5}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_a_finished_run_becomes_a_row(tmp_path: Path) -> None:
    row = record_row(finished_run(tmp_path / "book"))
    assert row["run"] == "book"
    assert row["corpus"] == "a book: 10 + 5 + 5 tokens"
    assert (row["hidden_sizes"], row["epochs"], row["keep"], row["seed"]) == ("8x6", 2, 0.5, 3)
    assert (row["test_perplexity"], row["onnx_test_perplexity"], row["training_s"]) == (70.1235, 70.1235, 15.5)


def reading_run(folder: Path) -> Path:
    finished_run(folder)
    result = {"exact_match": 8.3, "f1": 15.05, "onnx_exact_match": 8.3, "onnx_f1": 15.05}
    result |= {"test_questions": 1145, "share": 1.0, "speed_ratio": 1.2}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_a_reader_has_its_own_columns(tmp_path: Path) -> None:
    row = record_row(reading_run(tmp_path / "squad"))
    assert (row["test_questions"], row["test_f1"], row["onnx_test_exact_match"]) == (1145, 15.05, 8.3)
    assert "test_perplexity" not in row


def test_runs_of_two_tasks_are_no_table(tmp_path: Path) -> None:
    folders = [str(finished_run(tmp_path / "book")), str(reading_run(tmp_path / "squad"))]
    result = CliRunner().invoke(main, folders)
    assert isinstance(result.exception, BenchError)
    assert "squad: has other test figures than" in str(result.exception)
    assert CliRunner().invoke(main, folders[1:]).output.splitlines()[0].split(",")[9:12] == [
        *("test_questions", "test_exact_match", "test_f1"),
    ]


def test_a_run_that_did_not_finish_is_refused(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "book")
    (folder / "result.json").unlink()
    with pytest.raises(BenchError, match=r"book: holds no finished run \(No such file or directory: result.json\)"):
        record_row(folder)
