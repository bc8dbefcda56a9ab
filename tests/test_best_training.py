"""Everything that `ptb-best` uses, together: it runs, is cut, resumes bit by bit, and is what the sources say."""

from __future__ import annotations

import pytest
import torch
from test_teacher import taught_run, trained_teacher  # noqa: F401  (a fixture)
from test_training import results, stop_after
from tiny_training import Silent, tiny_corpus

from toolchain.gates import total_l0
from toolchain.training.loop import finish, train
from toolchain.training.recipe_files import load_recipe
from toolchain.training.training_run import restore_run

TRICKS = {
    "model__hidden_sizes": [12, 10],
    "model__tied": True,
    "model__variational": True,
    "model__input_dropout": 0.1,
    "model__hidden_dropout": 0.05,
    "model__embedding_dropout": 0.05,
    "model__weight_drop": 0.1,
    "optim__activation_penalty": 0.1,
    "optim__slowness_penalty": 0.1,
    "optim__output_noise": 0.01,
    "optim__partial_shuffle": True,
    "averaging__kind": "ema",
    "averaging__decay": 0.9,
    "teacher__weight": 0.4,
    "teacher__temperature": 2.0,
}


def test_a_gated_network_is_trained_cut_and_exported_with_every_trick_on(tmp_path, trained_teacher):  # noqa: F811
    run, report = taught_run(tmp_path, trained_teacher, **TRICKS, gates__compact_steps=5, optim__epochs=12), Silent()
    assert train(run, report=report)
    result = finish(run, tiny_corpus(), threads=1)
    assert f"{result.onnx_perplexity:.4g}" == f"{result.perplexity:.4g}"
    assert result.perplexity < 6.0  # guessing gives 12
    assert total_l0(run.model) / run.method.cuts.dense_l0 == result.share < 0.4
    assert any(event.startswith("frozen: ") for event in report.events)


@pytest.mark.parametrize(
    "changes",
    [
        {"gates__compact_steps": 7},
        {"run__method": "dense", "model__cell": "gru"},
        {"run__method": "dense", "optim__optimizer": "sgd", "averaging__kind": "uniform", "averaging__patience": 1},
    ],
)
def test_a_resumed_run_gives_the_very_same_numbers_with_every_trick_on(tmp_path, trained_teacher, changes):  # noqa: F811
    changes = {**TRICKS, **changes}
    whole = taught_run(tmp_path, trained_teacher, "whole", **changes)
    train(whole, report=Silent())
    per_epoch = whole.schedule.updates_per_epoch
    stops = [per_epoch - 3, 2 * per_epoch, 2 * per_epoch + 5, 3 * per_epoch + 1]  # gates freeze at 2.4 epochs
    for stop in stops:
        part = taught_run(tmp_path, trained_teacher, "parts", **changes)
        if stop != stops[0]:
            restore_run(part)
        assert not train(part, report=Silent(), stop=stop_after(stop, part))
        torch.rand(3)  # whatever happens in between
    last = taught_run(tmp_path, trained_teacher, "parts", **changes)
    restore_run(last)
    assert train(last, report=Silent())
    assert results(last) == results(whole)
    assert last.averaging == whole.averaging
    expected, found = whole.model.state_dict(), last.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_recipe_takes_the_published_rates_of_merity_2017_but_drops_less():
    recipe = load_recipe("ptb-best")
    model, optim = recipe.model, recipe.optim
    drops = (model.input_dropout, model.hidden_dropout, model.dropout, model.embedding_dropout, model.weight_drop)
    assert all(0 < ours < theirs for ours, theirs in zip(drops, (0.4, 0.25, 0.4, 0.1, 0.5), strict=True))
    assert (optim.clip_norm, optim.activation_penalty, optim.slowness_penalty) == (0.25, 2.0, 1.0)
    assert (model.tied, model.variational) == (True, True)
    assert optim.weight_decay * optim.learning_rate == pytest.approx(1.2e-6 * 30)
