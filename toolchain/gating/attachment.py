"""Puts gates on the recurrent modules of a model in place, takes them off again, and finds them.

A gated module is the module itself with another class and two more children; without them it is what it was:

    nn.LSTM  -- add_gates -->  GatedLSTM  -- remove_gates -->  nn.LSTM       the weights as they are
                                          -- fold_gates ---->  FoldedLSTM    the gates multiplied into them
"""

from __future__ import annotations

import torch
from torch import nn

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
from toolchain.gating.hard_concrete import HardConcrete
from toolchain.gating.neuron_links import recurrent_modules, tied_sites

_GATED: dict[type[nn.RNNBase], type[nn.RNNBase]] = {nn.LSTM: GatedLSTM, nn.GRU: GatedGRU, nn.RNN: GatedRNN}
_PLAIN: dict[type[nn.RNNBase], type[nn.RNNBase]] = {twin: plain for plain, twin in _GATED.items()}
_FOLDED: dict[type[nn.RNNBase], type[nn.RNNBase]] = {
    GatedLSTM: FoldedLSTM,
    GatedGRU: FoldedGRU,
    GatedRNN: FoldedRNN,
}


def check_can_gate(name: str, module: nn.RNNBase) -> None:
    """Refuse a module that gates cannot be put on.

    Raises:
        TrainingError: gated already; a subclass with a forward of its own; a projected LSTM.
    """
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


def add_gates(module: nn.RNNBase, *, has_input_gate: bool, initial_keep: float) -> None:
    """Turn a plain module into its gated twin, in place."""
    weight = next(module.parameters())

    def new_gate(size: int) -> HardConcrete:
        gate = HardConcrete(size, initial_keep=initial_keep, device=weight.device, dtype=weight.dtype)
        return gate.train(module.training)

    cells = module.num_layers * num_directions_of(module)
    module.__class__ = _GATED[type(module)]
    module.register_module("input_gate", new_gate(module.input_size) if has_input_gate else None)
    module.register_module("hidden_gates", nn.ModuleList([new_gate(module.hidden_size) for _ in range(cells)]))


def share_gates(model: nn.Module) -> None:
    """Give the sites of one neuron set one gate, where a tied tensor makes them one."""
    modules = gated_modules(model)
    for sites in tied_sites(model):
        gated = {site: gates for site in sites if (gates := site_gates(modules, site))}
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


def remove_gates(module: nn.RNNBase) -> nn.RNNBase:
    """Turn a gated module into the plain one that it was, in place and without folding; return it."""
    del module.input_gate
    del module.hidden_gates
    module.__class__ = _PLAIN[type(module)]
    return module


def fold_gates(module: GatedModule) -> None:
    """Multiply a gated module's gates into its weights and take them off, in place."""
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


def gated_modules(model: nn.Module) -> dict[str, GatedModule]:
    """Return the gated modules by dotted name."""
    return {name: module for name, module in recurrent_modules(model) if isinstance(module, GatedModule)}


def hidden_gates(module: GatedModule) -> list[HardConcrete]:
    """Return the neurons' gates, one per (layer, direction)."""
    return [gate for gate in module.hidden_gates if isinstance(gate, HardConcrete)]


def site_gates(modules: dict[str, GatedModule], site: str) -> list[HardConcrete]:
    """Return the gates of "<module>.input" or "<module>.hidden"; none where another module's gates serve."""
    name, _, kind = site.rpartition(".")
    module = modules[name]
    if kind == "hidden":
        return hidden_gates(module)[-num_directions_of(module) :]
    return [] if module.input_gate is None else [module.input_gate]
