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
others has no input gate, and neurons that a tied tensor makes one (see `toolchain.gating.neuron_sets`) share one gate.

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
from toolchain.gating.gated_cells import (
    FoldedGRU,
    FoldedLSTM,
    FoldedRNN,
    GatedGRU,
    GatedLSTM,
    GatedModule,
    GatedRNN,
    gated_weights,
    hidden_gate_values,
    inverse_gates,
    num_directions_of,
)
from toolchain.gating.hard_concrete import INITIAL_KEEP, HardConcrete
from toolchain.gating.neuron_sets import (
    NUM_GATES,
    NeuronLink,
    parameter_name,
    recurrent_modules,
    sources_of,
    tied_sites,
)

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
_GATED: dict[type[nn.RNNBase], type[nn.RNNBase]] = {nn.LSTM: GatedLSTM, nn.GRU: GatedGRU, nn.RNN: GatedRNN}
_PLAIN: dict[type[nn.RNNBase], type[nn.RNNBase]] = {twin: plain for plain, twin in _GATED.items()}
_FOLDED: dict[type[nn.RNNBase], type[nn.RNNBase]] = {
    GatedLSTM: FoldedLSTM,
    GatedGRU: FoldedGRU,
    GatedRNN: FoldedRNN,
}


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
        _check_can_gate(name, module)
    sources = sources_of(gated)
    for name, module in modules.items():
        _add_gates(module, has_input_gate=name not in sources, initial_keep=initial_keep)
    _share_gates(gated)
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
    modules, input_gates = _gated_modules(model), _input_gates(model)
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
    total, modules = 0, _gated_modules(model)
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
    if not _gated_modules(model):
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
        for name, module in _gated_modules(model).items()
    )


def fold(model: Model) -> Model:
    """Return an ungated copy of `model` that computes what it computes in evaluation mode.

    Gates are multiplied into the columns of W and R that read them. Where every gate of a module is 1 it
    becomes the plain `nn.LSTM`, `nn.GRU` or `nn.RNN` it was; otherwise a subclass with two more buffers, one
    that scales Y and h_n (`output_scale`) and one that undoes it on h_0 (`inverse_scale`).

    A removed neuron then has an exactly zero column in W and R and an exactly zero scale.
    """
    folded = copy.deepcopy(model)
    for module in _gated_modules(folded).values():
        _fold_module(module)
    return folded


def _fold_module(module: GatedModule) -> None:
    gates = [*hidden_gates(module), *([module.input_gate] if module.input_gate else [])]
    for gate in gates:
        gate.eval()
    with torch.no_grad():
        z_h = hidden_gate_values(module)
        weights = gated_weights(module, z_h)
    for name, weight in zip(module._flat_weights_names, weights, strict=True):
        if name.startswith("weight_"):  # a new Parameter: another module may share the old one
            old = getattr(module, name)
            setattr(module, name, nn.Parameter(weight, requires_grad=old.requires_grad))
    folded_class = _FOLDED[type(module)]
    plain = remove_gates(module)
    if not bool((z_h == 1).all()):
        plain.__class__ = folded_class
        plain.register_buffer("output_scale", z_h.to(weights[0].dtype))
        plain.register_buffer("inverse_scale", inverse_gates(z_h).to(weights[0].dtype))
    plain.flatten_parameters()


def remove_gates(module: nn.RNNBase) -> nn.RNNBase:
    """Turn a gated module into the plain one that it was, in place and without folding; return it."""
    del module.input_gate
    del module.hidden_gates
    module.__class__ = _PLAIN[type(module)]
    return module


def hidden_gates(module: GatedModule) -> list[HardConcrete]:
    """Return the neurons' gates, one per (layer, direction)."""
    return [gate for gate in module.hidden_gates if isinstance(gate, HardConcrete)]


def _gated_modules(model: nn.Module) -> dict[str, GatedModule]:
    return {name: module for name, module in recurrent_modules(model) if isinstance(module, GatedModule)}


def _input_gates(model: nn.Module) -> dict[str, list[HardConcrete]]:
    """Return the gates of each gated module's inputs: its own, or those of the modules that feed it, or none."""
    modules, sources = _gated_modules(model), sources_of(model)
    gates = {}
    for name, module in modules.items():
        if module.input_gate is not None:
            gates[name] = [module.input_gate]
        elif name in sources:
            sites = [parameter_name(source, "hidden") for source in sources[name]]
            gates[name] = [gate for site in sites for gate in _site_gates(modules, site)]
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


def _check_can_gate(name: str, module: nn.RNNBase) -> None:
    label = f"module {name!r}"
    if isinstance(module, GatedModule):
        raise TrainingError(f"{label}: gated already; expected a plain module. Use it as it is, or fold() it first.")
    if type(module) not in _GATED:
        raise TrainingError(
            f"{label}: is a {type(module).__name__}; expected exactly nn.LSTM, nn.GRU or nn.RNN, because a "
            "subclass may compute something else. Replace it by the class it derives from."
        )
    if module.proj_size:
        raise TrainingError(
            f"{label}: proj_size is {module.proj_size}; expected 0, because a projection mixes the neurons "
            "that gates would remove. Use an nn.LSTM without proj_size."
        )


def _add_gates(module: nn.RNNBase, *, has_input_gate: bool, initial_keep: float) -> None:
    weight = next(module.parameters())

    def new_gate(size: int) -> HardConcrete:
        gate = HardConcrete(size, initial_keep=initial_keep, device=weight.device, dtype=weight.dtype)
        return gate.train(module.training)

    cells = module.num_layers * num_directions_of(module)
    module.__class__ = _GATED[type(module)]
    module.register_module("input_gate", new_gate(module.input_size) if has_input_gate else None)
    module.register_module("hidden_gates", nn.ModuleList([new_gate(module.hidden_size) for _ in range(cells)]))


def _share_gates(model: nn.Module) -> None:
    """Give the sites of one neuron set one gate, where a tied tensor makes them one."""
    modules = _gated_modules(model)
    for sites in tied_sites(model):
        gated = {site: gates for site in sites if (gates := _site_gates(modules, site))}
        if len(gated) <= 1:
            continue
        if any(len(gates) > 1 for gates in gated.values()):
            raise TrainingError(
                f"{' and '.join(gated)}: share a tensor, and one of them is bidirectional; expected one "
                "direction. Untie the weights."
            )
        shared, *others = gated
        for site in others:
            name, _, kind = site.rpartition(".")
            if kind == "input":
                modules[name].input_gate = gated[shared][0]
            else:
                modules[name].hidden_gates[-1] = gated[shared][0]


def _site_gates(modules: dict[str, GatedModule], site: str) -> list[HardConcrete]:
    """Return the gates of "<module>.input" or "<module>.hidden"; none where another module's gates serve."""
    name, _, kind = site.rpartition(".")
    module = modules[name]
    if kind == "hidden":
        return hidden_gates(module)[-num_directions_of(module) :]
    return [] if module.input_gate is None else [module.input_gate]
