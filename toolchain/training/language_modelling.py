"""The task of predicting the next word of a text that is read in columns, state carried from update to update."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.evaluation import CHUNK, onnx_perplexity, torch_perplexity
from toolchain.exporting import State, export
from toolchain.training.cross_entropy import cross_entropy
from toolchain.training.output_noise import worst_noise
from toolchain.training.processes import Processes, gather_columns, own_columns
from toolchain.training.pruning_sections import GatesSection
from toolchain.training.recipe import Recipe
from toolchain.training.schedule import Schedule, plan_schedule
from toolchain.training.training_text import TrainingText


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """The `Metric` of language models."""

    column: str = "valid_perplexity"
    higher_is_better: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModellingResult:
    """What a run that was not stopped has reached.

    Attributes:
        model: path of the ONNX file, in the run's folder.
        perplexity: of the test text in PyTorch.
        onnx_perplexity: of the test text in ONNX Runtime, from the written file.
        test_tokens: number of tokens of the test text.
        share: of the recurrent multiply-adds kept.
        speed_ratio: tokens per second of the last epoch over those of the first.
    """

    model: Path
    perplexity: float
    onnx_perplexity: float
    test_tokens: int
    share: float
    speed_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModelling:
    """A `Task`.

    Attributes:
        schedule: windows of `schedule.steps` rows, one per update.
        train: what this process reads.
        output_noise: epsilon of `worst_noise`.
        valid: the validation text, shape `[rows, batch_size]`.
        batch_size: columns of the training text over all processes.
        calibration_tokens: how many of them `read_recent` reads.
        processes: this process among all.
    """

    metric: ClassVar[Perplexity] = Perplexity()

    schedule: Schedule
    train: TrainingText
    output_noise: float
    valid: Tensor
    batch_size: int
    calibration_tokens: int
    processes: Processes

    @property
    def tokens_per_epoch(self) -> int:
        """Words read in an epoch, over all processes."""
        return self.schedule.updates_per_epoch * self.schedule.steps * self.batch_size

    def loss(self, model: nn.Module, update: int, state: State | None) -> tuple[Tensor, State | None]:
        """Read the next window; return nats per token, and the state after it."""
        steps = self.schedule.steps
        epoch, window = divmod(update, self.schedule.updates_per_epoch)
        text, row = self.train.of_epoch(epoch), window * steps
        x, y = text[row : row + steps], text[row + 1 : row + steps + 1]  # [T, B]
        if state is None:
            state = model.initial_state(x.shape[1])  # type: ignore[operator]  # nn.Module hides the protocol
        with worst_noise(model, y, self.output_noise):
            logits, after = model(x, state)
        loss = cross_entropy(logits.flatten(0, 1), y.flatten())
        return loss, tuple(tuple(part.detach() for part in layer) for layer in after)

    def training_figures(self, loss: float) -> dict[str, float]:
        """Return the perplexity that a mean loss stands for."""
        return {"train_perplexity": math.exp(loss)}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return the perplexity of the validation text."""
        return {self.metric.column: torch_perplexity(model, self.valid)}

    def read_recent(self, model: nn.Module, update: int) -> None:
        """Read the rows just before `update`, all processes' columns; the last rows at the top of an epoch."""
        rows = max(1, self.calibration_tokens // self.batch_size)
        epoch, window = divmod(update - 1, self.schedule.updates_per_epoch)
        text, end = self.train.of_epoch(max(0, epoch)), (window + 1) * self.schedule.steps
        recent = gather_columns(text[max(0, end - rows) : end], processes=self.processes)
        state = model.initial_state(recent.shape[1])  # type: ignore[operator]  # nn.Module hides the protocol
        for start in range(0, len(recent), CHUNK):
            _, state = model(recent[start : start + CHUNK], state)

    def finish(
        self, model: nn.Module, corpus: Any, path: Path, *, share: float, speed_ratio: float, threads: int | None
    ) -> LanguageModellingResult:
        """Export the model and measure the perplexity of the test text."""
        export(model, path, metadata={"toolchain.vocabulary_sha256": corpus.vocabulary_hash})
        test = torch.from_numpy(corpus.test).long().to(self.processes.device)
        return LanguageModellingResult(
            model=path,
            perplexity=torch_perplexity(model, test[:, None]),
            onnx_perplexity=onnx_perplexity(path, corpus.test, threads=threads),
            test_tokens=len(corpus.test),
            share=share,
            speed_ratio=speed_ratio,
        )


def begin_language_modelling(
    recipe: Recipe, corpus: Any, gates: GatesSection | None, *, processes: Processes
) -> LanguageModelling:
    """Lay a `toolchain.models.text.Corpus` out in columns.

    Raises:
        DatasetError: the text cannot fill the columns of a batch.
        TrainingError: the columns cannot be shared out over the processes.
    """
    text = importlib.import_module("toolchain.models.text")
    batch_size = recipe.optim.batch_size
    train = torch.from_numpy(text.batch_columns(corpus.train, batch_size).astype(np.int64))
    valid = torch.from_numpy(text.batch_columns(corpus.valid, min(batch_size, len(corpus.valid) // 2)).astype(np.int64))
    return LanguageModelling(
        schedule=plan_schedule(recipe.optim, gates, rows=len(train)),
        train=TrainingText(
            columns=own_columns(train, processes=processes),
            partial_shuffle=recipe.optim.partial_shuffle,
            seed=recipe.run.seed,
            batch_size=batch_size,
            processes=processes,
        ),
        output_noise=recipe.optim.output_noise,
        valid=valid.to(processes.device),
        batch_size=batch_size,
        calibration_tokens=recipe.gates.calibration_tokens,
        processes=processes,
    )
