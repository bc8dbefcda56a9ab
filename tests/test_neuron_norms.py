"""Components of neurons against a plain count over PyTorch's weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toolchain.models.language_model import LanguageModel, LanguageModelConfig

from toolchain.gating.neuron_norms import neuron_norms, plan_by_norm, read_neurons, shrink_components
from toolchain.gating.neuron_sets import neuron_sets
from toolchain.gating.selection import multiply_adds


def network(cell: str = "lstm", *, tied: bool = False) -> LanguageModel:
    torch.manual_seed(0)
    sizes = (6, 5) if tied else (6, 4)
    return LanguageModel(
        LanguageModelConfig(vocabulary_size=7, embedding_size=5, hidden_sizes=sizes, cell=cell, tied=tied)
    )


def sets_of(model: LanguageModel) -> dict:
    return {neurons.name: neurons for neurons in neuron_sets(model)}


def component(model: LanguageModel, layer: int, unit: int, *, gates: int) -> list[torch.Tensor]:
    """Every weight of one hidden neuron, by hand: rows of W and R, column of R, column of the reader."""
    rnn = model.rnn[layer]
    rows = [gate * rnn.hidden_size + unit for gate in range(gates)]
    reader = model.rnn[1].weight_ih_l0 if layer == 0 else model.decoder.weight
    return [rnn.weight_ih_l0[rows], rnn.weight_hh_l0[rows], rnn.weight_hh_l0[:, unit], reader[:, unit]]


@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3), ("rnn", 1)])
def test_a_hidden_neurons_norm_is_that_of_its_rows_its_column_and_its_reader(cell: str, gates: int) -> None:
    model = network(cell)
    for layer in (0, 1):
        norms = neuron_norms(model, sets_of(model)[f"rnn.{layer}.hidden"])
        for unit, norm in enumerate(norms):
            parts = torch.cat([part.flatten() for part in component(model, layer, unit, gates=gates)])
            assert float(norm) == pytest.approx(float(parts.norm()), rel=1e-6)


def test_an_input_neurons_norm_is_that_of_its_column_of_w_alone() -> None:
    model = network()
    expected = model.rnn[0].weight_ih_l0.norm(dim=0)
    torch.testing.assert_close(neuron_norms(model, sets_of(model)["rnn.0.input"]), expected)


def test_a_tied_table_counts_as_the_output_layer_that_reads() -> None:
    model = network(tied=True)
    neurons = sets_of(model)["rnn.1.hidden"]
    parts = torch.cat([part.flatten() for part in component(model, 1, 2, gates=4)])
    expected = float(torch.cat([parts, model.rnn[0].weight_ih_l0[:, 2]]).norm())
    assert float(neuron_norms(model, neurons)[2]) == pytest.approx(expected, rel=1e-6)


def test_one_step_equals_a_small_step_down_the_gradient_of_the_summed_norms() -> None:
    """The oracle is autograd on the penalty as the authors write it; the two differ by the square of the step."""
    model, reference = network().double(), network().double()
    sum(
        torch.cat([part.flatten() for part in component(reference, layer, unit, gates=4)]).norm()
        for layer in (0, 1)
        for unit in range(reference.rnn[layer].hidden_size)
    ).backward()
    step = 1e-5
    shrink_components(model, [sets_of(model)[f"rnn.{n}.hidden"] for n in (0, 1)], step=step, threshold=0.0)
    for (name, found), (_, start) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        expected = start if start.grad is None else start - step * start.grad
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10, msg=name)


def test_a_component_smaller_than_the_step_is_exactly_zero_and_stays_so() -> None:
    model = network()
    neurons = sets_of(model)["rnn.0.hidden"]
    with torch.no_grad():
        for part in (model.rnn[0].weight_hh_l0[:, 3], model.rnn[1].weight_ih_l0[:, 3]):
            part.mul_(1e-3)
        for matrix in (model.rnn[0].weight_ih_l0, model.rnn[0].weight_hh_l0):
            matrix[[3, 9, 15, 21]] *= 1e-3
    for _ in range(2):
        shrink_components(model, [neurons], step=0.1, threshold=0.0)
        assert (neuron_norms(model, neurons) == 0).tolist() == [False, False, False, True, False, False]
    assert not read_neurons(model, neurons)[3]
    assert (model.rnn[0].bias_ih_l0 != 0).all()  # biases are no part of it


def test_single_weights_below_the_threshold_become_zero_and_no_others() -> None:
    model = network()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    shrink_components(model, [sets_of(model)["rnn.1.hidden"]], step=0.0, threshold=0.1)
    own = ("rnn.1.weight_ih_l0", "rnn.1.weight_hh_l0", "decoder.weight")
    for name, parameter in model.named_parameters():
        small = before[name].abs() < (0.1 if name in own else 0.0)
        assert torch.equal(parameter, before[name].masked_fill(small, 0.0))


def test_the_largest_norms_stay_the_same_share_of_each_set_and_the_cost_is_nearest() -> None:
    model = network()
    sets = sets_of(model)
    sizes = {name: neurons.size for name, neurons in sets.items()}
    dense = multiply_adds(model, tuple(sets.values()), sizes)
    plan = plan_by_norm(model, keep=0.3, dense_sizes=sizes, dense_l0=dense, among=tuple(sizes))
    assert abs(plan.l0_after - 0.3 * dense) <= 0.1 * dense  # a neuron of so small a network costs up to a fifth
    shares = [plan.sizes[name] / size for name, size in sizes.items()]
    assert max(shares) - min(shares) < 0.3
    for name, kept in plan.kept.items():
        norms = neuron_norms(model, sets[name]).numpy()
        assert sorted(np.argsort(-norms)[: len(kept)]) == kept.tolist()
    only = plan_by_norm(model, keep=0.8, dense_sizes=sizes, dense_l0=dense, among=("rnn.0.input",))
    assert only.sizes["rnn.0.input"] < 5
    assert (only.sizes["rnn.0.hidden"], only.sizes["rnn.1.hidden"]) == (6, 4)
