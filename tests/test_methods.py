"""Every pruning method on a network that trains in a second: exact zeros, as many found by `shrink`, resumed alike."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from tiny_training import WORDS, Silent, tiny_corpus, tiny_run

from toolchain.errors import TrainingError
from toolchain.evaluation import onnx_perplexity
from toolchain.gates import total_l0
from toolchain.graph.token_model import read_token_model
from toolchain.shrinking import shrink
from toolchain.training.loop import finish, train
from toolchain.training.methods.cut_record import open_neurons
from toolchain.training.methods.l1 import recurrent_weights
from toolchain.training.methods.magnitude import share_due
from toolchain.training.training_run import TrainingRun, build_network, restore_run

TIMES = ("seconds", "tokens_per_s")
SGD = {"optim__optimizer": "sgd", "optim__learning_rate": 2.0, "optim__epochs": 6}
ISS = {**SGD, "run__method": "iss", "iss__weight": 0.01}
MAGNITUDE = {"run__method": "magnitude", "gates__compact_steps": 15}
L1 = {**SGD, "run__method": "l1", "l1__weight": 0.002}
AVERAGED = {"averaging__kind": "ema", "averaging__decay": 0.9}
DENSE_L0 = 4 * 12 * (10 + 12) + 4 * 9 * (12 + 9)


def trained(folder: Path, name: str = "run", **changes: object) -> tuple[TrainingRun, Silent]:
    run, report = tiny_run(folder, name, **changes), Silent()
    assert train(run, report=report)
    return run, report


def shrunk_sizes(path: Path, folder: Path) -> dict[str, int]:
    """What `shrink` finds in a written model."""
    shrink(path, folder / "small.onnx", compact_state=True)
    model = read_token_model(folder / "small.onnx")
    hidden = {f"rnn.{number}.hidden": layer.hidden_size for number, layer in enumerate(model.layers)}
    return {"rnn.0.input": model.embedding.shape[1], **hidden, "rnn.1.input": hidden["rnn.0.hidden"]}


@pytest.mark.parametrize(
    "changes",
    [
        ISS | AVERAGED,
        ISS | {"model__cell": "gru", "iss__weight": 0.013},
        ISS | {"gates__freeze_at": 1.0},
        MAGNITUDE | AVERAGED,
    ],
    ids=str,
)
def test_what_a_method_removed_is_zero_in_onnx_and_shrink_finds_as_much(tmp_path: Path, changes: dict) -> None:
    run, report = trained(tmp_path, **changes)
    result = finish(run, tiny_corpus(), threads=1)
    dense = total_l0(build_network(run.recipe.model, WORDS))
    assert result.share == total_l0(run.model) / dense < 0.9
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(result.model).graph.initializer]
    assert (WORDS, 10) in {weight.shape for weight in weights}  # the original shapes
    assert f"{result.onnx_perplexity:.4g}" == f"{result.perplexity:.4g}"
    assert result.perplexity < 0.6 * WORDS  # guessing gives 12
    assert shrunk_sizes(result.model, tmp_path) == dict(open_neurons(run.model))
    small = onnx_perplexity(tmp_path / "small.onnx", tiny_corpus().test, threads=1)
    assert small == pytest.approx(result.perplexity, rel=1e-4)
    assert report.events[-1].startswith("frozen: ")


def test_a_heavier_penalty_removes_more(tmp_path: Path) -> None:
    shares = []
    for weight in (0.001, 0.01, 0.015):
        run, _ = trained(tmp_path, str(weight), **ISS | {"iss__weight": weight})
        shares.append(run.metrics[-1]["multiply_adds_share"])
    assert shares[0] == 1.0
    assert shares == sorted(shares, reverse=True)
    assert shares[2] < shares[1]


def test_neurons_whose_component_is_zero_are_cut_while_the_penalty_lasts(tmp_path: Path) -> None:
    run, report = tiny_run(tmp_path, **ISS | {"iss__weight": 0.013, "gates__compact_steps": 10}), Silent()
    train(run, report=report, stop=lambda: run.update + 1 == run.schedule.freeze_at)
    assert any(event.startswith("cut: ") for event in report.events)
    assert run.method.learning
    assert total_l0(run.model) < DENSE_L0
    assert all(state["exp_avg"].shape == p.shape for p, state in run.optimizer.state.items())
    rows = {row["gate"]: row["open"] for row in run.gates if row["epoch"] == 3}
    assert rows.keys() == {"rnn.0.input", "rnn.0.hidden", "rnn.1.hidden"}
    assert min(rows.values()) < 9


@pytest.mark.parametrize(
    "changes", [ISS, ISS | {"gates__compact_steps": 7, "gates__start_at": 0.3}, MAGNITUDE | AVERAGED, L1], ids=str
)
def test_a_resumed_run_gives_the_very_same_numbers(tmp_path: Path, changes: dict) -> None:
    """Stopped in the middle of an epoch while the method learns and afterwards, and at the end of one."""
    whole, _ = trained(tmp_path, "whole", **changes)
    per_epoch, freeze_at = whole.schedule.updates_per_epoch, whole.schedule.freeze_at
    stops = [per_epoch - 3, 2 * per_epoch, freeze_at - 2, freeze_at + 2, freeze_at + per_epoch]
    for stop in (*stops, None):
        part = tiny_run(tmp_path, "parts", **changes)
        if stop != stops[0]:
            restore_run(part)
        assert train(part, report=Silent(), stop=lambda run=part, stop=stop: run.update + 1 == stop) == (stop is None)
        torch.rand(3)  # whatever happens in between
    expected, found = whole.model.state_dict(), part.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert timeless(part.metrics) == timeless(whole.metrics)
    assert part.gates == whole.gates


def timeless(rows: list) -> list:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.mark.parametrize("changes", [ISS, MAGNITUDE, L1, {}], ids=str)
def test_without_fine_tuning_a_finished_run_can_be_resumed_and_ends_the_same(tmp_path: Path, changes: dict) -> None:
    changes = changes | {"gates__freeze_at": 1.0}
    run, _ = trained(tmp_path, **changes)
    assert "narrow" not in {row["phase"] for row in run.metrics}
    again = tiny_run(tmp_path, **changes)
    restore_run(again)
    assert train(again, report=Silent())
    assert open_neurons(again.model) == open_neurons(run.model)
    assert again.task.validate(again.model) == run.task.validate(run.model)


@pytest.mark.parametrize(
    "changes",
    [
        ISS | {"iss__weight": 0.02},
        MAGNITUDE | {"gates__keep": 0.8},
        {"gates__keep": None, "gates__l0_weight": 3.0},
        {"gates__keep": 0.8},
    ],
    ids=str,
)
def test_only_neurons_of_the_chosen_sites_go(tmp_path: Path, changes: dict) -> None:
    for sites, untouched in (("input", [12, 9]), ("hidden", [10])):
        run, _ = trained(tmp_path, sites, gates__sites=sites, **changes)
        sizes = dict(open_neurons(run.model))
        parts = {"input": [sizes["rnn.0.input"]], "hidden": [sizes["rnn.0.hidden"], sizes["rnn.1.hidden"]]}
        assert parts["hidden" if sites == "input" else "input"] == untouched
        assert sum(parts[sites]) < (10 if sites == "input" else 21)


def test_a_share_that_the_chosen_sites_cannot_reach_is_refused(tmp_path: Path) -> None:
    least = (DENSE_L0 - 4 * 12 * 9) / DENSE_L0
    message = rf"gates.keep: 0.3 of the multiply-adds; expected at least {least:.3f}, what gates.sites = input leaves"
    for method in ("neuron-selection", "magnitude"):
        with pytest.raises(TrainingError, match=message):
            tiny_run(tmp_path, gates__sites="input", run__method=method)


def own_network(vocabulary_size: int) -> torch.nn.Module:
    """A user's network without neuron_links."""

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(vocabulary_size, 10)
            self.layer = torch.nn.GRU(10, 12)
            self.out = torch.nn.Linear(12, vocabulary_size)

        def forward(self, tokens, state):
            y, h = self.layer(self.table(tokens), state[0][0])
            return self.out(y), ((h,),)

        def initial_state(self, batch_size):
            return ((torch.zeros(1, batch_size, 12),),)

    return Own()


