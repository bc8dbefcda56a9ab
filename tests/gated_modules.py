"""Gated recurrent modules and the loop in float64 that defines what they compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from toolchain.gates import NeuronLink
from toolchain.gating.hard_concrete import HardConcrete

N, H, T, B = 5, 7, 6, 3  # input size, hidden size, steps, sequences
ATOL = 2e-6  # 10x the worst float32 difference from the float64 loop seen over the matrix below


CELLS = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN tanh": nn.RNN,
    "RNN relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}


def randomise_gates(model: nn.Module) -> nn.Module:
    """Give every kind of gate to every set: closed, open, in between, and one nearly closed."""
    for module in model.modules():
        if isinstance(module, HardConcrete):
            module.log_alpha.data.normal_(0, 3)
            module.log_alpha.data[:4] = torch.tensor([-9.0, 9.0, 0.3, -2.39])
    return model


def fixed_gate(module: HardConcrete) -> Tensor:
    """The test-time gate of Louizos et al. 2018, equation 13, in float64."""
    return (torch.sigmoid(module.log_alpha.double()) * 1.2 - 0.1).clamp(0, 1)


def call(module: nn.Module, x: Any, h: Tensor | None, c: Tensor | None) -> tuple[Any, Tensor, Tensor | None]:
    """Call any recurrent module; `c` and the returned c_n are None unless it is an LSTM."""
    if isinstance(module, nn.LSTM):
        y, (h_n, c_n) = module(x, None if h is None else (h, c))
        return y, h_n, c_n
    y, h_n = module(x, h)
    return y, h_n, None


def assert_close(actual: Any, wanted: Any) -> None:
    torch.testing.assert_close(actual.double(), wanted.double(), atol=ATOL, rtol=0)


def make(cell: str, *, layers: int = 1, bidirectional: bool = False, **options: Any) -> Any:
    return CELLS[cell](N, H, num_layers=layers, bidirectional=bidirectional, **options)


class Chained(nn.Module):
    """Two modules of which the first feeds the second, and says so."""

    def __init__(self, *, tied: bool = False, bidirectional: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, N)
        first = nn.GRU(N, H, bidirectional=bidirectional)
        self.rnn = nn.ModuleList([first, nn.LSTM(H * (1 + bidirectional), N)])
        self.decoder = nn.Linear(N, 11)
        if tied:
            self.decoder.weight = self.embedding.weight

    def neuron_links(self) -> tuple[NeuronLink, ...]:
        return (
            NeuronLink(module="rnn.0", writers=(("embedding.weight", 1),), readers=(("rnn.1.weight_ih_l0", 1),)),
            NeuronLink(module="rnn.1", readers=(("decoder.weight", 1),)),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.rnn[1](self.rnn[0](self.embedding(tokens))[0])[0]
        return self.decoder(x)
