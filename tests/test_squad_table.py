"""Readers side by side: every column is measured from the files, on real paragraphs."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import tiny_squad
from click.testing import CliRunner
from toolchain.bench import samples, squad_table, verify_results
from toolchain.bench.result_file import record_rows
from toolchain.bench.squad_table import FIELDS, KEY, QUANTILES, f1_change, write_questions
from toolchain.models.squad import load_squad
from toolchain.models.squad_evaluation import onnx_scores

import toolchain
from toolchain.cli import cli
from toolchain.errors import BenchError

pytestmark = pytest.mark.usefixtures("_inside")
DENSE = str(Path("runs/dense/model.onnx"))
METHODS = {"dense": [], "gated": ["--keep", "0.5"], "lasso": ["--set", "iss.weight=20.0"]}
NAMES = {"dense": "dense", "gated": "neuron-selection", "lasso": "iss"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of each method."""
    folder = tmp_path_factory.mktemp("readers")
    tiny_squad.write(folder / "squad", dev=16)
    (folder / "tiny.toml").write_text(tiny_squad.RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, options in METHODS.items():
            command = ["train", "tiny.toml", "--data", "squad", "--name", name, "--method", NAMES[name], *options]
            done = CliRunner().invoke(cli, command, catch_exceptions=False)
            assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "results").mkdir(exist_ok=True)


