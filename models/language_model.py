"""The word language model of Zaremba et al. 2014: embedding, a stack of recurrent layers, output layer.

Each layer is a module of its own in `rnn`, so that the layers of a narrow network may differ in size. Unless more is
asked for, dropout acts on connections between layers only (after the embedding, between layers, before the output),
never on the recurrent ones. What Merity et al. 2017 add is off by default: masks that stay the same over time, rates of
their own for each place, dropped words, and dropped recurrent weights.

Source: Zaremba et al. 2014, arXiv 1409.2329, section 3; Merity et al. 2017, arXiv 1708.02182.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from toolchain.gating.even_sizes import evened
from toolchain.gating.neuron_links import NeuronLink

from .dropout import LockedDropout, drop_recurrent_weights, drop_words

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
        dropout: probability of dropping a value before the output, in [0, 1), and between layers and after the
            embedding too, where these have no rate of their own.
        input_dropout: the same after the embedding; None takes `dropout`.
        hidden_dropout: the same between layers; None takes `dropout`.
        embedding_dropout: probability of dropping a word from the inputs of a call.
        variational: a mask is the same at every step of a call.
        weight_drop: probability of dropping a recurrent weight for one call.
        tied: the output layer uses the embedding table; needs `hidden_sizes[-1] == embedding_size`.
        init_scale: weights start uniform in `[-init_scale, init_scale]`; None keeps PyTorch's defaults.
    """

    vocabulary_size: int
    embedding_size: int
    hidden_sizes: tuple[int, ...]
    cell: str = "lstm"
    dropout: float = 0.0
    input_dropout: float | None = None
    hidden_dropout: float | None = None
    embedding_dropout: float = 0.0
    variational: bool = False
    weight_drop: float = 0.0
    tied: bool = False
    init_scale: float | None = None


class LanguageModel(nn.Module):
    """Predicts the next word at every step of a text read in `batch_size` columns."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        sizes = (config.embedding_size, *config.hidden_sizes)
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_size)
        kind = LockedDropout if config.variational else nn.Dropout
        self.dropout = kind(config.dropout)
        self.input_dropout = self.dropout if config.input_dropout is None else kind(config.input_dropout)
        self.hidden_dropout = self.dropout if config.hidden_dropout is None else kind(config.hidden_dropout)
        self.embedding_dropout = config.embedding_dropout
        self.weight_drop = config.weight_drop
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
        x = self.input_dropout(self._embedded(tokens))  # [T, B, embedding_size]
        carried: list[tuple[Tensor, ...]] = []
        top = len(self.rnn) - 1
        for number, (layer, before) in enumerate(zip(self.rnn, state, strict=True)):
            cell = evened(self._with_dropped_weights(layer), x)
            y, after = cell(x, before if isinstance(layer, nn.LSTM) else before[0])  # y: [T, B, H]
            carried.append(after if isinstance(after, tuple) else (after,))
            x = self.dropout(y) if number == top else self.hidden_dropout(y)
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

    def _embedded(self, tokens: Tensor) -> Tensor:
        vectors: Tensor = self.embedding(tokens)
        if not self.training or self.embedding_dropout == 0:
            return vectors
        size = self.embedding.num_embeddings
        return drop_words(vectors, tokens, vocabulary_size=size, p=self.embedding_dropout)

    def _with_dropped_weights(self, layer: nn.Module) -> nn.RNNBase:
        assert isinstance(layer, nn.RNNBase)  # for the type checker, as above
        if not self.training or self.weight_drop == 0:
            return layer
        return drop_recurrent_weights(layer, self.weight_drop)

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
