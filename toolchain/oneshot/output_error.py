"""How far a model's outputs are from the original's, as one number that means the same for every model.

    an ordinary output       mean squared difference over the output's own variance
    scores of classes        Kullback-Leibler divergence of the predictions over the entropy of the average prediction

Variance and entropy are those over all samples, whichever of them an error is measured on: a stretch of silence has
next to none of its own.

What matters in scores is the softmax over them, of which squared differences say little: most of a language model's
scores belong to words that are all but impossible. Scores are recognised by what becomes of them: the output comes from
a Softmax or LogSoftmax over its last axis, or is as wide as the table of token embeddings has rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.interface import ModelInterface
from toolchain.oneshot.calibration import Arrays, Calibration, run_calls

Kind = Literal["squares", "scores", "log_probabilities", "probabilities"]
FloatArray = npt.NDArray[np.float64]
SOFTMAXES: Mapping[str, Kind] = {"Softmax": "probabilities", "LogSoftmax": "log_probabilities"}
TINY = float(np.finfo(np.float32).tiny)


def output_kinds(graph: ir.Graph, interface: ModelInterface, carried: Sequence[tuple[str, str]]) -> dict[str, Kind]:
    """Return how each true output, one that is no carried state, is compared."""
    state = {output for _, output in carried}
    words = {model_input.rows for model_input in interface.inputs if model_input.rows is not None}
    return {str(value.name): _kind(value, words) for value in graph.outputs if value.name not in state}


def _kind(value: ir.Value, words: set[int]) -> Kind:
    producer = value.producer()
    if producer is not None and producer.op_type in SOFTMAXES:
        return SOFTMAXES[producer.op_type]
    width = value.shape[-1] if value.shape is not None and len(value.shape) > 1 else None
    return "scores" if width in words else "squares"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputStatistics:
    """What is known of the outputs that hold numbers, by name, over all calls.

    `spreads` are what differences are divided by, variances or entropies; `predictions` are the average predictions of
    the scores among them, shape `[num_classes]`, each adding up to 1.
    """

    spreads: dict[str, float]
    predictions: dict[str, FloatArray]


def output_statistics(answers: Iterable[Arrays], kinds: Mapping[str, Kind]) -> OutputStatistics:
    """Add up the answers of all calls; none of them is kept."""
    sums: dict[str, list[Any]] = {name: [0, 0.0, 0.0] for name in kinds}
    for answer in answers:
        for name, kind in kinds.items():
            if _holds_numbers(answer[name]):
                for index, term in enumerate(_spread_terms(_scores(answer[name], kind), kind)):
                    sums[name][index] = sums[name][index] + term
    found = {name: terms for name, terms in sums.items() if terms[0]}
    return OutputStatistics(
        spreads={name: _spread(kinds[name], *terms) for name, terms in found.items()},
        predictions={name: terms[1] / terms[0] for name, terms in found.items() if kinds[name] != "squares"},
    )


class OutputError:
    """Adds up the differences between two models call by call, so that no output need be kept."""

    def __init__(self, kinds: Mapping[str, Kind], spreads: Mapping[str, float]) -> None:
        """Start at nothing; `spreads` are those of the outputs over all samples."""
        self._kinds, self._spreads = kinds, spreads
        self._sums = {name: [0, 0.0] for name in kinds}

    def add(self, expected: Arrays, actual: Arrays) -> None:
        """Compare one call."""
        for name, kind in self._kinds.items():
            if _holds_numbers(expected[name]):
                difference = _squares if kind == "squares" else _divergence
                count, total = difference(*(_scores(array, kind) for array in (expected[name], actual[name])))
                self._sums[name][0] += count
                self._sums[name][1] += total

    def value(self) -> float:
        """Return the error of the output that errs most."""
        errors = [total / count / self._spreads[name] for name, (count, total) in self._sums.items() if count]
        return max(errors, default=0.0)


def compare(
    expected: Sequence[Arrays],
    session: Any,
    calibration: Calibration,
    kinds: Mapping[str, Kind],
    spreads: Mapping[str, float],
) -> float:
    """Run a model on samples and return its error against what was expected of each call."""
    error = OutputError(kinds, spreads)
    for wanted, got in zip(expected, run_calls(session, calibration, list(kinds)), strict=True):
        error.add(wanted, got)
    return error.value()


def _holds_numbers(array: npt.NDArray[Any]) -> bool:
    return array.dtype.kind == "f" and array.size > 0


def _scores(array: npt.NDArray[Any], kind: Kind) -> npt.NDArray[Any]:
    if kind == "squares":
        return array.astype(np.float64).ravel()
    rows = array.reshape(-1, array.shape[-1]).astype(np.float32)
    return np.log(np.maximum(rows, TINY)) if kind == "probabilities" else rows


def _spread_terms(wanted: npt.NDArray[Any], kind: Kind) -> tuple[int, Any, float]:
    """Return count, sum, and sum of squares; of scores the summed probabilities."""
    if kind == "squares":
        return wanted.size, float(wanted.sum()), float(np.square(wanted).sum())
    return len(wanted), np.exp(_log_softmax(wanted)).sum(axis=0, dtype=np.float64), 0.0


def _squares(wanted: FloatArray, got: FloatArray) -> tuple[int, float]:
    """Return count and summed squared difference."""
    return wanted.size, float(np.square(got - wanted).sum())


def _divergence(wanted: npt.NDArray[Any], got: npt.NDArray[Any]) -> tuple[int, float]:
    """Return count and summed divergence."""
    log_p, log_q = _log_softmax(wanted), _log_softmax(got)
    return len(log_p), float((np.exp(log_p) * (log_p - log_q)).sum(dtype=np.float64))


def _log_softmax(scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _spread(kind: Kind, count: int, total: Any, squares: float) -> float:
    if kind == "squares":
        return max(squares / count - (float(total) / count) ** 2, TINY)
    average = np.asarray(total) / count
    entropy = -float((average * np.log(np.maximum(average, TINY))).sum())
    return max(entropy, TINY)
