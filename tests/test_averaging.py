"""Averaged weights: what is averaged, that training does not notice, and that they are what is exported."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from tiny_training import Silent, tiny_corpus, tiny_run

from toolchain.evaluation import torch_perplexity
from toolchain.gating.hard_concrete import HardConcrete
from toolchain.training.averaging import (
    AVERAGE,
    Averaging,
    averaged_weights,
    begin_averaging,
    note_validation,
    restart_averaging,
)
from toolchain.training.language_modelling import Perplexity
from toolchain.training.loop import finish, train
from toolchain.training.teaching_sections import AveragingSection


def weights_of(run):
    return {name: parameter.detach().double().clone() for name, parameter in run.model.named_parameters()}


def trained(run, **options):
    """Train, and return the weights after each update, the last one's excepted."""
    weights = []

    def look():
        weights.append(weights_of(run))
        return False

    train(run, report=Silent(), stop=look)
    return weights[1:]  # the first look is before any update


def expected_average(weights, kind, decay):
    average = weights[0]
    for count, current in enumerate(weights[1:], start=1):
        share = max(1 - decay, 9 / (10 + count)) if kind == "ema" else 1 / (count + 1)
        average = {name: average[name] * (1 - share) + current[name] * share for name in average}
    return average


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", ["ema", "uniform"])
@pytest.mark.parametrize("start_at", [0.0, 0.5])
def test_the_network_ends_as_the_average_of_its_weights_after_each_update(tmp_path, kind, optimizer, start_at):
    changes = {"run__method": "dense", "optim__optimizer": optimizer, "optim__epochs": 2}
    plain = tiny_run(tmp_path, "plain", **changes)
    weights = trained(plain)
    weights.append(weights_of(plain))
    averaging = {"averaging__kind": kind, "averaging__decay": 0.9, "averaging__start_at": start_at}
    run = tiny_run(tmp_path, "averaged", **changes, **averaging)
    trained(run)
    first = round(start_at * run.schedule.updates)
    expected = expected_average(weights[first:], kind, 0.9)
    assert run.averaging.count == len(weights) - first
    for name, found in weights_of(run).items():
        torch.testing.assert_close(found, expected[name], atol=1e-6, rtol=1e-6)  # 8 roundings of float32
        assert not torch.equal(found, weights[-1][name])


def test_training_does_not_notice_but_validation_does(tmp_path):
    figures = []
    for kind in ("none", "ema"):
        run = tiny_run(tmp_path, averaging__kind=kind)
        train(run, report=Silent())
        figures.append([(row["train_perplexity"], row["valid_perplexity"]) for row in run.metrics])
    plain, averaged = figures
    assert [row[0] for row in plain] == [row[0] for row in averaged]
    assert all(one[1] != other[1] for one, other in zip(plain, averaged, strict=True))


def test_the_averaged_weights_are_validated_and_exported(tmp_path):
    run = tiny_run(tmp_path, run__method="dense", averaging__kind="ema", averaging__decay=0.95)
    last = trained(run)[-1]
    average = weights_of(run)
    assert run.metrics[-1]["valid_perplexity"] == torch_perplexity(run.model, run.task.valid)
    result = finish(run, tiny_corpus(), threads=1)
    assert f"{result.onnx_perplexity:.4g}" == f"{result.perplexity:.4g}"
    arrays = [onnx.numpy_helper.to_array(t) for t in onnx.load(result.model).graph.initializer]
    exported = next(array for array in arrays if array.shape == (12, 10))  # words x embedding
    assert np.array_equal(exported, average["embedding.weight"].float().numpy())
    assert not np.allclose(exported, last["embedding.weight"].numpy())


def test_averages_are_cut_like_the_weights(tmp_path):
    run = tiny_run(tmp_path, averaging__kind="uniform")
    train(run, report=Silent(), stop=lambda: run.update == 20)
    with torch.no_grad():
        for gates in (module for module in run.model.modules() if isinstance(module, HardConcrete)):
            gates.log_alpha[::3] = -12.0
    with averaged_weights(run.averaging, run.optimizer):
        before = torch_perplexity(run.model, run.task.valid)
    raw = torch_perplexity(run.model, run.task.valid)
    assert run.method.cut(run.model, run.optimizer)
    assert all(run.optimizer.state[p][AVERAGE].shape == p.shape for p in run.optimizer.param_groups[0]["params"])
    with averaged_weights(run.averaging, run.optimizer):
        assert torch_perplexity(run.model, run.task.valid) == pytest.approx(before, rel=1e-5)
    assert torch_perplexity(run.model, run.task.valid) == pytest.approx(raw, rel=1e-5)
    assert abs(before / raw - 1) > 1e-3  # they are two networks


