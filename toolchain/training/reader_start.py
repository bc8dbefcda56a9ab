"""Start a training run from a reader's ONNX file: the graph itself is the network, as narrow as the file has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolchain.errors import TrainingError
from toolchain.evaluation import evaluation_mode
from toolchain.runtime import open_session
from toolchain.training.graph_network import GraphNetwork
from toolchain.training.recipe import Recipe

CHECKED_QUESTIONS = 16  # of the validation data, in one batch
# Of the largest score: two float32 implementations of a reader were seen to differ by 2e-6; swapped gates change
# its first digit.
RTOL = 1e-4
READER = ({"paragraph", "paragraph_characters", "question", "question_characters"}, {"start", "end"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderStart:
    """Where a reader's run starts: the file, its recurrent layers' sizes, and how far PyTorch is from ONNX Runtime.

    `difference` is the largest between two scores of an answer, of the largest score.
    """

    source: Path
    hidden_sizes: tuple[int, ...]
    difference: float
    questions: int


def start_reader(source: Path, recipe: Recipe, corpus: Any, device: torch.device) -> ReaderStart:
    """Prove that a file's graph computes in PyTorch what it does in ONNX Runtime.

    Args:
        source: an ONNX reader, shrunk or not.
        recipe: of a reader.
        corpus: a `toolchain.models.squad.Squad`.
        device: where training will compute.

    Raises:
        ModelFileError: the file is no valid model.
        DistillationError: an operator cannot be differentiated.
        TrainingError: it is no reader, knows other words, computes something else in PyTorch, the recipe's method
            needs the layers of the package's own network, or the device is no CPU.
    """
    if recipe.run.method != "dense":
        raise TrainingError(
            f"{source}: method {recipe.run.method} with a reader from a file; expected dense, because gates and norms "
            "belong to the layers of the recipe's own network. Leave --method out."
        )
    if device.type != "cpu":
        raise TrainingError(f"{source}: its graph is run on the CPU; expected --device cpu, got {device.type}. Add it.")
    network = GraphNetwork(source)
    session = open_session(source, threads=recipe.run.threads)
    _check_reader(source, session)
    if network.vocabulary_hash not in (None, corpus.vocabulary_hash):
        raise TrainingError(
            f"{source}: was trained on other words than those of {corpus.origin} (SHA-256 "
            f"{str(network.vocabulary_hash)[:8]}, not {corpus.vocabulary_hash[:8]}); expected the same vocabulary. "
            "Use the data that it was trained on."
        )
    questions = corpus.valid[:CHECKED_QUESTIONS]
    feeds = corpus.feeds(questions)
    with evaluation_mode(network), torch.inference_mode():
        found = network(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    expected = session.run(None, feeds)
    largest = max(float(np.abs(scores).max()) for scores in expected)
    difference = max(float(np.abs(a.numpy() - b).max()) for a, b in zip(found, expected, strict=True)) / largest
    if not difference <= RTOL:
        raise TrainingError(
            f"{source}: the scores of {len(questions)} questions differ by {difference:.1e} of the largest between "
            "ONNX Runtime and PyTorch; expected equal ones. Nothing was trained; report this model."
        )
    return ReaderStart(
        source=source, hidden_sizes=network.hidden_sizes, difference=difference, questions=len(questions)
    )


def _check_reader(source: Path, session: Any) -> None:
    names = {value.name for value in session.get_inputs()}, {value.name for value in session.get_outputs()}
    if names != READER:
        found, wanted = (" -> ".join(", ".join(sorted(side)) for side in sides) for sides in (names, READER))
        raise TrainingError(f"{source}: {found}; expected a reader, {wanted}. Train one with `toolchain train squad`.")
