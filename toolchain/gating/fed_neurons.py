"""The neurons of a `FedModel`: which weights belong to each, as far as the model's recurrent modules go.

Such a model says whose neurons a module reads, not which other tensors read them. A neuron's rows and columns in the
recurrent modules are known, so it can be made to write nothing but zeros, which every reader then may lose; the model
itself keeps its shape.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from toolchain.errors import TrainingError
from toolchain.gating.neuron_links import parameter_name, recurrent_modules, sources_of
from toolchain.gating.neuron_sets import NUM_GATES, NeuronAxis, NeuronSet


def fed_neuron_sets(model: nn.Module) -> tuple[NeuronSet, ...]:
    """Return the hidden neurons of every recurrent module; of their readers only those in recurrent modules.

    Raises:
        TrainingError: `neuron_sources` is wrong, or a module is stacked or bidirectional.
    """
    modules, sources = dict(recurrent_modules(model)), sources_of(model)
    axes: dict[str, list[NeuronAxis]] = {name: _own_axes(name, module) for name, module in modules.items()}
    for reader, names in sources.items():
        first = 0
        for name in names:
            axes[name].append(NeuronAxis(parameter=parameter_name(reader, "weight_ih_l0"), axis=1, first=first))
            first += modules[name].hidden_size
    return tuple(
        NeuronSet(name=site, sites=(site,), size=module.hidden_size, axes=tuple(axes[name]), readers=(), gate=None)
        for name, module in modules.items()
        for site in (parameter_name(name, "hidden"),)
    )


def fed_multiply_adds(model: nn.Module, alive: Mapping[str, int]) -> int:
    """Return the multiply-adds per step of all recurrent modules with so many hidden neurons each, by site."""
    left, total = fed_sizes(model, alive), 0
    for name, module in recurrent_modules(model):
        inputs, hidden = left[parameter_name(name, "input")], left[parameter_name(name, "hidden")]
        total += NUM_GATES[str(module.mode)] * hidden * (inputs + hidden)
    return total


def fed_sizes(model: nn.Module, alive: Mapping[str, int]) -> dict[str, int]:
    """Return the number of inputs and of hidden neurons of every recurrent module, by site.

    Args:
        model: a `FedModel`.
        alive: how many hidden neurons write something, by site.
    """
    sources = sources_of(model)
    sizes: dict[str, int] = {}
    for name, module in recurrent_modules(model):
        below = sources.get(name)
        inputs = sum(alive[parameter_name(each, "hidden")] for each in below) if below else module.input_size
        sizes |= {parameter_name(name, "input"): inputs,
                  parameter_name(name, "hidden"): alive[parameter_name(name, "hidden")]}  # fmt: skip
    return sizes


def _own_axes(name: str, module: nn.RNNBase) -> list[NeuronAxis]:
    if module.num_layers != 1 or module.bidirectional:
        raise TrainingError(
            f"module {name!r}: has {module.num_layers} layers and bidirectional={module.bidirectional}; "
            "expected one layer in one direction. Use a module for each."
        )
    blocks = NUM_GATES[str(module.mode)]
    rows = [
        NeuronAxis(parameter=parameter_name(name, own), axis=0, blocks=blocks)
        for own, _ in module.named_parameters(recurse=False)
    ]
    return [*rows, NeuronAxis(parameter=parameter_name(name, "weight_hh_l0"), axis=1)]
