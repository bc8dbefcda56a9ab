from __future__ import annotations

import csv
import math

import numpy as np
import onnx
import pytest
import torch
from tiny_training import WORDS, Silent, tiny_corpus, tiny_recipe, tiny_run
from toolchain.models.language_model import LanguageModel, LanguageModelConfig

from toolchain.errors import DatasetError, RecipeError, TrainingError
from toolchain.evaluation import torch_perplexity
from toolchain.gates import gate, total_l0
from toolchain.training.averaging import averaged_weights
from toolchain.training.checkpoint import load_checkpoint
from toolchain.training.loop import end_early, finish, train
from toolchain.training.methods.cut_record import open_neurons
from toolchain.training.methods.neuron_selection import reopen_gates
from toolchain.training.run_folder import CHECKPOINT, GATES, METRICS, new_run_folder
from toolchain.training.training_run import build_network, restore_run

TIMES = ("seconds", "tokens_per_s")


def stop_after(updates: int, run):
    return lambda: run.update + 1 == updates  # asked before the update is done


def results(run):
    """Everything a run computed that does not depend on the clock."""
    metrics = [{key: value for key, value in row.items() if key not in TIMES} for row in run.metrics]
    return metrics, run.gates


@pytest.mark.parametrize("method", ["dense", "neuron-selection"])
def test_a_network_learns_and_ends_as_onnx_with_the_same_perplexity(tmp_path, method):
    run, report = tiny_run(tmp_path, run__method=method, optim__epochs=8), Silent()
    assert train(run, report=report)
    result = finish(run, tiny_corpus(), threads=1)
    assert result.perplexity < 0.4 * WORDS  # guessing gives 12, the text's own noise about 2
    assert f"{result.onnx_perplexity:.4g}" == f"{result.perplexity:.4g}"
    assert [row["epoch"] for row in report.epochs] == list(range(1, 9))
    assert report.epochs[-1]["valid_perplexity"] < report.epochs[0]["valid_perplexity"]


def test_a_gated_run_lands_on_the_asked_share_and_exports_exact_zeros_at_the_old_shapes(tmp_path):
    run, report = tiny_run(tmp_path), Silent()
    dense = total_l0(build_network(run.recipe.model, WORDS))
    train(run, report=report)
    result = finish(run, tiny_corpus(), threads=1)
    assert total_l0(run.model) / dense == pytest.approx(0.3, abs=0.03)  # one neuron is about 2 points here
    assert result.share == total_l0(run.model) / dense
    assert [row["phase"] for row in run.metrics] == ["gated", "gated", "narrow", "narrow"]
    assert any(event.startswith("frozen: ") for event in report.events)
    weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(result.model).graph.initializer]
    shapes = {weight.shape for weight in weights}
    assert {(WORDS, 10), (1, 48, 10), (1, 48, 12), (1, 36, 12), (1, 36, 9)} <= shapes
    kept = dict(open_neurons(run.model))
    R = next(weight for weight in weights if weight.shape == (1, 48, 12))
    assert (np.abs(R[0]).sum(0) > 0).sum() == kept["rnn.0.hidden"] < 12


def test_gates_that_closed_beyond_the_asked_share_open_again_nearest_first(tmp_path):
    model = gate(build_network(tiny_run(tmp_path).recipe.model, WORDS))
    dense = total_l0(model)
    hidden = model.rnn[0].hidden_gates[0].log_alpha
    with torch.no_grad():
        hidden.copy_(torch.linspace(-12.0, -8.0, len(hidden)))  # the whole layer is closed
    others = model.rnn[1].hidden_gates[0].log_alpha.clone()
    reopen_gates(model, keep=0.5, dense_l0=dense)
    is_open = model.rnn[0].hidden_gates[0].deterministic() > 0
    assert 0 < is_open.sum() < len(hidden)
    assert is_open.tolist() == sorted(is_open.tolist())  # the last ones were nearest to open
    reached = model.rnn[1].hidden_gates[0].log_alpha.clone()
    reopen_gates(model, keep=0.5, dense_l0=dense)
    assert (reached > others).all()
    assert torch.equal(model.rnn[1].hidden_gates[0].log_alpha, reached)  # what suffices is left alone


