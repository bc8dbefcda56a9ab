"""Method `iss`: group lasso on the component of each neuron, its intrinsic sparse structure.

After each update every component's norm falls by learning rate times `iss.weight`, stopping at zero, and single weights
below `iss.threshold` become zero (`toolchain.gating.neuron_norms`). A neuron whose component is all zero is removed:
nothing reads it. The authors add the penalty to the loss, which with plain gradient descent is the same step, but for
two things: there the gradient's clipping scales it too, and a component that crosses zero is caught by the threshold.

Source: Wen et al. 2018, arXiv 1709.05027, sections 3.1 and 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from toolchain.gating.neuron_norms import neuron_norms, read_neurons, shrink_components
from toolchain.gating.neuron_sets import NeuronSet, neuron_sets
from toolchain.gating.selection import CompactionPlan, IndexArray, plan_from_kept
from toolchain.training.checkpoint import Checkpoint
from toolchain.training.methods.cut_record import CutRecord
from toolchain.training.methods.pruning_method import Replay, WithoutGates
from toolchain.training.methods.sites import chosen_sets
from toolchain.training.processes import Processes, decided_by_main
from toolchain.training.pruning_sections import IssSection
from toolchain.training.run_folder import Row


def begin_group_lasso(model: nn.Module, section: IssSection, *, sites: str) -> tuple[nn.Module, GroupLasso]:
    """Return the model as it is, and its method.

    Raises:
        TrainingError: the model has no neuron_links, or no neurons of these `sites`.
    """
    chosen_sets(model, sites)
    return model, GroupLasso(section=section, sites=sites, cuts=CutRecord.of(model))


@dataclass(slots=True, kw_only=True)
class GroupLasso(WithoutGates):
    """What a run keeps beside its model.

    Attributes:
        section: the recipe's.
        sites: which neurons may go.
        cuts: what is left of the dense network.
        learning: False once the penalty is taken off.
    """

    phases: ClassVar[tuple[str, str]] = ("lasso", "narrow")
    section: IssSection
    sites: str
    cuts: CutRecord
    learning: bool = True

    def after_update(self, model: nn.Module, *, progress: float, learning_rate: float) -> None:
        """Shrink every component."""
        if self.learning and progress >= 0:
            sets, section = chosen_sets(model, self.sites), self.section
            shrink_components(model, sets, step=learning_rate * section.weight, threshold=section.threshold)

    def cut(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        """Cut the neurons whose component is all zero."""
        plan = _plan(model, self.sites)
        if plan.removes_nothing:
            return False
        self.cuts.cut(model, plan, optimizer=optimizer)
        return True

    def freeze(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, replay: Replay, processes: Processes
    ) -> None:
        """Take the penalty off, and cut what nothing reads until everything is read."""
        self.learning = False
        while not (plan := decided_by_main(_plan(model, self.sites, unread=True), processes=processes)).removes_nothing:
            self.cuts.cut(model, plan, optimizer=optimizer)

    def share_kept(self, model: nn.Module) -> float:
        """Return recurrent multiply-adds over those of the dense network, without the components that are zero."""
        if self.learning:
            return _plan(model, self.sites).l0_after / self.cuts.dense_l0
        return self.cuts.share_kept(model)

    def rows(self, model: nn.Module, *, epoch: int) -> list[Row]:
        """Return, per set of neurons, how many there are and how many components are not zero."""
        rows: list[Row] = []
        for neurons in neuron_sets(model) if self.learning else ():
            norms = neuron_norms(model, neurons)
            alive = int((norms > 0).sum())
            rows.append(
                {
                    "epoch": epoch,
                    "gate": neurons.name,
                    "size": neurons.size,
                    "open": alive,
                    "mean_norm": float(norms.sum()) / max(1, alive),
                }
            )
        return rows

    def pack(self) -> Checkpoint:
        """Return what was kept."""
        return Checkpoint(tensors={}, facts={"group_lasso": {"learning": self.learning, "kept": self.cuts.facts()}})

    def restore(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        """Cut the model as it was."""
        facts = checkpoint.facts["group_lasso"]
        self.learning = facts["learning"]
        self.cuts.restore(model, facts["kept"])

    def finished(self, model: nn.Module, *, dense: nn.Module) -> nn.Module:
        """Return the trained network at its original shapes, exact zeros where neurons were."""
        return self.cuts.expanded(model, dense=dense)


def _plan(model: nn.Module, sites: str, *, unread: bool = False) -> CompactionPlan:
    """Drop the neurons whose component is zero or, if `unread`, that nothing reads; one of each set stays."""
    kept = {neurons.name: np.arange(neurons.size) for neurons in neuron_sets(model)}
    return plan_from_kept(model, kept | {n.name: _alive(model, n, unread=unread) for n in chosen_sets(model, sites)})


def _alive(model: nn.Module, neurons: NeuronSet, *, unread: bool) -> IndexArray:
    norms = neuron_norms(model, neurons)
    alive = read_neurons(model, neurons) if unread else norms > 0
    alive[norms.argmax()] = True
    return np.flatnonzero(alive.cpu().numpy())
