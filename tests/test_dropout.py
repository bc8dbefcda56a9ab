"""What is dropped, for how long, and that nothing is dropped in evaluation mode."""

from __future__ import annotations

import pytest
import torch
from tiny_training import WORDS, Silent, tiny_run
from toolchain.models.dropout import LockedDropout, drop_recurrent_weights, drop_words
from toolchain.models.language_model import LanguageModel, LanguageModelConfig
from torch import nn

from toolchain.gates import gate
from toolchain.gating.compaction import compact, plan_from_kept
from toolchain.gating.hard_concrete import HardConcrete
from toolchain.training.loop import train

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
ALL = {
    "dropout": 0.4,
    "input_dropout": 0.5,
    "hidden_dropout": 0.3,
    "embedding_dropout": 0.2,
    "variational": True,
    "weight_drop": 0.5,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(**changes):
    torch.manual_seed(0)
    sizes = {"vocabulary_size": 11, "embedding_size": 6, "hidden_sizes": (5, 4)}
    return LanguageModel(LanguageModelConfig(**{**sizes, **changes}))


def test_a_locked_mask_is_the_same_at_every_step_and_another_for_each_column_and_call():
    dropout, ones = LockedDropout(0.25), torch.ones(7, 3, 200)
    first, second = dropout(ones), dropout(ones)
    assert torch.equal(first, first[:1].expand_as(first))
    assert not torch.equal(first[0, 0], first[0, 1])
    assert not torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert float((first[0] == 0).float().mean()) == pytest.approx(0.25, abs=0.06)  # 600 draws: 3 standard deviations
    assert torch.equal(dropout.eval()(ones), ones)


def test_a_dropped_word_is_dropped_wherever_it_stands():
    tokens = torch.randint(50, (40, 5))
    kept = drop_words(torch.ones(40, 5, 3), tokens, vocabulary_size=50, p=0.5)
    values = {int(token): {tuple(v.tolist()) for v in kept[tokens == token]} for token in tokens.unique()}
    assert all(len(found) == 1 for found in values.values())
    assert set().union(*values.values()) == {(0.0,) * 3, (2.0,) * 3}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("gated", [False, True])
def test_dropped_recurrent_weights_are_those_of_a_layer_that_has_fewer_connections(cell, gated):
    layer, x = CELLS[cell](6, 5), torch.randn(9, 2, 6)
    layer = gate(layer).eval() if gated else layer
    for gates in (module for module in layer.modules() if isinstance(module, HardConcrete)):
        nn.init.uniform_(gates.log_alpha, -2, 2)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    whole, _ = layer(x)
    torch.manual_seed(1)
    y, _ = drop_recurrent_weights(layer, 0.5)(x)
    torch.manual_seed(1)
    mask = nn.functional.dropout(torch.ones_like(layer.weight_hh_l0), 0.5)
    y.square().sum().backward()
    assert 0.2 < float((mask == 0).float().mean()) < 0.8
    assert torch.equal(layer.weight_hh_l0.grad == 0, mask == 0) or gated  # a closed gate has no gradient either
    assert not layer.weight_hh_l0.grad[mask == 0].any()
    assert all(torch.equal(before[name], parameter) for name, parameter in layer.named_parameters())
    again, _ = layer(x)
    assert torch.equal(again, whole)
    with torch.no_grad():
        layer.weight_hh_l0.mul_(mask)
    expected, _ = layer(x)
    torch.testing.assert_close(y, expected)


def test_connections_are_dropped_and_not_activations_inputs_or_biases():
    layer, x = nn.LSTM(6, 5), torch.randn(2, 3, 6)
    whole, _ = layer(x)
    dropped, _ = drop_recurrent_weights(layer, 0.9)(x)
    torch.testing.assert_close(dropped[0], whole[0])  # before the first step there is nothing to connect to
    assert not torch.allclose(dropped[1], whole[1])


def test_weights_are_dropped_from_a_layer_that_was_cut():
    model = gate(build(weight_drop=0.5)).train()
    tokens = torch.randint(11, (4, 2))
    model(tokens, model.initial_state(2))
    kept = {"rnn.0.input": range(6), "rnn.0.hidden": [0, 2, 4], "rnn.1.hidden": [1, 2, 3]}
    compact(model, plan_from_kept(model, {name: torch.tensor(list(i)).numpy() for name, i in kept.items()}))
    logits, state = model(tokens, model.initial_state(2))
    logits.sum().backward()
    assert [layer[0].shape[-1] for layer in state] == [3, 3]
    assert [tuple(layer.weight_hh_l0.grad.shape) for layer in model.rnn] == [(12, 3), (12, 3)]
    assert all((layer.weight_hh_l0.grad == 0).any() for layer in model.rnn)


def test_each_place_has_its_own_rate_and_mask():
    model = build(**{**ALL, "embedding_dropout": 0.0, "weight_drop": 0.0}).train()
    seen = []
    for name in ("input_dropout", "hidden_dropout", "dropout"):
        module = getattr(model, name)
        assert isinstance(module, LockedDropout)
        module.register_forward_hook(lambda module, args, _: seen.append((module.p, tuple(args[0].shape))))
    model(torch.zeros(3, 2, dtype=torch.int64), model.initial_state(2))
    assert seen == [(0.5, (3, 2, 6)), (0.3, (3, 2, 5)), (0.4, (3, 2, 4))]


@pytest.mark.parametrize("trick", ALL)
def test_nothing_is_dropped_in_evaluation_mode(trick):
    changes = {trick: ALL[trick]} if trick != "variational" else {"variational": True, "dropout": 0.4}
    tokens = torch.randint(11, (8, 2))
    plain, dropping = build().eval(), build(**changes)
    expected, _ = plain(tokens, plain.initial_state(2))
    assert not torch.equal(dropping.train()(tokens, dropping.initial_state(2))[0], expected)
    assert torch.equal(dropping.eval()(tokens, dropping.initial_state(2))[0], expected)


def test_words_are_dropped_from_the_inputs_alone_when_the_output_layer_is_tied():
    model = build(tied=True, hidden_sizes=(5, 6), embedding_dropout=0.99).train()
    tokens = torch.randint(11, (4, 2))
    seen = []
    model.decoder.register_forward_pre_hook(lambda module, args: seen.append((module.weight, args[0])))
    logits, _ = model(tokens, model.initial_state(2))
    (weight, read), *_ = seen
    torch.testing.assert_close(logits, read @ model.embedding.weight.T + model.decoder.bias)
    assert weight is model.embedding.weight


class Zaremba(LanguageModel):
    """The forward pass before there was anything but plain dropout between layers."""

    def forward(self, tokens, state):
        x = self.dropout(self.embedding(tokens))
        carried = []
        for layer, before in zip(self.rnn, state, strict=True):
            y, after = layer(x, before if isinstance(layer, nn.LSTM) else before[0])
            carried.append(after if isinstance(after, tuple) else (after,))
            x = self.dropout(y)
        return self.decoder(x), tuple(carried)


def zaremba(vocabulary_size):
    sizes = {"vocabulary_size": vocabulary_size, "embedding_size": 10, "hidden_sizes": (12, 9)}
    return Zaremba(LanguageModelConfig(**sizes, dropout=0.1))


def test_by_default_a_run_computes_bit_by_bit_what_it_did_without_these_tricks(tmp_path):
    states = []
    for factory in (None, f"{__name__}:zaremba"):
        run = tiny_run(tmp_path, model__factory=factory)
        train(run, report=Silent())
        states.append(run.model.state_dict())
    new, old = states
    assert new.keys() == old.keys()
    assert all(torch.equal(new[name], old[name]) for name in new)
    assert new["decoder.weight"].shape[0] == WORDS
