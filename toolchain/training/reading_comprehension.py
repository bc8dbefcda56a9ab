"""The task of finding the answer to a question in a paragraph: the first and the last word of it."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from toolchain.errors import DatasetError, TrainingError
from toolchain.exporting import State
from toolchain.training.graph_network import GraphNetwork
from toolchain.training.processes import Processes
from toolchain.training.pruning_sections import GatesSection
from toolchain.training.recipe import Recipe
from toolchain.training.schedule import Schedule, plan_updates

# Seo et al. 2017 leave longer paragraphs out of training: a few of them, and a batch is as slow as its longest.
LONGEST_PARAGRAPH = 400
POOL = 20  # batches among which questions are sorted by length: little padding, yet batches differ from epoch to epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class F1:
    """The `Metric` of readers."""

    column: str = "valid_f1"
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingResult:
    """What a run that was not stopped has reached.

    Attributes:
        model: path of the ONNX file, in the run's folder.
        exact_match: of the test questions in PyTorch, in percent.
        f1: likewise.
        onnx_exact_match: of the test questions in ONNX Runtime, from the written file, in percent.
        onnx_f1: likewise.
        test_questions: number of test questions.
        share: of the recurrent multiply-adds kept.
        speed_ratio: tokens per second of the last epoch over those of the first.
    """

    model: Path
    exact_match: float
    f1: float
    onnx_exact_match: float
    onnx_f1: float
    test_questions: int
    share: float
    speed_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingComprehension:
    """A `Task`.

    Attributes:
        schedule: as many updates in an epoch as there are whole batches.
        corpus: a `toolchain.models.squad.Squad`.
        train: questions to learn from, all processes'.
        lengths: words of each one's paragraph.
        batch_size: questions of an update over all processes.
        seed: of their order.
        calibration_tokens: words that `read_recent` reads, about.
        processes: this process among all.
    """

    metric: ClassVar[F1] = F1()

    schedule: Schedule
    corpus: Any
    train: tuple[Any, ...]
    lengths: tuple[int, ...]
    batch_size: int
    seed: int
    calibration_tokens: int
    processes: Processes

    @property
    def tokens_per_epoch(self) -> int:
        """Words of questions and paragraphs read in an epoch, over all processes, on average."""
        total = sum(_words(question) for question in self.train)
        return round(total * self.schedule.updates_per_epoch * self.batch_size / len(self.train))

    def loss(self, model: nn.Module, update: int, state: State | None) -> tuple[Tensor, State | None]:
        """Read the questions of one batch; return the cross-entropy of both words, summed, in nats per question."""
        questions = self._batch(update)[self.processes.index :: self.processes.count]
        feeds = self._feeds(questions)
        start, end = model(**feeds)  # [T, B]
        padding = feeds["paragraph"] == 0
        loss = sum(
            nn.functional.cross_entropy(
                logits.float().masked_fill(padding, -math.inf).T, torch.tensor(words, device=logits.device)
            )
            for logits, words in ((start, [q.first for q in questions]), (end, [q.last for q in questions]))
        )
        assert isinstance(loss, Tensor)  # for the type checker: a sum may be the number 0
        return loss, None

    def training_figures(self, loss: float) -> dict[str, float]:
        """Return the loss itself."""
        return {"train_loss": loss}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return exact match and F1 of the validation questions."""
        scores = _evaluation().torch_scores(model, self.corpus, self.corpus.valid)
        return {"valid_exact_match": scores.exact_match, self.metric.column: scores.f1}

    def read_recent(self, model: nn.Module, update: int) -> None:
        """Read the batches just before `update`, all processes' questions; the first ones at the very beginning."""
        words, before = 0, max(update, 1)
        while before and words < self.calibration_tokens:
            before -= 1
            questions = self._batch(before)
            words += sum(_words(question) for question in questions)
            model(**self._feeds(questions))

    def finish(
        self, model: nn.Module, corpus: Any, path: Path, *, share: float, speed_ratio: float, threads: int | None
    ) -> ReadingResult:
        """Export the model and measure exact match and F1 of the test questions."""
        metadata = {"toolchain.vocabulary_sha256": corpus.vocabulary_hash}
        write = model.write if isinstance(model, GraphNetwork) else None
        export = importlib.import_module("toolchain.models.reader_export").export_reader
        export(model, path, metadata=metadata, write=write)
        found = _evaluation().torch_scores(model, corpus, corpus.test)
        onnx = _evaluation().onnx_scores(path, corpus, corpus.test, threads=threads)
        return ReadingResult(
            model=path,
            exact_match=found.exact_match,
            f1=found.f1,
            onnx_exact_match=onnx.exact_match,
            onnx_f1=onnx.f1,
            test_questions=len(corpus.test),
            share=share,
            speed_ratio=speed_ratio,
        )

    def _batch(self, update: int) -> list[Any]:
        """Return the questions of an update, all processes'; they depend on nothing but seed and update."""
        epoch, batch = divmod(update, self.schedule.updates_per_epoch)
        batches = _batches(self.lengths, batch_size=self.batch_size, seed=self.seed, epoch=epoch)
        return [self.train[index] for index in batches[batch]]

    def _feeds(self, questions: Sequence[Any]) -> dict[str, Tensor]:
        feeds = self.corpus.feeds(questions)
        return {name: torch.from_numpy(array).to(self.processes.device) for name, array in feeds.items()}


