"""Penalties on the activations of the last layer.

With h_t what it says at step t, and m the dropout mask before the output layer:

    AR     alpha * mean((m * h_t)**2)            large activations
    TAR    beta  * mean((h_t - h_t-1)**2)        fast changes

Source: Merity et al. 2017, arXiv 1708.02182, section 4.6; Merity, McCann and Socher 2017, arXiv 1708.01009.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolchain.gating.neuron_links import recurrent_modules
from toolchain.training.recipe import OptimSection


@dataclass(slots=True, kw_only=True)
class LastLayer:
    """What the last layer said in a call: `output` h, and `read` m * h, both `[T, B, H]`; None if not watched."""

    output: Tensor | None = None
    read: Tensor | None = None


@contextlib.contextmanager
def watched_last_layer(model: nn.Module, optim: OptimSection) -> Iterator[LastLayer]:
    """Take note of the last layer of a `LanguageModel` while it is called, if any penalty needs it."""
    last = LastLayer()
    if not (optim.activation_penalty or optim.slowness_penalty):
        yield last
        return

    def note_output(module: nn.Module, args: tuple[Any, ...], result: tuple[Any, Any]) -> None:
        last.output = result[0]

    def note_read(module: nn.Module, args: tuple[Any, ...]) -> None:
        last.read = args[0]

    *_, (_, top) = recurrent_modules(model)
    handles = (
        top.register_forward_hook(note_output),
        model.get_submodule("decoder").register_forward_pre_hook(note_read),
    )
    try:
        yield last
    finally:
        for handle in handles:
            handle.remove()


def penalised(loss: Tensor, last: LastLayer, optim: OptimSection) -> Tensor:
    """Return `loss` with the penalties added, in nats per token; computed in float32."""
    if last.output is None or last.read is None:
        return loss
    output, read = last.output.float(), last.read.float()
    change = output.diff(dim=0)  # [T-1, B, H]
    slowness = change.square().mean() if len(change) else torch.zeros_like(loss)  # a mean of nothing is no number
    return loss + optim.activation_penalty * read.square().mean() + optim.slowness_penalty * slowness
