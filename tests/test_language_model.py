from __future__ import annotations

import pytest
import torch
from toolchain.models.language_model import LanguageModel, LanguageModelConfig

from toolchain.gates import gate
from toolchain.gating.neuron_sets import neuron_sets

CONFIG = {"vocabulary_size": 11, "embedding_size": 6, "hidden_sizes": (5, 4)}


def build(**changes) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(LanguageModelConfig(**{**CONFIG, **changes}))


@pytest.mark.parametrize(("cell", "parts"), [("lstm", 2), ("gru", 1), ("rnn", 1)])
def test_logits_and_state_have_their_shapes(cell, parts):
    model = build(cell=cell)
    logits, state = model(torch.zeros(7, 3, dtype=torch.int64), model.initial_state(3))
    assert logits.shape == (7, 3, 11)
    assert [[tuple(tensor.shape) for tensor in layer] for layer in state] == [
        [(1, 3, 5)] * parts,
        [(1, 3, 4)] * parts,
    ]


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_reading_in_two_calls_equals_reading_in_one(cell):
    model = build(cell=cell).eval()
    tokens = torch.randint(11, (8, 2))
    whole, _ = model(tokens, model.initial_state(2))
    first, state = model(tokens[:3], model.initial_state(2))
    second, _ = model(tokens[3:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    forgotten, _ = model(tokens[3:], model.initial_state(2))
    assert not torch.allclose(forgotten, whole[3:])


def test_the_forward_pass_is_that_of_its_layers_in_order():
    model = build(dropout=0.5).eval()
    tokens = torch.randint(11, (4, 2))
    x = model.embedding.weight[tokens]
    for layer in model.rnn:
        x, _ = layer(x)
    expected = x @ model.decoder.weight.T + model.decoder.bias
    torch.testing.assert_close(model(tokens, model.initial_state(2))[0], expected)


def test_dropout_acts_after_the_embedding_between_layers_and_before_the_output():
    model = build(dropout=0.5).train()
    seen = []
    model.dropout.register_forward_hook(lambda module, args, result: seen.append(tuple(args[0].shape)))
    model(torch.zeros(3, 2, dtype=torch.int64), model.initial_state(2))
    assert seen == [(3, 2, 6), (3, 2, 5), (3, 2, 4)]


def test_tied_weights_are_one_tensor():
    model = build(tied=True, hidden_sizes=(5, 6))
    assert model.decoder.weight is model.embedding.weight


def test_weights_start_within_the_init_scale():
    model = build(init_scale=0.05)
    largest = max(float(parameter.detach().abs().max()) for parameter in model.parameters())
    assert 0.04 < largest <= 0.05


@pytest.mark.parametrize("tied", [False, True])
def test_links_join_what_shares_neurons(tied):
    model = build(tied=tied, hidden_sizes=(5, 6))
    sites = {frozenset(neurons.sites) for neurons in neuron_sets(model)}
    ends = [{"rnn.0.input", "rnn.1.hidden"}] if tied else [{"rnn.0.input"}, {"rnn.1.hidden"}]
    assert sites == {frozenset(group) for group in (*ends, {"rnn.0.hidden", "rnn.1.input"})}
    gated = gate(model)
    assert gated.rnn[1].input_gate is None