def test_gates_that_close_for_good_beyond_the_asked_share_are_not_cut(tmp_path):
    run = tiny_run(tmp_path)
    dense = total_l0(run.model)
    gates = [parameter for name, parameter in run.model.named_parameters() if name.endswith("log_alpha")]
    with torch.no_grad():
        for log_alpha in gates:
            log_alpha.copy_(torch.linspace(-12.0, -8.0, len(log_alpha)))
    assert run.method.cut(run.model, run.optimizer)
    assert total_l0(run.model) / dense == pytest.approx(0.3, abs=0.03)  # the share asked; a neuron is about 2 points
    assert not run.method.cut(run.model, run.optimizer)


def test_the_expanded_network_computes_what_the_narrow_one_does(tmp_path):
    run = tiny_run(tmp_path)
    train(run, report=Silent())
    whole = run.method.finished(run.model, dense=build_network(run.recipe.model, WORDS))
    assert total_l0(whole) > 2 * total_l0(run.model)
    assert torch_perplexity(whole, run.task.valid) == pytest.approx(
        torch_perplexity(run.model, run.task.valid), rel=1e-5
    )


def test_a_fixed_price_closes_gates_and_a_higher_one_closes_more(tmp_path):
    shares = []
    for name, weight in (("low", 0.01), ("high", 3.0)):
        run = tiny_run(tmp_path, name, gates__keep=None, gates__l0_weight=weight)
        train(run, report=Silent())
        shares.append(run.metrics[-1]["multiply_adds_share"])
    assert shares[1] < shares[0] - 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"run__method": "dense"},
        {"gates__compact_steps": 7},
        {"gates__start_at": 0.3, "gates__dropout": 0.2, "model__cell": "gru"},
    ],
)
def test_a_resumed_run_gives_the_very_same_numbers(tmp_path, changes):
    """Stopped in the middle of an epoch of each phase, gated and narrow, and at the end of one."""
    whole = tiny_run(tmp_path, "whole", **changes)
    train(whole, report=Silent())
    per_epoch = whole.schedule.updates_per_epoch
    stops = [per_epoch - 3, 2 * per_epoch, 2 * per_epoch + 5, 3 * per_epoch + 1]  # gates freeze at 2.4 epochs
    for stop in stops:
        part = tiny_run(tmp_path, "parts", **changes)
        if stop != stops[0]:
            restore_run(part)
        assert not train(part, report=Silent(), stop=stop_after(stop, part))
        assert part.update == stop
        torch.rand(3)  # whatever happens in between
    last = tiny_run(tmp_path, "parts", **changes)
    restore_run(last)
    assert train(last, report=Silent())
    assert results(last) == results(whole)
    expected, found = whole.model.state_dict(), last.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for name in (METRICS, GATES):
        if (whole.folder / name).exists():
            assert _without_times(whole.folder / name) == _without_times(last.folder / name)


def _without_times(path):
    with path.open() as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def test_another_seed_gives_other_numbers(tmp_path):
    runs = [tiny_run(tmp_path, f"seed{seed}", run__seed=seed, optim__epochs=1) for seed in (0, 1)]
    for run in runs:
        train(run, report=Silent())
    assert runs[0].metrics[0]["valid_perplexity"] != runs[1].metrics[0]["valid_perplexity"]


