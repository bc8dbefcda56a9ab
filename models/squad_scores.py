"""Exact match and F1 of answers, by the official definition of SQuAD 1.1, and the spans that logits mean.

Answers are compared after normalisation: lower case, no punctuation, no articles (a, an, the), single spaces. Exact
match is 1 for equal texts; F1 is the harmonic mean of precision and recall over the two bags of words. A question
scores the best over its gold answers, and 0 if it was not answered; a data set scores the mean, in percent.

Source: Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1, and their evaluation script for version 1.1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .squad import Question

LogitArray = npt.NDArray[np.float32]

# 99.4% of the answers in the published development file have at most 20 words.
MAX_ANSWER_WORDS = 20

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Means over questions, in percent, and the F1 of each question, from 0 to 1, in the order they were given."""

    exact_match: float
    f1: float
    question_f1: tuple[float, ...]


def normalise(answer: str) -> str:
    """Return an answer as the official script compares it."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """Return 1 if two answers are the same after normalisation, else 0."""
    return float(normalise(prediction) == normalise(gold))


def f1(prediction: str, gold: str) -> float:
    """Return the harmonic mean of precision and recall over the words of two normalised answers."""
    predicted, expected = normalise(prediction).split(), normalise(gold).split()
    common = (Counter(predicted) & Counter(expected)).total()
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0


def score(predictions: Mapping[str, str], questions: Iterable[Question]) -> Scores:
    """Score predictions by question identifier; a question without one scores 0.

    Args:
        predictions: answer by identifier.
        questions: at least one.
    """
    matches, overlaps = [], []
    for question in questions:
        prediction = predictions.get(question.identifier)
        found = [] if prediction is None else [prediction]
        matches.append(max((exact_match(text, gold) for text in found for gold in question.answers), default=0.0))
        overlaps.append(max((f1(text, gold) for text in found for gold in question.answers), default=0.0))
    return Scores(
        exact_match=100 * float(np.mean(matches)), f1=100 * float(np.mean(overlaps)), question_f1=tuple(overlaps)
    )


def best_spans(start: LogitArray, end: LogitArray, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return for each paragraph the first and last word of the likeliest answer.

    Args:
        start: logits of the first word, shape `[T, B]`.
        end: logits of the last word, shape `[T, B]`.
        lengths: words of each paragraph, shape `[B]`; what lies behind is padding.
    """
    spans = []
    for column, length in enumerate(lengths):
        first, last = np.arange(length)[:, None], np.arange(length)[None]
        allowed = (last >= first) & (last < first + MAX_ANSWER_WORDS)
        sums = np.where(allowed, start[:length, column, None] + end[None, :length, column], -np.inf)  # [first, last]
        spans.append(tuple(map(int, np.unravel_index(sums.argmax(), sums.shape))))
    return spans  # type: ignore[return-value]  # a tuple of two: the matrix has two axes
