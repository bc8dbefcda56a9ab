"""How hard the gates are pressed to close.

The price of a network is a function of the share s of recurrent multiply-adds that its gates keep alive. A
fixed price is `l0_weight * s`. A target t, which falls from 1 to `keep` during the ramp, is the constraint
s <= t, held by an augmented Lagrangian: with m the multiplier and `stiffness` k,

    price(s) = (max(0, m + k (s - t))^2 - m^2) / (2 k),        m <- max(0, m + k' (s - t)) after each step

so the price is flat once s is below t, and m grows as long as it is not.

Source: Nocedal and Wright, Numerical Optimization (2006), equations 17.64 and 17.65; Louizos et al. 2018 for
the share as an expectation over gates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STIFFNESS = 10.0  # a share 10 points above its target costs one more nat per unit of share
MULTIPLIER_RATE = 0.05  # k': 5 points above the target for 400 updates raise m by 1


@dataclass(slots=True, kw_only=True)
class Pressure:
    """The price of the open gates, with the multiplier it has reached so far.

    Attributes:
        l0_weight: fixed price of the share kept, in nats per token; None presses towards `keep`.
        keep: share to reach.
        ramp: share of the gated phase in which the target falls from 1 to `keep`.
        multiplier: m above.
    """

    l0_weight: float | None
    keep: float | None
    ramp: float
    multiplier: float = 0.0

    def target(self, progress: float) -> float:
        """Return the share aimed at when `progress` (0 to 1) of the gated phase is over."""
        if self.keep is None:
            return 0.0
        return 1.0 - (1.0 - self.keep) * min(1.0, progress / self.ramp if self.ramp > 0 else 1.0)

    def price(self, share: Tensor, progress: float) -> Tensor:
        """Return the price in nats per token, a differentiable scalar; `share` is in [0, 1]."""
        if self.l0_weight is not None:
            return self.l0_weight * share
        slope = torch.clamp(self.multiplier + STIFFNESS * (share - self.target(progress)), min=0.0)
        return (slope**2 - self.multiplier**2) / (2 * STIFFNESS)

    def update(self, share: float, progress: float) -> None:
        """Raise the multiplier while the share is above its target; lower it while it is below."""
        if self.l0_weight is None:
            self.multiplier = max(0.0, self.multiplier + MULTIPLIER_RATE * (share - self.target(progress)))
