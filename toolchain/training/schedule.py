"""Which update happens when: epochs, learning rate and phases as pure functions of the update's number.

Nothing here has state, so a resumed run follows the same schedule from any update on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolchain.training.pruning_sections import GatesSection
from toolchain.training.recipe import OptimSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The numbers of a run.

    Attributes:
        optim: learning rates and epochs.
        steps: time steps per update, fewer than the recipe's if the text is shorter than one window; 1 for a task
            that reads its examples whole.
        updates_per_epoch: windows of `steps` rows in the text, the rows after the last one left out; or batches.
        start_at: update from which gates learn.
        freeze_at: update at which gates are frozen; None for a dense run.
        compact_every: updates between two cuts.
    """

    optim: OptimSection
    steps: int
    updates_per_epoch: int
    start_at: int
    freeze_at: int | None
    compact_every: int

    @property
    def updates(self) -> int:
        """Number of updates in the whole run."""
        return self.updates_per_epoch * self.optim.epochs

    def learning_rate(self, update: int) -> float:
        """Return the rate of the weights at update `update`, counted from 0."""
        optim = self.optim
        warmup = optim.warmup * self.updates
        rate = optim.learning_rate * (min(1.0, (update + 1) / warmup) if warmup > 0 else 1.0)
        if optim.schedule == "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * update / self.updates))
        epoch = update // self.updates_per_epoch  # the first `decay_after` epochs keep the full rate
        return float(rate * optim.decay ** max(0, epoch + 1 - optim.decay_after))

    def selection_progress(self, update: int) -> float:
        """Return how much of the gated phase is over at `update`: below 0 before it, 1 after it."""
        if self.freeze_at is None:
            return 1.0
        return min(1.0, (update - self.start_at) / (self.freeze_at - self.start_at))


def plan_schedule(optim: OptimSection, gates: GatesSection | None, *, rows: int) -> Schedule:
    """Divide a text of `rows` rows into updates; `gates` is None for a dense run."""
    steps = min(optim.steps, rows - 1)
    return plan_updates(optim, gates, updates_per_epoch=(rows - 1) // steps, steps=steps)


def plan_updates(optim: OptimSection, gates: GatesSection | None, *, updates_per_epoch: int, steps: int) -> Schedule:
    """Lay out the phases of a run whose epochs have `updates_per_epoch` updates."""
    updates = updates_per_epoch * optim.epochs
    start_at = 0 if gates is None else round(gates.start_at * updates)
    return Schedule(
        optim=optim,
        steps=steps,
        updates_per_epoch=updates_per_epoch,
        start_at=start_at,
        freeze_at=None if gates is None else max(start_at + 1, round(gates.freeze_at * updates)),
        compact_every=updates_per_epoch if gates is None or gates.compact_steps is None else gates.compact_steps,
    )
