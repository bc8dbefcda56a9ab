"""Check the models kept under bench/results/models: the file, its quality, its speedup; `make verify-results`.

python -m toolchain.bench.verify_results

A row of bench/results/*.csv that names a model says what must come out. A published network that speedups are over is
made again, of its sizes and random weights, as it was for the record. What cannot be checked here is said to be so, and
is no failure: text that is not at hand, a speedup over a network that is not kept.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from toolchain.errors import BenchError, ToolchainError

from .paper_table import SHAPES as LANGUAGE_SHAPES
from .plan import Effort
from .random_lm import write_language_model
from .result_file import RESULTS, read_rows, sha256_of
from .table import times
from .timing import Shape, time_models
from .vowels import SHAPES as VOWELS_SHAPES
from .vowels import accuracy

# Results of another build of ONNX Runtime differ in the sixth digit of a perplexity; one utterance of 370 is 0.3%.
RELATIVE, ONE_UTTERANCE = 1e-3, 1 / 370
SLOWEST = 2 / 3  # of the speedup on record: processors differ by less, a model that lost its speedup does not reach it
EFFORT = Effort(processes=3, seconds=0.5)  # a second for a model and shape, with starts and warm-up
SHAPES: Mapping[str, tuple[Shape, ...]] = {"vowels.csv": VOWELS_SHAPES, "squad.csv": ()}
TEXTS = {"front": "ptb-best"}  # the recipe that reads the text of a table of several recipes
PASSED, FAILED, UNCHECKED = "ok", "FAILED", "not checked"

Row = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What came out for one figure of one model."""

    model: str
    verdict: str
    text: str


def kept_rows(results: Path) -> dict[str, list[Row]]:
    """Return the rows that name a model, by the name of their file."""
    found: dict[str, list[Row]] = {}
    for path in sorted(results.glob("*.csv")):
        found[path.name] = [row for row in read_rows(path) if row.get("model") and row.get("sha256")]
    return {name: rows for name, rows in found.items() if rows}


def check_file(row: Row, results: Path) -> Check:
    """Compare a file's SHA-256 with the one on record."""
    path = results / row["model"]
    if not path.is_file():
        return Check(model=row["model"], verdict=FAILED, text="the file is missing")
    same = sha256_of(path) == row["sha256"]
    return Check(model=row["model"], verdict=PASSED if same else FAILED, text=f"sha256 {row['sha256'][:12]}")


def check_quality(row: Row, results: Path, data: Path | None) -> Check:
    """Compute the accuracy, perplexity or F1 of a kept model again."""
    measured = _accuracies if "test_accuracy" in row else _scores if "f1" in row else _perplexities
    try:
        found = measured(row, results / row["model"], data)
    except ToolchainError as error:
        return Check(model=row["model"], verdict=UNCHECKED, text=str(error))
    texts, right = [], True
    for name, (value, allowed) in found.items():
        texts.append(f"{name.replace('_', ' ')} {value:.5g}, on record {row[name]}")
        right = right and abs(value - float(row[name])) <= allowed
    return Check(model=row["model"], verdict=PASSED if right else FAILED, text="; ".join(texts))


def check_speed(rows: list[Row], results: Path, shapes: tuple[Shape, ...], table: Sequence[Row]) -> Iterator[Check]:
    """Measure kept models against their baseline, in one interleaved run.

    Without shapes, as of readers, which read real paragraphs, nothing is measured and that is said.

    Args:
        rows: those that name a model.
        results: the folder that holds the models.
        shapes: what is measured.
        table: all rows of their file, among which a published baseline is.
    """
    if not shapes:
        why = "speedup: no fixed shapes; toolchain.bench.squad_table measures readers"
        yield from (Check(model=row["model"], verdict=UNCHECKED, text=why) for row in rows)
        return
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        files = {_name(row): results / row["model"] for row in rows}
        yield from _speeds(rows, _published(rows, table, Path(folder)) | files, shapes)


def _speeds(rows: list[Row], files: Mapping[str, Path], shapes: tuple[Shape, ...]) -> Iterator[Check]:
    """Measure models against those of `files` that are their baselines."""
    for baseline, group in groupby(rows, key=lambda row: row["baseline"]):
        members = list(group)
        if baseline not in files:
            why = f"its baseline {baseline} is not kept" if baseline else "its times are not on record"
            yield from (Check(model=row["model"], verdict=UNCHECKED, text=f"speedup: {why}") for row in members)
            continue
        models = {baseline: files[baseline], **{_name(row): files[_name(row)] for row in members}}
        measured = time_models(models, shapes, EFFORT)
        for row in members:
            if _name(row) != baseline:
                yield from (_compared(row, shape, measured[_name(row)]) for shape in shapes)