@pytest.mark.parametrize("changes", [ISS, MAGNITUDE, {"gates__sites": "hidden"}], ids=str)
def test_a_network_without_links_is_refused_where_its_neurons_must_be_known(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(TrainingError, match=r"Own: no neuron_links\(\)"):
        tiny_run(tmp_path, model__factory=f"{__name__}:own_network", **changes)


def test_magnitude_falls_to_the_share_along_the_cubic(tmp_path: Path) -> None:
    assert [round(share_due(0.2, progress), 3) for progress in (0.0, 0.5, 1.0)] == [1.0, 0.3, 0.2]
    run, report = trained(tmp_path, **MAGNITUDE)
    cuts = [event for event in report.events if event.startswith("cut: ")]
    assert len(cuts) >= 3
    shares = [float(event.rpartition("; ")[2].partition("%")[0]) / 100 for event in report.events]
    due = [share_due(0.3, 15 * (number + 1) / run.schedule.freeze_at) for number in range(len(cuts))]
    assert shares[:-1] == pytest.approx(due, abs=0.06)  # a neuron is about 5 points
    assert shares[-1] == pytest.approx(0.3, abs=0.03)


def test_single_zeros_stay_zero_to_the_end_and_shrink_finds_nothing(tmp_path: Path) -> None:
    run, _ = trained(tmp_path, **L1, **AVERAGED)
    result = finish(run, tiny_corpus(), threads=1)
    assert (result.share, result.perplexity < 0.6 * WORDS) == (1.0, True)
    model = read_token_model(result.model)
    nonzero = sum(int((weight != 0).sum()) for layer in model.layers for weight in (layer.W, layer.R))
    assert nonzero == round(0.3 * DENSE_L0)
    sizes = shrunk_sizes(result.model, tmp_path)
    assert sum(sizes.values()) > 0.9 * (10 + 12 + 9 + 12)


def test_the_penalty_alone_leaves_zeros_when_no_share_is_asked(tmp_path: Path) -> None:
    counts = []
    for weight in (1e-5, 0.003):
        run, _ = trained(tmp_path, str(weight), **L1 | {"gates__keep": None, "l1__weight": weight})
        counts.append(sum(int((weight != 0).sum()) for weight in recurrent_weights(run.model).values()))
    assert counts[1] < 0.8 * counts[0]


def test_single_weights_go_without_links_too(tmp_path: Path) -> None:
    run, _ = trained(tmp_path, **L1, model__factory=f"{__name__}:own_network")
    zeros = [int((weight == 0).sum()) for weight in recurrent_weights(run.model).values()]
    assert sum(zeros) == total_l0(run.model) - round(0.3 * total_l0(run.model))
