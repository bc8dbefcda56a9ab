"""Cut neurons out of a linked model in PyTorch, optimizer state included, and take gates off it.

    plan = plan_compaction(model, keep=None)                    or plan_by_reconstruction
    compact(model, plan, optimizer=optimizer, statistics=statistics)
    freeze(model)                                               plain nn.LSTM again, the same logits
    state = expand(model.state_dict(), kept, sets_of_the_dense_model)    original shapes, exact zeros

`compact` and `freeze` change the model they are given, because an optimizer and a training loop hold its
parameters: every `nn.Parameter` stays the object it was. Gradients are dropped, so call them between steps.
A carried state has the old sizes: cut it with `plan.at("rnn.0.hidden")`, or start from zeros. After `freeze`
start from zeros: h was gated before and is not any more. Wrap a distributed model anew after a cut.

Folding: with x_k the kept and x_r the removed neurons, mu their means, C their covariance, the best linear
guess of what was removed is  mu_r + A (x_k - mu_k)  with  A = C_rk C_kk^-1,  so a reader W with bias b is then

    W_k + W_r A,        b + W_r (mu_r - A mu_k)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.errors import TrainingError
from toolchain.gating.activation_statistics import ActivationStatistics
from toolchain.gating.attachment import remove_gates
from toolchain.gating.neuron_links import NeuronLink, all_parameters, recurrent_modules
from toolchain.gating.neuron_sets import NeuronSet, neuron_sets, split_site, writer_tensors
from toolchain.gating.selection import (
    CompactionPlan,
    IndexArray,
    compose,
    gate_of,
    plan_by_reconstruction,
    plan_compaction,
    plan_from_kept,
)

__all__ = [
    "ActivationStatistics",
    "CompactionPlan",
    "NeuronLink",
    "NeuronSet",
    "compact",
    "compose",
    "expand",
    "freeze",
    "neuron_sets",
    "plan_by_reconstruction",
    "plan_compaction",
    "plan_from_kept",
]


@torch.no_grad()
def compact(
    model: nn.Module,
    plan: CompactionPlan,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    statistics: ActivationStatistics | None = None,
) -> None:
    """Cut a model, in place, down to the neurons that a plan keeps.

    Args:
        model: the linked model that the plan was made for, gated or plain; changed.
        plan: which neurons stay.
        optimizer: its per-parameter state is cut like the parameters.
        statistics: activations of `model` as it is now; what the removed neurons said is folded into the
            readers of those that stay. None drops it. A reader that is also the embedding (tied weights) is
            left as it is, since changing it would change the inputs too; only its bias is adjusted.

    Raises:
        TrainingError: the plan was made for other sizes, or the optimizer keeps state of another shape.
    """
    if plan.sets != neuron_sets(model):
        raise TrainingError(
            f"{type(model).__name__}: its neuron sets are not those of the plan; expected the model that the "
            "plan was made for, not cut since. Plan again."
        )
    cuts = _cuts(all_parameters(model), plan.sets, plan.kept)
    if optimizer is not None:
        _check_optimizer(optimizer, [parameter for parameter, _ in cuts.values()])
    if statistics is not None:
        _check_statistics(statistics, plan.sets)
        for neurons in plan.sets:
            _fold_removed(model, neurons, plan.kept[neurons.name], statistics)
    for parameter, axes in cuts.values():
        _cut_parameter(parameter, axes, optimizer)
    _update_sizes(model)


@torch.no_grad()
def freeze(model: nn.Module) -> None:
    """Take the gates off a linked model, in place: their fixed values go into what reads the neurons.

    The logits of evaluation mode stay the same; every recurrent module becomes the plain `nn.LSTM`, `nn.GRU`
    or `nn.RNN` it was. A neuron whose gate is closed has exactly zero columns in all its readers.

    Raises:
        TrainingError: no gates or no links; `toolchain.gates.fold` needs no links.
    """
    sets = neuron_sets(model)
    gates = [gate_of(model, neurons) for neurons in sets]
    for neurons, gate in zip(sets, gates, strict=True):
        _scale_readers(model, neurons, gate.deterministic())
    for _, module in recurrent_modules(model):
        remove_gates(module)
        module.flatten_parameters()


def expand(
    state: Mapping[str, Tensor], kept: Mapping[str, IndexArray], dense_sets: Sequence[NeuronSet]
) -> dict[str, Tensor]:
    """Put the state of a cut model back at its original shapes, with exact zeros where neurons are missing.

    Args:
        state: `state_dict()` of the cut, frozen model.
        kept: indices into the original sizes, by set name (see `compose`).
        dense_sets: `neuron_sets` of the plain model before any cut.

    Returns:
        A new state dict that the original plain model can load. It computes what the cut model does: a
        missing neuron's rows, and every column that reads it, are zero.
    """
    dense = dict(state)
    for neurons in dense_sets:
        for axis in neurons.axes:
            narrow = dense[axis.parameter]
            shape = list(narrow.shape)
            shape[axis.axis] = neurons.size * axis.blocks
            rows = _indices(kept[neurons.name], neurons.size, axis.blocks, narrow.device)
            dense[axis.parameter] = narrow.new_zeros(shape).index_copy(axis.axis, rows, narrow)
    return dense


def _cuts(
    parameters: Mapping[str, Tensor], sets: Iterable[NeuronSet], kept: Mapping[str, IndexArray]
) -> dict[int, tuple[Tensor, dict[int, Tensor]]]:
    """Return, for the id of each tensor that loses something, the tensor and the indices to keep by axis."""
    cuts: dict[int, tuple[Tensor, dict[int, Tensor]]] = {}
    for neurons in sets:
        if len(kept[neurons.name]) == neurons.size:
            continue
        for axis in neurons.axes:
            parameter = parameters[axis.parameter]
            indices = _indices(kept[neurons.name], neurons.size, axis.blocks, parameter.device)
            cuts.setdefault(id(parameter), (parameter, {}))[1][axis.axis] = indices
    return cuts


def _indices(kept: IndexArray, size: int, blocks: int, device: torch.device) -> Tensor:
    """Return the kept positions along an axis of `blocks` runs of `size`."""
    positions = np.arange(blocks)[:, None] * size + kept  # [blocks, num_kept]
    return torch.from_numpy(positions.reshape(-1)).to(device)


def _cut_parameter(parameter: Tensor, cuts: Mapping[int, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
    """Cut a parameter and the optimizer's state of it; the parameter stays the same object."""

    def cut(tensor: Tensor) -> Tensor:
        for axis, indices in cuts.items():
            tensor = tensor.index_select(axis, indices)
        return tensor

    state = {} if optimizer is None else optimizer.state.get(parameter, {})
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim():
            state[key] = cut(value)
    parameter.data = cut(parameter.data)
    parameter.grad = None


