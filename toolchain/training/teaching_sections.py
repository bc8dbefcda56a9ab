"""The sections of a recipe for what makes a small network better: averaged weights, and a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from toolchain.training.recipe_values import Count, OpenShare, Positive, Rate, Share


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragingSection:
    """Whether validation and the exported model take averaged weights in place of the last ones.

    Attributes:
        kind: `ema`, an exponential moving average; `uniform`, the mean of the weights after every update; `none`.
        decay: of the exponential moving average, per update; less over the first updates averaged.
        start_at: share of all updates before which nothing is averaged.
        patience: averaging starts once an epoch's validation figure is worse than the best one of all epochs but the
            `patience` before it (with `uniform` and `sgd`: NT-ASGD of Merity et al. 2017); absent: at `start_at`.
    """

    kind: Literal["none", "ema", "uniform"] = "none"
    decay: OpenShare = 0.999
    start_at: Rate = 0.0
    patience: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSection:
    """A trained network whose predictions the network in training learns to give (Hinton et al. 2015).

    Attributes:
        model: an ONNX language model that knows the same words, or the folder of a run; absent: no teacher.
        weight: w in the loss (1 - w) * CE(next word) + w * temperature**2 * CE(teacher), where CE is the cross entropy.
        temperature: by which both networks' logits are divided in the second term.
    """

    model: str | None = None
    weight: Share = 0.5
    temperature: Positive = 1.0
