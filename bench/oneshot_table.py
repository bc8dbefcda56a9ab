"""Put one-shot pruning on record: every criterion and ratio, with and without compensation, as CSV.

python -m toolchain.bench.oneshot_table real                    the real models (tests/fetch_real_models.py brings them)
python -m toolchain.bench.oneshot_table language model.onnx --corpus pydocs --vocabulary-size 8000

Errors and perplexities do not depend on how busy the machine is; `--speed` does, and fills the speedup columns.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from toolchain.errors import ToolchainError
from toolchain.oneshot.criteria import CRITERIA

from .oneshot_real import CASES, RealCase, score_against
from .oneshot_steps import epoch, int8
from .oneshot_sweep import Row, Score, Sweep, sweep_rows
from .real_samples import save_streams
from .result_file import RESULTS, known_rows, record_rows
from .runner import describe_machine
from .samples import CALL_BATCH, CALL_STEPS, word_calls

if TYPE_CHECKING:
    from toolchain.models.text import Corpus

METHOD = ("criterion", "compensated", "ratio", "then", "hidden_sizes", "parameters", "multiply_adds", "bytes",
          "held_out_error")  # fmt: skip
KEY = ("model", "criterion", "compensated", "ratio", "then")
RECORD = ("calls", "seed", "versions", "cpu", "command")
SPEED = ("speedup", "speedup_low", "speedup_high")
REAL = ("model", "package", *METHOD, "output_nmse", "same_decision", *SPEED, *RECORD)
LANGUAGE = ("model", "corpus", *METHOD, "test_perplexity", "times_dense", *SPEED, *RECORD)
REAL_RATIOS, LANGUAGE_RATIOS = "0.25,0.5,0.75,0.875", "0.1,0.25,0.5,0.75"
PACKAGES = ("onnxruntime", "onnx", "onnx-ir", "numpy")
SPEED_STEPS = 100


def _numbers(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: expected numbers with commas between them, as 0.25,0.5") from error


_DISTILL = click.option("--distill", default=0, show_default=True, type=click.IntRange(min=0), metavar="STEPS",
                        help="Also take so many gradient steps after what reconstruct makes.")  # fmt: skip


@click.group()
def main() -> None:
    """Measure one-shot pruning and write what was found as CSV."""


@main.command()
@click.option("--only", multiple=True, type=click.Choice([case.name for case in CASES]), help="These models alone.")
@click.option("--ratios", default=REAL_RATIOS, show_default=True, callback=_numbers)
@click.option("--calls", type=click.IntRange(min=2), help="Samples, a fifth of them held out [each model's own].")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@_DISTILL
@click.option("--speed", is_flag=True, help="Also measure what reconstruct makes in ONNX Runtime.")
@click.option(
    "-o", "--output", default=RESULTS / "oneshot_real.csv", show_default=True, type=click.Path(path_type=Path)
)
def real(
    only: tuple[str, ...], ratios: tuple[float, ...], calls: int | None, seed: int, distill: int, speed: bool,
    output: Path,
) -> None:  # fmt: skip
    """Prune models that nobody here trained, on synthetic samples of the right kind."""
    cases = [case for case in CASES if not only or case.name in only]
    rows = (_real_rows(case, ratios, calls or case.calls, seed, distill, speed) for case in cases)
    _record_each(output, REAL, chain.from_iterable(rows))


def _real_rows(
    case: RealCase, ratios: tuple[float, ...], calls: int, seed: int, distill: int, speed: bool
) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        samples, models = Path(folder) / "samples", Path(folder) / "models"
        samples.mkdir()
        models.mkdir()
        source = str(save_streams(case.streams(calls, seed), samples))
        sweep = Sweep(model=case.file, calibration=source, ratios=ratios, carried=case.carried, seed=seed,
                      distill=distill)  # fmt: skip
        score = _timed(case.file, score_against(case.file, source, case), seed) if speed else \
            score_against(case.file, source, case)  # fmt: skip
        for row in sweep_rows(sweep, score, models):
            yield {"model": case.name, "package": case.package, **row, **_record(calls, seed)}


@main.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--corpus", required=True, type=click.Choice(["pydocs", "ptb", "wikitext-2"]))
@click.option("--data", type=click.Path(path_type=Path), help="Where the corpus lies [downloaded].")
@click.option("--vocabulary-size", type=click.IntRange(min=1), help="Words beside <unk>, as it was trained with [all].")
@click.option("--tokens", default=20_000, show_default=True, type=click.IntRange(min=400), help="To decide with.")
@click.option("--ratios", default=LANGUAGE_RATIOS, show_default=True, callback=_numbers)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@_DISTILL
@click.option("--speed", is_flag=True, help="Also measure what reconstruct makes in ONNX Runtime.")
@click.option("--criterion", "criteria", multiple=True, type=click.Choice(CRITERIA), help="These alone.")
@click.option("--int8", "quantise", is_flag=True, help="Also quantize the dense one and what reconstruct makes.")
@click.option("--fine-tune", metavar="RECIPE", help="Also train what reconstruct makes for one more epoch.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Of that epoch's recipe.")
@click.option("-o", "--output", default=RESULTS / "oneshot_language.csv", show_default=True,
              type=click.Path(path_type=Path))  # fmt: skip
def language(
    model: Path, corpus: str, data: Path | None, vocabulary_size: int | None, tokens: int, ratios: tuple[float, ...],
    seed: int, distill: int, speed: bool, criteria: tuple[str, ...], quantise: bool, fine_tune: str | None,
    settings: tuple[str, ...], output: Path,
) -> None:  # fmt: skip
    """Prune the dense language model MODEL and take the test perplexity of each result."""
    from toolchain.models.text import load_corpus

    text = load_corpus(corpus, vocabulary_size=vocabulary_size, folder=data)
    steps = [int8()] if quantise else []
    if fine_tune is not None:
        steps.append(epoch(fine_tune, settings, data=data))
    sweep = Sweep(model=model, calibration="", ratios=ratios, criteria=criteria or CRITERIA, seed=seed,
                  steps=tuple(steps), distill=distill)  # fmt: skip
    _record_each(output, LANGUAGE, _language_rows(sweep, text, tokens, speed))


def _language_rows(sweep: Sweep, text: Corpus, tokens: int, speed: bool) -> Iterator[Row]:
    """Yield the rows of a sweep that is calibrated on the beginning of the training text."""
    from toolchain.evaluation import onnx_perplexity
    from toolchain.oneshot.calibration import HELD_OUT

    model, test, seed = sweep.model, text.test, sweep.seed
    dense = onnx_perplexity(model, test, threads=1)

    def score(file: Path) -> Row:
        found = dense if file == model else onnx_perplexity(file, test, threads=1)
        return {"test_perplexity": found, "times_dense": found / dense}

    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        calls = round(tokens / (1 - HELD_OUT) / CALL_STEPS / CALL_BATCH)
        samples = Path(folder) / "samples.npz"
        arrays = word_calls(model, text.train, calls)
        (calls,) = {len(array) for array in arrays.values()}  # fewer than asked for, of a short text
        np.savez(samples, **arrays)
        sweep = replace(sweep, calibration=str(samples))
        for row in sweep_rows(sweep, _timed(model, score, seed) if speed else score, Path(folder)):
            yield {"model": model.name, "corpus": text.name, **row, **_record(calls, seed)}


def _timed(original: Path, score: Score, seed: int) -> Score:
    """Add the speedup to the score of what `reconstruct` made; the others are as fast at the same sizes."""
    from .compare import plan_comparison, run_comparison
    from .plan import Effort

    def timed(file: Path) -> Row:
        if file == original or not file.stem.startswith("reconstruct") or file.stem.endswith("-plain"):
            return score(file)
        plan = plan_comparison([file], baseline=original, device="cpu", steps=[SPEED_STEPS], batches=[1], threads=[1],
                               effort=Effort(seed=seed))  # fmt: skip
        (row,) = [row for row in run_comparison(plan, lambda done, total, what: None).rows if not row["is_baseline"]]
        return {**score(file), **{name: row[name] for name in SPEED}}

    return timed


def _record(calls: int, seed: int) -> Row:
    versions = [f"rnn-toolchain {version('rnn-toolchain')}", *(f"{name} {version(name)}" for name in PACKAGES)]
    return {"calls": calls, "seed": seed, "versions": ", ".join(versions), "cpu": describe_machine()["cpu_model"],
            "command": " ".join(["python -m toolchain.bench.oneshot_table", *sys.argv[1:]])}  # fmt: skip


def _record_each(path: Path, fields: tuple[str, ...], rows: Iterable[Row]) -> None:
    """Put rows on record as they come, in place of those of the same model, method and ratio."""
    known_rows(path, fields)
    for row in rows:
        record_rows(path, fields, KEY, [row])
        shown = {name: f"{row[name]:.5g}" if isinstance(row[name], float) else row[name] for name in fields
                 if name in row and name not in RECORD}  # fmt: skip
        click.echo(", ".join(f"{name} {value}" for name, value in shown.items()))


if __name__ == "__main__":
    try:
        main()
    except ToolchainError as error:
        sys.exit(str(error))