def _check_optimizer(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    for parameter in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                raise TrainingError(
                    f"optimizer state {key!r}: has shape {list(value.shape)} for a parameter of shape "
                    f"{list(parameter.shape)}; expected the same shape, or a scalar. Use Adam, SGD or ASGD."
                )


def _check_statistics(statistics: ActivationStatistics, sets: Iterable[NeuronSet]) -> None:
    for neurons in sets:
        for reader in neurons.readers:
            measured = len(statistics.mean(reader.site))
            if measured != neurons.size:
                raise TrainingError(
                    f"activation statistics: {reader.site!r} had {measured} neurons; expected "
                    f"{neurons.size}. Measure the model again after each cut."
                )


def _fold_removed(model: nn.Module, neurons: NeuronSet, kept: IndexArray, statistics: ActivationStatistics) -> None:
    """Let the readers hear from the kept neurons what the removed ones said; shapes stay."""
    parameters, writers = all_parameters(model), writer_tensors(model, neurons)
    removed = np.setdiff1d(np.arange(neurons.size), kept)
    if not len(removed):
        return
    k, r = torch.from_numpy(kept), torch.from_numpy(removed)
    for reader in neurons.readers:
        parameter = parameters[reader.parameter]
        C, mean = statistics.covariance(reader.site), statistics.mean(reader.site)
        A = torch.linalg.solve(C[k][:, k], C[k][:, r]).T  # [removed, kept]
        W = parameter.movedim(reader.axis, -1)  # a view, [outputs, neurons]
        if id(parameter) in writers:
            A = torch.zeros_like(A)
        W_r = W[..., r].to(A.dtype)
        W[..., k] += (W_r @ A).to(W.dtype)
        if reader.bias is not None:
            parameters[reader.bias].add_(W_r @ (mean[r] - A @ mean[k]))


def _scale_readers(model: nn.Module, neurons: NeuronSet, z: Tensor) -> None:
    """Multiply a set's gates into the tensors that read it, each tensor once."""
    parameters, writers = all_parameters(model), writer_tensors(model, neurons)
    places = {(id(parameters[r.parameter]), r.axis): r for r in neurons.readers}
    # A reader that is also the embedding carries the gates to the inputs: W must not apply them again.
    tied = any(tensor in writers for tensor, _ in places)
    for reader in places.values():
        if tied and split_site(reader.site)[1] == "input":
            continue
        W = parameters[reader.parameter].movedim(reader.axis, -1)
        W.mul_(z.to(W.dtype))


def _update_sizes(model: nn.Module) -> None:
    """Make the size attributes of every module agree with its weights."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            weights = dict(module.named_parameters(recurse=False))
            module.input_size = weights["weight_ih_l0"].shape[1]
            module.hidden_size = weights["weight_hh_l0"].shape[1]
            module.flatten_parameters()
        elif isinstance(module, nn.Embedding):
            module.embedding_dim = module.weight.shape[1]
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
