"""Which tensors share a neuron: the axes that must be scaled, gated or cut together.

The sites that have the same neurons (see `neuron_links`), and everything that those neurons index, are one `NeuronSet`.
A set has one gate per neuron; a neuron lives for all its sites or for none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from toolchain.errors import TrainingError
from toolchain.gating.neuron_links import (
    NeuronLink,
    all_parameters,
    fed_by,
    links_of,
    parameter_name,
    recurrent_modules,
    tied_sites,
)

NUM_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronAxis:
    """One axis of one parameter that a set's neurons index: from `first` on, `blocks` stacked runs of `size`."""

    parameter: str
    axis: int
    blocks: int = 1
    first: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronReader:
    """A matrix that multiplies the activations of one site, whose neurons it indexes along `axis`."""

    parameter: str
    axis: int
    bias: str | None
    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronSet:
    """Neurons that live and die together.

    Attributes:
        name: the first of `sites`.
        sites: every "<module>.input" and "<module>.hidden" whose neurons these are, hidden ones first.
        size: number of neurons.
        axes: everything that a neuron indexes, under every name it has.
        readers: the linear readers among `axes`.
        gate: the module that gates the neurons, a `HardConcrete`; None in a model without gates.
    """

    name: str
    sites: tuple[str, ...]
    size: int
    axes: tuple[NeuronAxis, ...]
    readers: tuple[NeuronReader, ...]
    gate: str | None


def neuron_sets(model: nn.Module) -> tuple[NeuronSet, ...]:
    """Return every set of neurons that must be cut together, for a gated or a plain model.

    Raises:
        TrainingError: the model has no `neuron_links`, or a recurrent module is stacked or bidirectional.
    """
    links = links_of(model)
    if not links:
        raise TrainingError(
            f"{type(model).__name__}: no neuron_links(), so what reads its neurons is unknown; expected a "
            "NeuronLink for each recurrent module. Define neuron_links(), or leave the model uncut."
        )
    for name, module in recurrent_modules(model):
        if module.num_layers != 1 or module.bidirectional:
            raise TrainingError(
                f"module {name!r}: has {module.num_layers} layers and bidirectional={module.bidirectional}; "
                "expected one layer in one direction. Stack single-layer modules in an nn.ModuleList."
            )
    return tuple(_neuron_set(model, links, sites) for sites in tied_sites(model))


def split_site(site: str) -> tuple[str, str]:
    """Split "<module>.input" into the module's name and "input"; likewise for "hidden"."""
    module, _, kind = site.rpartition(".")
    return module, kind


def writer_tensors(model: nn.Module, neurons: NeuronSet) -> set[int]:
    """Return the `id` of every tensor that writes the input neurons of one of the set's sites."""
    parameters, links = all_parameters(model), links_of(model)
    inputs = [module for module, kind in map(split_site, neurons.sites) if kind == "input"]
    return {id(parameters[place[0]]) for name in inputs if name in links for place in links[name].writers}


def _neuron_set(model: nn.Module, links: dict[str, NeuronLink], sites: tuple[str, ...]) -> NeuronSet:
    parameters, sources = all_parameters(model), fed_by(model)
    axes: list[NeuronAxis] = []
    readers: list[NeuronReader] = []
    for site in sites:
        name, kind = split_site(site)
        link = links.get(name, NeuronLink(module=name))
        axes += _site_axes(model, name, kind, link)
        if kind == "hidden":
            R = NeuronLink(module=name, readers=((parameter_name(name, "weight_hh_l0"), 1),))
            readers += [*_readers(R, site, parameters), *_readers(link, site, parameters)]
        elif name not in sources:
            W = NeuronLink(module=name, readers=((parameter_name(name, "weight_ih_l0"), 1),))
            readers += _readers(W, site, parameters)
    log_alphas = [axis.parameter for axis in axes if axis.parameter.endswith(".log_alpha")]
    first = axes[0]
    return NeuronSet(
        name=sites[0],
        sites=sites,
        size=parameters[first.parameter].shape[first.axis] // first.blocks,
        axes=tuple(dict.fromkeys(_with_aliases(axes, parameters))),
        readers=tuple(readers),
        gate=log_alphas[0].rpartition(".")[0] if log_alphas else None,
    )


def _site_axes(model: nn.Module, name: str, kind: str, link: NeuronLink) -> list[NeuronAxis]:
    """Return what the neurons of one site index, links included."""
    module = model.get_submodule(name)
    blocks = NUM_GATES[str(module.mode)]
    if kind == "input":
        places = [("weight_ih_l0", 1, 1), ("input_gate.log_alpha", 0, 1)]
    else:
        places = [(own, 0, blocks) for own in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
        places += [("weight_hh_l0", 1, 1), ("hidden_gates.0.log_alpha", 0, 1)]
    present = dict(module.named_parameters(remove_duplicate=False))
    axes = [
        NeuronAxis(parameter=parameter_name(name, own), axis=axis, blocks=count)
        for own, axis, count in places
        if own in present
    ]
    outside = link.writers if kind == "input" else link.readers
    return axes + [NeuronAxis(parameter=parameter, axis=axis) for parameter, axis in outside]


def _readers(link: NeuronLink, site: str, parameters: dict[str, Tensor]) -> list[NeuronReader]:
    biases = link.reader_biases or tuple(_usual_bias(parameter, parameters) for parameter, _ in link.readers)
    return [
        NeuronReader(parameter=parameter, axis=axis, bias=bias, site=site)
        for (parameter, axis), bias in zip(link.readers, biases, strict=True)
    ]


def _usual_bias(weight: str, parameters: dict[str, Tensor]) -> str | None:
    module, _, own = weight.rpartition(".")
    bias = parameter_name(module, own.replace("weight", "bias", 1))
    return bias if bias != weight and bias in parameters else None


def _with_aliases(axes: list[NeuronAxis], parameters: dict[str, Tensor]) -> Iterator[NeuronAxis]:
    for axis in axes:
        for name, parameter in parameters.items():
            if parameter is parameters[axis.parameter]:
                yield replace(axis, parameter=name)
