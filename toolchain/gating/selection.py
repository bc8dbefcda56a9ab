"""Decide which neurons of a linked model to keep: by their gates, or by what their readers would miss.

Reconstruction: let C be the covariance of n neurons, P = C^-1, and W the matrix that reads them. Without
neuron j the others can stand in for it by least squares; what the readers still miss, over all outputs, is

    error_j = |W_j|^2 / P_jj            W_j is the column that reads j

and then, with u = P_j / P_jj,  W -= outer(W_j, u)  and  P -= outer(P_j, u): a step of backward elimination.
Only the norms of W's columns matter, so G = W'W, [n, n], is kept in its place however many outputs there are.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from toolchain.errors import TrainingError
from toolchain.gating.activation_statistics import ActivationStatistics
from toolchain.gating.hard_concrete import HardConcrete, log_alpha_of
from toolchain.gating.neuron_links import all_parameters, parameter_name, recurrent_modules
from toolchain.gating.neuron_sets import NUM_GATES, NeuronSet, neuron_sets

IndexArray = npt.NDArray[np.intp]

# A gate this seldom open passes almost no gradient of the task, while the penalty still pushes it down: it
# does not come back. (Its fixed value has been 0 since P(z != 0) fell below 0.31.)
CLOSED_PROBABILITY = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionPlan:
    """Which neurons of each set stay.

    Attributes:
        sets: the sets of the model as it is now.
        kept: sorted unique indices into each set, by the set's name; never empty.
        l0_before: recurrent multiply-adds per time step now.
        l0_after: the same for what is kept.
    """

    sets: tuple[NeuronSet, ...]
    kept: Mapping[str, IndexArray]
    l0_before: int
    l0_after: int

    @property
    def sizes(self) -> dict[str, int]:
        """Return the number of kept neurons by set name."""
        return {name: len(kept) for name, kept in self.kept.items()}

    @property
    def removes_nothing(self) -> bool:
        """Return whether every neuron stays."""
        return all(len(self.kept[neurons.name]) == neurons.size for neurons in self.sets)

    def at(self, site: str) -> IndexArray:
        """Return the kept neurons of "<module>.input" or "<module>.hidden", for instance to cut a state."""
        return next(self.kept[neurons.name] for neurons in self.sets if site in neurons.sites)


def plan_compaction(model: nn.Module, *, keep: float | None, total_l0: int | None = None) -> CompactionPlan:
    """Choose by the gates which neurons of a gated model stay; at least one of each set does.

    Args:
        model: gated and linked. Not changed.
        keep: None drops the gates that have closed for good (`CLOSED_PROBABILITY`). A fraction in (0, 1]
            of `total_l0` drops the neurons of lowest log_alpha, whatever their set, until the multiply-adds
            per step are as near to it as one neuron allows.
        total_l0: the multiply-adds that `keep` refers to: those of the network before any cut. None means
            those of `model`.

    Raises:
        TrainingError: no gates, no links, or `keep` out of range.
    """
    sets = neuron_sets(model)
    scores = {neurons.name: _log_alpha(model, neurons) for neurons in sets}
    if keep is None:
        return _plan(model, sets, _at_least(scores, log_alpha_of(CLOSED_PROBABILITY)))
    target = _target(model, sets, keep, total_l0)
    ranks = _ranks(scores)  # no two alike: a threshold then separates any two neurons

    def excess(threshold: int) -> float:
        kept = _at_least(ranks, threshold)
        return multiply_adds(model, sets, {name: len(indices) for name, indices in kept.items()}) - target

    count = sum(neurons.size for neurons in sets)
    fits = bisect.bisect_left(range(count), 0.0, key=lambda threshold: -excess(threshold))
    nearest = min((max(fits - 1, 0), fits), key=lambda threshold: abs(excess(threshold)))
    return _plan(model, sets, _at_least(ranks, nearest))


def plan_by_reconstruction(
    model: nn.Module,
    statistics: ActivationStatistics,
    *,
    keep: float | Mapping[str, int],
    total_l0: int | None = None,
    among: Sequence[str] | None = None,
) -> CompactionPlan:
    """Choose which neurons of a linked model stay by what their readers would miss; gates are not needed.

    Args:
        model: gated or plain. Not changed.
        statistics: activations of `model` as it is now.
        keep: a fraction in (0, 1] of `total_l0`: neurons then go in the order of the error they leave, as a
            fraction of what their readers get, per multiply-add saved. Or how many to keep of each set, by
            name: `plan_compaction(...).sizes` lets the gates decide how many and reconstruction which.
        total_l0: as in `plan_compaction`.
        among: names of the sets that may lose neurons to a fraction; None means all.

    Raises:
        TrainingError: no links, nothing measured, or `keep` out of range.
    """
    sets = neuron_sets(model)
    eliminations = {neurons.name: _Elimination(model, neurons, statistics) for neurons in sets}
    names = tuple(eliminations) if among is None else tuple(among)
    if isinstance(keep, Mapping):
        for neurons in sets:
            _check_count(neurons, keep.get(neurons.name))
            while len(eliminations[neurons.name].kept) > keep[neurons.name]:
                eliminations[neurons.name].remove_cheapest()
    else:
        _eliminate_until(
            model, sets, {name: eliminations[name] for name in names}, _target(model, sets, keep, total_l0)
        )
    return _plan(model, sets, {name: np.array(part.kept) for name, part in eliminations.items()})


def plan_from_kept(model: nn.Module, kept: Mapping[str, IndexArray]) -> CompactionPlan:
    """Return the plan that keeps `kept`, indices into each set of `model` by the set's name.

    Raises:
        TrainingError: no links, or a set is missing or has an index out of range.
    """
    sets = neuron_sets(model)
    for neurons in sets:
        indices = kept.get(neurons.name, np.array([], np.intp))
        _check_count(neurons, len(indices))
        if (np.diff(indices) <= 0).any() or indices[0] < 0 or indices[-1] >= neurons.size:
            raise TrainingError(
                f"kept neurons of {neurons.name!r}: {indices}; expected sorted unique indices below "
                f"{neurons.size}. Use the indices recorded with this model."
            )
    return _plan(model, sets, {neurons.name: kept[neurons.name] for neurons in sets})


def compose(earlier: Mapping[str, IndexArray], later: Mapping[str, IndexArray]) -> dict[str, IndexArray]:
    """Return the indices of `later`, which count what `earlier` kept, as indices into the original sizes."""
    return {name: earlier[name][indices] for name, indices in later.items()}


def multiply_adds(model: nn.Module, sets: Sequence[NeuronSet], sizes: Mapping[str, int]) -> int:
    """Return the multiply-adds per step of the recurrent modules if each set had `sizes[name]` neurons."""
    at = {site: sizes[neurons.name] for neurons in sets for site in neurons.sites}
    total = 0
    for name, module in recurrent_modules(model):
        inputs, hidden = at[parameter_name(name, "input")], at[parameter_name(name, "hidden")]
        total += NUM_GATES[module.mode] * hidden * (inputs + hidden)
    return total


class _Elimination:
    """Backward elimination within one set; the algebra is in the module's docstring."""

    def __init__(self, model: nn.Module, neurons: NeuronSet, statistics: ActivationStatistics) -> None:
        self.kept = list(range(neurons.size))
        self._parts: list[tuple[Tensor, Tensor]] = []  # (P, G) per site, both [size, size]
        parameters = all_parameters(model)
        for site in dict.fromkeys(reader.site for reader in neurons.readers):
            C = statistics.covariance(site)
            G = torch.zeros_like(C)
            for reader in neurons.readers:
                if reader.site == site:
                    W = parameters[reader.parameter].detach().movedim(reader.axis, -1).flatten(0, -2).to(C)
                    G += W.T @ W
            G /= (G * C).sum().clamp_min(torch.finfo(torch.float32).tiny)  # of the readers' variance, tr(WCW')
            self._parts.append((torch.linalg.inv(C), G))

    def cheapest(self) -> tuple[int, float]:
        """Return the neuron whose removal leaves the least error, and that error."""
        error = torch.stack([G.diagonal() / P.diagonal() for P, G in self._parts]).sum(0)[self.kept]
        position = int(error.argmin())
        return self.kept[position], float(error[position])

    def remove_cheapest(self) -> None:
        """Remove that neuron and let the others stand in for it."""
        j, _ = self.cheapest()
        self.kept.remove(j)
        for P, G in self._parts:
            u, g = P[:, j] / P[j, j], G[:, j].clone()
            half = g - u * (G[j, j] / 2)  # G - u g' - g u' + u u' G_jj, in two steps of rank one
            G.addr_(u, half, alpha=-1).addr_(half, u, alpha=-1)
            P.addr_(P[:, j].clone(), u, alpha=-1)


