"""Method `neuron-selection`: price hard concrete gates, cut what has closed, freeze what is left.

A model with `neuron_links` gets smaller as it learns, and plain when its gates are frozen. Without links
nothing is cut: frozen gates stay in place at their fixed values until `finished` folds them.

Source: Wen et al. 2019, arXiv 1906.06847; gates from Louizos et al. 2018, arXiv 1712.01312.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.gates import expected_l0, fold, gate, kept_l0, total_l0
from toolchain.gating.compaction import ActivationStatistics, CompactionPlan, freeze
from toolchain.gating.hard_concrete import HardConcrete
from toolchain.gating.neuron_links import LinkedModel
from toolchain.gating.neuron_sets import neuron_sets
from toolchain.gating.selection import (
    IndexArray,
    gate_of,
    plan_by_reconstruction,
    plan_compaction,
    plan_from_kept,
)
from toolchain.training.checkpoint import Checkpoint, pack_optimizer, unpack_optimizer
from toolchain.training.methods.cut_record import CutRecord, open_neurons
from toolchain.training.methods.pruning_method import Replay
from toolchain.training.methods.sites import check_reachable, chosen_sets
from toolchain.training.pressure import Pressure
from toolchain.training.processes import Processes, decided_by_main
from toolchain.training.pruning_sections import GatesSection
from toolchain.training.run_folder import Row

_FULL_SHIFT = 40.0  # added to any log_alpha that training reaches, it opens the gate; P(z != 0) is then exactly 1
_BISECTIONS = 20  # to 4e-5 of log_alpha, less than two neurons usually differ by


def begin_neuron_selection(model: nn.Module, section: GatesSection) -> tuple[nn.Module, NeuronSelection]:
    """Return a gated copy of a dense model, and its method.

    Raises:
        TrainingError: the model has nothing to gate, its links are wrong, or `gates.sites` cannot bring it down to
            `gates.keep`.
    """
    gated = gate(model, initial_keep=section.initial_keep)
    linked = isinstance(gated, LinkedModel)
    if linked or section.sites != "both":  # only links say which neurons there are
        check_reachable(gated, section.sites, section.keep)
    if section.sites != "both":
        _hold_open(gated, sites=section.sites)
    method = NeuronSelection(
        section=section,
        pressure=Pressure(l0_weight=section.l0_weight, keep=section.keep, ramp=section.ramp),
        optimizer=_gates_optimizer(gated, section),
        cuts=CutRecord.of(gated) if linked else CutRecord(kept={}, dense_l0=total_l0(model)),
    )
    return gated, method


@dataclass(slots=True, kw_only=True)
class NeuronSelection:
    """What a run keeps beside its gated model.

    Attributes:
        section: the recipe's.
        pressure: on the gates.
        optimizer: of the gates; unused once they are frozen.
        cuts: what is left of the dense network; `kept` is empty without links.
        learning: False once the gates are frozen.
    """

    phases: ClassVar[tuple[str, str]] = ("gated", "narrow")
    section: GatesSection
    pressure: Pressure
    optimizer: torch.optim.Optimizer
    cuts: CutRecord
    learning: bool = True

    def set_mode(self, model: nn.Module, progress: float) -> None:
        """Sample the gates that learn; others, not yet, no more or never, keep their fixed values.

        A gate that has not learnt yet has the fixed value 1, so the network then trains as a dense one.
        """
        for each in _gates(model):
            each.train(self.learning and progress >= 0 and each.log_alpha.requires_grad)

    def price(self, model: nn.Module, progress: float) -> Tensor | None:
        """Return the price of the open gates in nats per token, differentiable; None while they do not learn."""
        if not self.learning or progress < 0:
            return None
        return self.pressure.price(expected_l0(model) / self.cuts.dense_l0, progress)

    def after_update(self, model: nn.Module, *, progress: float, learning_rate: float) -> None:
        """Move the gates along their gradients, and the pressure after them."""
        if self.learning and progress >= 0:
            self.optimizer.step()
            self.pressure.update(self.share_kept(model), progress)
        self.optimizer.zero_grad(set_to_none=True)

    def cut(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        """Cut the neurons whose gates closed for good; what they say is zero already, so nothing is folded.

        With a share to keep, what closed beyond it stays, the gates nearest to open first: `freeze` may reopen them.
        """
        if not self.cuts.kept:
            return False
        plan, keep, dense_l0 = plan_compaction(model, keep=None), self.section.keep, self.cuts.dense_l0
        if keep is not None and plan.l0_after < keep * dense_l0:
            plan = plan_compaction(model, keep=keep, total_l0=dense_l0)
        if plan.removes_nothing:
            return False
        self._carry_out(model, plan, optimizer)
        return True

    def freeze(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, replay: Replay, processes: Processes
    ) -> None:
        """Fix which neurons stay, exactly `keep` of the multiply-adds if that was asked.

        With a share to keep, gates that closed beyond it open again, and the neurons that are missed least go, as the
        gates scale them: those that are closed first. With a fixed price those go whose gate is closed. The others'
        message is folded into the kept ones by least squares; then the gates are taken off, and the model is a plain,
        narrow one. Without links only the gates are fixed, moved together to the share if one was asked.
        """
        self.learning = False
        for each in _gates(model):
            each.requires_grad_(False)
        keep = self.section.keep
        if not self.cuts.kept:
            if keep is not None:
                meet_share(model, keep=keep, dense_l0=self.cuts.dense_l0)
            return
        if keep is not None:
            reopen_gates(model, keep=keep, dense_l0=self.cuts.dense_l0)
        with ActivationStatistics(model) as statistics:
            replay()
        if keep is None:
            plan = plan_from_kept(model, _open_by_set(model))
        else:
            among = [neurons.name for neurons in chosen_sets(model, self.section.sites)]
            plan = plan_by_reconstruction(model, statistics, keep=keep, total_l0=self.cuts.dense_l0, among=among)
        self._carry_out(model, decided_by_main(plan, processes=processes), optimizer, statistics)
        freeze(model)

    def share_kept(self, model: nn.Module) -> float:
        """Return recurrent multiply-adds over those of the dense network; an expectation while gates learn."""
        if self.learning:
            with torch.no_grad():
                return float(expected_l0(model)) / self.cuts.dense_l0
        return self.cuts.share_kept(model) if self.cuts.kept else kept_l0(model) / self.cuts.dense_l0

    def sizes(self, model: nn.Module) -> tuple[tuple[str, int], ...]:
        """Return how many neurons each site has whose gate is open."""
        return open_neurons(model)

    def rows(self, model: nn.Module, *, epoch: int) -> list[Row]:
        """Return, per gate vector, its size and how open it is."""
        return [_row(name, each, epoch) for name, each in model.named_modules() if isinstance(each, HardConcrete)]

    def pack(self) -> Checkpoint:
        """Return the gates' optimizer, the pressure's multiplier and what was kept."""
        packed = pack_optimizer("gates_optimizer", self.optimizer)
        facts = {"multiplier": self.pressure.multiplier, "learning": self.learning, "kept": self.cuts.facts()}
        return Checkpoint(tensors=packed.tensors, facts={**packed.facts, "gated_phase": facts})

    def restore(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        """Cut the gated model as it was, and take its gates off if they were frozen."""
        facts = checkpoint.facts["gated_phase"]
        self.pressure.multiplier, self.learning = facts["multiplier"], facts["learning"]
        if self.cuts.kept:
            self.cuts.restore(model, facts["kept"])
        self.optimizer = _gates_optimizer(model, self.section)
        unpack_optimizer("gates_optimizer", self.optimizer, checkpoint)
        if not self.learning and self.cuts.kept:
            freeze(model)

    def finished(self, model: nn.Module, *, dense: nn.Module) -> nn.Module:
        """Return the trained network at its original shapes, without gates, exact zeros where neurons were."""
        return self.cuts.expanded(model, dense=dense) if self.cuts.kept else fold(model)

    def _carry_out(
        self,
        model: nn.Module,
        plan: CompactionPlan,
        optimizer: torch.optim.Optimizer,
        statistics: ActivationStatistics | None = None,
    ) -> None:
        self.cuts.cut(model, plan, optimizer=optimizer, statistics=statistics)
        _cut_gates_optimizer(model, self.optimizer, plan)


@torch.no_grad()
def reopen_gates(model: nn.Module, *, keep: float, dense_l0: int) -> None:
    """Raise every gate's log_alpha alike, as little as it takes for the open gates to reach the share `keep`.

    A pressure that overshoots can close a whole layer. Its activations are then zero, nothing can be folded into the
    neurons that stay, and the layers above have learnt nothing from it. Gates that suffice are left as they are.

    Args:
        model: gated and linked; changed in place.
        keep: share of `dense_l0`, in (0, 1).
        dense_l0: recurrent multiply-adds per step before any cut.
    """
    gates = list(_gates(model))
    start = [gate.log_alpha.clone() for gate in gates]

    def reaches(shift: float) -> bool:
        for each, log_alpha in zip(gates, start, strict=True):
            each.log_alpha.copy_(log_alpha + shift)
        return plan_from_kept(model, _open_by_set(model)).l0_after >= min(keep * dense_l0, total_l0(model))

    low, high = 0.0, _FULL_SHIFT
    if reaches(low):
        return
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    reaches(high)


@torch.no_grad()
def meet_share(model: nn.Module, *, keep: float, dense_l0: int) -> None:
    """Move every gate's log_alpha alike, until the open gates keep the share `keep`, less at most one neuron.

    Args:
        model: gated, without links; changed in place.
        keep: share of `dense_l0`, in (0, 1).
        dense_l0: recurrent multiply-adds per step of the plain model.
    """
    gates = list(_gates(model))
    start = [gate.log_alpha.clone() for gate in gates]

    def fits(shift: float) -> bool:
        for each, log_alpha in zip(gates, start, strict=True):
            each.log_alpha.copy_(log_alpha + shift)
        return kept_l0(model) <= keep * dense_l0

    low, high = -_FULL_SHIFT, _FULL_SHIFT
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    fits(low)


def _row(name: str, each: HardConcrete, epoch: int) -> Row:
    with torch.no_grad():
        z, probability = each.deterministic(), each.open_probability()
    return {
        "epoch": epoch,
        "gate": name,
        "size": z.numel(),
        "open": int((z > 0).sum()),
        "fully_open": int((z == 1).sum()),
        "mean_open_probability": float(probability.mean()),
    }


def _hold_open(model: nn.Module, *, sites: str) -> None:
    """Open all gates but those of the chosen sites for good, in place."""
    hidden = {id(each) for module in model.modules() for each in getattr(module, "hidden_gates", ())}
    for each in _gates(model):
        if (id(each) in hidden) != (sites == "hidden"):
            each.log_alpha.requires_grad_(False).fill_(_FULL_SHIFT)


def _gates(model: nn.Module) -> Iterator[HardConcrete]:
    return (module for module in model.modules() if isinstance(module, HardConcrete))


def _open_by_set(model: nn.Module) -> dict[str, IndexArray]:
    """Return the neurons whose fixed gate is above zero, and of each set at least the one nearest to it."""
    kept = {}
    for neurons in neuron_sets(model):
        gate_values = gate_of(model, neurons)
        with torch.no_grad():
            is_open = gate_values.deterministic() > 0
        is_open[gate_values.log_alpha.argmax()] = True
        kept[neurons.name] = np.flatnonzero(is_open.cpu().numpy())
    return kept


def _cut_gates_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, plan: CompactionPlan) -> None:
    """Cut the moments of the gates like the gates."""
    for neurons in plan.sets:
        kept = torch.from_numpy(plan.kept[neurons.name])
        state: dict[str, Any] = optimizer.state.get(gate_of(model, neurons).log_alpha, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == (neurons.size,):
                state[key] = value[kept.to(value.device)]


def _gates_optimizer(model: nn.Module, section: GatesSection) -> torch.optim.Optimizer:
    gates = [parameter for name, parameter in model.named_parameters() if name.endswith("log_alpha")]
    return torch.optim.Adam(gates, lr=section.learning_rate)
