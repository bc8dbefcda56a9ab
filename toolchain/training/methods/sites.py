"""Which neurons of a linked model a method may give up: `gates.sites`."""

from __future__ import annotations

from torch import nn

from toolchain.errors import TrainingError
from toolchain.gating.neuron_sets import NeuronSet, neuron_sets, split_site
from toolchain.gating.selection import multiply_adds


def chosen_sets(model: nn.Module, sites: str) -> tuple[NeuronSet, ...]:
    """Return the sets that may lose neurons.

    Args:
        model: linked.
        sites: `hidden`: sets with a layer's own neurons. `input`: all others, which the network only reads. `both`.

    Raises:
        TrainingError: no links, or no such set.
    """
    sets = tuple(each for each in neuron_sets(model) if sites in ("both", split_site(each.name)[1]))
    if not sets:
        names = ", ".join(each.name for each in neuron_sets(model))
        raise TrainingError(
            f"gates.sites: {sites}: no such neurons, the network's are {names}; expected one of their kinds. "
            "Untie its weights, or choose both."
        )
    return sets


def check_reachable(model: nn.Module, sites: str, keep: float | None) -> None:
    """Refuse a share of the multiply-adds that the chosen sets cannot bring an uncut model down to.

    Raises:
        TrainingError: as `chosen_sets`, or `keep` is below what one neuron of each chosen set costs.
    """
    sizes = {neurons.name: neurons.size for neurons in neuron_sets(model)}
    smallest = {**sizes, **{neurons.name: 1 for neurons in chosen_sets(model, sites)}}
    least = multiply_adds(model, neuron_sets(model), smallest) / multiply_adds(model, neuron_sets(model), sizes)
    if keep is not None and keep < least:
        raise TrainingError(
            f"gates.keep: {keep:g} of the multiply-adds; expected at least {least:.3f}, what gates.sites = {sites} "
            "leaves with one neuron each. Keep more, or set gates.sites = both."
        )
