from __future__ import annotations

import pytest
import torch
from toolchain.models.language_model import LanguageModel, LanguageModelConfig

from toolchain.errors import RecipeError
from toolchain.gates import gate
from toolchain.training.activation_penalty import penalised, watched_last_layer
from toolchain.training.recipe import OptimSection
from toolchain.training.recipe_files import load_recipe

CONFIG = LanguageModelConfig(
    vocabulary_size=11, embedding_size=6, hidden_sizes=(5, 4), dropout=0.5, variational=True, weight_drop=0.5
)


def section(**penalties):
    return OptimSection(learning_rate=0.1, epochs=1, clip_norm=1.0, **penalties)


@pytest.mark.parametrize("gated", [False, True])
def test_the_penalties_are_those_of_merity_2017(gated):
    torch.manual_seed(0)
    model = LanguageModel(CONFIG).train()
    model = gate(model).train() if gated else model
    said = {}
    model.dropout.register_forward_hook(lambda module, args, read: said.update(output=args[0], read=read))
    optim = section(activation_penalty=2.0, slowness_penalty=3.0)
    with watched_last_layer(model, optim) as last:
        model(torch.randint(11, (7, 2)), model.initial_state(2))
    h, read = said["output"], said["read"]  # the last call is that before the output layer
    assert (read == 0).any()
    expected = 1.5 + 2.0 * (read**2).mean() + 3.0 * ((h[1:] - h[:-1]) ** 2).mean()
    torch.testing.assert_close(penalised(torch.tensor(1.5), last, optim), expected)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert sum(hooks) == 1  # the test's own


def test_without_penalties_nothing_is_watched_and_the_loss_is_the_same_tensor():
    model, loss = LanguageModel(CONFIG), torch.tensor(1.5)
    with watched_last_layer(model, section()) as last:
        model(torch.randint(11, (7, 2)), model.initial_state(2))
    assert penalised(loss, last, section()) is loss


def test_a_single_step_has_no_change_to_penalise():
    model, optim = LanguageModel(CONFIG).eval(), section(slowness_penalty=3.0)
    with watched_last_layer(model, optim) as last:
        model(torch.randint(11, (1, 2)), model.initial_state(2))
    assert float(penalised(torch.tensor(1.5), last, optim).detach()) == 1.5


def test_penalties_of_a_network_that_is_not_known_are_refused():
    with pytest.raises(RecipeError, match=r"slowness_penalty: 1.0; expected 0 with model.factory"):
        load_recipe("ci", overrides={"model.factory": "a:b", "optim.slowness_penalty": 1.0})
