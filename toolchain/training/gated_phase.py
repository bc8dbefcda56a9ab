"""The gated phase of a training run: price the gates, cut what has closed, freeze what is left.

A model with `neuron_links` gets smaller as it learns, and plain when its gates are frozen. Without links
nothing is cut: frozen gates stay in place at their fixed values until `finished_model` folds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from toolchain.evaluation import evaluation_mode
from toolchain.gates import expected_l0, fold, gate, kept_neurons, total_l0
from toolchain.gating.compaction import ActivationStatistics, CompactionPlan, compact, expand, freeze
from toolchain.gating.hard_concrete import HardConcrete
from toolchain.gating.neuron_sets import LinkedModel, neuron_sets, recurrent_modules
from toolchain.gating.selection import compose, gate_of, plan_by_reconstruction, plan_compaction, plan_from_kept
from toolchain.training.checkpoint import Checkpoint, pack_optimizer, unpack_optimizer
from toolchain.training.pressure import Pressure
from toolchain.training.processes import Processes, decided_by_main
from toolchain.training.recipe import GatesSection
from toolchain.training.run_folder import Row

IndexArray = npt.NDArray[np.intp]

_FULL_SHIFT = 40.0  # added to any log_alpha that training reaches, it opens the gate
_BISECTIONS = 20  # to 4e-5 of log_alpha, less than two neurons usually differ by


@dataclass(slots=True, kw_only=True)
class GatedPhase:
    """What a run keeps beside its gated model.

    Attributes:
        section: the recipe's.
        pressure: on the gates.
        optimizer: of the gates; unused once they are frozen.
        learning: False once the gates are frozen.
        dense_l0: recurrent multiply-adds per step before any cut.
        kept: per neuron set of the dense model, the indices not cut so far; empty without links.
    """

    section: GatesSection
    pressure: Pressure
    optimizer: torch.optim.Optimizer
    learning: bool
    dense_l0: int
    kept: dict[str, IndexArray]


def begin_gated_phase(model: nn.Module, section: GatesSection) -> tuple[nn.Module, GatedPhase]:
    """Return a gated copy of a dense model, and its phase.

    Raises:
        TrainingError: the model has nothing to gate, or its links are wrong.
    """
    gated = gate(model, initial_keep=section.initial_keep)
    phase = GatedPhase(
        section=section,
        pressure=Pressure(l0_weight=section.l0_weight, keep=section.keep, ramp=section.ramp),
        optimizer=_gates_optimizer(gated, section),
        learning=True,
        dense_l0=total_l0(model),
        kept={neurons.name: np.arange(neurons.size) for neurons in neuron_sets(gated)} if _is_linked(gated) else {},
    )
    return gated, phase


def pack_gated_phase(phase: GatedPhase) -> Checkpoint:
    """Return what a checkpoint must hold beside the model."""
    packed = pack_optimizer("gates_optimizer", phase.optimizer)
    facts = {
        "multiplier": phase.pressure.multiplier,
        "learning": phase.learning,
        "kept": {name: indices.tolist() for name, indices in phase.kept.items()},
    }
    return Checkpoint(tensors=packed.tensors, facts={**packed.facts, "gated_phase": facts})


def restore_gated_phase(model: nn.Module, phase: GatedPhase, checkpoint: Checkpoint) -> None:
    """Give a model and phase that have just begun the sizes and the state of a checkpoint, weights apart."""
    facts = checkpoint.facts["gated_phase"]
    phase.pressure.multiplier, phase.learning = facts["multiplier"], facts["learning"]
    phase.kept = {name: np.array(indices, dtype=np.intp) for name, indices in facts["kept"].items()}
    if phase.kept:
        compact(model, plan_from_kept(model, phase.kept))
    phase.optimizer = _gates_optimizer(model, phase.section)
    unpack_optimizer("gates_optimizer", phase.optimizer, checkpoint)
    if not phase.learning and phase.kept:
        freeze(model)


def training_mode(model: nn.Module, phase: GatedPhase | None, progress: float) -> None:
    """Switch to training; gates that do not learn, not yet or no more, keep their fixed values.

    A gate that has not learnt yet has the fixed value 1, so the network then trains as a dense one.
    """
    model.train()
    if phase is None:
        return
    for module in model.modules():
        if isinstance(module, HardConcrete):
            module.train(phase.learning and progress >= 0)
        if isinstance(module, nn.Dropout) and not phase.learning and phase.section.dropout is not None:
            module.p = phase.section.dropout


def share_kept(model: nn.Module, phase: GatedPhase | None) -> float:
    """Return recurrent multiply-adds over those of the dense network; an expectation while gates learn."""
    if phase is None:
        return 1.0
    if phase.learning or not phase.kept:
        with torch.no_grad():
            return float(expected_l0(model)) / phase.dense_l0
    return total_l0(model) / phase.dense_l0


def price_gates(model: nn.Module, phase: GatedPhase, progress: float) -> Tensor | None:
    """Return the price of the open gates in nats per token, differentiable; None while they do not learn."""
    if not phase.learning or progress < 0:
        return None
    return phase.pressure.price(expected_l0(model) / phase.dense_l0, progress)


def update_gates(model: nn.Module, phase: GatedPhase, progress: float) -> None:
    """Move the gates along their gradients, and the pressure after them."""
    if phase.learning and progress >= 0:
        phase.optimizer.step()
        phase.pressure.update(share_kept(model, phase), progress)


def cut_closed_neurons(model: nn.Module, phase: GatedPhase, optimizer: torch.optim.Optimizer) -> bool:
    """Cut the neurons whose gates closed for good, in place; return whether there were any.

    What they say is zero already, so nothing is folded.
    """
    if not phase.kept:
        return False
    plan = plan_compaction(model, keep=None)
    if plan.removes_nothing:
        return False
    compact(model, plan, optimizer=optimizer)
    _cut_gates_optimizer(model, phase.optimizer, plan)
    phase.kept = compose(phase.kept, plan.kept)
    return True


def freeze_gates(
    model: nn.Module,
    phase: GatedPhase,
    optimizer: torch.optim.Optimizer,
    *,
    read_recent: Callable[[nn.Module], None],
    processes: Processes,
) -> None:
    """Fix which neurons stay, exactly `keep` of the multiply-adds if that was asked, and end the phase.

    With a share to keep, gates that closed beyond it open again, and the neurons that are missed least go, as the
    gates scale them: those that are closed first. With a fixed price those go whose gate is closed. The others'
    message is folded into the kept ones by least squares. Changed in place: the model becomes a plain, narrow one,
    and the optimizer's state is cut with it. Without links only the gates are fixed.

    Args:
        model: gated.
        phase: of this model.
        optimizer: of the weights.
        read_recent: runs a model on the data to take activations from, alike in every process.
        processes: the main one decides.
    """
    phase.learning = False
    for module in model.modules():
        if isinstance(module, HardConcrete):
            module.requires_grad_(False)
    if not phase.kept:
        return
    if phase.section.keep is not None:
        reopen_gates(model, keep=phase.section.keep, dense_l0=phase.dense_l0)
    with evaluation_mode(model), torch.no_grad(), ActivationStatistics(model) as statistics:
        read_recent(model)
    if phase.section.keep is None:
        plan = plan_from_kept(model, _open_by_set(model))
    else:
        plan = plan_by_reconstruction(model, statistics, keep=phase.section.keep, total_l0=phase.dense_l0)
    plan = decided_by_main(plan, processes=processes)
    compact(model, plan, optimizer=optimizer, statistics=statistics)
    _cut_gates_optimizer(model, phase.optimizer, plan)
    phase.kept = compose(phase.kept, plan.kept)
    freeze(model)


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
    gates = [module for module in model.modules() if isinstance(module, HardConcrete)]
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


def finished_model(model: nn.Module, phase: GatedPhase | None, *, dense: nn.Module) -> nn.Module:
    """Return the trained network at its original shapes, without gates, exact zeros where neurons were.

    Args:
        model: trained; not changed.
        phase: None for a dense run.
        dense: a network of the original shapes; takes the weights if the model has links.
    """
    if phase is None:
        return model
    if not phase.kept:
        return fold(model)
    device = next(model.parameters()).device
    dense.load_state_dict(expand(model.state_dict(), phase.kept, neuron_sets(dense)))
    return dense.to(device)


def open_neurons(model: nn.Module) -> tuple[tuple[str, int], ...]:
    """Return how many neurons each site has whose gate, if there is one, is open: (site, number)."""
    counts = []
    gated = {kept.module: kept for kept in kept_neurons(model)} if _is_gated(model) else {}
    for name, module in recurrent_modules(model):
        kept = gated.get(name)
        inputs = module.input_size if kept is None else len(kept.input)
        hidden = [module.hidden_size] if kept is None else [len(indices) for indices in kept.hidden]
        counts += [(f"{name}.input", inputs), *((f"{name}.hidden", number) for number in hidden)]
    return tuple(counts)


def gate_rows(model: nn.Module, *, epoch: int) -> list[Row]:
    """Return the rows of `gates.csv` for one epoch: per gate vector its size, and how open it is."""
    rows: list[Row] = []
    for name, module in model.named_modules():
        if isinstance(module, HardConcrete):
            with torch.no_grad():
                z, probability = module.deterministic(), module.open_probability()
            rows.append(
                {
                    "epoch": epoch,
                    "gate": name,
                    "size": z.numel(),
                    "open": int((z > 0).sum()),
                    "fully_open": int((z == 1).sum()),
                    "mean_open_probability": float(probability.mean()),
                }
            )
    return rows


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


def _is_linked(model: nn.Module) -> bool:
    return isinstance(model, LinkedModel)


def _is_gated(model: nn.Module) -> bool:
    return any(isinstance(module, HardConcrete) for module in model.modules())