def begin_reading_comprehension(
    recipe: Recipe, corpus: Any, gates: GatesSection | None, *, processes: Processes
) -> ReadingComprehension:
    """Divide the questions of a `toolchain.models.squad.Squad` into updates.

    Raises:
        DatasetError: fewer questions than a batch has.
        TrainingError: a batch cannot be shared out over the processes.
    """
    batch_size = recipe.optim.batch_size
    train = tuple(question for question in corpus.train if len(question.paragraph.forms) <= LONGEST_PARAGRAPH)
    if len(train) < batch_size:
        raise DatasetError(
            f"{corpus.origin}: {len(train)} questions to learn from; expected at least optim.batch_size, {batch_size}. "
            "Use more data or a smaller `optim.batch_size`."
        )
    if batch_size % processes.count:
        raise TrainingError(
            f"optim.batch_size: {batch_size} questions for {processes.count} processes; expected a multiple. "
            f"Use `--set optim.batch_size={max(1, batch_size // processes.count) * processes.count}`."
        )
    return ReadingComprehension(
        schedule=plan_updates(recipe.optim, gates, updates_per_epoch=len(train) // batch_size, steps=1),
        corpus=corpus,
        train=train,
        lengths=tuple(len(question.paragraph.forms) for question in train),
        batch_size=batch_size,
        seed=recipe.run.seed,
        calibration_tokens=recipe.gates.calibration_tokens,
        processes=processes,
    )


@functools.lru_cache(maxsize=2)  # the epoch's own, and the one before it for `read_recent`
def _batches(lengths: tuple[int, ...], *, batch_size: int, seed: int, epoch: int) -> npt.NDArray[np.intp]:
    """Return which questions each update of an epoch reads, shape `[updates_per_epoch, batch_size]`.

    Questions are shuffled, sorted by length within a pool of batches, and the batches shuffled again.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))[: len(lengths) // batch_size * batch_size]
    sizes = np.array(lengths)
    pools = [order[start : start + POOL * batch_size] for start in range(0, len(order), POOL * batch_size)]
    by_length = np.concatenate([pool[np.argsort(sizes[pool], kind="stable")] for pool in pools])
    return random.permutation(by_length.reshape(-1, batch_size))


def _words(question: Any) -> int:
    return len(question.forms) + len(question.paragraph.forms)


def _evaluation() -> Any:
    return importlib.import_module("toolchain.models.squad_evaluation")
