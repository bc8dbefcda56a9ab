"""The task `squad` from its recipe to its ONNX file, on a data set that is learnt in seconds."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest
import tiny_squad
import torch
from click.testing import CliRunner
from tiny_training import ALONE, Silent
from toolchain.models.squad import load_squad

import toolchain
from toolchain.cli import cli
from toolchain.errors import DatasetError, RecipeError, TrainingError
from toolchain.training.loop import finish, train
from toolchain.training.processes import Processes
from toolchain.training.recipe_files import dump_recipe, load_recipe
from toolchain.training.run_folder import METRICS
from toolchain.training.training_run import begin_run, restore_run


def recipe(folder, **overrides):
    path = folder / "tiny.toml"
    path.write_text(tiny_squad.RECIPE)
    return load_recipe(path, overrides={key.replace("__", "."): value for key, value in overrides.items()})


def corpus(folder):
    return load_squad(folder=tiny_squad.write(folder / "squad", dev=16))


def begin(folder, name="run", processes=ALONE, **overrides):
    (folder / name).mkdir(exist_ok=True)
    torch.set_num_threads(1)
    return begin_run(recipe(folder, **overrides), corpus(folder), folder=folder / name, processes=processes)


def figures(run):
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_s")} for row in run.metrics]


def test_a_reader_learns_and_pytorch_and_onnx_runtime_agree_on_its_scores(tmp_path):
    changes = {"optim__epochs": 14, "optim__learning_rate": 0.01, "model__hidden_sizes": [12] * 4}
    run, report = begin(tmp_path, run__method="dense", **changes), Silent()
    assert train(run, report=report)
    result = finish(run, corpus(tmp_path), threads=1)
    first, *_, last = report.epochs
    assert last["train_loss"] < 0.5 * first["train_loss"]
    assert last["valid_f1"] > 90  # a random city of the paragraph is right once in two to four
    assert (result.onnx_exact_match, result.onnx_f1) == (result.exact_match, result.f1)
    assert result.f1 >= result.exact_match > 80
    with (run.folder / METRICS).open() as file:
        columns = csv.DictReader(file).fieldnames
    assert columns == [
        *("epoch", "update", "phase", "learning_rate", "train_loss", "valid_exact_match", "valid_f1"),
        *("multiply_adds_share", "tokens_per_s", "seconds"),
    ]


def test_gates_close_and_what_is_left_shrinks(tmp_path):
    run = begin(tmp_path, optim__epochs=6, gates__keep=None, gates__l0_weight=3.0)
    train(run, report=Silent())
    result = finish(run, corpus(tmp_path), threads=1)
    assert 0 < result.share < 0.9
    assert (result.onnx_exact_match, result.onnx_f1) == (result.exact_match, result.f1)
    shrunk = toolchain.shrink(result.model)
    assert sum(node.hidden_after for node in shrunk.nodes) < sum(node.hidden_before for node in shrunk.nodes)


def test_a_share_that_was_asked_for_is_met_when_gates_are_frozen_and_is_what_shrink_leaves(tmp_path):
    run = begin(tmp_path, optim__epochs=6, gates__learning_rate=0.1)
    train(run, report=Silent())
    result = finish(run, corpus(tmp_path), threads=1)
    assert 0.45 < result.share <= 0.5  # the recipe's share; one neuron of the encoder is 4 points here
    assert run.metrics[-1]["multiply_adds_share"] == result.share
    nodes = toolchain.shrink(result.model).nodes
    once = [*nodes[:2], *nodes[4:]]  # the encoder reads questions as well, which is not priced
    before = sum(node.hidden_before * (node.input_before + node.hidden_before) for node in once)
    after = sum(node.hidden_after * (node.input_after + node.hidden_after) for node in once)
    assert after / before == pytest.approx(result.share)


def test_group_lasso_silences_neurons_for_good_and_shrink_removes_them(tmp_path):
    changes = {"run__method": "iss", "iss__weight": 20.0, "optim__epochs": 6, "gates__keep": None}
    run, report = begin(tmp_path, **changes), Silent()
    assert train(run, report=report)
    left = {name: int(alive.sum()) for name, alive in run.method.alive.items()}
    assert 0 < sum(left.values()) < 0.8 * sum(len(alive) for alive in run.method.alive.values())
    assert all(left.values())
    (frozen,) = (event for event in report.events if event.startswith("frozen: "))
    assert [f"{name} {number}" in frozen for name, number in left.items()] == [True] * len(left)
    both = left["encoder.ahead.hidden"] + left["encoder.back.hidden"]
    assert f"modeling.0.back.input {4 * both}," in frozen
    phases = [row["phase"] for row in report.epochs]
    assert phases[-1] == "narrow"
    assert "lasso" in phases
    result = finish(run, corpus(tmp_path), threads=1)
    assert (result.onnx_exact_match, result.onnx_f1) == (result.exact_match, result.f1)
    nodes = toolchain.shrink(result.model).nodes
    sizes = [left[f"{name}.hidden"] for name in ("encoder.ahead", "encoder.back")]
    assert [node.hidden_after for node in nodes[:2]] == sizes == [node.hidden_after for node in nodes[2:4]]
    assert [node.hidden_after for node in nodes[4:]] == list(left.values())[2:]
    once = [*nodes[:2], *nodes[4:]]  # the encoder reads questions as well, which is not counted
    before = sum(node.hidden_before * (node.input_before + node.hidden_before) for node in once)
    after = sum(node.hidden_after * (node.input_after + node.hidden_after) for node in once)
    assert after / before == pytest.approx(result.share)
    assert run.metrics[-1]["multiply_adds_share"] == result.share


@pytest.mark.parametrize(
    "changes",
    [
        {"run__method": "iss", "iss__weight": 20.0, "gates__keep": None},
        {"run__method": "dense"},
        {"run__method": "neuron-selection"},
        {"run__method": "neuron-selection", "averaging__kind": "ema", "averaging__decay": 0.9},
    ],
)
def test_a_resumed_run_gives_the_very_same_numbers(tmp_path, changes):
    whole = begin(tmp_path, "whole", optim__epochs=3, **changes)
    train(whole, report=Silent())
    stop = whole.schedule.updates_per_epoch + 3
    part = begin(tmp_path, "part", optim__epochs=3, **changes)
    assert not train(part, report=Silent(), stop=lambda: part.update + 1 == stop)
    resumed = begin(tmp_path, "part", optim__epochs=3, **changes)
    restore_run(resumed)
    assert train(resumed, report=Silent())
    assert figures(resumed) == figures(whole)
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_every_epoch_reads_whole_batches_of_different_questions_in_another_order(tmp_path):
    task = begin(tmp_path).task
    per_epoch = task.schedule.updates_per_epoch
    epochs = [[q.identifier for u in range(per_epoch) for q in task._batch(e * per_epoch + u)] for e in range(2)]
    assert all(len(set(names)) == per_epoch * task.batch_size <= len(task.train) for names in epochs)
    assert epochs[0] != epochs[1]
    assert len(task.train) - len(epochs[0]) < task.batch_size


def test_the_loss_of_a_question_does_not_depend_on_padding(tmp_path):
    task, model = begin(tmp_path).task, begin(tmp_path).model.eval()
    together = task.loss(model, 1, None)[0].item()
    alone = []
    for question in task._batch(1):
        one = dataclasses.replace(task, train=(question,), lengths=(9,), batch_size=1)
        alone.append(one.loss(model, 0, None)[0].item())
    assert together == pytest.approx(sum(alone) / len(alone), rel=1e-5)
    assert len({len(question.paragraph.forms) for question in task._batch(1)}) > 1


def test_processes_share_a_batch_and_average_to_the_same_loss(tmp_path):
    alone = begin(tmp_path)
    parts = [
        begin(tmp_path, processes=Processes(device=torch.device("cpu"), count=2, index=index)) for index in range(2)
    ]
    losses = [run.task.loss(alone.model.eval(), 1, None)[0].item() for run in (alone, *parts)]
    assert losses[0] == pytest.approx(sum(losses[1:]) / 2, rel=1e-5)
    assert losses[1] != losses[2]


def test_recent_questions_are_read_up_to_the_calibration_words(tmp_path):
    task = begin(tmp_path).task
    read = []

    class Counting(torch.nn.Module):
        def forward(self, paragraph, question, **_):
            read.append(int((paragraph > 0).sum() + (question > 0).sum()))

    task.read_recent(Counting(), 5)
    assert sum(read) >= 300 > sum(read[:-1])
    read.clear()
    task.read_recent(Counting(), 0)
    assert len(read) == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"optim__batch_size": 500}, DatasetError, "questions to learn from; expected at least optim.batch_size, 500"),
        ({"model__hidden_sizes": [8, 8]}, RecipeError, r"model.hidden_sizes: \[8, 8\]; expected 4 sizes"),
        ({"model__network": "language-model"}, RecipeError, 'model.network: .*expected "reader", because readers and'),
        ({"data__corpus": "pydocs"}, RecipeError, 'data.corpus: .*expected "squad", because readers and squad'),
        ({"model__cell": "gru"}, RecipeError, "model.cell: 'gru'; expected \"lstm\""),
        ({"data__max_tokens": 100}, RecipeError, "data.max_tokens: 100; expected no value"),
        ({"teacher__model": "runs/x"}, RecipeError, "teacher.model: 'runs/x'; expected no value, because only lang"),
        ({"model__weight_drop": 0.5}, RecipeError, "model.weight_drop: 0.5; expected 0.0, because only language"),
        ({"optim__slowness_penalty": 1.0}, RecipeError, "optim.slowness_penalty: 1.0; expected 0.0, because only lang"),
    ],
)
def test_what_a_reader_cannot_use_is_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        begin(tmp_path, **changes)


def test_inputs_alone_are_no_choice_for_group_lasso(tmp_path):
    with pytest.raises(TrainingError, match=r"gates.sites: input: what writes the inputs of Reader is unknown; exp"):
        begin(tmp_path, run__method="iss", gates__sites="input", gates__keep=None)


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"8 questions for 3 processes; .*optim.batch_size=6"):
        begin(tmp_path, processes=Processes(device=torch.device("cpu"), count=3, index=0))


def test_a_recipe_is_read_back_as_it_was_written(tmp_path):
    (tmp_path / "again.toml").write_text(dump_recipe(recipe(tmp_path)))
    assert load_recipe(tmp_path / "again.toml").model == recipe(tmp_path).model
    assert load_recipe("squad").model.network == "reader"


def invoke(*arguments):
    return CliRunner().invoke(cli, ["train", *arguments])


SMALL = (
    *("--set", "model.embedding_size=12", "--set", "model.character_channels=6", "--set", "optim.batch_size=8"),
    *("--set", "model.hidden_sizes=[8, 7, 6, 5]", "--set", "optim.epochs=2"),
)


def test_the_command_trains_exports_and_says_on_which_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tiny_squad.write(tmp_path / "squad", dev=16)
    result = invoke("squad", "--data", str(folder), "--threads", "1", *SMALL)
    assert result.exit_code == 0, result.output
    assert (
        "runs/squad: neuron-selection on dev-v1.1.json alone, split by article (12 + 2 + 2): not the" in result.output
    )
    assert "questions, " in result.output.splitlines()[0]
    content = json.loads((tmp_path / "runs/squad/result.json").read_text())
    assert f"test F1          {content['f1']:.2f} in PyTorch, {content['onnx_f1']:.2f} in ONNX" in result.output
    assert "valid exact match" in result.output
    assert "not the published split" in (tmp_path / "runs/squad/recipe.toml").read_text()
    assert (tmp_path / "model.onnx").read_bytes() == (tmp_path / "runs/squad/model.onnx").read_bytes()
    again = invoke("--resume", "runs/squad", "-o", "again.onnx")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_bad_data_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "squad").mkdir()
    for content, message in ((None, "dev-v1.1.json: cannot be read"), ("{", "dev-v1.1.json: not what SQuAD 1.1 is")):
        if content is not None:
            (tmp_path / "squad/dev-v1.1.json").write_text(content)
        result = invoke("squad", "--data", "squad")
        assert isinstance(result.exception, DatasetError)
        assert message in str(result.exception)
        assert "\n" not in str(result.exception)
    assert not (tmp_path / "runs").exists()


def test_a_reader_is_not_trained_at_the_sizes_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("squad", "--data", str(tiny_squad.write(tmp_path / "squad")), "--like", "m.onnx", "-o", "n.onnx")
    assert isinstance(result.exception, TrainingError)
    assert "model.network is reader; expected a language-model" in str(result.exception)
