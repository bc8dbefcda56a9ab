"""Write samples for one-shot pruning of a reader: training questions, one call and one .npz file each.

python -m toolchain.bench.squad_samples runs/dense --data FOLDER -o samples
toolchain shrink runs/dense/model.onnx --ratio 0.5 --calibration samples
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np

from toolchain.errors import ToolchainError

from .members import read_member
from .squad_table import read_questions


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Where the questions lie.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write to.")
@click.option("--questions", default=200, show_default=True, type=click.IntRange(min=2), help="How many.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of which ones.")
def main(run: Path, data: Path, output: Path, questions: int, seed: int) -> None:
    """Write some of the questions that the reader in RUN learnt from."""
    corpus = read_questions([read_member(str(run))], data)
    chosen = np.random.default_rng(seed).permutation(len(corpus.train))[:questions]
    output.mkdir(parents=True, exist_ok=True)
    for number, question in enumerate(chosen):
        np.savez(output / f"{number:04}.npz", **{
            name: array[None] for name, array in corpus.feeds([corpus.train[question]]).items()
        })  # fmt: skip
    click.echo(f"next: toolchain shrink {run / 'model.onnx'} --ratio 0.5 --calibration {output}")


if __name__ == "__main__":
    try:
        main()
    except ToolchainError as error:
        sys.exit(str(error))