def test_each_epoch_ends_with_its_rows_and_a_checkpoint(tmp_path):
    run = tiny_run(tmp_path)
    train(run, report=Silent(), stop=stop_after(run.schedule.updates_per_epoch * 2, run))
    with (run.folder / METRICS).open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    with (run.folder / GATES).open() as file:
        rows = list(csv.DictReader(file))
    assert {row["gate"] for row in rows} == {"rnn.0.input_gate", "rnn.0.hidden_gates.0", "rnn.1.hidden_gates.0"}
    assert load_checkpoint(run.folder / CHECKPOINT).facts["update"] == 2 * run.schedule.updates_per_epoch
    assert sorted(path.name for path in run.folder.iterdir()) == [CHECKPOINT, GATES, METRICS]


def test_before_the_gates_start_the_network_learns_as_a_dense_one(tmp_path):
    first_epoch = []
    for changes in ({"run__method": "dense"}, {"gates__start_at": 0.25, "gates__dropout": 0.0}):
        run = tiny_run(tmp_path, **changes)
        train(run, report=Silent(), stop=stop_after(run.schedule.updates_per_epoch, run))
        first_epoch.append(run.metrics[0])
    dense, gated = first_epoch
    assert (gated["phase"], gated["valid_perplexity"]) == ("dense", dense["valid_perplexity"])
    train(run, report=Silent())
    assert [row["phase"] for row in run.metrics] == ["dense", "gated", "narrow", "narrow"]
    assert run.metrics[-1]["multiply_adds_share"] < 0.35
    assert run.model.dropout.p == 0.0


def test_closed_neurons_are_cut_while_the_gates_still_learn(tmp_path):
    run, report = tiny_run(tmp_path, gates__keep=0.1, gates__compact_steps=5, optim__epochs=8), Silent()
    train(run, report=report, stop=stop_after(run.schedule.freeze_at, run))
    assert any(event.startswith("cut: ") for event in report.events)
    assert run.method.learning
    assert total_l0(run.model) < run.method.cuts.dense_l0
    gates = dict(run.model.named_parameters())["rnn.0.hidden_gates.0.log_alpha"]
    assert run.method.optimizer.state[gates]["exp_avg"].shape == gates.shape


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    run = tiny_run(tmp_path)
    with torch.no_grad():
        run.model.decoder.bias.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"epoch 1: the training loss is nan; .*Lower optim.learning_rate"):
        train(run, report=Silent())


def own_network(vocabulary_size):
    """A user's network: no neuron_links, so it is gated but never cut."""

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(vocabulary_size, 10)
            self.layers = torch.nn.GRU(10, 12, num_layers=2)
            self.out = torch.nn.Linear(12, vocabulary_size)

        def forward(self, tokens, state):
            y, h = self.layers(self.table(tokens), torch.cat([layer[0] for layer in state]))
            return self.out(y), tuple((part,) for part in h.split(1))

        def initial_state(self, batch_size):
            return tuple((torch.zeros(1, batch_size, 12),) for _ in range(2))

    return Own()


def test_a_users_own_network_is_gated_folded_and_exported(tmp_path):
    run = tiny_run(tmp_path, model__factory=f"{__name__}:own_network", gates__keep=None, gates__l0_weight=2.0)
    train(run, report=Silent(), stop=stop_after(run.schedule.updates - 5, run))
    resumed = tiny_run(tmp_path, model__factory=f"{__name__}:own_network", gates__keep=None, gates__l0_weight=2.0)
    restore_run(resumed)
    assert train(resumed, report=Silent())
    result = finish(resumed, tiny_corpus(), threads=1)
    assert f"{result.onnx_perplexity:.4g}" == f"{result.perplexity:.4g}"
    assert result.perplexity == pytest.approx(torch_perplexity(resumed.model, _column(tiny_corpus().test)), rel=1e-5)
    assert 0 < result.share < 0.9
    assert resumed.metrics[-1]["phase"] == "narrow"


