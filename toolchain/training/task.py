"""What a network is trained for: everything the training loop needs to know of data, loss and figures.

A task holds this process's share of the data, on its device. It has no state of its own, so a resumed run asks it
for the same updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

from toolchain.exporting import State
from toolchain.training.language_modelling import LanguageModellingResult, begin_language_modelling
from toolchain.training.processes import Processes
from toolchain.training.pruning_sections import GatesSection
from toolchain.training.reading_comprehension import ReadingResult, begin_reading_comprehension
from toolchain.training.recipe import Recipe
from toolchain.training.schedule import Schedule

Figures: TypeAlias = Mapping[str, float]
TrainingResult: TypeAlias = LanguageModellingResult | ReadingResult  # what a run has reached, as `result.json` has it


class Metric(Protocol):
    """The figure of the validation data that says which of two networks is better."""

    @property
    def column(self) -> str:
        """Its column in `metrics.csv`."""

    @property
    def higher_is_better(self) -> bool:
        """Its direction."""


class Task(Protocol):
    """Data, loss and figures of a training run."""

    @property
    def schedule(self) -> Schedule:
        """Which update happens when."""

    @property
    def tokens_per_epoch(self) -> int:
        """Words read in an epoch, over all processes."""

    @property
    def metric(self) -> Metric:
        """Which of the validation figures counts."""

    def loss(self, model: nn.Module, update: int, state: State | None) -> tuple[Tensor, State | None]:
        """Run the model on the data of one update.

        Args:
            model: in training mode.
            update: counted from 0 over the whole run.
            state: what the previous update returned; None at the top of the data, or after a cut.

        Returns:
            The loss, a differentiable scalar, and what the next update continues from, without gradient.
        """

    def training_figures(self, loss: float) -> Figures:
        """Return the columns of `metrics.csv` that a mean training loss makes."""

    def validate(self, model: nn.Module) -> Figures:
        """Return the columns of `metrics.csv` that the validation data makes; the model's mode stays."""

    def read_recent(self, model: nn.Module, update: int) -> None:
        """Run the model, in its mode, on data from just before `update`, alike in every process."""

    def finish(
        self, model: nn.Module, corpus: Any, path: Path, *, share: float, speed_ratio: float, threads: int | None
    ) -> TrainingResult:
        """Export the model and measure it on the test data, in PyTorch and in ONNX Runtime.

        Args:
            model: the trained network at its original shapes, without gates.
            corpus: what the task was begun with.
            path: the ONNX file to write.
            share: for the result.
            speed_ratio: for the result.
            threads: of ONNX Runtime.

        Raises:
            OutputError: the file cannot be written.
            ParityError: ONNX Runtime computes something else than PyTorch.
        """


def begin_task(recipe: Recipe, corpus: Any, gates: GatesSection | None, *, processes: Processes) -> Task:
    """Lay the data of a recipe out for training.

    Args:
        recipe: what to train.
        corpus: what the recipe's data section names.
        gates: None for a run without gates.
        processes: from `join_processes`.

    Raises:
        DatasetError: there is not enough of it for one batch.
        TrainingError: a batch cannot be shared out over the processes.
    """
    begin = begin_reading_comprehension if recipe.data.corpus == "squad" else begin_language_modelling
    return begin(recipe, corpus, gates, processes=processes)
