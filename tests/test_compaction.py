"""Cutting neurons out of a small language model: what nobody reads may go, and nothing else may change."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from linked_models import CELLS, E, H, LanguageModel, V, gated_model, gates_of, logit_error, measured, tokens
from torch import Tensor, nn

from toolchain.errors import TrainingError
from toolchain.gates import fold, gate, total_l0
from toolchain.gating.compaction import (
    NeuronLink,
    compact,
    compose,
    expand,
    freeze,
    neuron_sets,
    plan_by_reconstruction,
    plan_compaction,
    plan_from_kept,
)

ATOL = 2e-6  # 10x the worst difference seen; logits are of order 1


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def assert_close(actual: Tensor, wanted: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(actual, wanted, atol=atol, rtol=0)


@pytest.mark.parametrize("gated", [False, True])
def test_the_sets_name_every_axis_that_a_neuron_indexes(gated: bool) -> None:
    model = gate(LanguageModel()) if gated else LanguageModel()
    inputs, first, second = neuron_sets(model)
    assert (inputs.name, inputs.size, inputs.sites) == ("rnn.0.input", E, ("rnn.0.input",))
    assert (first.name, first.size, first.sites) == ("rnn.0.hidden", H, ("rnn.0.hidden", "rnn.1.input"))
    assert (second.name, second.size) == ("rnn.1.hidden", H)
    places = {(axis.parameter, axis.axis, axis.blocks) for axis in first.axes}
    own = {f"rnn.0.{kind}_l0" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    wanted = {(name, 0, 4) for name in own} | {("rnn.0.weight_hh_l0", 1, 1), ("rnn.1.weight_ih_l0", 1, 1)}
    assert places == wanted | ({("rnn.0.hidden_gates.0.log_alpha", 0, 1)} if gated else set())
    readers = {(reader.parameter, reader.bias) for neurons in (inputs, first, second) for reader in neurons.readers}
    assert readers == {
        ("rnn.0.weight_ih_l0", "rnn.0.bias_ih_l0"),
        ("rnn.0.weight_hh_l0", "rnn.0.bias_hh_l0"),
        ("rnn.1.weight_ih_l0", "rnn.1.bias_ih_l0"),
        ("rnn.1.weight_hh_l0", "rnn.1.bias_hh_l0"),
        ("decoder.weight", "decoder.bias"),
    }


def test_a_tied_embedding_makes_the_inputs_and_the_last_layer_one_set() -> None:
    first, tied = neuron_sets(LanguageModel(tied=True))
    assert first.sites == ("rnn.0.hidden", "rnn.1.input")
    assert tied.sites == ("rnn.1.hidden", "rnn.0.input")
    assert {"embedding.weight", "decoder.weight"} <= {axis.parameter for axis in tied.axes}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tied", [False, True])
def test_cutting_closed_neurons_changes_no_logit(cell: str, tied: bool) -> None:
    model, batch = gated_model(cell, tied=tied), tokens()
    wanted, before = model(batch), {name: id(p) for name, p in model.named_parameters()}
    plan = plan_compaction(model, keep=None)
    compact(model, plan)
    assert_close(model(batch), wanted)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    closed = {"rnn.0.hidden": int(0.4 * H), "rnn.1.hidden": int(0.4 * (E if tied else H))}
    assert model.rnn[0].hidden_size == model.rnn[1].input_size == H - closed["rnn.0.hidden"]
    assert model.rnn[1].hidden_size == (E if tied else H) - closed["rnn.1.hidden"] == model.decoder.in_features
    assert model.embedding.embedding_dim == model.rnn[0].input_size == E - int(0.4 * E)
    assert plan.l0_after == total_l0(model) < plan.l0_before


def test_a_plan_for_closed_gates_leaves_open_and_undecided_gates_alone() -> None:
    model = gated_model(closed=0)
    model.rnn[0].hidden_gates[0].log_alpha.data[3] = -3.0  # its fixed value is 0, but it may come back
    assert plan_compaction(model, keep=None).removes_nothing


def test_at_least_one_neuron_of_every_set_stays() -> None:
    model = gated_model(closed=1.0)
    model.rnn[0].hidden_gates[0].log_alpha.data[5] = -8.0
    plan = plan_compaction(model, keep=None)
    assert plan.kept["rnn.0.hidden"].tolist() == [5]
    compact(model, plan)
    assert model(tokens()).shape == (9, 4, V)
    assert set(plan_compaction(gated_model(), keep=1e-6).sizes.values()) == {1}


@pytest.mark.parametrize("keep", [0.05, 0.15, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("equal_gates", [False, True])
def test_a_plan_lands_as_near_the_asked_fraction_as_one_neuron_allows(keep: float, equal_gates: bool) -> None:
    model = gated_model(closed=0)
    if equal_gates:
        for gates in gates_of(model).values():
            gates.log_alpha.data.fill_(1.0)
    plan = plan_compaction(model, keep=keep)
    one_neuron = 4 * (E + H + 1 + H + H)  # most that one of the first layer's neurons can cost
    assert abs(plan.l0_after - keep * plan.l0_before) <= one_neuron / 2
    compact(model, plan)
    assert total_l0(model) == plan.l0_after


def test_a_plan_removes_the_neurons_with_the_lowest_gates_of_all_sets() -> None:
    model = gated_model(closed=0)
    plan = plan_compaction(model, keep=0.4)
    kept, removed = [], []
    for name, gates in gates_of(model).items():
        mask = np.zeros(len(gates.log_alpha), bool)
        mask[plan.kept[name]] = True
        kept.append(gates.log_alpha.detach().numpy()[mask])
        removed.append(gates.log_alpha.detach().numpy()[~mask])
    assert np.concatenate(kept).min() > np.concatenate(removed).max()


def test_the_fraction_can_refer_to_a_network_that_was_cut_before() -> None:
    model = gated_model()
    dense = total_l0(model)
    compact(model, plan_compaction(model, keep=None))
    plan = plan_compaction(model, keep=0.2, total_l0=dense)
    assert plan.l0_after / dense == pytest.approx(0.2, abs=0.03)


def adam_steps(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Tensor]) -> None:
    for batch in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[:-1]).flatten(0, 1), batch[1:].flatten()).backward()
        optimizer.step()


OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.1, t0=0),
}


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_optimizer_goes_on_in_the_cut_model_as_in_the_masked_one(optimizer_name: str, tied: bool) -> None:
    masked = gated_model(tied=tied)  # in evaluation mode the gates are fixed: nothing random remains
    optimizer = OPTIMIZERS[optimizer_name](masked.parameters())
    batches = [tokens() for _ in range(4)]
    adam_steps(masked, optimizer, batches[:2])
    cut, cut_optimizer = copy.deepcopy((masked, optimizer))
    plan = plan_compaction(cut, keep=None)
    assert not plan.removes_nothing
    compact(cut, plan, optimizer=cut_optimizer)
    adam_steps(masked, optimizer, batches[2:])
    adam_steps(cut, cut_optimizer, batches[2:])
    assert_close(cut(batches[0]), masked(batches[0]), atol=2e-5)
    compact(masked, plan_from_kept(masked, plan.kept), optimizer=optimizer)
    assert all(p.grad is None or p.grad.shape == p.shape for p in masked.parameters())
    for ours, theirs in zip(cut.parameters(), masked.parameters(), strict=True):
        assert_close(ours, theirs, atol=2e-5)
        for key, value in cut_optimizer.state[ours].items():
            torch.testing.assert_close(value, optimizer.state[theirs][key], atol=2e-5, rtol=1e-3)


def test_optimizer_state_of_another_shape_is_refused_before_anything_changes() -> None:
    model = gated_model()
    optimizer = torch.optim.Adam(model.parameters())
    adam_steps(model, optimizer, [tokens()])
    optimizer.state[model.embedding.weight]["row"] = torch.zeros(V)
    shapes = [p.shape for p in model.parameters()]
    with pytest.raises(TrainingError, match=r"optimizer state 'row': has shape \[30\]"):
        compact(model, plan_compaction(model, keep=None), optimizer=optimizer)
    assert [p.shape for p in model.parameters()] == shapes


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tied", [False, True])
def test_freezing_leaves_plain_modules_with_the_same_logits(cell: str, tied: bool) -> None:
    model, batch = gated_model(cell, tied=tied), tokens()
    wanted, identity = model(batch), id(model.decoder.weight)
    freeze(model)
    assert all(type(layer) is CELLS[cell] for layer in model.rnn)
    assert model.state_dict().keys() == LanguageModel(cell, tied=tied).state_dict().keys()
    assert id(model.decoder.weight) == identity
    assert_close(model(batch), wanted)


def test_freezing_leaves_exact_zeros_in_every_reader_of_a_closed_neuron() -> None:
    model = gated_model()
    closed = {name: gates.deterministic() == 0 for name, gates in gates_of(model).items()}
    freeze(model)
    for W, name in (
        (model.rnn[0].weight_ih_l0, "rnn.0.input"),
        (model.rnn[0].weight_hh_l0, "rnn.0.hidden"),
        (model.rnn[1].weight_ih_l0, "rnn.0.hidden"),
        (model.rnn[1].weight_hh_l0, "rnn.1.hidden"),
        (model.decoder.weight, "rnn.1.hidden"),
    ):
        assert closed[name].any()
        assert not W[:, closed[name]].any()
        assert W[:, ~closed[name]].all()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tied", [False, True])
def test_expanding_a_cut_model_gives_the_original_shapes_and_the_same_logits(cell: str, tied: bool) -> None:
    dense, batch = LanguageModel(cell, tied=tied), tokens()
    model = gated_model(cell, tied=tied)
    first = plan_compaction(model, keep=None)
    compact(model, first)
    second = plan_compaction(model, keep=0.6)
    compact(model, second)
    freeze(model)
    kept = compose(first.kept, second.kept)
    state = expand(model.state_dict(), kept, neuron_sets(dense))
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in dense.state_dict().items()
    }
    dense.load_state_dict(state)
    assert_close(dense(batch), model(batch))
    missing = np.setdiff1d(np.arange(H), kept["rnn.0.hidden"])
    for columns in (dense.rnn[0].weight_hh_l0[:, missing], dense.rnn[1].weight_ih_l0[:, missing]):
        assert columns.numel()
        assert not columns.any()
    rows = (np.arange(len(dense.rnn[0].weight_hh_l0) // H)[:, None] * H + missing).ravel()
    assert not dense.rnn[0].weight_ih_l0[rows].any()
    assert not dense.rnn[0].bias_hh_l0[rows].any()


def test_expanding_covers_names_that_no_link_mentions() -> None:
    class OneName(LanguageModel):
        def neuron_links(self) -> tuple[NeuronLink, ...]:
            first, second = super().neuron_links()
            return (first, replace(second, readers=(("embedding.weight", 1),), reader_biases=("decoder.bias",)))

    dense, model, batch = OneName(tied=True), OneName(tied=True), tokens()
    kept = {neurons.name: np.arange(1, neurons.size) for neurons in neuron_sets(model)}
    compact(model, plan_from_kept(model, kept))
    dense.load_state_dict(expand(model.state_dict(), kept, neuron_sets(dense)))
    assert_close(dense(batch), model(batch))


def test_composed_plans_count_from_the_original_sizes() -> None:
    earlier, later = {"a": np.array([1, 4, 6, 7])}, {"a": np.array([0, 2])}
    assert compose(earlier, later)["a"].tolist() == [1, 6]


def test_a_plan_says_how_to_cut_a_carried_state() -> None:
    model = gated_model()
    plan = plan_compaction(model, keep=None)
    x = torch.randn(5, 2, E)
    _, (h, c) = model.rnn[0](x)
    wanted, _ = model.rnn[0](x, (h, c))
    compact(model, plan)
    state = plan.at("rnn.0.hidden")
    cut, _ = model.rnn[0](x[..., plan.at("rnn.0.input")], (h[..., state], c[..., state]))
    assert_close(cut, wanted[..., state])
    assert plan.at("rnn.1.input") is plan.at("rnn.0.hidden")


def test_a_reader_without_a_bias_takes_part() -> None:
    model = LanguageModel("GRU", bias=False)
    statistics = measured(model)
    plan = plan_by_reconstruction(model, statistics, keep=0.6)
    dropped, folded = copy.deepcopy(model), copy.deepcopy(model)
    compact(dropped, plan)
    compact(folded, plan, statistics=statistics)
    assert logit_error(folded, model) < logit_error(dropped, model)


def test_a_plan_or_statistics_of_another_size_are_refused() -> None:
    model = gated_model()
    statistics, plan = measured(model), plan_compaction(model, keep=None)
    compact(model, plan)
    with pytest.raises(TrainingError, match="its neuron sets are not those of the plan"):
        compact(model, plan)
    again = plan_compaction(model, keep=0.5)
    with pytest.raises(TrainingError, match=r"'rnn\.0\.input' had 12 neurons; expected 8"):
        compact(model, again, statistics=statistics)


def test_what_cannot_be_cut_is_named() -> None:
    with pytest.raises(TrainingError, match=r"LSTM: no neuron_links\(\)"):
        neuron_sets(nn.LSTM(2, 2))
    stacked = LanguageModel()
    stacked.rnn[1] = nn.LSTM(H, H, 2)
    with pytest.raises(TrainingError, match=r"module 'rnn\.1': has 2 layers and bidirectional=False"):
        neuron_sets(stacked)
    with pytest.raises(TrainingError, match=r"neurons 'rnn\.0\.input': have no gate"):
        plan_compaction(LanguageModel(), keep=0.5)
    with pytest.raises(TrainingError, match=r"keep: 1\.5; expected a fraction"):
        plan_compaction(gated_model(), keep=1.5)
    kept = {neurons.name: np.arange(neurons.size) for neurons in neuron_sets(LanguageModel())}
    with pytest.raises(TrainingError, match="expected sorted unique indices below 12"):
        plan_from_kept(LanguageModel(), kept | {"rnn.0.input": np.array([3, 12])})
    with pytest.raises(TrainingError, match=r"kept neurons of 'rnn\.1\.hidden': 0; expected 1 to 16"):
        plan_from_kept(LanguageModel(), kept | {"rnn.1.hidden": np.array([], np.intp)})


def test_freezing_a_gated_model_equals_folding_it() -> None:
    model, batch = gated_model(), tokens()
    folded = fold(model)
    freeze(model)
    assert_close(folded(batch), model(batch))
