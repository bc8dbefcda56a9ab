"""Learn which neurons a recurrent network needs: put gates on it, price them, fold them away.

    gated = gate(model)                                  the same network, every neuron scaled by a gate
    loss = task + weight * expected_l0(gated)            train as before; closed gates remove neurons
    freeze_gates(gated)                                  then let the weights settle around what is left
    plain = fold(gated.eval())                           no gates, the same outputs, exact zeros

`gate` takes anybody's `nn.Module`. It puts one hard concrete gate on every input neuron of each recurrent
module and on every neuron of each (layer, direction). This differs from the paper, where every layer has
input gates: the inputs of an inner layer *are* the neurons of the layer below, whose gates already scale
them. A second gate there could close without anything becoming smaller, since the layer below would still
need its neuron for itself. For the same reason a module that a model's `neuron_links` or `neuron_sources` feed from
others has no input gate, and neurons that a tied tensor makes one (see `toolchain.gating.neuron_links`) share one gate.

Source: Louizos et al. 2018, arXiv 1712.01312; Wen et al. 2019, arXiv 1906.06847.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from toolchain.errors import TrainingError
from toolchain.gating.attachment import (
    add_gates,
    check_can_gate,
    fold_gates,
    gated_modules,
    hidden_gates,
    share_gates,
    site_gates,
)
from toolchain.gating.gated_cells import GatedModule, num_directions_of
from toolchain.gating.hard_concrete import INITIAL_KEEP, HardConcrete
from toolchain.gating.neuron_links import NeuronLink, parameter_name, recurrent_modules, sources_of
from toolchain.gating.neuron_sets import NUM_GATES

__all__ = [
    "KeptNeurons",
    "NeuronLink",
    "expected_l0",
    "fold",
    "freeze_gates",
    "gate",
    "kept_l0",
    "kept_neurons",
    "total_l0",
]

IndexArray = npt.NDArray[np.intp]
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptNeurons:
    """The neurons of one recurrent module whose fixed gate is above zero.

    Attributes:
        module: dotted name; "" if the model is the module.
        input: kept input neurons, sorted, shape `[num_kept]`.
        hidden: kept neurons of each (layer, direction), in the order of `h_n`'s first axis.
        input_size: number of input neurons before removal.
        hidden_size: number of neurons per (layer, direction) before removal.
    """

    module: str
    input: IndexArray
    hidden: tuple[IndexArray, ...]
    input_size: int
    hidden_size: int


def gate(model: Model, *, initial_keep: float = INITIAL_KEEP) -> Model:
    """Return a copy of `model` in which every `nn.LSTM`, `nn.GRU` and `nn.RNN` is gated.

    Weights, hooks, shared modules and tied weights stay as they are; parameter names stay and gates are added
    (`input_gate.log_alpha`, `hidden_gates.<layer*num_directions+direction>.log_alpha`).

    Args:
        model: any module; a recurrent module itself will do. Not changed.
        initial_keep: probability in (0, 1) that a gate is non-zero at the start.

    Raises:
        TrainingError: nothing to gate; something gated already; a projected LSTM; a subclass with a forward
            of its own; `initial_keep` out of range.
    """
    if not 0 < initial_keep < 1:
        raise TrainingError(
            f"initial_keep: {initial_keep}; expected a probability strictly between 0 and 1. Try {INITIAL_KEEP}."
        )
    gated = copy.deepcopy(model)
    modules = dict(recurrent_modules(gated))
    if not modules:
        raise TrainingError(
            f"{type(model).__name__}: no recurrent module inside; expected an nn.LSTM, nn.GRU or nn.RNN. "
            "Gates act on recurrent neurons only."
        )
    for name, module in modules.items():
        check_can_gate(name, module)
    sources = sources_of(gated)
    for name, module in modules.items():
        add_gates(module, has_input_gate=name not in sources, initial_keep=initial_keep)
    share_gates(gated)
    return gated


def expected_l0(model: nn.Module) -> Tensor:
    """Return the expected number of W and R weights that the gates keep alive: multiply-adds per time step.

    A weight lives while the neuron that owns its row and the neuron that its column reads live; per
    (layer, direction) that is `num_gates * E[hidden] * (E[inputs] + E[hidden])`.

    Returns:
        A scalar, differentiable in every log_alpha.

    Raises:
        TrainingError: no gated module inside.

    Source: Wen et al. 2019, arXiv 1906.06847, section 3.
    """
    modules, input_gates = gated_modules(model), _input_gates(model)
    if not modules:
        raise TrainingError(f"{type(model).__name__}: no gated module inside; expected one. Call gate(model) first.")
    terms = []
    for name, module in modules.items():
        inputs = _expected_inputs(module, input_gates[name])
        hidden = torch.stack([g.open_probability().sum() for g in hidden_gates(module)])
        for layer in hidden.view(module.num_layers, -1):  # [num_directions]
            terms.append(NUM_GATES[module.mode] * (layer * (inputs + layer)).sum())
            inputs = layer.sum()
    return torch.stack(terms).sum()


def _expected_inputs(module: GatedModule, gates: list[HardConcrete]) -> Tensor:
    if not gates:  # they cannot be cut
        return torch.tensor(float(module.input_size))
    return torch.stack([gate.open_probability().sum() for gate in gates]).sum()


def total_l0(model: nn.Module) -> int:
    """Return the number of W and R weights of all recurrent modules, gated or not: multiply-adds per step."""
    return sum(
        weight.numel()
        for _, module in recurrent_modules(model)
        for name, weight in module.named_parameters(recurse=False)
        if name.startswith("weight_")
    )


def kept_l0(model: nn.Module) -> int:
    """Return the number of W and R weights that the fixed gates of evaluation mode keep: multiply-adds per step."""
    total, modules = 0, gated_modules(model)
    for kept in kept_neurons(model):
        module = modules[kept.module]
        num_directions = num_directions_of(module)
        inputs = len(kept.input)
        for layer in range(module.num_layers):
            hidden = [len(each) for each in kept.hidden[layer * num_directions : (layer + 1) * num_directions]]
            total += NUM_GATES[module.mode] * sum(size * (inputs + size) for size in hidden)
            inputs = sum(hidden)
    return total


def freeze_gates(model: nn.Module) -> None:
    """Fix every gate at its value of evaluation mode, in training mode too, so that only the weights learn on.

    A neuron whose gate is closed stays removed: nothing reads it, and no gradient reaches the weights that would.

    Raises:
        TrainingError: no gated module inside.
    """
    if not gated_modules(model):
        raise TrainingError(f"{type(model).__name__}: no gated module inside; expected one. Call gate(model) first.")
    for module in model.modules():
        if isinstance(module, HardConcrete):
            module.requires_grad_(False)


def kept_neurons(model: nn.Module) -> tuple[KeptNeurons, ...]:
    """Return, per gated module, which neurons the fixed gates of evaluation mode keep."""
    input_gates = _input_gates(model)
    return tuple(
        KeptNeurons(
            module=name,
            input=_open_indices(input_gates[name]) if input_gates[name] else np.arange(module.input_size),
            hidden=tuple(_open_indices([gate]) for gate in hidden_gates(module)),
            input_size=module.input_size,
            hidden_size=module.hidden_size,
        )
        for name, module in gated_modules(model).items()
    )


def fold(model: Model) -> Model:
    """Return an ungated copy of `model` that computes what it computes in evaluation mode.

    Gates are multiplied into the columns of W and R that read them. Where every gate of a module is 1 it
    becomes the plain `nn.LSTM`, `nn.GRU` or `nn.RNN` it was; otherwise a subclass with two more buffers, one
    that scales Y and h_n (`output_scale`) and one that undoes it on h_0 (`inverse_scale`).

    A removed neuron then has an exactly zero column in W and R and an exactly zero scale.
    """
    folded = copy.deepcopy(model)
    for module in gated_modules(folded).values():
        fold_gates(module)
    return folded


def _input_gates(model: nn.Module) -> dict[str, list[HardConcrete]]:
    """Return the gates of each gated module's inputs: its own, or those of the modules that feed it, or none."""
    modules, sources = gated_modules(model), sources_of(model)
    gates = {}
    for name, module in modules.items():
        if module.input_gate is not None:
            gates[name] = [module.input_gate]
        elif name in sources:
            sites = [parameter_name(source, "hidden") for source in sources[name]]
            gates[name] = [gate for site in sites for gate in site_gates(modules, site)]
        else:
            raise TrainingError(
                f"module {name!r}: has no input gate and no neuron link feeds it, nor a source; expected the model "
                "that gate() returned. Pass that model itself, not a wrapper or a part of it."
            )
    return gates


def _open_indices(gates: list[HardConcrete]) -> IndexArray:
    with torch.no_grad():
        z = torch.cat([gate.deterministic() for gate in gates])
    return np.flatnonzero(z.cpu().numpy() > 0)
