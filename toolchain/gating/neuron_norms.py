"""Norms of the weights that belong to a neuron: what group lasso shrinks and magnitude pruning ranks.

The component of neuron k of a set is every weight that lives and dies with it. Of a layer's neuron these are its
rows of W and R in every gate block, its column of R and its column in each matrix that reads it: an intrinsic sparse
structure (Wen et al. 2018, arXiv 1709.05027, section 3.1). Biases are not counted, as in the authors' code. Of a
network's input it is its column of W alone. The row of an embedding table gets a gradient only when its word occurs;
shrunk in every update, the rare words would vanish.

Group lasso adds  weight * sum over k of |w_k|  to the loss. Its step after an update at rate r is the proximal one,

    w_k <- w_k * max(0, 1 - r * weight / |w_k|)

which is a step of plain gradient descent on the penalty that stops at zero instead of crossing it, and needs nothing
of the optimizer. A weight in two components, row of one neuron and column of another, is scaled by both.

Source: Yuan and Lin 2006, equation 2.1; Parikh and Boyd 2014, Proximal Algorithms, section 6.5.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.gating.neuron_links import all_parameters
from toolchain.gating.neuron_sets import NeuronAxis, NeuronSet, neuron_sets, writer_tensors
from toolchain.gating.selection import CompactionPlan, IndexArray, multiply_adds, plan_from_kept


def component_axes(model: nn.Module, neurons: NeuronSet) -> tuple[NeuronAxis, ...]:
    """Return the axes of the matrices that make up the components of a set, each place once."""
    parameters, writers = all_parameters(model), writer_tensors(model, neurons)
    read = {(id(parameters[reader.parameter]), reader.axis) for reader in neurons.readers}
    axes: dict[tuple[int, int, int], NeuronAxis] = {}
    for axis in neurons.axes:
        tensor = parameters[axis.parameter]
        if tensor.dim() > 1 and ((id(tensor), axis.axis) in read or id(tensor) not in writers):
            axes.setdefault((id(tensor), axis.axis, axis.first), axis)
    return tuple(axes.values())


@torch.no_grad()
def neuron_norms(model: nn.Module, neurons: NeuronSet) -> Tensor:
    """Return the L2 norm of each neuron's component, shape `[size]`; exactly 0 if all of it is."""
    parameters = all_parameters(model)
    squares = [
        neurons_of(parameters[axis.parameter], axis, neurons.size).square().flatten(2).sum((0, 2))
        for axis in component_axes(model, neurons)
    ]
    return torch.stack(squares).sum(0).sqrt()


@torch.no_grad()
def read_neurons(model: nn.Module, neurons: NeuronSet) -> Tensor:
    """Return which neurons any weight reads, bool, shape `[size]`."""
    parameters = all_parameters(model)
    columns = [parameters[reader.parameter].movedim(reader.axis, 0).flatten(1) for reader in neurons.readers]
    return torch.stack([(column != 0).any(1) for column in columns]).any(0)


@torch.no_grad()
def shrink_components(model: nn.Module, sets: Iterable[NeuronSet], *, step: float, threshold: float) -> None:
    """Take one proximal step of group lasso, in place.

    Args:
        model: linked; changed.
        sets: whose components are shrunk.
        step: how much each component's norm falls by: learning rate times weight of the penalty.
        threshold: single weights of the components below it become zero.
    """
    parameters, sets = all_parameters(model), tuple(sets)
    norms = [neuron_norms(model, neurons).clamp_min(torch.finfo(torch.float32).tiny) for neurons in sets]
    factors = [(1 - step / norm).clamp_min(0.0) for norm in norms]  # [size]
    touched: dict[int, Tensor] = {}
    for neurons, factor in zip(sets, factors, strict=True):
        for axis in component_axes(model, neurons):
            parameter = parameters[axis.parameter]
            weights = neurons_of(parameter, axis, neurons.size)
            weights.mul_(factor.to(weights.dtype).view(-1, *[1] * (weights.dim() - 2)))
            touched[id(parameter)] = parameter
    for parameter in touched.values():
        parameter.masked_fill_(parameter.abs() < threshold, 0.0)


def plan_by_norm(
    model: nn.Module, *, keep: float, dense_sizes: Mapping[str, int], dense_l0: int, among: Sequence[str]
) -> CompactionPlan:
    """Choose the neurons of largest norm, the same share of each set, until the multiply-adds are nearest to `keep`.

    Args:
        model: linked and plain. Not changed.
        keep: share of `dense_l0`, in (0, 1].
        dense_sizes: neurons of each set before any cut, by name; shares are of these.
        dense_l0: recurrent multiply-adds per step before any cut.
        among: names of the sets that may lose neurons; each keeps at least one.
    """
    sets = neuron_sets(model)
    sizes = {neurons.name: neurons.size for neurons in sets}
    cost, target = multiply_adds(model, sets, sizes), keep * dense_l0
    while cost > target and any(sizes[name] > 1 for name in among):
        name = max((name for name in among if sizes[name] > 1), key=lambda name: sizes[name] / dense_sizes[name])
        fewer = {**sizes, name: sizes[name] - 1}
        after = multiply_adds(model, sets, fewer)
        if target - after > cost - target:
            break
        sizes, cost = fewer, after
    kept = {neurons.name: _largest(neuron_norms(model, neurons), sizes[neurons.name]) for neurons in sets}
    return plan_from_kept(model, kept)


def neurons_of(parameter: Tensor, axis: NeuronAxis, size: int) -> Tensor:
    """Return a view of a parameter with a set's neurons as its second axis, shape `[blocks, size, the other axes]`."""
    neurons_first = parameter.movedim(axis.axis, 0).narrow(0, axis.first, axis.blocks * size)
    return neurons_first.view(axis.blocks, size, *neurons_first.shape[1:])


def _largest(norms: Tensor, count: int) -> IndexArray:
    """Return the sorted indices of the `count` largest; of equal ones the first."""
    order = np.argsort(-norms.double().cpu().numpy(), kind="stable")
    return np.sort(order[:count])
