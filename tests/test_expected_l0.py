"""The price of gates: how many weights are expected to live, and which neurons are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gated_modules import Chained, H, N, fixed_gate, randomise_gates
from torch import nn

from toolchain.errors import TrainingError
from toolchain.gates import expected_l0, gate, kept_neurons, total_l0
from toolchain.gating.hard_concrete import HardConcrete


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def probability(module: HardConcrete) -> np.ndarray:
    beta, gamma, zeta = 2 / 3, -0.1, 1.1
    return 1 / (1 + np.exp(-(module.log_alpha.detach().double().numpy() - beta * np.log(-gamma / zeta))))


def test_expected_l0_counts_weights_between_living_neurons() -> None:
    model = randomise_gates(gate(nn.Sequential(nn.LSTM(N, H, 2, bidirectional=True))))
    lstm = model[0]
    x = probability(lstm.input_gate).sum()
    hidden = [probability(g).sum() for g in lstm.hidden_gates]
    wanted = sum(4 * h * (x + h) for h in hidden[:2]) + sum(4 * h * (hidden[0] + hidden[1] + h) for h in hidden[2:])
    assert expected_l0(model).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_expected_l0_of_a_fed_module_uses_the_gates_that_feed_it(bidirectional: bool) -> None:
    model = randomise_gates(gate(Chained(bidirectional=bidirectional)))
    assert model.rnn[1].input_gate is None
    x, top = probability(model.rnn[0].input_gate).sum(), probability(model.rnn[1].hidden_gates[0]).sum()
    below = [probability(g).sum() for g in model.rnn[0].hidden_gates]
    wanted = sum(3 * h * (x + h) for h in below) + 4 * top * (sum(below) + top)
    assert expected_l0(model).item() == pytest.approx(wanted, rel=1e-5)


def test_expected_l0_has_a_gradient_in_every_gate_and_ends_at_the_total() -> None:
    model = gate(Chained())
    expected_l0(model).backward()
    gates = [m for m in model.modules() if isinstance(m, HardConcrete)]
    assert all((g.log_alpha.grad > 0).all() for g in gates)
    for g in gates:
        g.log_alpha.data.fill_(60.0)
    assert expected_l0(model).item() == total_l0(model) == 3 * H * (N + H) + 4 * N * (H + N)


def test_a_tied_embedding_shares_one_gate_between_inputs_and_outputs() -> None:
    model = gate(Chained(tied=True))
    assert model.rnn[0].input_gate is model.rnn[1].hidden_gates[0]
    assert gate(Chained()).rnn[0].input_gate is not None


def test_kept_neurons_are_those_whose_fixed_gate_is_above_zero() -> None:
    model = randomise_gates(gate(Chained()))
    first, second = kept_neurons(model)
    for indices, gates in (
        (first.input, model.rnn[0].input_gate),
        (first.hidden[0], model.rnn[0].hidden_gates[0]),
        (second.input, model.rnn[0].hidden_gates[0]),
        (second.hidden[0], model.rnn[1].hidden_gates[0]),
    ):
        assert indices.tolist() == torch.nonzero(fixed_gate(gates) > 0).flatten().tolist()
    assert (second.module, second.input_size, second.hidden_size) == ("rnn.1", H, N)
    assert 0 not in first.input
    assert 1 in first.input


def test_expected_l0_of_a_plain_model_or_a_part_is_refused() -> None:
    with pytest.raises(TrainingError, match="no gated module inside"):
        expected_l0(nn.LSTM(2, 2))
    with pytest.raises(TrainingError, match="has no input gate and no neuron link feeds it"):
        expected_l0(gate(Chained()).rnn)
