"""Every error that a user can cause, one class per action that a caller can take.

    ToolchainError           anything below; the command line prints it as one line and exits 1
    |-- ModelFileError       the ONNX file cannot be read, or is not what it claims to be
    |-- LayoutError          a recurrent node's tensors disagree with its sizes
    |-- ParityError          the rewritten model's outputs differ: nothing was written
    |   `-- ToleranceError   they differ in their numbers only
    |-- OutputError          a result cannot be written (permission, full disk, a folder in the way)
    |-- RecipeError          a recipe has an unknown key, a wrong type, or a value out of range
    |-- DatasetError         a data set is missing, damaged, or too small
    |-- TrainingError        a run cannot start, resume, or go on
    |-- CalibrationError     calibration samples do not fit the model
    |-- SelectionError       a size or error target cannot be met
    |-- DistillationError    a network cannot be trained against the original's outputs
    |-- BenchError           a model cannot be measured as asked
    `-- MissingExtraError    an optional dependency is not installed

Each message reads `<object>: <what is wrong, with the value>; expected <rule>. <what to do next>.`
"""

from __future__ import annotations


class ToolchainError(Exception):
    """Base of every error this package raises on purpose."""


class ModelFileError(ToolchainError):
    """The ONNX file cannot be read, or is not what it claims to be."""


class LayoutError(ToolchainError):
    """A recurrent node's tensors disagree with its sizes."""


class ParityError(ToolchainError):
    """The rewritten model computes something else than the model it came from."""


class ToleranceError(ParityError):
    """Both models return the same outputs in shape and type, and in numbers that are too far apart."""


class OutputError(ToolchainError):
    """A result cannot be written where it was asked for."""


class RecipeError(ToolchainError):
    """A recipe has an unknown key, a wrong type, or a value out of range."""


class DatasetError(ToolchainError):
    """A data set is missing, damaged, or too small."""


class TrainingError(ToolchainError):
    """A training run cannot start, resume, or go on."""


class CalibrationError(ToolchainError):
    """Calibration samples cannot be read, or do not fit the model."""


class SelectionError(ToolchainError):
    """A target for the size, the latency or the error of the model cannot be met."""


class DistillationError(ToolchainError):
    """A network cannot be trained against the original's outputs; what it was before is not lost."""


class BenchError(ToolchainError):
    """A model cannot be measured as asked."""


class MissingExtraError(ToolchainError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(
            f"{package}: not installed; this command needs the extra `{extra}`. "
            f"Install it with `pip install 'rnn-toolchain[{extra}]'` (in a clone: `pip install -e '.[{extra}]'`)."
        )
