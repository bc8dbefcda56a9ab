"""Method `magnitude`: the neurons of smallest norm go, a few at a time, while the others go on learning.

The share of multiply-adds left falls from 1 to `keep` as a cubic of the method's progress p,

    share(p) = keep + (1 - keep) (1 - p)^3

fast while there is much to spare, slowly at the end. Every set of neurons keeps the same share of its own. What the
removed neurons said is not folded into the others: they learn it.

Source: Zhu and Gupta 2017, arXiv 1710.01878, equation 1; the norm of a neuron is that of `neuron_norms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from toolchain.gating.neuron_norms import plan_by_norm
from toolchain.gating.neuron_sets import neuron_sets
from toolchain.gating.selection import CompactionPlan
from toolchain.training.checkpoint import Checkpoint
from toolchain.training.methods.cut_record import CutRecord
from toolchain.training.methods.pruning_method import Replay, WithoutGates
from toolchain.training.methods.sites import check_reachable, chosen_sets
from toolchain.training.processes import Processes, decided_by_main
from toolchain.training.run_folder import Row


def begin_magnitude(model: nn.Module, *, keep: float, sites: str) -> tuple[nn.Module, Magnitude]:
    """Return the model as it is, and its method.

    Raises:
        TrainingError: the model has no neuron_links, or `sites` cannot bring it down to `keep`.
    """
    check_reachable(model, sites, keep)
    sizes = {neurons.name: neurons.size for neurons in neuron_sets(model)}
    return model, Magnitude(keep=keep, sites=sites, dense_sizes=sizes, cuts=CutRecord.of(model))


@dataclass(slots=True, kw_only=True)
class Magnitude(WithoutGates):
    """What a run keeps beside its model.

    Attributes:
        keep: share of the multiply-adds at the end.
        sites: which neurons may go.
        dense_sizes: neurons of each set before any cut.
        cuts: what is left of the dense network.
        progress: share of the method's time that is over.
        learning: False once `keep` is reached.
    """

    phases: ClassVar[tuple[str, str]] = ("pruned", "narrow")
    keep: float
    sites: str
    dense_sizes: dict[str, int]
    cuts: CutRecord
    progress: float = 0.0
    learning: bool = True

    def after_update(self, model: nn.Module, *, progress: float, learning_rate: float) -> None:
        """Take note of the time."""
        self.progress = max(0.0, progress)

    def cut(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        """Cut the neurons of smallest norm down to the share that is due."""
        plan = self._plan(model, share_due(self.keep, self.progress))
        if plan.removes_nothing:
            return False
        self.cuts.cut(model, plan, optimizer=optimizer)
        return True

    def freeze(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, replay: Replay, processes: Processes
    ) -> None:
        """Cut down to `keep`, as near as one neuron allows."""
        self.learning = False
        plan = decided_by_main(self._plan(model, self.keep), processes=processes)
        self.cuts.cut(model, plan, optimizer=optimizer)

    def share_kept(self, model: nn.Module) -> float:
        """Return recurrent multiply-adds over those of the dense network."""
        return self.cuts.share_kept(model)

    def rows(self, model: nn.Module, *, epoch: int) -> list[Row]:
        """Return, per set of neurons, how many there were and how many are left."""
        if not self.learning:
            return []
        return [
            {"epoch": epoch, "gate": name, "size": self.dense_sizes[name], "open": len(kept)}
            for name, kept in self.cuts.kept.items()
        ]

    def pack(self) -> Checkpoint:
        """Return what was kept."""
        facts = {"learning": self.learning, "progress": self.progress, "kept": self.cuts.facts()}
        return Checkpoint(tensors={}, facts={"magnitude": facts})

    def restore(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        """Cut the model as it was."""
        facts = checkpoint.facts["magnitude"]
        self.learning, self.progress = facts["learning"], facts["progress"]
        self.cuts.restore(model, facts["kept"])

    def finished(self, model: nn.Module, *, dense: nn.Module) -> nn.Module:
        """Return the trained network at its original shapes, exact zeros where neurons were."""
        return self.cuts.expanded(model, dense=dense)

    def _plan(self, model: nn.Module, share: float) -> CompactionPlan:
        return plan_by_norm(
            model,
            keep=share,
            dense_sizes=self.dense_sizes,
            dense_l0=self.cuts.dense_l0,
            among=[neurons.name for neurons in chosen_sets(model, self.sites)],
        )


def share_due(keep: float, progress: float) -> float:
    """Return the share of the multiply-adds that should be left at `progress`, 0 to 1."""
    return keep + (1 - keep) * (1 - progress) ** 3