@pytest.mark.parametrize(
    "method",
    [
        {"run__method": "neuron-selection"},
        {"run__method": "magnitude"},
        {"run__method": "iss", "iss__weight": 0.01, "optim__optimizer": "sgd", "optim__learning_rate": 2.0},
    ],
    ids=lambda changes: changes["run__method"],
)
def test_a_run_stopped_while_its_method_chooses_gives_the_smaller_model_that_it_has(tmp_path, method):
    changes = {"optim__epochs": 20, "gates__freeze_at": 0.9, **method}
    run = tiny_run(tmp_path, **changes)
    train(run, report=Silent(), stop=stop_after(run.schedule.updates * 8 // 10, run))
    assert run.method.learning
    stopped = (run.folder / CHECKPOINT).read_bytes()
    early, report = tiny_run(tmp_path, **changes), Silent()
    restore_run(early)
    end_early(early, report=report)
    result = finish(early, tiny_corpus(), path=tmp_path / "early.onnx", threads=1)
    assert result.model == tmp_path / "early.onnx"
    assert f"{result.onnx_perplexity:.4g}" == f"{result.perplexity:.4g}"
    assert result.perplexity < 0.5 * WORDS
    assert result.share == total_l0(early.model) / total_l0(build_network(early.recipe.model, WORDS)) < 0.9
    assert report.events[0].startswith("frozen: ")
    assert (run.folder / CHECKPOINT).read_bytes() == stopped


def test_a_run_ended_early_gives_its_averaged_weights(tmp_path):
    run = tiny_run(tmp_path, run__method="dense", averaging__kind="ema")
    train(run, report=Silent(), stop=stop_after(run.schedule.updates - 1, run))
    with averaged_weights(run.averaging, run.optimizer):
        averaged = torch_perplexity(run.model, _column(tiny_corpus().test))
    assert torch_perplexity(run.model, _column(tiny_corpus().test)) != averaged
    end_early(run, report=Silent())
    assert finish(run, tiny_corpus(), path=tmp_path / "early.onnx", threads=1).perplexity == averaged


def test_a_run_without_an_epoch_gives_no_model(tmp_path):
    with pytest.raises(TrainingError, match="no epoch is over yet; expected one before a model is written"):
        end_early(tiny_run(tmp_path), report=Silent())


def _column(tokens):
    return torch.from_numpy(tokens).long()[:, None]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nowhere.at.all:f", "nowhere.at.all:f: No module named 'nowhere'; expected package.module:function"),
        ("math:gone", "has no attribute 'gone'"),
        ("math:sqrt", "math:sqrt returned float; expected an nn.Module"),
    ],
)
def test_a_factory_that_cannot_be_used_is_named(tmp_path, factory, message):
    with pytest.raises(RecipeError, match=message):
        tiny_run(tmp_path, model__factory=factory)


def test_a_text_too_short_for_the_batch_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"a split of 1920 tokens cannot fill 1500 columns"):
        tiny_run(tmp_path, optim__batch_size=1500)


def test_a_run_folder_is_never_taken_twice(tmp_path):
    names = [new_run_folder(tmp_path, None, default="x").name for _ in range(3)]
    assert names == ["x", "x-2", "x-3"]
    with pytest.raises(TrainingError, match=r"x: exists already; .*--resume"):
        new_run_folder(tmp_path, "x", default="y")


def test_bfloat16_learns_too(tmp_path):
    run = tiny_run(tmp_path, run__precision="bfloat16", optim__epochs=8)
    train(run, report=Silent())
    assert run.metrics[-1]["valid_perplexity"] < 0.4 * WORDS
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())


def test_a_dense_network_is_what_the_recipe_says(tmp_path):
    recipe = tiny_recipe(tmp_path, model__cell="rnn", model__tied=True, model__hidden_sizes=[7, 10])
    expected = LanguageModel(
        LanguageModelConfig(vocabulary_size=5, embedding_size=10, hidden_sizes=(7, 10), cell="rnn", tied=True)
    )
    found = build_network(recipe.model, 5)
    assert {n: p.shape for n, p in found.named_parameters()} == {n: p.shape for n, p in expected.named_parameters()}
