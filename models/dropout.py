"""Dropout for recurrent networks: one mask for a whole sequence, whole words, recurrent weights.

With m a mask of zeros and 1 / (1 - p), drawn anew for every call in training mode:

    locked     x_t * m             m [B, H] is the same at every step t, where nn.Dropout draws one per step
    words      E[w] * m_w          m_w is one number per word, so all occurrences of a word live or die together
    weights    (R * m) h           m [num_gates*H, H] drops connections between neurons, the same at every step

Source: Gal and Ghahramani 2016, arXiv 1512.05287 (locked, words); Merity et al. 2017, arXiv 1708.02182, sections 2
(weights) and 4.2, 4.3.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

from toolchain.gating.even_sizes import with_weights

Cell = TypeVar("Cell", bound=nn.RNNBase)


class LockedDropout(nn.Dropout):
    """Drops the same values at every step of a call; for sequences of shape `[T, B, H]`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the sequence, each column's values kept or dropped for all steps alike."""
        if not self.training or self.p == 0:
            return input
        mask = nn.functional.dropout(input.new_ones(1, *input.shape[1:]), self.p)  # [1, B, H]
        return input * mask


def drop_words(vectors: Tensor, tokens: Tensor, *, vocabulary_size: int, p: float) -> Tensor:
    """Drop all occurrences of words that are drawn with probability `p`.

    Args:
        vectors: embedded words, shape `[T, B, E]`.
        tokens: their ids, shape `[T, B]`.
        vocabulary_size: number of ids there are.
        p: in [0, 1).
    """
    mask = nn.functional.dropout(vectors.new_ones(vocabulary_size, 1), p)
    return vectors * mask[tokens]  # [T, B, 1]


def drop_recurrent_weights(layer: Cell, p: float) -> Cell:
    """Return `layer` as it is for one call, with connections between its neurons dropped with probability `p`.

    Gradients reach the weights that were not dropped. Biases stay, and so do the gates of a gated layer: they scale the
    columns of what is left.
    """
    layer._update_flat_weights()  # as nn.LSTM.forward does first
    named = zip(layer._flat_weights_names, layer._flat_weights, strict=True)
    weights = [
        nn.functional.dropout(weight, p) if name.startswith("weight_hh") else weight
        for name, weight in named
        if weight is not None
    ]
    return with_weights(layer, type(layer), weights)
