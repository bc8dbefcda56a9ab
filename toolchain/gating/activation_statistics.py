"""Mean and covariance of a recurrent network's neurons, taken while it runs.

    with ActivationStatistics(model) as statistics:
        for batch in batches:
            model(batch)
    compact(model, plan, statistics=statistics)

What is measured is what the readers see: gated activations, over all time steps and sequences.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from toolchain.errors import TrainingError
from toolchain.gating.hard_concrete import HardConcrete
from toolchain.gating.neuron_links import parameter_name
from toolchain.gating.neuron_sets import neuron_sets, split_site

RIDGE = 1e-4  # of the mean variance: small against what is kept, large against what float32 sums lose


class ActivationStatistics:
    """Sums activations and their products at every site that has linear readers, until closed.

    Costs one matrix product `[size, size]` per site and forward call. A model compacted meanwhile needs
    a new one.
    """

    def __init__(self, model: nn.Module) -> None:
        self._count: dict[str, int] = {}
        self._sum: dict[str, Tensor] = {}  # [size], float64
        self._products: dict[str, Tensor] = {}  # [size, size], float64
        sites = dict.fromkeys(reader.site for neurons in neuron_sets(model) for reader in neurons.readers)
        self._handles = [
            model.get_submodule(module).register_forward_hook(self._hook(parameter_name(module, kind), kind))
            for module, kind in map(split_site, sites)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop measuring; what was measured stays."""
        for handle in self._handles:
            handle.remove()

    def mean(self, site: str) -> Tensor:
        """Return the mean activation, float64, shape `[size]`.

        Raises:
            TrainingError: nothing was measured there.
        """
        if site not in self._count:
            raise TrainingError(
                f"activation statistics: nothing measured at {site!r}; expected at least one forward call. "
                "Run the model inside the `with` block."
            )
        return self._sum[site] / self._count[site]

    def covariance(self, site: str) -> Tensor:
        """Return the covariance, `RIDGE` of its mean diagonal added, float64, shape `[size, size]`.

        Raises:
            TrainingError: nothing was measured there.
        """
        mean = self.mean(site)
        covariance = self._products[site] / self._count[site] - torch.outer(mean, mean)
        variances = covariance.diagonal()  # a view
        variances += RIDGE * variances.mean().clamp_min(torch.finfo(torch.float32).tiny)
        return covariance

    def _hook(self, site: str, kind: str) -> Any:
        def measure(module: nn.Module, args: tuple[Any, ...], result: tuple[Any, Any]) -> None:
            activations = _rows(args[0] if kind == "input" else result[0])
            gate = getattr(module, "input_gate", None)
            if kind == "input" and isinstance(gate, HardConcrete):
                activations = activations * gate.deterministic().detach()
            self._add(site, activations)

        return measure

    def _add(self, site: str, activations: Tensor) -> None:
        size = activations.shape[1]
        if site not in self._count:
            self._count[site] = 0
            self._sum[site] = activations.new_zeros(size, dtype=torch.float64)
            self._products[site] = activations.new_zeros(size, size, dtype=torch.float64)
        self._count[site] += len(activations)
        self._sum[site] += activations.sum(0)
        self._products[site] += activations.T @ activations


def _rows(activations: Tensor | PackedSequence) -> Tensor:
    """Return activations as float32 at least, shape `[time steps and sequences, size]`, without gradient."""
    values = activations.data if isinstance(activations, PackedSequence) else activations
    rows = values.detach().reshape(-1, values.shape[-1])
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
