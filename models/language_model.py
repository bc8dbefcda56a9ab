"""The word language model of Zaremba et al. 2014: embedding, a stack of recurrent layers, output layer.

Each layer is a module of its own in `rnn`, so that the layers of a narrow network may differ in size. Dropout
acts on connections between layers only (after the embedding, between layers, before the output), never on
the recurrent ones.

Source: Zaremba et al. 2014, arXiv 1409.2329, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from toolchain.gating.neuron_sets import NeuronLink

State = tuple[tuple[Tensor, ...], ...]  # per layer: (h, c) of an LSTM, (h,) of a GRU or RNN; each [1, B, H]

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn": nn.RNN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModelConfig:
    """Everything that fixes the shapes of a `LanguageModel`.

    Attributes:
        vocabulary_size: number of words, `<unk>` included.
        embedding_size: columns of the embedding table.
        hidden_sizes: neurons of each recurrent layer, from the bottom.
        cell: a key of `CELLS`.
        dropout: probability of dropping a value between layers, in [0, 1).
        tied: the output layer uses the embedding table; needs `hidden_sizes[-1] == embedding_size`.
        init_scale: weights start uniform in `[-init_scale, init_scale]`; None keeps PyTorch's defaults.
    """

    vocabulary_size: int
    embedding_size: int
    hidden_sizes: tuple[int, ...]
    cell: str = "lstm"
    dropout: float = 0.0
    tied: bool = False
    init_scale: float | None = None


class LanguageModel(nn.Module):
    """Predicts the next word at every step of a text read in `batch_size` columns."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        sizes = (config.embedding_size, *config.hidden_sizes)
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)
        self.rnn = nn.ModuleList(CELLS[config.cell](below, size) for below, size in pairwise(sizes))
        self.decoder = nn.Linear(sizes[-1], config.vocabulary_size)
        if config.init_scale is not None:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -config.init_scale, config.init_scale)
        if config.tied:
            self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read some steps of every column and carry the state on.

        Args:
            tokens: word ids, int64, shape `[T, B]`.
            state: what `initial_state` or the previous call returned.

        Returns:
            Logits of the next word, shape `[T, B, vocabulary_size]`, and the state after the last step.
        """
        x = self.dropout(self.embedding(tokens))  # [T, B, embedding_size]
        carried: list[tuple[Tensor, ...]] = []
        for layer, before in zip(self.rnn, state, strict=True):
            y, after = layer(x, before if isinstance(layer, nn.LSTM) else before[0])  # y: [T, B, H]
            carried.append(after if isinstance(after, tuple) else (after,))
            x = self.dropout(y)
        return self.decoder(x), tuple(carried)

    def initial_state(self, batch_size: int) -> State:
        """Return zeros for the beginning of a text, on the model's device, in float32."""
        device = self.embedding.weight.device
        state: list[tuple[Tensor, ...]] = []
        for layer in self.rnn:
            assert isinstance(layer, nn.RNNBase)  # for the type checker: an nn.ModuleList forgets it
            zeros = torch.zeros(1, batch_size, layer.hidden_size, device=device)
            state.append((zeros, zeros) if isinstance(layer, nn.LSTM) else (zeros,))
        return tuple(state)

    def neuron_links(self) -> tuple[NeuronLink, ...]:
        """Say what writes and reads each layer's neurons, so that the network can be cut while it learns."""
        top = len(self.rnn) - 1
        return tuple(
            NeuronLink(
                module=f"rnn.{layer}",
                writers=(("embedding.weight", 1),) if layer == 0 else (),
                readers=(("decoder.weight" if layer == top else f"rnn.{layer + 1}.weight_ih_l0", 1),),
            )
            for layer in range(top + 1)
        )
