"""What a model says of the neurons between its recurrent modules, and what follows from its tensors.

Every recurrent module has two *sites*: "rnn.0.input", the neurons it reads, and "rnn.0.hidden", the neurons
it writes. A model says what lies around its recurrent modules by `neuron_links()`, a tuple of `NeuronLink`:

    def neuron_links(self) -> tuple[NeuronLink, ...]:
        first = NeuronLink(
            module="rnn.0", writers=(("embedding.weight", 1),), readers=(("rnn.1.weight_ih_l0", 1),)
        )
        return (first, NeuronLink(module="rnn.1", readers=(("decoder.weight", 1),)))

Between a site and the tensors it names there may only be operations that act on each neuron by itself and map
0 to 0 (dropout, scaling, reshaping of the other axes). Two sites that index the same tensor along the same
axis have the same neurons: rnn.1's inputs are rnn.0's neurons, and if `decoder.weight is embedding.weight` the
embedding's neurons are rnn.1's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from toolchain.errors import TrainingError

Place = tuple[str, int]  # (parameter name, axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronLink:
    """What writes the neurons that a recurrent module reads, and what reads the neurons that it writes.

    Attributes:
        module: dotted name of a recurrent module, such as "rnn.0".
        writers: (parameter, axis) whose index along the axis is an input neuron of the module.
        readers: (parameter, axis) of matrices that multiply the module's output neurons.
        reader_biases: the bias added to each reader's product, or None, in the order of `readers`. Left
            empty, it is found by PyTorch's naming: "decoder.bias" for "decoder.weight", "rnn.1.bias_ih_l0"
            for "rnn.1.weight_ih_l0", none if there is no such parameter.
    """

    module: str
    writers: tuple[Place, ...] = ()
    readers: tuple[Place, ...] = ()
    reader_biases: tuple[str | None, ...] = ()


@runtime_checkable
class LinkedModel(Protocol):
    """A model that says which tensors its recurrent modules' neurons touch."""

    def neuron_links(self) -> tuple[NeuronLink, ...]:
        """Return one link per recurrent module."""


@runtime_checkable
class FedModel(Protocol):
    """A model without links that says whose neurons its recurrent modules read.

    Unlike what a link joins, they may be copied or multiplied with one another on the way, as long as a neuron that is
    zero leaves zeros at its places. Such a model is gated and priced as it will be cut, but not cut while it learns.
    """

    def neuron_sources(self) -> Mapping[str, tuple[str, ...]]:
        """Return the modules whose neurons a module's inputs are, side by side and repeats included, by module.

        An empty tuple says that its inputs cannot be cut: a residual layer's, which that layer reads itself.
        """


def recurrent_modules(model: nn.Module) -> Iterator[tuple[str, nn.RNNBase]]:
    """Yield every recurrent module once, under its first dotted name ("" for the model itself)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            yield name, module


def parameter_name(module: str, parameter: str) -> str:
    """Return the dotted name of a module's parameter; the model's own module is ""."""
    return f"{module}.{parameter}" if module else parameter


def links_of(model: nn.Module) -> dict[str, NeuronLink]:
    """Return the model's links by module name; empty if it has none.

    Raises:
        TrainingError: a link names something that is not there, or sizes disagree.
    """
    if not isinstance(model, LinkedModel):
        return {}
    links = {link.module: link for link in model.neuron_links()}
    modules, parameters = dict(recurrent_modules(model)), all_parameters(model)
    for name, link in links.items():
        if name not in modules:
            raise TrainingError(
                f"neuron link {name!r}: no such recurrent module; expected one of {sorted(modules)}. "
                "Correct neuron_links()."
            )
        for place in link.writers:
            _check_place(parameters, name, place, modules[name].input_size)
        for place in link.readers:
            _check_place(parameters, name, place, output_size(modules[name]))
        if link.reader_biases and len(link.reader_biases) != len(link.readers):
            raise TrainingError(
                f"neuron link {name!r}: {len(link.reader_biases)} reader_biases for {len(link.readers)} "
                "readers; expected one each, or none at all. Correct neuron_links()."
            )
    return links


def fed_by(model: nn.Module) -> dict[str, str]:
    """Return, for each recurrent module that reads another one's neurons, that other module's name."""
    parameters = all_parameters(model)
    reader_of = {
        id(parameters[parameter]): name for name, link in links_of(model).items() for parameter, _ in link.readers
    }
    return {
        name: reader_of[id(module.weight_ih_l0)]
        for name, module in recurrent_modules(model)
        if id(module.weight_ih_l0) in reader_of
    }


def sources_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return, for each recurrent module without inputs of its own, the modules whose neurons they are, in order.

    Raises:
        TrainingError: a source names something that is not there, or sizes disagree.
    """
    sources: dict[str, tuple[str, ...]] = {name: (source,) for name, source in fed_by(model).items()}
    if not isinstance(model, FedModel):
        return sources
    modules = dict(recurrent_modules(model))
    for name, names in model.neuron_sources().items():
        sizes = [output_size(modules[each]) for each in names if each in modules]
        if name not in modules or len(sizes) < len(names) or (names and sum(sizes) != modules[name].input_size):
            raise TrainingError(
                f"neuron sources {name!r}: {len(sizes)} of {len(names)} modules are there, with {sum(sizes)} neurons; "
                "expected as many neurons as the module has inputs. Correct neuron_sources()."
            )
        sources[name] = names
    return sources


def all_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter under every name it has: a tied tensor appears more than once."""
    return dict(model.named_parameters(remove_duplicate=False))


def output_size(module: nn.RNNBase) -> int:
    """Return the width of Y: `num_directions * hidden_size`."""
    return module.hidden_size * (2 if module.bidirectional else 1)


def tied_sites(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Group the sites that share neurons: by a link, or by one tensor that both index.

    Returns:
        Groups in the order of the model's modules; within a group hidden sites come first.
    """
    parameters, links = all_parameters(model), links_of(model)
    groups: list[tuple[list[str], set[tuple[int, int]]]] = []
    for name, _ in recurrent_modules(model):
        link = links.get(name, NeuronLink(module=name))
        input_places = ((parameter_name(name, "weight_ih_l0"), 1), *link.writers)
        for site, places in (("input", input_places), ("hidden", link.readers)):
            keys = {(id(parameters[parameter]), axis) for parameter, axis in places}
            sites = [parameter_name(name, site)]
            touching = [group for group in groups if group[1] & keys]
            for group in touching:
                groups.remove(group)
                sites, keys = group[0] + sites, keys | group[1]
            groups.append((sites, keys))
    return tuple(tuple(sorted(sites, key=lambda s: s.endswith("input"))) for sites, _ in groups)


def _check_place(parameters: dict[str, Tensor], module: str, place: Place, size: int) -> None:
    parameter, axis = place
    found = parameters.get(parameter)
    if found is None or not 0 <= axis < found.dim() or found.shape[axis] != size:
        actual = "no such parameter" if found is None else f"shape {list(found.shape)}"
        raise TrainingError(
            f"neuron link {module!r}: {parameter} has {actual}; expected {size} neurons along axis {axis}. "
            "Correct neuron_links()."
        )
