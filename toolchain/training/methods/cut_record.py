"""Which neurons have been cut out of a linked model so far, in the dense network's indices, and how many are left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from toolchain.gates import kept_neurons, total_l0
from toolchain.gating.compaction import ActivationStatistics, CompactionPlan, compact, expand
from toolchain.gating.hard_concrete import HardConcrete
from toolchain.gating.neuron_links import recurrent_modules
from toolchain.gating.neuron_sets import neuron_sets
from toolchain.gating.selection import IndexArray, compose, plan_from_kept


@dataclass(slots=True, kw_only=True)
class CutRecord:
    """What is left of the dense network.

    Attributes:
        kept: per neuron set of the dense model, the indices not cut so far, sorted.
        dense_l0: recurrent multiply-adds per step before any cut.
    """

    kept: dict[str, IndexArray]
    dense_l0: int

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Return the record of a linked model, gated or plain, of which nothing is cut.

        Raises:
            TrainingError: no links, or wrong ones.
        """
        kept = {neurons.name: np.arange(neurons.size) for neurons in neuron_sets(model)}
        return cls(kept=kept, dense_l0=total_l0(model))

    def cut(
        self,
        model: nn.Module,
        plan: CompactionPlan,
        *,
        optimizer: torch.optim.Optimizer,
        statistics: ActivationStatistics | None = None,
    ) -> None:
        """Carry out a plan, in place (see `compact`), and take note of it."""
        compact(model, plan, optimizer=optimizer, statistics=statistics)
        self.kept = compose(self.kept, plan.kept)

    def share_kept(self, model: nn.Module) -> float:
        """Return the multiply-adds of the model as it is cut over those of the dense network."""
        return total_l0(model) / self.dense_l0

    def facts(self) -> dict[str, Any]:
        """Return `kept` as JSON values."""
        return {name: indices.tolist() for name, indices in self.kept.items()}

    def restore(self, model: nn.Module, facts: dict[str, Any]) -> None:
        """Take `kept` from `facts` and cut an uncut model, in place, down to it."""
        self.kept = {name: np.array(indices, dtype=np.intp) for name, indices in facts.items()}
        compact(model, plan_from_kept(model, self.kept))

    def expanded(self, model: nn.Module, *, dense: nn.Module) -> nn.Module:
        """Return `dense`, of the original shapes, with the weights of the cut, plain model and zeros elsewhere."""
        device = next(model.parameters()).device
        dense.load_state_dict(expand(model.state_dict(), self.kept, neuron_sets(dense)))
        return dense.to(device)


def open_neurons(model: nn.Module) -> tuple[tuple[str, int], ...]:
    """Return how many neurons each site has whose gate, if there is one, is open: (site, number)."""
    counts = []
    gated = (
        {kept.module: kept for kept in kept_neurons(model)}
        if any(isinstance(module, HardConcrete) for module in model.modules())
        else {}
    )
    for name, module in recurrent_modules(model):
        kept = gated.get(name)
        inputs = module.input_size if kept is None else len(kept.input)
        hidden = [module.hidden_size] if kept is None else [len(indices) for indices in kept.hidden]
        counts += [(f"{name}.input", inputs), *((f"{name}.hidden", number) for number in hidden)]
    return tuple(counts)
