"""Exact match and F1 of a reader over questions, in PyTorch and in ONNX Runtime alike.

The ONNX side needs numpy and onnxruntime only, and works on every graph with the inputs and outputs that
`toolchain.models.reader_export` writes, shrunk ones too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from toolchain.errors import ModelFileError
from toolchain.evaluation import evaluation_mode
from toolchain.runtime import open_session

from .squad import Question, Squad
from .squad_scores import LogitArray, Scores, best_spans, score

if TYPE_CHECKING:
    from torch import nn

BATCH_SIZE = 32  # of paragraphs of like length

Feeds = dict[str, npt.NDArray[np.int64]]


def onnx_scores(path: Path, corpus: Squad, questions: Sequence[Question], *, threads: int | None = None) -> Scores:
    """Return how well an ONNX model answers questions, a batch of them per call.

    Args:
        path: a graph with the inputs of `Squad.feeds` and the outputs `start` and `end`.
        corpus: what the questions are from.
        questions: at least one.
        threads: of ONNX Runtime; None leaves it the choice.

    Raises:
        ModelFileError: the file cannot be read, or is not such a graph.
    """
    session = open_session(path, threads=threads)
    names = {value.name for value in session.get_inputs()}, {value.name for value in session.get_outputs()}
    expected = set(corpus.feeds(questions[:1])), {"start", "end"}
    if names != expected:
        found, wanted = (" -> ".join(", ".join(sorted(side)) for side in sides) for sides in (names, expected))
        raise ModelFileError(f"{path}: {found}; expected a reader, {wanted}. Train one with `toolchain train squad`.")

    def run(feeds: Feeds) -> tuple[LogitArray, LogitArray]:
        start, end = session.run(["start", "end"], feeds)
        return start, end

    return _scores(run, corpus, questions)


def torch_scores(model: nn.Module, corpus: Squad, questions: Sequence[Question]) -> Scores:
    """Return how well a PyTorch model answers questions, in float32 and evaluation mode.

    Args:
        model: as `Reader`; its mode is left as it is.
        corpus: what the questions are from.
        questions: at least one.
    """
    import torch

    device = next(model.parameters()).device

    def run(feeds: Feeds) -> tuple[LogitArray, LogitArray]:
        start, end = model(**{name: torch.from_numpy(array).to(device) for name, array in feeds.items()})
        return start.float().cpu().numpy(), end.float().cpu().numpy()

    with evaluation_mode(model), torch.inference_mode():
        return _scores(run, corpus, questions)


def _scores(
    run: Callable[[Feeds], tuple[LogitArray, LogitArray]], corpus: Squad, questions: Sequence[Question]
) -> Scores:
    by_length = sorted(questions, key=lambda question: len(question.paragraph.forms))
    predictions = {}
    for index in range(0, len(by_length), BATCH_SIZE):
        batch = by_length[index : index + BATCH_SIZE]
        start, end = run(corpus.feeds(batch))
        spans = best_spans(start, end, [len(question.paragraph.forms) for question in batch])
        for question, (first, last) in zip(batch, spans, strict=True):
            predictions[question.identifier] = question.paragraph.span(first, last)
    return score(predictions, questions)
