"""How far a model's outputs are from the original's, as one number that means the same for every model.

    an ordinary output       mean squared difference over the output's own variance
    scores of classes        Kullback-Leibler divergence of the predictions over the entropy of the average prediction

What matters in scores is the softmax over them, of which squared differences say little: most of a language model's
scores belong to words that are all but impossible. Scores are recognised by what becomes of them: the output comes from
a Softmax or LogSoftmax over its last axis, or is as wide as the table of token embeddings has rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.interface import ModelInterface
from toolchain.oneshot.calibration import Arrays, Calibration, run_calls

Kind = Literal["squares", "scores", "log_probabilities", "probabilities"]
FloatArray = npt.NDArray[np.float64]
TINY = float(np.finfo(np.float32).tiny)


def output_kinds(graph: ir.Graph, interface: ModelInterface, carried: Sequence[tuple[str, str]]) -> dict[str, Kind]:
    """Return how each true output, one that is no carried state, is compared."""
    state = {output for _, output in carried}
    words = {model_input.rows for model_input in interface.inputs if model_input.rows is not None}
    return {str(value.name): _kind(value, words) for value in graph.outputs if value.name not in state}


def _kind(value: ir.Value, words: set[int]) -> Kind:
    producer = value.producer()
    if producer is not None and producer.op_type in ("Softmax", "LogSoftmax"):
        return "probabilities" if producer.op_type == "Softmax" else "log_probabilities"
    width = value.shape[-1] if value.shape is not None and len(value.shape) > 1 else None
    return "scores" if width in words else "squares"


class OutputError:
    """Adds up the differences between two models call by call, so that no output need be kept."""

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self._kinds = kinds
        self._sums: dict[str, list[Any]] = {name: [0, 0.0, 0.0, 0.0] for name in kinds}

    def add(self, expected: Arrays, actual: Arrays) -> None:
        """Compare one call."""
        for name, kind in self._kinds.items():
            if expected[name].dtype.kind == "f" and expected[name].size:
                add = _squares if kind == "squares" else _divergence
                one, other = (_scores(array, kind) for array in (expected[name], actual[name]))
                for index, term in enumerate(add(one, other)):
                    self._sums[name][index] = self._sums[name][index] + term

    def value(self) -> float:
        """Return the error of the output that errs most."""
        errors = [_relative(kind, *self._sums[name]) for name, kind in self._kinds.items() if self._sums[name][0]]
        return max(errors, default=0.0)

    def spreads(self) -> dict[str, float]:
        """Return what differences are divided by: variance or entropy of each output that holds numbers."""
        return {
            name: _spread(self._kinds[name], count, total, squares)
            for name, (count, _, total, squares) in self._sums.items()
            if count
        }


def compare(expected: Sequence[Arrays], session: Any, calibration: Calibration, kinds: Mapping[str, Kind]) -> float:
    """Run a model on samples and return its error against what was expected of each call."""
    error = OutputError(kinds)
    for wanted, got in zip(expected, run_calls(session, calibration, list(kinds)), strict=True):
        error.add(wanted, got)
    return error.value()


def _scores(array: npt.NDArray[Any], kind: Kind) -> npt.NDArray[Any]:
    if kind == "squares":
        return array.astype(np.float64).ravel()
    rows = array.reshape(-1, array.shape[-1]).astype(np.float32)
    return np.log(np.maximum(rows, TINY)) if kind == "probabilities" else rows


def _squares(wanted: FloatArray, got: FloatArray) -> tuple[int, float, float, float]:
    """Return count, squared difference, sum, and sum of squares."""
    return wanted.size, float(np.square(got - wanted).sum()), float(wanted.sum()), float(np.square(wanted).sum())


def _divergence(wanted: npt.NDArray[Any], got: npt.NDArray[Any]) -> tuple[int, float, FloatArray, float]:
    """Return count, summed divergence, and summed probabilities."""
    log_p, log_q = _log_softmax(wanted), _log_softmax(got)
    p = np.exp(log_p)
    return len(p), float((p * (log_p - log_q)).sum(dtype=np.float64)), p.sum(axis=0, dtype=np.float64), 0.0


def _log_softmax(scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _relative(kind: Kind, count: int, difference: float, total: Any, squares: float) -> float:
    return difference / count / _spread(kind, count, total, squares)


def _spread(kind: Kind, count: int, total: Any, squares: float) -> float:
    if kind == "squares":
        return max(squares / count - (float(total) / count) ** 2, TINY)
    average = np.asarray(total) / count
    entropy = -float((average * np.log(np.maximum(average, TINY))).sum())
    return max(entropy, TINY)
