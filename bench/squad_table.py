"""Put readers side by side: exact match, F1, sizes and latency on real paragraphs, as CSV.

python -m toolchain.bench.squad_table --data FOLDER runs/dense runs/gated runs/iss
python -m toolchain.bench.squad_table --data FOLDER --untimed ...     quality and sizes alone, while others compute
python -m toolchain.bench.squad_table --data FOLDER runs/dense one-shot=halved.onnx

A member is the folder of a finished run of the recipe `squad`, or a model file with the name of its method; the first
one is the folder of the dense reader that speedups are over. Each is shrunk, which proves it equal to what was trained,
and quantized; scores are those of the resulting file in ONNX Runtime over all test questions, and the difference of F1
from the dense reader's has a 95% interval over paragraphs, because questions of one are alike. It is timed on one
question at a time: one whose paragraph is of median length, and one longer than nine in ten. All times are from
interleaved runs in one thread.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import numpy as np

from toolchain.errors import BenchError, ToolchainError

from .members import TRAINING, Member, read_members
from .plan import Effort
from .result_file import ORIGIN, RESULTS, Row, check_kept, keep_model, known_rows, origin, record_rows, sha256_of
from .shrunk_files import SIZES, shrunk_files
from .statistics import interval
from .timing import COLUMNS, time_on_inputs

QUANTILES = {"median": 0.5, "long": 0.9}  # of the lengths of test paragraphs
KEY = ("run", "weights")
SCORES = ("exact_match", "f1", "f1_change_low", "f1_change_high")
RESAMPLES = 10_000
TIMES = tuple(f"{name}_{column}" for name in QUANTILES for column in ("words", *COLUMNS))
FIELDS = ("run", "method", "weights", "seed", "test_questions", *SCORES, *SIZES, *TIMES, "baseline", *TRAINING,
          *ORIGIN, "model", "sha256")  # fmt: skip


def read_questions(members: Sequence[Member], folder: Path) -> Any:
    """Load the questions that the first member was trained on.

    Raises:
        BenchError: it is no run, or a member is no reader.
        DatasetError: the questions cannot be loaded.
    """
    from toolchain.training.corpora import load_data
    from toolchain.training.recipe_files import load_recipe

    if members[0].recipe is None:
        raise BenchError(
            f"{members[0].name}: is no folder of a run; expected that of the dense reader first, which says what words "
            "to read. Name it first."
        )
    if published := [member.name for member in members if member.model is None]:
        raise BenchError(f"{published[0]}: is a published language model; expected readers. Leave it out.")
    return load_data(load_recipe(members[0].recipe), folder=folder)


def write_questions(corpus: Any, folder: Path) -> dict[str, tuple[Path, int]]:
    """Write one test question for each of `QUANTILES`; return the files and how many words their paragraphs have."""
    by_length = sorted(corpus.test, key=lambda question: len(question.paragraph.forms))
    files = {}
    for name, quantile in QUANTILES.items():
        question = by_length[round(quantile * (len(by_length) - 1))]
        np.savez(folder / f"{name}.npz", **corpus.feeds([question]))
        files[name] = folder / f"{name}.npz", len(question.paragraph.forms)
    return files


def time_readers(files: Mapping[str, Path], corpus: Any, folder: Path, effort: Effort) -> dict[str, Row]:
    """Return the columns `TIMES` of each model by its name; the first is what speedups are over."""
    rows: dict[str, Row] = {name: {} for name in files}
    for name, (inputs, words) in write_questions(corpus, folder).items():
        for model, times in time_on_inputs(files, inputs, effort).items():
            rows[model] |= {f"{name}_words": words, **{f"{name}_{column}": value for column, value in times.items()}}
    return rows


@click.command()
@click.argument("members", nargs=-1, required=True, metavar="FOLDER|METHOD=FILE…")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Where the questions lie.")
@click.option("-o", "--output", default=RESULTS / "squad.csv", show_default=True, type=click.Path(path_type=Path))
@click.option("--int8/--no-int8", default=True, show_default=True, help="Also the 8-bit copy of each.")
@click.option("--keep", multiple=True, help="Keep this file, NAME or NAME.int8, beside the results, for verification.")
@click.option("--untimed", is_flag=True, help="Leave the columns of times empty.")
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(min=0.1), help="A model and question.")
@click.option("--processes", default=8, show_default=True, type=click.IntRange(min=1))
def main(
    members: tuple[str, ...], data: Path, output: Path, int8: bool, keep: tuple[str, ...], untimed: bool,
    seconds: float, processes: int,
) -> None:  # fmt: skip
    """Record MEMBERS, the dense one first."""
    known_rows(output, FIELDS)
    chosen = read_members(members)
    check_kept(keep, [member.name for member in chosen])
    corpus = read_questions(chosen, data)
    here = origin(
        "toolchain.bench.squad_table",
        sys.argv[1:],
        folders={str(data): "FOLDER", str(output): str(RESULTS / output.name)},
    )
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        rows: dict[str, Row] = {}
        files: dict[str, Path] = {}
        dense = None
        for member in chosen:
            assert member.model is not None  # `read_questions` refuses a published network
            facts = {"run": member.name, "corpus": corpus.origin, **member.facts, "test_questions": len(corpus.test)}
            for file, sizes in shrunk_files(member.name, member.model, Path(folder), int8=int8):
                name = file.name.removesuffix(".onnx")
                found = import_module("toolchain.models.squad_evaluation").onnx_scores(
                    file, corpus, corpus.test, threads=1
                )
                dense = dense or found
                rows[name] = {**facts, **sizes, **_scores(dense, found, corpus.test), "sha256": sha256_of(file), **here}
                rows[name]["model"] = keep_model(file, output.parent, "squad") if name in keep else None
                files[name] = file
                click.echo(f"{name}: exact match {rows[name]['exact_match']}, F1 {rows[name]['f1']}", err=True)
        if not untimed:
            effort = Effort(processes=processes, seconds=seconds)
            for name, times in time_readers(files, corpus, Path(folder), effort).items():
                rows[name] |= {**times, "baseline": chosen[0].name}
    record_rows(output, FIELDS, KEY, list(rows.values()))


def _scores(dense: Any, found: Any, questions: Sequence[Any]) -> Row:
    """Return the columns `SCORES`; the dense reader's own change is left empty."""
    row: Row = {"exact_match": found.exact_match, "f1": found.f1}
    if found is dense:
        return row
    numbers: dict[int, int] = {}  # by appearance, so that the draw is the same every time
    paragraphs = [numbers.setdefault(id(question.paragraph), len(numbers)) for question in questions]
    low, high = f1_change(dense.question_f1, found.question_f1, paragraphs)
    return {**row, "f1_change_low": low, "f1_change_high": high}


def f1_change(before: Sequence[float], after: Sequence[float], paragraphs: Sequence[int]) -> tuple[float, float]:
    """Return the 95% interval of the mean difference of two readers' F1, in percent.

    Paragraphs are drawn, with all their questions: the questions of one paragraph are not independent.

    Args:
        before: F1 of each question, from 0 to 1.
        after: likewise, of the other reader.
        paragraphs: which one each question is about.
    """
    _, of = np.unique(paragraphs, return_inverse=True)
    sums = np.bincount(of, weights=np.subtract(after, before))  # [paragraphs]
    counts = np.bincount(of)
    draws = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), RESAMPLES)
    return interval(100 * (draws @ sums) / (draws @ counts), processes=len(counts))


if __name__ == "__main__":
    try:
        main()
    except ToolchainError as error:
        sys.exit(str(error))
