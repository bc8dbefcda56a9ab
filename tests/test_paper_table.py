"""Every column of every method is measured from the files; what cannot be compared is refused."""

from __future__ import annotations

import csv
import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from test_cli_train import SMALL
from toolchain.bench import paper_table, samples
from toolchain.bench.members import read_member
from toolchain.bench.paper_table import FIELDS, SHAPES, main
from toolchain.bench.recipe_changes import recipe_changes
from toolchain.models.text import load_corpus

from toolchain.cli import cli
from toolchain.errors import BenchError
from toolchain.evaluation import onnx_perplexity
from toolchain.training.recipe_files import load_recipe


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs of one recipe, and one on another text."""
    folder = tmp_path_factory.mktemp("paper")
    random = np.random.default_rng(0)
    words = [f"w{'abcdefghijkl'[i % 12 if random.random() < 0.9 else random.integers(12)]}" for i in range(2400)]
    (folder / "words.txt").write_text(" ".join(words))
    (folder / "other.txt").write_text(" ".join(word.replace("a", "z") for word in words))
    (folder / "small.toml").write_text(SMALL)
    here = Path.cwd()
    os.chdir(folder)
    try:
        for name, text, *method in (("dense", "words.txt", "--method", "dense"), ("gated", "words.txt"),
                                    ("elsewhere", "other.txt", "--method", "dense")):  # fmt: skip
            command = ["train", "small.toml", "--text", text, "--name", name, *method]
            done = CliRunner().invoke(cli, command, catch_exceptions=False)
            assert done.exit_code == 0, done.output
    finally:
        os.chdir(here)
    return folder


def record(*arguments: str) -> Result:
    return CliRunner().invoke(
        main, ["--recipe", "small", "-o", "results/small.csv", *arguments], catch_exceptions=False
    )


def rows() -> list[dict[str, str]]:
    with open("results/small.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def _inside(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    (runs / "results").mkdir(exist_ok=True)
    (runs / "results" / "small.csv").unlink(missing_ok=True)


def test_a_row_holds_every_column_and_the_quality_is_that_of_the_file() -> None:
    done = record("runs/dense", "runs/gated", "--seconds", "0.1", "--processes", "2", "--keep", "gated")
    assert done.exit_code == 0
    found = {(row["run"], row["weights"]): row for row in rows()}
    assert [*found] == [(run, weights) for run in ("dense", "gated") for weights in ("fp32", "int8")]
    optional = {"keep", "model", "published_perplexity", "training_threads", "changed"}
    for row in found.values():
        assert tuple(row) == FIELDS
        assert not [name for name in FIELDS if not row[name] and name not in optional]
    for shape in SHAPES:
        p50, ratio, low, high = shape.columns
        assert float(found["dense", "fp32"][ratio]) == 1
        gated = found["gated", "fp32"]
        expected = float(found["dense", "fp32"][p50]) / float(gated[p50])
        assert float(gated[ratio]) == pytest.approx(expected, rel=1e-3)
        assert float(gated[low]) <= float(gated[ratio]) <= float(gated[high])
    row = found["gated", "fp32"]
    assert (row["method"], row["keep"], found["dense", "fp32"]["keep"]) == ("neuron-selection", "0.3", "")
    kept = Path("results") / row["model"]
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == row["sha256"]
    assert int(row["bytes"]) == kept.stat().st_size
    sizes = [a.i for node in onnx.load(kept).graph.node if node.op_type == "LSTM" for a in node.attribute
             if a.name == "hidden_size"]  # fmt: skip
    assert row["hidden_sizes"] == "+".join(map(str, sizes))
    assert int(row["multiply_adds"]) < int(found["dense", "fp32"]["multiply_adds"])
    test = load_corpus("text", text=Path("words.txt")).test
    assert onnx_perplexity(kept, test) == pytest.approx(float(row["test_perplexity"]), rel=1e-4)


@pytest.mark.parametrize("table", ["small.csv", "other.csv"])
def test_perplexities_on_record_are_not_computed_again_but_those_of_another_file_are(table, monkeypatch) -> None:
    record("runs/dense", "--untimed", "--no-int8")
    Path("results/small.csv").rename(f"results/{table}")
    Path("results/without_digests.csv").write_text("corpus,test_perplexity\nwords.txt,7\n")
    monkeypatch.setattr("toolchain.evaluation.onnx_perplexity", lambda *_, **__: 9.5)
    record("runs/dense", "runs/gated", "--untimed", "--no-int8")
    dense, gated = rows()
    Path("results/other.csv").unlink(missing_ok=True)
    assert dense["test_perplexity"] != "9.5"
    assert gated["test_perplexity"] == "9.5"
    assert not [name for shape in SHAPES for name in shape.columns if dense[name]]


def test_a_file_of_another_method_joins_and_is_replaced_when_recorded_again() -> None:
    Path("halved.onnx").write_bytes(Path("runs/gated/model.onnx").read_bytes())
    for _ in range(2):
        record("runs/dense", "one-shot=halved.onnx", "--untimed", "--no-int8")
    assert [(row["run"], row["method"]) for row in rows()] == [("dense", "dense"), ("halved", "one-shot")]
    assert rows()[1]["training_s"] == ""


def test_a_published_network_is_timed_at_its_sizes_and_keeps_the_perplexity_of_its_authors() -> None:
    done = record("wide=24,40,32@78.4", "runs/dense", "--seconds", "0.1", "--processes", "2")
    assert done.exit_code == 0
    wide, wide_int8, dense, _ = rows()
    assert (wide["method"], wide["published_perplexity"], wide["test_perplexity"]) == ("published", "78.4", "")
    assert (wide["input_sizes"], wide["hidden_sizes"], wide["baseline"]) == ("24+40", "40+32", "wide")
    assert (wide_int8["weights"], wide_int8["published_perplexity"]) == ("int8", "")  # nobody published that one
    assert float(dense["t35b1_speedup"]) > 1 == float(wide["t35b1_speedup"])
    assert dense["published_perplexity"] == ""


def test_a_run_says_what_it_changes_of_the_recipe_that_its_method_heeds() -> None:
    base = load_recipe("ptb-small")
    overrides = {"gates.sites": "hidden", "gates.learning_rate": 0.5, "gates.keep": 0.2, "iss.weight": 0.004,
                 "run.seed": 3, "optim.epochs": 2, "data.folder": "x"}  # fmt: skip
    told = {"neuron-selection": "optim.epochs=2, gates.sites=hidden, gates.learning_rate=0.5",
            "iss": "optim.epochs=2, gates.sites=hidden, iss.weight=0.004", "dense": "optim.epochs=2"}  # fmt: skip
    for method, text in told.items():
        recipe = load_recipe("ptb-small", overrides={**overrides, "run.method": method})
        assert set(recipe_changes(recipe, base).split(", ")) == set(text.split(", "))
    narrow = load_recipe("ptb-small", overrides={"run.method": "direct", "model.hidden_sizes": [9, 9]})
    assert recipe_changes(narrow, base) == ""


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(BenchError, match=r"elsewhere: was trained on other words than dense; expected the same text"):
        record("runs/dense", "runs/elsewhere", "--untimed")
    with pytest.raises(BenchError, match=r"dense: is the name of two members; expected different ones"):
        record("runs/dense", "x=runs/dense", "--untimed")
    with pytest.raises(BenchError, match=r"--keep gated: is no file of this table; expected one of dense, dense.int8."):
        record("runs/dense", "--keep", "gated", "--untimed")
    with pytest.raises(BenchError, match=r"members: none is the folder of a run; expected one at least"):
        record("one-shot=runs/dense/model.onnx", "--untimed")
    for text in ("halved.onnx", "runs/gone", "one-shot=gone.onnx"):
        with pytest.raises(
            BenchError, match=rf"{text}: is neither a folder of `toolchain train` nor METHOD=FILE.onnx nor "
        ):
            read_member(text)
    assert not Path("results/small.csv").exists()


def test_shapes_are_those_of_the_issue() -> None:
    assert [(shape.steps, shape.batch) for shape in paper_table.SHAPES] == [(30, 10), (35, 1), (1, 1)]


def test_samples_are_the_beginning_of_the_text_that_a_run_learnt_from_and_shrink_takes_them() -> None:
    done = CliRunner().invoke(samples.main, ["runs/dense", "-o", "samples", "--calls=3"])
    model = Path("runs/dense/model.onnx")
    assert done.output == f"next: toolchain shrink {model} --ratio 0.5 --calibration samples\n"
    train = load_corpus("text", text=Path("words.txt")).train
    (file,) = Path("samples").iterdir()
    with np.load(file) as arrays:
        (tokens,) = arrays.values()
    assert tokens.shape == (3, samples.CALL_STEPS, samples.CALL_BATCH)
    column = tokens[:, :, 1].ravel()  # reads on from call to call
    np.testing.assert_array_equal(column, train[len(column) : 2 * len(column)])
    command = ["shrink", str(model), "--ratio", "0.5", "--calibration", "samples", "-o", "less.onnx"]
    shrunk = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert shrunk.exit_code == 0, shrunk.output
    with pytest.raises(BenchError, match=r"^samples: exists; expected a new folder, so that old samples do not mix in"):
        CliRunner().invoke(samples.main, ["runs/dense", "-o", "samples"], catch_exceptions=False)
    assert [*Path("samples").iterdir()] == [file]


def test_a_text_too_short_for_two_calls_is_refused() -> None:
    with pytest.raises(BenchError, match=r"^training text: 399 words; expected 400 at least, which is two calls"):
        samples.word_calls(Path("runs/dense/model.onnx"), np.zeros(399, np.int64), 5)
    (tokens,) = samples.word_calls(Path("runs/dense/model.onnx"), np.zeros(650, np.int64), 5).values()
    assert len(tokens) == 3
