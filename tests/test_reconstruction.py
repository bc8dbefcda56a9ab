"""Folding what removed neurons said into those that stay, and choosing by it."""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from linked_models import CELLS, E, H, LanguageModel, gated_model, logit_error, measured, tokens

from toolchain.errors import TrainingError
from toolchain.gating.compaction import (
    ActivationStatistics,
    compact,
    neuron_sets,
    plan_by_reconstruction,
    plan_compaction,
    plan_from_kept,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_statistics_are_those_of_what_the_readers_see() -> None:
    model = gated_model()
    batch = tokens(20, 16)
    with ActivationStatistics(model) as statistics:
        model(batch)
        model(batch)
    model(tokens())  # outside: not counted
    x = (model.embedding(batch) * model.rnn[0].input_gate.deterministic()).flatten(0, 1).detach().double()
    y = model.rnn[0](model.embedding(batch))[0].flatten(0, 1).detach().double()
    for site, rows in (("rnn.0.input", x), ("rnn.0.hidden", y)):
        torch.testing.assert_close(statistics.mean(site), rows.mean(0), atol=1e-6, rtol=0)
        wanted = torch.cov(rows.T, correction=0)
        wanted += torch.eye(len(wanted)) * 1e-4 * wanted.diagonal().mean()
        torch.testing.assert_close(statistics.covariance(site), wanted, atol=1e-6, rtol=0)
    with pytest.raises(TrainingError, match=r"nothing measured at 'rnn\.1\.input'"):
        statistics.mean("rnn.1.input")  # the first layer's neurons: measured there


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_folding_what_removed_neurons_said_is_better_than_dropping_it(cell: str, gated: bool, tied: bool) -> None:
    model = gated_model(cell, closed=0, tied=tied) if gated else LanguageModel(cell, tied=tied)
    statistics = measured(model)
    plan = plan_by_reconstruction(model, statistics, keep=0.6)
    dropped, folded = copy.deepcopy(model), copy.deepcopy(model)
    compact(dropped, plan)
    compact(folded, plan, statistics=statistics)
    assert logit_error(folded, model) < 0.7 * logit_error(dropped, model)
    if not tied:
        assert logit_error(folded, model) < 0.5 * logit_error(dropped, model)


def test_folding_leaves_a_tied_embedding_as_it_is() -> None:
    model = LanguageModel(tied=True)
    statistics, table = measured(model), model.embedding.weight.detach().clone()
    plan = plan_by_reconstruction(model, statistics, keep={"rnn.0.hidden": 12, "rnn.1.hidden": 8})
    bias = model.decoder.bias.detach().clone()
    compact(model, plan, statistics=statistics)
    assert model.decoder.weight is model.embedding.weight
    assert torch.equal(model.embedding.weight, table[:, plan.at("rnn.0.input")])
    assert not torch.equal(model.decoder.bias, bias)


def test_a_neuron_that_others_determine_is_removed_without_loss() -> None:
    model = LanguageModel()
    # Embedding columns 3 and 7 are linear in the others, with a constant: least squares can restore both.
    table = model.embedding.weight.data
    table[:, 3] = 2 * table[:, 0] - table[:, 5] + 0.7
    table[:, 7] = table[:, 1] - 0.2
    statistics = measured(model)
    kept = {neurons.name: np.arange(neurons.size) for neurons in neuron_sets(model)}
    kept["rnn.0.input"] = np.setdiff1d(np.arange(E), [3, 7])
    dropped, folded = copy.deepcopy(model), copy.deepcopy(model)
    compact(dropped, plan_from_kept(model, kept))
    compact(folded, plan_from_kept(model, kept), statistics=statistics)
    assert logit_error(dropped, model) > 1e-3
    assert logit_error(folded, model) < 1e-7  # what the ridge leaves


def test_reconstruction_removes_first_what_others_determine() -> None:
    model = LanguageModel()
    table = model.embedding.weight.data
    table[:, 3] = 2 * table[:, 0] - table[:, 5]
    sizes = {"rnn.0.input": E - 1, "rnn.0.hidden": H, "rnn.1.hidden": H}
    removed = np.setdiff1d(np.arange(E), plan_by_reconstruction(model, measured(model), keep=sizes).kept["rnn.0.input"])
    assert removed.item() in (0, 3, 5)


def test_elimination_leaves_the_error_that_least_squares_leaves() -> None:
    model = LanguageModel()
    statistics = measured(model)
    sizes = {"rnn.0.input": 4, "rnn.0.hidden": H, "rnn.1.hidden": H}
    chosen = plan_by_reconstruction(model, statistics, keep=sizes).kept["rnn.0.input"]
    C, W = statistics.covariance("rnn.0.input").numpy(), model.rnn[0].weight_ih_l0.detach().double().numpy()

    def error(kept: Any) -> float:
        k, r = list(kept), np.setdiff1d(np.arange(E), kept)
        rest = C[np.ix_(r, r)] - C[np.ix_(r, k)] @ np.linalg.solve(C[np.ix_(k, k)], C[np.ix_(k, r)])
        return float(np.trace(W[:, r] @ rest @ W[:, r].T))

    stay = list(range(E))
    while len(stay) > 4:  # the same greedy choice, each candidate refitted from nothing
        stay = min(([j for j in stay if j != i] for i in stay), key=error)
    assert chosen.tolist() == stay
    errors = sorted(error(kept) for kept in combinations(range(E), 4))
    assert error(chosen) <= errors[len(errors) // 20]


def cost(sizes: dict[str, int]) -> int:
    x, first, second = (sizes[name] for name in ("rnn.0.input", "rnn.0.hidden", "rnn.1.hidden"))
    return 4 * (first * (x + first) + second * (first + second))


def test_reconstruction_lands_as_near_the_asked_fraction_as_one_neuron_allows() -> None:
    model = LanguageModel()
    statistics = measured(model, 2)
    for keep in np.linspace(0.05, 1, 12):
        plan = plan_by_reconstruction(model, statistics, keep=float(keep))
        assert plan.l0_after == cost(plan.sizes)
        target = keep * cost({"rnn.0.input": E, "rnn.0.hidden": H, "rnn.1.hidden": H})
        one_more = [cost({**plan.sizes, name: size + 1}) for name, size in plan.sizes.items()]
        assert abs(plan.l0_after - target) <= (max(one_more) - plan.l0_after) / 2


def test_gates_can_say_how_many_and_reconstruction_which() -> None:
    model = gated_model(closed=0)
    by_gates = plan_compaction(model, keep=0.5)
    plan = plan_by_reconstruction(model, measured(model), keep=by_gates.sizes)
    assert plan.sizes == by_gates.sizes
    assert any((plan.kept[name] != by_gates.kept[name]).any() for name in plan.kept)