def _eliminate_until(
    model: nn.Module, sets: Sequence[NeuronSet], eliminations: Mapping[str, _Elimination], target: float
) -> None:
    """Remove neurons, the cheapest per multiply-add first, until the cost is nearest to `target`."""
    sizes = {neurons.name: neurons.size for neurons in sets}
    cost = multiply_adds(model, sets, sizes)

    def cost_without_one(name: str) -> int:
        return multiply_adds(model, sets, {**sizes, name: sizes[name] - 1})

    def error_per_saving(name: str) -> float:
        return eliminations[name].cheapest()[1] / (cost - cost_without_one(name))

    while cost > target and any(sizes[name] > 1 for name in eliminations):
        name = min((name for name in eliminations if sizes[name] > 1), key=error_per_saving)
        after = cost_without_one(name)
        if target - after > cost - target:
            return
        eliminations[name].remove_cheapest()
        sizes[name], cost = sizes[name] - 1, after


def gate_of(model: nn.Module, neurons: NeuronSet) -> HardConcrete:
    """Return the gate of a set.

    Raises:
        TrainingError: the model has none.
    """
    gate = model.get_submodule(neurons.gate) if neurons.gate else None
    if not isinstance(gate, HardConcrete):
        raise TrainingError(
            f"neurons {neurons.name!r}: have no gate; expected a model that gate() returned. Gate the model, "
            "or use plan_by_reconstruction()."
        )
    return gate