def record(*arguments: str) -> list[dict[str, str]]:
    command = ["--data", "squad", "-o", "results/squad.csv", *arguments]
    done = CliRunner().invoke(squad_table.main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    with open("results/squad.csv") as file:
        return list(csv.DictReader(file))


def test_a_row_holds_every_column_and_the_scores_are_those_of_the_file() -> None:
    rows = record("runs/dense", "runs/gated", "runs/lasso", "--seconds", "0.1", "--processes", "2", "--int8",
                  *(f"--keep={name}{suffix}" for name in METHODS for suffix in ("", ".int8")))  # fmt: skip
    found = {(row["run"], row["weights"]): row for row in rows}
    assert {run for run, _ in found} == set(METHODS)
    for row in rows:
        assert tuple(row) == FIELDS
        own = ("f1_change_low", "f1_change_high") if (row["run"], row["weights"]) == ("dense", "fp32") else ()
        assert not [name for name in FIELDS if not row[name] and name not in ("keep", *own)]
        assert all(row[name] == "" for name in own)
    dense, gated = found["dense", "fp32"], found["gated", "fp32"]
    assert [found[run, "fp32"]["method"] for run in METHODS] == [*NAMES.values()]
    assert (dense["median_speedup"], dense["long_speedup"]) == ("1", "1")
    # encoder 2 x (18 -> 8), once for the paragraph and once for the question; modeling 64 -> 7 -> 6; output 12 -> 5
    assert int(dense["recurrent_multiply_adds"]) == 8 * (2 * 8 * (18 + 8) + 7 * (64 + 7) + 6 * (14 + 6) + 5 * (12 + 5))
    assert int(gated["recurrent_multiply_adds"]) < 0.8 * int(dense["recurrent_multiply_adds"])
    kept = toolchain.shrink("runs/gated/model.onnx", "kept.onnx").output
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == gated["sha256"]
    corpus = load_squad(folder=Path("squad"))
    scores = onnx_scores(kept, corpus, corpus.test)
    assert (float(gated["exact_match"]), float(gated["f1"])) == pytest.approx((scores.exact_match, scores.f1), rel=1e-4)
    assert int(dense["test_questions"]) == len(corpus.test)


def test_a_reader_that_was_pruned_without_training_joins_by_its_file() -> None:
    done = CliRunner().invoke(samples.main, ["runs/dense", "--data", "squad", "-o", "samples", "--calls=6"])
    assert done.exit_code == 0, done.output
    assert done.output == f"next: toolchain shrink {DENSE} --ratio 0.5 --calibration samples\n"
    corpus = load_squad(folder=Path("squad"))
    asked = {tuple(map(int, corpus.feeds([question])["question"][:, 0])) for question in corpus.train}
    files = sorted(Path("samples").iterdir())
    assert len(files) == 6
    for file in files:  # leading axis = calls, then the shapes of the model's inputs
        with np.load(file) as arrays:
            assert tuple(arrays["question"][0, :, 0].tolist()) in asked
    command = ["shrink", DENSE, "--ratio", "0.4", "--calibration", "samples", "-o", "less.onnx"]
    assert CliRunner().invoke(cli, command, catch_exceptions=False).exit_code == 0
    dense, less = record("runs/dense", "one-shot=less.onnx", "--untimed", "--no-int8")[-2:]
    assert (less["run"], less["method"], less["seed"]) == ("less", "one-shot", "")
    assert dense["corpus"].startswith(less["corpus"])
    assert int(less["recurrent_multiply_adds"]) < int(dense["recurrent_multiply_adds"])
    scores = onnx_scores(Path("less.onnx"), corpus, corpus.test)
    assert float(less["f1"]) == pytest.approx(scores.f1, rel=1e-4)


@pytest.mark.parametrize(
    ("members", "message"),
    [(["one-shot=runs/dense/model.onnx"], r"^model: is no folder of a run; expected that of the dense reader first"),
     (["runs/dense", "iss=runs/dense"], r"^dense: is the name of two members; expected different ones\."),
     (["runs/dense", "paper=15,15,15@78.4"], r"^paper: is a published language model; expected readers\.")],
)  # fmt: skip
def test_members_that_cannot_be_compared_are_refused(members: list[str], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        record(*members, "--untimed")


def test_a_kept_reader_answers_the_questions_again_and_a_better_record_fails() -> None:
    Path("results/squad.csv").unlink(missing_ok=True)
    (row,) = (row for row in record("runs/gated", "--untimed", "--keep", "gated.int8") if row["model"])
    assert row["weights"] == "int8"
    command = ["--results", "results", "--data", "squad"]
    done = CliRunner().invoke(verify_results.main, command)
    assert done.exit_code == 0, done.output
    assert f"ok: models/squad/gated.int8.onnx: sha256 {row['sha256'][:12]}" in done.output
    assert f"; f1 {float(row['f1']):.5g}, on record {row['f1']}" in done.output
    assert "not checked: models/squad/gated.int8.onnx: speedup: no fixed shapes" in done.output
    record_rows(Path("results/squad.csv"), FIELDS, KEY, [row | {"f1": str(float(row["f1"]) + 20)}])
    failed = CliRunner().invoke(verify_results.main, command)
    assert isinstance(failed.exception, BenchError)
    assert "not checked: models/squad/gated.int8.onnx: squad: SQuAD was not named" in CliRunner().invoke(
        verify_results.main, command[:2]
    ).output  # fmt: skip


def test_a_file_to_keep_that_no_member_makes_is_refused() -> None:
    with pytest.raises(
        BenchError, match=r"^--keep dance: is no file of this table; expected one of dense, dense\.int8\."
    ):
        record("runs/dense", "--keep", "dance")


def test_readers_are_timed_on_paragraphs_of_median_length_and_on_long_ones(tmp_path: Path) -> None:
    corpus = load_squad(folder=Path("squad"))
    lengths = sorted(len(question.paragraph.forms) for question in corpus.test)
    for name, (path, words) in write_questions(corpus, tmp_path).items():
        assert words == lengths[round(QUANTILES[name] * (len(lengths) - 1))]
        assert np.load(path)["paragraph"].shape == (words, 1)


def test_the_change_of_f1_has_an_interval_over_paragraphs_not_over_questions() -> None:
    rng = np.random.default_rng(0)
    paragraphs = np.repeat(np.arange(400), 5)
    before = rng.random(2000)
    shift = np.repeat(rng.normal(0.02, 0.1, 400), 5)  # questions of a paragraph change alike
    low, high = f1_change(before, before + shift, paragraphs.tolist())
    assert low < 100 * shift.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 100 * shift.std() / 400**0.5, rel=0.06)
    narrow = f1_change(before, before + shift, list(range(2000)))
    assert narrow[1] - narrow[0] == pytest.approx((high - low) / 5**0.5, rel=0.06)
    assert f1_change(before, before, paragraphs.tolist()) == (0.0, 0.0)


def test_scores_alone_leave_the_times_empty() -> None:
    Path("results/squad.csv").unlink(missing_ok=True)
    (row,) = record("runs/dense", "--untimed", "--no-int8")
    assert row["median_p50_ms"] == ""
    assert float(row["f1"]) > 0


def test_a_run_that_did_not_finish_is_refused() -> None:
    Path("unfinished").mkdir(exist_ok=True)
    Path("unfinished/recipe.toml").write_text(Path("runs/dense/recipe.toml").read_text())
    with pytest.raises(BenchError, match=r"unfinished: holds no finished run .*Finish it with `toolchain train --resu"):
        record("unfinished", "--untimed")


def test_a_file_with_other_columns_is_refused_before_anything_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("results/squad.csv").write_text("run,weights\ndense,fp32\n")
    monkeypatch.setattr("toolchain.models.squad_evaluation.onnx_scores", None)
    with pytest.raises(BenchError, match=r"has other columns .*Move it away"):
        record("runs/dense", "--untimed")
    Path("results/squad.csv").unlink()
