"""Method `iss` for a model that is not cut while it learns: neurons whose component is zero fall silent where they are.

The penalty is that of `group_lasso`. Of such a model (`FedModel`) only the recurrent readers of a neuron are known, so
a component that has become zero takes the neuron's biases with it: the neuron then is zero at every step, for every
reader. It stays so to the end of the run, and `toolchain shrink` removes it.

Source: Wen et al. 2018, arXiv 1709.05027, sections 3.1 and 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from toolchain.errors import TrainingError
from toolchain.gating.fed_neurons import fed_multiply_adds, fed_neuron_sets, fed_sizes
from toolchain.gating.neuron_links import all_parameters
from toolchain.gating.neuron_norms import neuron_norms, neurons_of, shrink_components
from toolchain.training.checkpoint import Checkpoint, with_prefix
from toolchain.training.methods.pruning_method import KeepsShapes, Replay
from toolchain.training.processes import Processes
from toolchain.training.pruning_sections import IssSection
from toolchain.training.run_folder import Row


def begin_group_lasso_in_place(
    model: nn.Module, section: IssSection, *, sites: str
) -> tuple[nn.Module, GroupLassoInPlace]:
    """Return the model as it is, and its method.

    Raises:
        TrainingError: `sites` are inputs, or the model's `neuron_sources` are wrong.
    """
    if sites == "input":
        raise TrainingError(
            f"gates.sites: input: what writes the inputs of {type(model).__name__} is unknown; expected hidden or "
            "both. Choose one of these."
        )
    alive = {neurons.name: torch.ones(neurons.size, dtype=torch.bool) for neurons in fed_neuron_sets(model)}
    return model, GroupLassoInPlace(section=section, alive=alive)


@dataclass(slots=True, kw_only=True)
class GroupLassoInPlace(KeepsShapes):
    """What a run keeps beside its model.

    Attributes:
        section: the recipe's.
        alive: False where a neuron has fallen silent, by site, shape `[size]`.
        learning: False once the penalty is taken off.
    """

    phases: ClassVar[tuple[str, str]] = ("lasso", "narrow")
    section: IssSection
    alive: dict[str, Tensor]
    learning: bool = True

    @torch.no_grad()
    def after_update(self, model: nn.Module, *, progress: float, learning_rate: float) -> None:
        """Shrink every component, and keep silent what has fallen silent."""
        sets = fed_neuron_sets(model)
        if self.learning and progress >= 0:
            step = learning_rate * self.section.weight
            shrink_components(model, sets, step=step, threshold=self.section.threshold)
            for neurons in sets:
                norms = neuron_norms(model, neurons)
                alive = self.alive[neurons.name].to(norms.device) & (norms > 0)
                alive[norms.argmax()] = True  # one stays
                self.alive[neurons.name] = alive
        parameters = all_parameters(model)
        for neurons in sets:
            alive = self.alive[neurons.name]
            for axis in neurons.axes:
                weights = neurons_of(parameters[axis.parameter], axis, neurons.size)
                weights.mul_(alive.to(weights).view(-1, *[1] * (weights.dim() - 2)))

    def freeze(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, replay: Replay, processes: Processes
    ) -> None:
        """Take the penalty off."""
        self.learning = False

    def share_kept(self, model: nn.Module) -> float:
        """Return the recurrent multiply-adds of the neurons that are left over those of all."""
        sizes = {name: len(alive) for name, alive in self.alive.items()}
        return fed_multiply_adds(model, self._left()) / fed_multiply_adds(model, sizes)

    def sizes(self, model: nn.Module) -> tuple[tuple[str, int], ...]:
        """Return how many neurons each site has that are not silent."""
        return tuple(fed_sizes(model, self._left()).items())

    def rows(self, model: nn.Module, *, epoch: int) -> list[Row]:
        """Return, per recurrent module, how many neurons there are and how many are left."""
        if not self.learning:
            return []
        rows: list[Row] = []
        for neurons in fed_neuron_sets(model):
            norms, alive = neuron_norms(model, neurons), int(self.alive[neurons.name].sum())
            rows.append({"epoch": epoch, "gate": neurons.name, "size": neurons.size, "open": alive,
                         "mean_norm": float(norms.sum()) / alive})  # fmt: skip
        return rows

    def pack(self) -> Checkpoint:
        """Return which neurons are left."""
        alive = {f"group_lasso_alive.{name}": alive for name, alive in self.alive.items()}
        return Checkpoint(tensors=alive, facts={"group_lasso_in_place": {"learning": self.learning}})

    def _left(self) -> dict[str, int]:
        return {name: int(alive.sum()) for name, alive in self.alive.items()}

    def restore(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        """Take which neurons are left."""
        self.learning = checkpoint.facts["group_lasso_in_place"]["learning"]
        device = next(model.parameters()).device
        self.alive = {name: alive.to(device) for name, alive in
                      with_prefix("group_lasso_alive", checkpoint.tensors).items()}  # fmt: skip
