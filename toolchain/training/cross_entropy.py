"""The cross entropy of scores over many classes, a few rows at a time.

With q = softmax(scores / T), and p a row of probabilities or, where the right class is known, its onehot (T = 1):

    loss = -1/N * sum over rows of p . log q,      d loss / d scores = (q - p) / (N * T)

PyTorch passes over all scores once per step of that formula: 1,600 words of 10,000 classes are 64 MB, which a CPU
fetches from memory and writes back half a dozen times. Here a block of rows goes through all the steps while it lies in
a core's cache, and its gradient is written in the precision of the scores.

Source: the idea of Hsu et al. 2024, arXiv 2410.10989 (Liger Kernel), section 3.2, without fusing the output layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 1 << 17  # scores: 512 KiB in float32


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy in nats, float32, as `torch.nn.functional.cross_entropy` does.

    Args:
        scores: shape `[N, classes]`, of any floating type.
        targets: the right class of each row, int64, shape `[N]`.
    """
    if scores.device.type != "cpu":  # one kernel there, and each block would be a launch of its own
        return nn.functional.cross_entropy(scores.float(), targets)
    loss: Tensor = _Blockwise.apply(scores, targets, 1.0)  # type: ignore[no-untyped-call]
    return loss


def soft_cross_entropy(scores: Tensor, answer: Tensor, *, temperature: float) -> Tensor:
    """Return the mean cross entropy in nats, float32, with another network's probabilities at the same temperature.

    Args:
        scores: shape `[N, classes]`, of any floating type.
        answer: the other network's scores, same shape, without gradient.
        temperature: both networks' scores are divided by it.
    """
    if scores.device.type != "cpu":
        p = torch.softmax(answer.float() / temperature, dim=-1)
        return nn.functional.cross_entropy(scores.float() / temperature, p)
    loss: Tensor = _Blockwise.apply(scores, answer, temperature)  # type: ignore[no-untyped-call]
    return loss


class _Blockwise(torch.autograd.Function):
    """Targets are right classes, `[N]`, or scores, `[N, classes]`."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor, temperature: float) -> Tensor:
        rows = max(1, BLOCK // scores.shape[1])
        loss = torch.zeros((), dtype=torch.float64)
        gradient = torch.empty_like(scores)
        for start in range(0, len(scores), rows):
            block, target = scores[start : start + rows], targets[start : start + rows]
            predicted = _log_softmax(block, temperature)
            if target.ndim == 1:
                right = target[:, None]
                loss -= predicted.gather(1, right).sum(dtype=torch.float64)
                predicted.exp_().scatter_add_(1, right, predicted.new_full(right.shape, -1.0))
            else:
                p = _log_softmax(target, temperature).exp_()
                loss -= torch.dot(p.flatten(), predicted.flatten())
                predicted.exp_().sub_(p)
            gradient[start : start + rows] = predicted.div_(len(scores) * temperature)
        ctx.save_for_backward(gradient)
        return (loss / len(scores)).float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient if upstream == 1 else gradient * upstream.to(gradient.dtype), None, None


def _log_softmax(scores: Tensor, temperature: float) -> Tensor:
    if temperature != 1:
        scores = scores.float() / temperature
    return torch.log_softmax(scores, dim=-1, dtype=torch.float32)
