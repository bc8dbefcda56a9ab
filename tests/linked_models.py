"""A small linked language model with gates, and how far two models are apart."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from toolchain.gates import gate
from toolchain.gating.compaction import ActivationStatistics, NeuronLink
from toolchain.gating.hard_concrete import HardConcrete

V, E, H = 30, 12, 16  # words, embedding columns, neurons per layer
CELLS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


class LanguageModel(nn.Module):
    """Embedding, two recurrent layers, output layer."""

    def __init__(self, cell: str = "LSTM", *, tied: bool = False, bias: bool = True) -> None:
        super().__init__()
        sizes = (E, H, E if tied else H)
        self.embedding = nn.Embedding(V, E)
        self.rnn = nn.ModuleList([CELLS[cell](a, b, bias=bias) for a, b in pairwise(sizes)])
        self.decoder = nn.Linear(sizes[-1], V, bias=bias)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
        if tied:
            self.decoder.weight = self.embedding.weight

    def neuron_links(self) -> tuple[NeuronLink, ...]:
        first = NeuronLink(module="rnn.0", writers=(("embedding.weight", 1),), readers=(("rnn.1.weight_ih_l0", 1),))
        return (first, NeuronLink(module="rnn.1", readers=(("decoder.weight", 1),)))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.rnn:
            x, _ = layer(x)
        return self.decoder(x)


def gates_of(model: nn.Module) -> dict[str, HardConcrete]:
    """Each set's gate, found without the code under test."""
    gates = {
        "rnn.0.input": model.rnn[0].input_gate,
        "rnn.0.hidden": model.rnn[0].hidden_gates[0],
        "rnn.1.hidden": model.rnn[1].hidden_gates[0],
    }
    if gates["rnn.0.input"] is gates["rnn.1.hidden"]:
        del gates["rnn.0.input"]
    return gates


def gated_model(cell: str = "LSTM", *, closed: float = 0.4, tied: bool = False, **options: Any) -> Any:
    """A model with fractional gates, of which a fraction is closed for good."""
    model = gate(LanguageModel(cell, tied=tied, **options)).eval()
    for gates in gates_of(model).values():
        log_alpha = gates.log_alpha.data.uniform_(-1.5, 4)
        log_alpha[torch.randperm(len(log_alpha))[: int(closed * len(log_alpha))]] = -9.0
    return model


def tokens(steps: int = 9, batch: int = 4) -> Tensor:
    return torch.randint(V, (steps, batch))


def measured(model: nn.Module, batches: int = 8) -> ActivationStatistics:
    with ActivationStatistics(model) as statistics, torch.no_grad():
        for _ in range(batches):
            model(tokens(20, 16))
    return statistics


def logit_error(model: nn.Module, wanted: nn.Module) -> float:
    torch.manual_seed(99)
    batch = tokens(20, 16)
    return float((model(batch) - wanted(batch)).square().mean().detach())
