"""The sections of a recipe that say how a network is pruned: `[gates]` for every method, and one for each penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from toolchain.training.recipe_values import Count, NonNegative, OpenShare, Positive, Rate, Share


@dataclass(frozen=True, slots=True, kw_only=True)
class GatesSection:
    """When and how neurons are given up; shares of time and what follows them hold for every method that prunes.

    Method `neuron-selection` needs exactly one of `keep` and `l0_weight`.

    Attributes:
        keep: share of the recurrent multiply-adds that stays: by an augmented Lagrangian (`neuron-selection`), by
            norm (`magnitude`), of single weights (`l1`). The penalty of `iss` decides by itself.
        l0_weight: fixed price of the share kept, added to the loss per token.
        sites: which neurons may go: a network's `input` neurons, the `hidden` neurons of its layers, or `both`. An
            inner layer's inputs are the hidden neurons of the layer below.
        learning_rate: of the gates (Adam).
        initial_keep: probability that a gate is open at the start.
        start_at: share of all updates before which nothing is pruned: every gate is held open and costs nothing.
        ramp: share of the gated phase in which the target falls from 1 to `keep`.
        freeze_at: share of all updates after which what stays is fixed; the rest fine-tunes, none of it at 1.
        dropout: of the narrow network, once gates are frozen; absent: as before. A smaller network needs less.
        compact_steps: updates between two cuts of neurons; absent: once an epoch.
        calibration_tokens: training tokens from which lost neurons are folded into the kept ones.
    """

    keep: OpenShare | None = None
    l0_weight: Positive | None = None
    sites: Literal["both", "input", "hidden"] = "both"
    learning_rate: Positive = 0.02
    initial_keep: OpenShare = 0.995
    start_at: Rate = 0.0
    ramp: Share = 0.5
    freeze_at: Share = 0.6
    dropout: Rate | None = None
    compact_steps: Count | None = None
    calibration_tokens: Count = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class IssSection:
    """Group lasso on the component of each neuron (method `iss`, intrinsic sparse structures).

    Attributes:
        weight: of the penalty, the sum of the components' norms; in the units of `optim.loss`.
        threshold: after each update, weights below it are zero.

    Source: Wen et al. 2018, arXiv 1709.05027; the values of the authors' code for 2x1500 on Penn Treebank,
    https://github.com/wenwei202/iss-rnns, ptb/structure_grouplasso.json and ptb/ptb_word_lm.py.
    """

    weight: Positive = 0.00245
    threshold: NonNegative = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class L1Section:
    """L1 penalty on single weights of W and R (method `l1`).

    Attributes:
        weight: of the penalty, the sum of absolute weights; in the units of `optim.loss`. The default is that of the
            code named in `IssSection`, ptb/l1.json.
    """

    weight: Positive = 1e-4
