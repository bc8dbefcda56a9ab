"""Noise on the output layer's row of the right word: the worst of its length, and only while a network learns."""

from __future__ import annotations

import pytest
import torch
from tiny_training import Silent, tiny_run
from toolchain.models.language_model import LanguageModel, LanguageModelConfig

from toolchain.errors import RecipeError
from toolchain.training.loop import train
from toolchain.training.output_noise import worst_noise

EPSILON = 0.1


@pytest.fixture
def network():
    torch.manual_seed(0)
    return LanguageModel(LanguageModelConfig(vocabulary_size=11, embedding_size=6, hidden_sizes=(5, 4)))


def scores(network, tokens, targets, epsilon=EPSILON):
    """Return the scores and what the output layer read, `[T, B, ...]`."""
    read = []
    handle = network.decoder.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    with worst_noise(network, targets, epsilon):
        found, _ = network(tokens, network.initial_state(tokens.shape[1]))
    handle.remove()
    return found, read[0]


def test_no_noise_of_that_length_lowers_the_right_words_score_further(network):
    tokens, targets = torch.randint(11, (8, 3)), torch.randint(11, (8, 3))
    clean, read = scores(network, tokens, targets, epsilon=0.0)
    noised, _ = scores(network, tokens, targets)
    fall = (clean - noised).gather(-1, targets[..., None])[..., 0]
    w = network.decoder.weight[targets]  # [T, B, H]
    agree = (w * read).sum(-1) > 0
    assert agree.any()
    assert not agree.all()
    assert not fall[~agree].any()
    noise = torch.randn(1000, *w.shape)
    noise *= EPSILON * w.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    by_chance = -(noise * read).sum(-1)  # [1000, T, B]
    assert (by_chance <= fall + 1e-6)[:, agree].all()
    assert (by_chance.amax(0) > 0.5 * fall)[agree].all()  # so the bound is of the right size
    others = torch.ones_like(clean, dtype=torch.bool).scatter_(-1, targets[..., None], value=False)
    assert torch.equal(clean[others], noised[others])


def test_the_gradient_is_that_of_a_row_moved_by_a_fixed_noise(network):
    tokens, targets = torch.randint(11, (1, 1)), torch.tensor([[3]])
    clean, read = scores(network, tokens, targets, epsilon=0.0)
    if clean[0, 0, 3] - network.decoder.bias[3] < 0:  # so that they agree
        with torch.no_grad():
            network.decoder.weight[3] *= -1
    noised, read = scores(network, tokens, targets)
    by_rule = torch.autograd.grad(noised[0, 0, 3], (read, network.decoder.weight), retain_graph=True)
    w, h = network.decoder.weight[3].detach(), read[0, 0].detach()
    moved = w - EPSILON * w.norm() * h / h.norm()
    torch.testing.assert_close(by_rule[0][0, 0], moved)
    torch.testing.assert_close(by_rule[1][3], h)


def test_nothing_stays_on_the_network_and_validation_is_without(network, tmp_path):
    tokens = torch.randint(11, (8, 3))
    scores(network, tokens, tokens)
    assert not network.decoder._forward_hooks
    plain, noisy = (
        tiny_run(tmp_path, name, run__method="dense", optim__epochs=1, optim__learning_rate=1e-9, optim__output_noise=e)
        for name, e in (("plain", 0.0), ("noisy", 0.5))
    )
    for run in (plain, noisy):
        train(run, report=Silent())
    assert noisy.metrics[0]["train_perplexity"] > 1.01 * plain.metrics[0]["train_perplexity"]
    assert noisy.metrics[0]["valid_perplexity"] == pytest.approx(plain.metrics[0]["valid_perplexity"], rel=1e-4)


def test_a_users_own_network_is_refused_because_its_output_layer_is_not_known(tmp_path):
    with pytest.raises(RecipeError, match=r"optim.output_noise: 0.1; expected 0 with model.factory"):
        tiny_run(tmp_path, optim__output_noise=0.1, model__factory="anything:at_all")
