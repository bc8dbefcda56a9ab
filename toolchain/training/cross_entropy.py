"""The cross entropy of scores over many classes, a few rows at a time.

    loss = -1/N * sum over rows of log softmax(scores)[target],      d loss / d scores = (softmax(scores) - onehot) / N

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
    loss: Tensor = _Blockwise.apply(scores, targets)  # type: ignore[no-untyped-call]
    return loss


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor) -> Tensor:
        rows = max(1, BLOCK // scores.shape[1])
        loss = torch.zeros((), dtype=torch.float64)
        gradient = torch.empty_like(scores)
        for start in range(0, len(scores), rows):
            block, right = scores[start : start + rows], targets[start : start + rows, None]
            predicted = torch.log_softmax(block, dim=-1, dtype=torch.float32)
            loss -= predicted.gather(1, right).sum(dtype=torch.float64)
            if ctx.needs_input_grad[0]:
                predicted.exp_().scatter_add_(1, right, predicted.new_full(right.shape, -1.0))
                gradient[start : start + rows] = predicted.div_(len(scores))
        ctx.save_for_backward(gradient)
        return (loss / len(scores)).float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient if upstream == 1 else gradient * upstream.to(gradient.dtype), None
