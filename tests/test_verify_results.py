"""What is kept is checked against its row: a right model passes, a swapped one, a worse one and a slow one do not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from test_vowels import spoken
from toolchain.bench import paper_table, verify_results, vowels
from toolchain.bench.random_lm import write_language_model
from toolchain.bench.result_file import read_rows, record_rows
from toolchain.models import vowels as dataset

from toolchain.errors import BenchError, DatasetError

MODEL = "models/vowels/gru-{}-0.onnx"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    options = [
        "--cells",
        "gru",
        "--seeds",
        "0",
        "--epochs",
        "2",
        "--hidden",
        "64",
        "--seconds",
        "0.1",
        "--processes",
        "2",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vowels, "load_vowels", lambda: (spoken(), spoken(seed=1)))
        done = CliRunner().invoke(vowels.main, [*options, "--runs", str(folder / "runs"), "--results", str(folder)])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def results(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(dataset, "load_vowels", lambda: (spoken(), spoken(seed=1)))
    return Path(shutil.copytree(recorded, tmp_path / "results"))


def verify(results: Path) -> Result:
    return CliRunner().invoke(verify_results.main, ["--results", str(results)])


def change(results: Path, method: str, **values: str) -> None:
    rows = [row | (values if row["method"] == method else {}) for row in read_rows(results / "vowels.csv")]
    record_rows(results / "vowels.csv", vowels.FIELDS, vowels.KEY, rows)


def test_what_is_on_record_is_found_again(results: Path) -> None:
    for method in ("dense", "neuron-selection", "direct"):  # whatever a busy machine makes of these tiny times
        change(results, method, t16b1_speedup="0.5", t1b1_speedup="0.5")
    done = verify(results)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert len([line for line in lines if line.startswith("ok: ")]) == len(lines) - 1 == 3 + 3 + 2 * 2
    assert "accuracy" in done.output
    assert "speedup at T=1, B=1" in done.output


def test_a_swapped_file_a_better_figure_and_a_higher_speedup_fail(results: Path) -> None:
    shutil.copyfile(results / MODEL.format("neuron-selection"), results / MODEL.format("direct"))
    change(results, "dense", test_accuracy="0.999")
    change(results, "neuron-selection", t16b1_speedup="500")
    done = verify(results)
    failed = [line for line in done.output.splitlines() if line.startswith("FAILED")]
    assert isinstance(done.exception, BenchError)
    assert "checks failed; expected what is on record" in str(done.exception)
    assert any("gru-direct-0.onnx: sha256" in line for line in failed)
    assert any("gru-dense-0.onnx: test accuracy" in line and "on record 0.999" in line for line in failed)
    assert any("gru-neuron-selection-0.onnx: speedup at T=16, B=1" in line for line in failed)
    (results / MODEL.format("direct")).unlink()
    assert "gru-direct-0.onnx: the file is missing" in verify(results).output


def test_what_cannot_be_checked_here_is_said_and_is_no_failure(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise DatasetError("aeon: no index within reach; expected one.")

    monkeypatch.setattr(dataset, "load_vowels", gone)
    for method in ("dense", "neuron-selection", "direct"):
        change(results, method, baseline="gru-dense-7")
    done = verify(results)
    assert done.exit_code == 0
    assert "not checked: models/vowels/gru-dense-0.onnx: aeon: no index within reach" in done.output
    assert "gru-direct-0.onnx: speedup: its baseline gru-dense-7 is not kept" in done.output


def test_a_published_baseline_is_made_again_from_its_sizes(results: Path) -> None:
    rows = [{"run": "paper", "method": "published", "weights": weights, "baseline": "paper",
             "input_sizes": "24+40", "hidden_sizes": "40+32"} for weights in ("fp32", "int8")]  # fmt: skip
    write_language_model(results / "small.onnx", embedding=6, hidden=[6, 6])
    times = {column: "1" for shape in paper_table.SHAPES for column in shape.columns}
    kept = {**rows[0], **times, "run": "small", "method": "dense", "model": "small.onnx"}
    checks = [*verify_results.check_speed([kept], results, paper_table.SHAPES, [*rows, kept])]
    assert [check.verdict for check in checks] == [verify_results.PASSED] * len(paper_table.SHAPES)
    assert all("speedup at T=" in check.text for check in checks)


def test_nothing_kept_is_nothing_checked(tmp_path: Path) -> None:
    assert verify(tmp_path).output == f"{tmp_path}: no model is kept, so there is nothing to check\n"


def test_kept_models_are_small_together(request: pytest.FixtureRequest) -> None:
    kept = (request.config.rootpath / "bench" / "results" / "models").rglob("*")
    assert sum(path.stat().st_size for path in kept if path.is_file()) < 20e6


def test_a_perplexity_is_computed_again_from_the_recipes_text(tmp_path: Path) -> None:
    row = {"recipe": "ptb-small", "corpus": "Penn Treebank", "model": "m.onnx", "test_perplexity": "100"}
    check = verify_results.check_quality(row, tmp_path, None)
    assert check.verdict == verify_results.UNCHECKED
    assert check.text.startswith("ptb-small: Penn Treebank was not named; expected its folder")
    front = verify_results.check_quality({**row, "recipe": "front"}, tmp_path, None)
    assert front.text.startswith("front: Penn Treebank was not named; expected its folder")
