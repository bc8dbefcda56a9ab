"""Inputs out of a file instead of random ones: an `.npz` with one array per model input, by the input's name.

The arrays decide how many steps and sequences are measured. A model may read sequences of several lengths, such as a
paragraph and a question, if it declares a name for each; the longest one counts as the steps. Inputs that the file does
not hold, such as an initial state, are made as always.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.axes import BATCH, TIME
from toolchain.errors import BenchError
from toolchain.interface import ModelInput, ModelInterface

Array = npt.NDArray[Any]


def read_lengths(path: Path, models: Sequence[ModelInterface]) -> tuple[int, int]:
    """Check a file of inputs against every model, and return its steps and sequences.

    Raises:
        BenchError: the file cannot be read, an array fits no input, or lengths contradict each other.
    """
    arrays = _read(path)
    known = {model_input.name for model in models for model_input in model.inputs}
    for name in arrays:
        if name not in known:
            raise BenchError(
                f"{path}: array {name!r} is no input of {models[0].name}; expected one of: {', '.join(sorted(known))}. "
                "Rename it in the file."
            )
    lengths: dict[str, dict[str, dict[int, str]]] = {TIME: {}, BATCH: {}}  # by label, declared name, length
    for model in models:
        for model_input in model.inputs:
            if model_input.name in arrays:
                _check(path, model_input, arrays[model_input.name])
                axes = zip(model_input.labels, model_input.shape, arrays[model_input.name].shape, strict=True)
                for label, declared, length in axes:
                    if label in (TIME, BATCH):
                        name = declared if isinstance(declared, str) else ""
                        lengths[str(label)].setdefault(name, {}).setdefault(length, model_input.name)
    steps = [_one(path, "steps", found) for found in lengths[TIME].values()] or [models[0].fixed(TIME) or 1]
    batches = [_one(path, "sequences", found) for found in lengths[BATCH].values()] or [models[0].fixed(BATCH) or 1]
    return max(steps), max(batches)


def _read(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            return {name: file[name] for name in file}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BenchError(
            f"{path}: cannot be read as inputs ({reason}); expected an .npz of arrays. Write one with "
            "numpy.savez(path, INPUT=array)."
        ) from error


def _check(path: Path, model_input: ModelInput, array: Array) -> None:
    """Refuse an array that the model would refuse, or look up outside its table with."""
    wanted = ", ".join("?" if not isinstance(length, int) else str(length) for length in model_input.shape)
    fits = len(model_input.shape) == array.ndim and all(
        not isinstance(expected, int) or expected == length
        for expected, length in zip(model_input.shape, array.shape, strict=True)
    )
    if not fits or str(array.dtype) != model_input.dtype:
        raise BenchError(
            f"{path}: array {model_input.name!r} is {array.dtype} {list(array.shape)}; expected {model_input.dtype} "
            f"[{wanted}]. Convert it."
        )
    if model_input.rows is not None and array.size and not 0 <= int(array.min()) <= int(array.max()) < model_input.rows:
        raise BenchError(
            f"{path}: array {model_input.name!r} holds ids from {array.min()} to {array.max()}; expected 0 to "
            f"{model_input.rows - 1}, the rows of the model's table. Encode it with the model's own vocabulary."
        )


def _one(path: Path, what: str, lengths: dict[int, str]) -> int:
    """Return the only length that the axes of one name have."""
    if len(lengths) > 1:
        listed = ", ".join(f"{name} {length}" for length, name in lengths.items())
        raise BenchError(
            f"{path}: its arrays have different numbers of {what} ({listed}); expected equal ones. Cut them."
        )
    return next(iter(lengths))
