"""Write samples for one-shot pruning, out of the data that a run learnt from.

python -m toolchain.bench.samples runs/dense -o samples
toolchain shrink runs/dense/model.onnx --ratio 0.5 --calibration samples

A language model gets the beginning of its training text, in a few columns that each read on from call to call; a reader
gets questions drawn from those it learnt from, one a call.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from toolchain.errors import BenchError, ToolchainError
from toolchain.interface import read_interface

from .members import read_member

CALL_STEPS, CALL_BATCH = 50, 4  # of a call: 200 words, so that a probe's scores of 10,000 words fit in memory
WORD_CALLS, QUESTIONS = 125, 200


def word_calls(model: Path, text: npt.NDArray[np.int64], calls: int) -> dict[str, Any]:
    """Return the beginning of a text as calls of a language model.

    Args:
        model: takes word ids.
        text: word ids, shape `[num_tokens]`.
        calls: how many; fewer where the text is shorter.

    Returns:
        An array `[calls, CALL_STEPS, CALL_BATCH]` by the name of that input; each column reads on.

    Raises:
        BenchError: the text is too short for two calls, one to decide with and one to judge by.
    """
    if len(text) < 2 * CALL_STEPS * CALL_BATCH:
        raise BenchError(f"training text: {len(text)} words; expected {2 * CALL_STEPS * CALL_BATCH} at least, which is "
                         "two calls. Take a run on a longer text.")  # fmt: skip
    name = next(model_input.name for model_input in read_interface(model).inputs if model_input.rows is not None)
    calls = min(calls, len(text) // (CALL_STEPS * CALL_BATCH))
    columns = text[: calls * CALL_STEPS * CALL_BATCH].reshape(CALL_BATCH, -1).T
    return {name: columns.reshape(calls, CALL_STEPS, CALL_BATCH)}


def question_calls(corpus: Any, questions: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield some of a `models.squad.Squad`'s training questions, each as the inputs of one call with a leading 1."""
    for number in np.random.default_rng(seed).permutation(len(corpus.train))[:questions]:
        yield {name: array[None] for name, array in corpus.feeds([corpus.train[number]]).items()}


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Where the data lies [as the run says].")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write to.")
@click.option("--calls", type=click.IntRange(min=2),
              help=f"How many [{WORD_CALLS} of {CALL_STEPS * CALL_BATCH} words, {QUESTIONS} questions].")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of which questions.")
def main(run: Path, data: Path | None, output: Path, calls: int | None, seed: int) -> None:
    """Write some of what the network in RUN learnt from."""
    from toolchain.training.corpora import load_data
    from toolchain.training.recipe_files import load_recipe

    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise BenchError(f"{output}: exists; expected a new folder, so that old samples do not mix in. Name another.")
    read_member(str(run))  # a run that did not finish is refused
    recipe, model = load_recipe(run / "recipe.toml"), run / "model.onnx"
    corpus = load_data(recipe, folder=data)
    if recipe.data.corpus == "squad":
        files = question_calls(corpus, calls or QUESTIONS, seed)
    else:
        files = iter([word_calls(model, corpus.train, calls or WORD_CALLS)])
    output.mkdir(parents=True, exist_ok=True)
    for number, arrays in enumerate(files):
        np.savez(output / f"{number:04}.npz", **arrays)
    click.echo(f"next: toolchain shrink {model} --ratio 0.5 --calibration {output}")


if __name__ == "__main__":
    try:
        main()
    except ToolchainError as error:
        sys.exit(str(error))
