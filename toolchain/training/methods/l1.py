"""Method `l1`: single weights of W and R become zero; the network keeps its shape.

After each update every weight moves towards zero by learning rate times `l1.weight`, stopping there (soft
thresholding, the proximal step of the L1 norm). At `gates.freeze_at` the largest `gates.keep` of the weights stay, of
all matrices together; the others are zero from then on, and what stays is fine-tuned. A zero costs ONNX Runtime as
much as any other number, so nothing gets faster but where a whole neuron happens to have died.

Source: Parikh and Boyd 2014, Proximal Algorithms, section 6.5.2; Wen et al. 2018, arXiv 1709.05027, whose code takes
1e-4 for 2x1500 on Penn Treebank and keeps zeros while it fine-tunes (ptb/l1.json, `--freeze_mode element`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from toolchain.gating.neuron_links import parameter_name, recurrent_modules
from toolchain.training.checkpoint import Checkpoint, with_prefix
from toolchain.training.methods.pruning_method import KeepsShapes, Replay
from toolchain.training.processes import Processes
from toolchain.training.run_folder import Row


@dataclass(slots=True, kw_only=True)
class L1(KeepsShapes):
    """What a run keeps beside its model.

    Attributes:
        weight: of the penalty, the sum of absolute weights.
        keep: share of the recurrent weights that stays; None keeps those that the penalty has left.
        learning: False once the zeros are fixed.
        masks: which weights stay, by parameter; empty while learning.
    """

    phases: ClassVar[tuple[str, str]] = ("l1", "sparse")
    weight: float
    keep: float | None
    learning: bool = True
    masks: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def after_update(self, model: nn.Module, *, progress: float, learning_rate: float) -> None:
        """Move the weights towards zero or, once frozen, put the removed ones back to zero."""
        for name, weight in recurrent_weights(model).items():
            if not self.learning:
                weight.mul_(self.masks[name])
            elif progress >= 0:
                weight.copy_(nn.functional.softshrink(weight, learning_rate * self.weight))

    @torch.no_grad()
    def freeze(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, replay: Replay, processes: Processes
    ) -> None:
        """Fix which weights are zero: all but the largest `keep`."""
        self.learning = False
        weights = recurrent_weights(model)
        sizes = torch.cat([weight.abs().flatten() for weight in weights.values()])
        removed = 0 if self.keep is None else len(sizes) - round(self.keep * len(sizes))
        threshold = float(sizes.kthvalue(removed).values) if removed else 0.0
        self.masks = {name: weight.abs() > threshold for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.mul_(self.masks[name])

    def share_kept(self, model: nn.Module) -> float:
        """Return 1: a multiplication by zero is one."""
        return 1.0

    def rows(self, model: nn.Module, *, epoch: int) -> list[Row]:
        """Return none: no neuron is counted out."""
        return []

    def pack(self) -> Checkpoint:
        """Return the masks."""
        masks = {f"l1_mask.{name}": mask for name, mask in self.masks.items()}
        return Checkpoint(tensors=masks, facts={"l1": {"learning": self.learning}})

    def restore(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        """Take the masks."""
        self.learning = checkpoint.facts["l1"]["learning"]
        devices = {name: weight.device for name, weight in recurrent_weights(model).items()}
        masks = with_prefix("l1_mask", checkpoint.tensors)
        self.masks = {name: mask.to(devices[name]) for name, mask in masks.items()}


def recurrent_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return W and R of every recurrent module by name; biases and other layers are not pruned."""
    return {
        parameter_name(name, own): weight
        for name, module in recurrent_modules(model)
        for own, weight in module.named_parameters(recurse=False)
        if own.startswith("weight_")
    }
