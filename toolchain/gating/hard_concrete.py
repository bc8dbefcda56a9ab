"""The hard concrete distribution: a gate in [0, 1] that is mostly exactly 0 or 1, yet can be learnt.

    u ~ Uniform(0, 1)
    s = sigmoid((log u - log(1 - u) + log_alpha) / beta)      binary concrete, in (0, 1)
    z = clamp(s * (zeta - gamma) + gamma, 0, 1)               stretched and cut: exact zeros and ones
    P(z != 0) = sigmoid(log_alpha - beta * log(-gamma / zeta))

Source: Louizos et al. 2018, arXiv 1712.01312, equations 10 to 12.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# The values of Louizos et al. 2018, section 4, which Wen et al. 2019 keep.
BETA = 2 / 3
GAMMA = -0.1
ZETA = 1.1
_OPEN_SHIFT = -BETA * math.log(-GAMMA / ZETA)  # P(z != 0) = sigmoid(log_alpha + 1.60)

# 89% of the gates are then sampled as exactly 1 and 0.5% as 0, so the first steps train the network that was
# given; nearer to 1, the penalty's gradient p * (1 - p) fades and the first epochs would decide nothing.
INITIAL_KEEP = 0.995
SAMPLE_EPS = 1e-6  # keeps log u finite; 1 - 1e-6 is still below 1 in float32


def log_alpha_of(keep_probability: float) -> float:
    """Return the log_alpha at which a gate is non-zero with `keep_probability`, in (0, 1)."""
    return math.log(keep_probability / (1 - keep_probability)) - _OPEN_SHIFT


class HardConcrete(nn.Module):
    """One learnt gate per neuron: sampled in training mode, a fixed value in evaluation mode.

    The only parameter is `log_alpha`, shape `[size]`. Gate values are computed in float32 at least, whatever
    the precision of the network around them.
    """

    def __init__(
        self,
        size: int,
        *,
        initial_keep: float = INITIAL_KEEP,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        start = torch.full((size,), log_alpha_of(initial_keep), device=device, dtype=dtype)
        self.log_alpha = nn.Parameter(start)

    def forward(self) -> Tensor:
        """Return one gate value in [0, 1] per neuron, shape `[size]`.

        A fresh sample in training mode while the gate learns; else the fixed value.
        """
        return self.sample() if self.training and self.log_alpha.requires_grad else self.deterministic()

    def sample(self) -> Tensor:
        """Draw the gates, differentiable in log_alpha, shape `[size]`."""
        log_alpha = self._log_alpha()
        noise = torch.logit(torch.rand_like(log_alpha), eps=SAMPLE_EPS)
        return _stretch(torch.sigmoid((noise + log_alpha) / BETA))

    def deterministic(self) -> Tensor:
        """Return the gates used after training, shape `[size]`; exact zeros remove a neuron."""
        return _stretch(torch.sigmoid(self._log_alpha()))

    def open_probability(self) -> Tensor:
        """Return P(z != 0) per neuron, differentiable, shape `[size]`."""
        return torch.sigmoid(self._log_alpha() + _OPEN_SHIFT)

    def extra_repr(self) -> str:
        """Show the number of gates."""
        return str(self.log_alpha.numel())

    def _log_alpha(self) -> Tensor:
        half = self.log_alpha.dtype in (torch.float16, torch.bfloat16)
        return self.log_alpha.float() if half else self.log_alpha


def _stretch(s: Tensor) -> Tensor:
    return torch.clamp(s * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)