def _log_alpha(model: nn.Module, neurons: NeuronSet) -> npt.NDArray[np.float64]:
    return gate_of(model, neurons).log_alpha.detach().double().cpu().numpy()


def _at_least(scores: Mapping[str, npt.NDArray[Any]], threshold: float) -> dict[str, IndexArray]:
    """Return the neurons that reach the threshold, and of each set at least the highest."""
    return {name: np.flatnonzero(score >= min(threshold, score.max())) for name, score in scores.items()}


def _ranks(scores: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, npt.NDArray[np.intp]]:
    """Return each neuron's rank among those of all sets, 0 for the lowest score."""
    order = np.argsort(np.concatenate(list(scores.values())), kind="stable")
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    ends = np.cumsum([len(score) for score in scores.values()])
    return dict(zip(scores, np.split(ranks, ends[:-1]), strict=True))


def _target(model: nn.Module, sets: Sequence[NeuronSet], keep: float, total_l0: int | None) -> float:
    if not 0 < keep <= 1:
        raise TrainingError(f"keep: {keep}; expected a fraction above 0 and up to 1. Try 0.15.")
    if total_l0 is None:
        total_l0 = multiply_adds(model, sets, {neurons.name: neurons.size for neurons in sets})
    return keep * total_l0


def _check_count(neurons: NeuronSet, count: int | None) -> None:
    if count is None or not 1 <= count <= neurons.size:
        raise TrainingError(
            f"kept neurons of {neurons.name!r}: {count}; expected 1 to {neurons.size}. "
            "Name every set of neuron_sets(model)."
        )


def _plan(model: nn.Module, sets: tuple[NeuronSet, ...], kept: Mapping[str, IndexArray]) -> CompactionPlan:
    return CompactionPlan(
        sets=sets,
        kept=kept,
        l0_before=multiply_adds(model, sets, {neurons.name: neurons.size for neurons in sets}),
        l0_after=multiply_adds(model, sets, {name: len(indices) for name, indices in kept.items()}),
    )
