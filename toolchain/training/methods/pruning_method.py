"""What the training loop asks of a pruning method, what many methods answer alike, and a network that is not pruned.

A method chooses while it is `learning`, from `gates.start_at` to `gates.freeze_at`, and may meanwhile cut what is gone
for good out of the model. `freeze` ends that: what stays is fixed, and the rest of the run fine-tunes it.

    set_mode     whenever a phase begins
    price        before each update, added to the loss
    after_update after the weights have moved
    cut          every `compact_every` updates
    freeze       once
    pack         into each checkpoint; `restore` takes it out again, and the run goes on bit by bit
    finished     at the end: the original shapes, with exact zeros
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from toolchain.training.checkpoint import Checkpoint
from toolchain.training.methods.cut_record import open_neurons
from toolchain.training.processes import Processes
from toolchain.training.run_folder import Row

Replay = Callable[[], None]  # runs the model, in evaluation mode, over text that it was just trained on


class PruningMethod(Protocol):
    """Chooses what to remove from a model in training.

    `progress` is the share of the method's time that is over: below 0 before it starts, 1 when it ends.

    Attributes:
        phases: what a run's metrics call the time while the method learns, and the time after.
        learning: whether it still chooses.
    """

    phases: ClassVar[tuple[str, str]]
    learning: bool

    def set_mode(self, model: nn.Module, progress: float) -> None:
        """Switch what the method has put into the model to the phase that begins; the rest trains already."""

    def price(self, model: nn.Module, progress: float) -> Tensor | None:
        """Return what to add to the loss, nats per token, differentiable; None for nothing."""

    def after_update(self, model: nn.Module, *, progress: float, learning_rate: float) -> None:
        """Follow an update of the weights, which was made at `learning_rate`."""

    def cut(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        """Cut what is gone for good, in place and out of the optimizer; return whether there was anything."""

    def freeze(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, replay: Replay, processes: Processes
    ) -> None:
        """Fix what stays and stop learning; the model is changed in place, the optimizer's state with it."""

    def share_kept(self, model: nn.Module) -> float:
        """Return the recurrent multiply-adds left over those of the dense network."""

    def sizes(self, model: nn.Module) -> tuple[tuple[str, int], ...]:
        """Return how many neurons each site has that are not gone: (site, number)."""

    def rows(self, model: nn.Module, *, epoch: int) -> list[Row]:
        """Return the rows of `gates.csv` for one epoch."""

    def pack(self) -> Checkpoint:
        """Return what a checkpoint must hold beside the model."""

    def restore(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        """Give a model and method that have just begun the sizes and the state of a checkpoint, weights apart."""

    def finished(self, model: nn.Module, *, dense: nn.Module) -> nn.Module:
        """Return the trained network at its original shapes; `dense` has them and may take the weights."""


class WithoutGates:
    """What the methods have in common that put nothing into the model and add nothing to the loss."""

    __slots__ = ()

    def set_mode(self, model: nn.Module, progress: float) -> None:
        """Do nothing: the model is a plain one all along."""

    def price(self, model: nn.Module, progress: float) -> Tensor | None:
        """Return None."""
        return None

    def sizes(self, model: nn.Module) -> tuple[tuple[str, int], ...]:
        """Return the sizes that the model has."""
        return open_neurons(model)


class KeepsShapes(WithoutGates):
    """What the methods have in common that, besides, leave every tensor its shape."""

    __slots__ = ()

    def cut(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        """Return False."""
        return False

    def finished(self, model: nn.Module, *, dense: nn.Module) -> nn.Module:
        """Return the model itself."""
        return model


@dataclass(slots=True, kw_only=True)
class Dense(KeepsShapes):
    """No pruning: methods `dense` and `direct`."""

    phases: ClassVar[tuple[str, str]] = ("dense", "dense")
    learning: bool = False

    def after_update(self, model: nn.Module, *, progress: float, learning_rate: float) -> None:
        """Do nothing."""

    def freeze(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, replay: Replay, processes: Processes
    ) -> None:
        """Do nothing."""

    def share_kept(self, model: nn.Module) -> float:
        """Return 1."""
        return 1.0

    def rows(self, model: nn.Module, *, epoch: int) -> list[Row]:
        """Return none."""
        return []

    def pack(self) -> Checkpoint:
        """Return an empty one."""
        return Checkpoint(tensors={}, facts={})

    def restore(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        """Do nothing."""
