"""The files of one training run.

runs/NAME/recipe.toml              every value, defaults and overrides included
vocabulary.txt           the word of each id, one a line
metrics.csv              one row per epoch
gates.csv                one row per epoch and set of neurons, while gates are learnt
checkpoint.safetensors   everything needed to go on; replaced after each epoch
model.onnx               the trained network at its original shapes
result.json              test perplexity, share kept, speed
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolchain.errors import OutputError, TrainingError
from toolchain.files import write_text

RECIPE = "recipe.toml"
VOCABULARY = "vocabulary.txt"
METRICS = "metrics.csv"
GATES = "gates.csv"
CHECKPOINT = "checkpoint.safetensors"
MODEL = "model.onnx"
START = "start.onnx"  # the network of a run that began with a reader's file
RESULT = "result.json"

Row = Mapping[str, str | float | int | None]


def new_run_folder(parent: Path, name: str | None, *, default: str) -> Path:
    """Create the folder of a new run.

    Args:
        parent: where runs lie, usually `runs`.
        name: the run's name; None takes `default`, or `default-2`, ... if that is taken.
        default: usually the recipe's name.

    Raises:
        TrainingError: a run of this name exists.
        OutputError: the folder cannot be created.
    """
    candidates = [name] if name else [default, *(f"{default}-{number}" for number in range(2, 10_000))]
    for candidate in candidates:
        try:
            (parent / candidate).mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise OutputError(
                f"{parent / candidate}: cannot be created ({error.strerror}); expected a writable folder. "
                "Change to another folder."
            ) from error
        return parent / candidate
    raise TrainingError(
        f"{parent / candidates[0]}: exists already; expected a new name. "
        f"Go on with `--resume {parent / candidates[0]}`, or choose another `--name`."
    )


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows as CSV in place of the older file; no rows, no file."""
    if rows:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, buffer.getvalue())
