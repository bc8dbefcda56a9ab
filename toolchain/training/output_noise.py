"""Adversarial noise on the output layer, against words that are learnt by heart.

With h what the output layer reads and w its row of the right word, the worst noise on w of length epsilon * |w| points
against h, so that an update sees

    score - epsilon * |w| * |h|        where w and h agree (w . h > 0), else score

for the right word, and the scores of all others as they are. A teacher's answer is held against the lowered scores too.

Source: Wang, Gong and Liu 2019, arXiv 1906.03805, and the condition of their published code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def worst_noise(model: nn.Module, targets: Tensor, epsilon: float) -> Iterator[None]:
    """Lower the scores of the right words while a `LanguageModel` is called.

    Args:
        model: its `decoder` gives the scores.
        targets: the right words, int64, shape `[T, B]`.
        epsilon: 0 does nothing.
    """
    if not epsilon:
        yield
        return

    def lower(decoder: nn.Linear, args: tuple[Any, ...], scores: Tensor) -> Tensor:
        h, w = args[0].float(), decoder.weight.detach()[targets]  # [T, B, H]
        agree = (w * h).sum(-1) > 0
        noise = epsilon * torch.linalg.vector_norm(w, dim=-1) * torch.linalg.vector_norm(h, dim=-1) * agree  # [T, B]
        return scores.scatter_add_(-1, targets[..., None], -noise[..., None].to(scores.dtype))

    handle = model.get_submodule("decoder").register_forward_hook(lower)
    try:
        yield
    finally:
        handle.remove()