def _published(rows: Sequence[Row], table: Sequence[Row], folder: Path) -> dict[str, Path]:
    """Write the published networks that are the baseline of a row; return the files by their names."""
    written = {}
    for row in table:
        published = row["method"] == "published" and row["weights"] == "fp32"
        if published and any(other["baseline"] == row["run"] for other in rows):
            embedding, *hidden = map(int, (row["input_sizes"].split("+")[0], *row["hidden_sizes"].split("+")))
            written[row["run"]] = folder / f"{row['run']}.onnx"
            write_language_model(written[row["run"]], embedding=embedding, hidden=hidden)
    return written


def _compared(row: Row, shape: Shape, measured: Mapping[str, Any]) -> Check:
    column = shape.columns[1]
    found, recorded = float(measured[column]), float(row[column])
    return Check(
        model=row["model"],
        verdict=PASSED if found >= SLOWEST * recorded else FAILED,
        text=f"speedup at T={shape.steps}, B={shape.batch} {times(found)}, on record {times(recorded)}",
    )


def _accuracies(row: Row, file: Path, data: Path | None) -> dict[str, tuple[float, float]]:
    test = import_module("toolchain.models.vowels").load_vowels()[1]
    return {"test_accuracy": (accuracy(file, test), ONE_UTTERANCE),
            "streaming_accuracy": (accuracy(file, test, streaming=True), ONE_UTTERANCE)}  # fmt: skip


def _perplexities(row: Row, file: Path, data: Path | None) -> dict[str, tuple[float, float]]:
    """Read the text by the recipe that the row belongs to, if it is one of ours.

    Raises:
        ToolchainError: the recipe or the text is not at hand.
    """
    from toolchain.evaluation import onnx_perplexity
    from toolchain.training.corpora import load_data
    from toolchain.training.recipe_files import load_recipe

    recipe = load_recipe(TEXTS.get(row["recipe"], row["recipe"]))
    if recipe.data.corpus == "ptb" and data is None:
        raise BenchError(f"{row['recipe']}: Penn Treebank was not named; expected its folder. Pass `--data FOLDER`.")
    corpus = load_data(recipe, folder=data)
    if not row["corpus"].startswith(corpus.origin):
        raise BenchError(f"{row['recipe']}: the text here is {corpus.origin}; expected {row['corpus']}.")
    value = onnx_perplexity(file, corpus.test, threads=1)
    return {"test_perplexity": (value, RELATIVE * value)}


def _scores(row: Row, file: Path, data: Path | None) -> dict[str, tuple[float, float]]:
    """Answer the test questions again.

    Raises:
        ToolchainError: the questions are not at hand.
    """
    from toolchain.training.corpora import load_data
    from toolchain.training.recipe_files import load_recipe

    if data is None:
        raise BenchError("squad: SQuAD was not named; expected its folder. Pass `--data FOLDER`.")
    corpus = load_data(load_recipe("squad"), folder=data)
    if not row["corpus"].startswith(corpus.origin):
        raise BenchError(f"squad: the questions here are {corpus.origin}; expected {row['corpus']}.")
    found = import_module("toolchain.models.squad_evaluation").onnx_scores(file, corpus, corpus.test, threads=1)
    one_question = 100 / len(corpus.test)
    return {"exact_match": (found.exact_match, one_question), "f1": (found.f1, one_question)}


def _name(row: Row) -> str:
    return Path(row["model"]).name.removesuffix(".onnx")


@click.command()
@click.option("--results", default=RESULTS, show_default=True, type=click.Path(path_type=Path, exists=True))
@click.option("--data", type=click.Path(path_type=Path), help="Where the files of Penn Treebank and SQuAD lie.")
def main(results: Path, data: Path | None) -> None:
    """Check every kept model against what is on record."""
    failed = number = 0
    for name, rows in kept_rows(results).items():
        files = [check_file(row, results) for row in rows]
        whole = [row for row, check in zip(rows, files, strict=True) if check.verdict == PASSED]
        shapes = SHAPES.get(name, LANGUAGE_SHAPES)
        for check in (*files, *(check_quality(row, results, data) for row in whole),
                      *check_speed(whole, results, shapes, read_rows(results / name))):  # fmt: skip
            click.echo(f"{check.verdict}: {check.model}: {check.text}")
            failed, number = failed + (check.verdict == FAILED), number + 1
    if failed:
        raise BenchError(f"{results}: {failed} of {number} checks failed; expected what is on record. See above.")
    click.echo(f"{number} checks" if number else f"{results}: no model is kept, so there is nothing to check")


if __name__ == "__main__":
    try:
        main()
    except ToolchainError as error:
        sys.exit(str(error))