def test_the_average_starts_again_when_gates_are_frozen(tmp_path):
    run = tiny_run(tmp_path, averaging__kind="uniform")
    train(run, report=Silent())
    assert run.averaging.count == run.schedule.updates - run.schedule.freeze_at


def test_where_there_is_no_average_yet_the_weights_themselves_are_used(tmp_path):
    perplexities = []
    for kind in ("none", "uniform"):
        run = tiny_run(tmp_path, averaging__kind=kind, averaging__patience=90, run__method="dense")
        train(run, report=Silent())
        perplexities.append([row["valid_perplexity"] for row in run.metrics])
    assert run.averaging.count == 0
    assert perplexities[0] == perplexities[1]


def rows_of(perplexities, phase="dense"):
    return [{"phase": phase, "valid_perplexity": value} for value in perplexities]


@pytest.mark.parametrize(
    ("perplexities", "epoch"),
    [
        ([9, 8, 7, 6, 5, 4, 3], None),
        ([5, 6, 7], 3),  # 7 is above 5, the best but for one epoch before it
        ([5, 6], None),  # not yet: the only epoch before it is the one that does not count
        ([9, 8, 8.5, 7, 8.2], 5),
        ([9, 8, 8.5], None),
    ],
)
def test_averaging_starts_when_perplexity_has_not_fallen_for_longer_than_the_patience(perplexities, epoch):
    averaging = Averaging(section=AveragingSection(kind="uniform", patience=1))
    fired = None
    for number in range(1, len(perplexities) + 1):
        note_validation(averaging, rows_of(perplexities[:number]), Perplexity())
        if averaging.triggered:
            fired = number
            break
    assert fired == epoch


def test_perplexities_from_before_a_cut_do_not_count():
    averaging = Averaging(section=AveragingSection(kind="uniform", patience=1))
    note_validation(averaging, rows_of([5, 5, 5], "gated") + rows_of([7, 6], "narrow"), Perplexity())
    assert not averaging.triggered


def test_a_figure_that_should_rise_triggers_when_it_has_stopped_to_rise():
    averaging = Averaging(section=AveragingSection(kind="uniform", patience=1))
    accuracy = Perplexity(higher_is_better=True)
    note_validation(averaging, rows_of([5, 6, 7]), accuracy)
    assert not averaging.triggered
    note_validation(averaging, rows_of([7, 6, 5]), accuracy)
    assert averaging.triggered


def test_the_trigger_starts_the_average_with_the_next_epoch(tmp_path):
    changes = {"averaging__kind": "uniform", "averaging__patience": 1, "run__method": "dense", "optim__epochs": 12}
    run = tiny_run(tmp_path, optim__learning_rate=0.3, optim__schedule="decay", **changes)
    train(run, report=Silent())
    perplexities = [row["valid_perplexity"] for row in run.metrics]
    plain = tiny_run(tmp_path, "plain", **{**changes, "averaging__kind": "none"},
                     optim__learning_rate=0.3, optim__schedule="decay")  # fmt: skip
    train(plain, report=Silent())
    unaveraged = [row["valid_perplexity"] for row in plain.metrics]
    fired = next(i for i in range(2, 12) if unaveraged[i] > min(unaveraged[: i - 1])) + 1
    assert perplexities[:fired] == unaveraged[:fired]
    assert perplexities[fired] != unaveraged[fired]
    assert run.averaging.count == run.schedule.updates_per_epoch * (12 - fired)


def test_forgetting_the_average_leaves_the_optimizer_as_it_was(tmp_path):
    run = tiny_run(tmp_path, run__method="dense", averaging__kind="ema")
    train(run, report=Silent(), stop=lambda: run.update == 3)
    restart_averaging(run.averaging, run.optimizer)
    assert run.averaging.count == 0
    assert {key for state in run.optimizer.state.values() for key in state} == {"step", "exp_avg", "exp_avg_sq"}
    assert begin_averaging(AveragingSection()) is None
