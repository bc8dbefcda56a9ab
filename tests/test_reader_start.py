"""A run that starts from a reader's file: the graph is the network, in training as in what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_squad
import torch
from click.testing import CliRunner, Result
from onnx import numpy_helper
from tiny_training import ALONE, Silent
from toolchain.models.reader_export import export_reader
from toolchain.models.squad import Squad, load_squad

import toolchain
from toolchain.cli import cli
from toolchain.errors import ParityError, RecipeError, TrainingError
from toolchain.evaluation import evaluation_mode
from toolchain.oneshot.pruning import Pruning
from toolchain.oneshot.selection import Target
from toolchain.recurrent import in_pytorch_order
from toolchain.runtime import open_session
from toolchain.training.graph_network import GraphNetwork
from toolchain.training.loop import finish, train
from toolchain.training.reader_start import start_reader
from toolchain.training.recipe import Recipe
from toolchain.training.recipe_files import load_recipe
from toolchain.training.training_run import TrainingRun, begin_run, build_network, restore_run

CPU = torch.device("cpu")
LESS = Pruning(target=Target(kind="ratio", value=0.4), criterion="magnitude")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, and two readers that know its words: dense.onnx and, four units in ten gone, small.onnx."""
    folder = tmp_path_factory.mktemp("start")
    tiny_squad.write(folder / "squad", dev=16)
    (folder / "tiny.toml").write_text(tiny_squad.RECIPE)
    torch.manual_seed(0)
    network = build_network(recipe(folder).model, len(corpus(folder).vocabulary))
    metadata = {"toolchain.vocabulary_sha256": corpus(folder).vocabulary_hash}
    export_reader(network, folder / "dense.onnx", metadata=metadata)
    torch.save(network.state_dict(), folder / "dense.pt")
    toolchain.shrink(folder / "dense.onnx", folder / "small.onnx", pruning=LESS)
    return folder


def recipe(folder: Path, **overrides: object) -> Recipe:
    changes = {"run__method": "dense", "gates__keep": None, **overrides}
    return load_recipe(folder / "tiny.toml", overrides={key.replace("__", "."): v for key, v in changes.items()})


def corpus(folder: Path) -> Squad:
    return load_squad(folder=folder / "squad")


def begin(folder: Path, into: Path, **overrides: object) -> TrainingRun:
    torch.set_num_threads(1)
    into.mkdir(exist_ok=True)
    changes = recipe(folder, model__file=str(folder / "small.onnx"), **overrides)
    return begin_run(changes, corpus(folder), folder=into, processes=ALONE)


def sizes(path: Path) -> list[tuple[int, ...]]:
    return [tuple(tensor.dims) for node in onnx.load(path).graph.node if node.op_type == "LSTM"
            for tensor in onnx.load(path).graph.initializer if tensor.name in node.input[1:3]]  # fmt: skip


def scores(path: Path, folder: Path) -> list[np.ndarray]:
    return open_session(path).run(None, corpus(folder).feeds(corpus(folder).valid[:5]))


def test_the_graph_computes_in_pytorch_what_onnx_runtime_does_and_is_written_as_it_was_read(folder, tmp_path):
    start = start_reader(folder / "small.onnx", recipe(folder), corpus(folder), CPU)
    assert 0 <= start.difference < 1e-5
    assert start.hidden_sizes == GraphNetwork(folder / "small.onnx").hidden_sizes
    assert sum(start.hidden_sizes) < 0.8 * sum(GraphNetwork(folder / "dense.onnx").hidden_sizes)
    GraphNetwork(folder / "small.onnx").write(tmp_path / "again.onnx")
    expected, found = (scores(path, folder) for path in (folder / "small.onnx", tmp_path / "again.onnx"))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert sizes(tmp_path / "again.onnx") == sizes(folder / "small.onnx")


def test_gradients_are_those_of_the_network_that_was_exported(folder):
    task = begin_run(recipe(folder), corpus(folder), folder=folder, processes=ALONE).task
    network = build_network(recipe(folder).model, len(corpus(folder).vocabulary))
    network.load_state_dict(torch.load(folder / "dense.pt"))
    graph = GraphNetwork(folder / "dense.onnx")
    losses = [task.loss(model, 0, None)[0] for model in (network, graph)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for loss in losses:
        loss.backward()
    gradients = dict(zip(graph._names, (weight.grad for weight in graph.weights), strict=True))
    lstm = next(node for node in onnx.load(folder / "dense.onnx").graph.node if node.op_type == "LSTM")
    layer = network.encoder.ahead
    for name, expected in zip(lstm.input[1:3], (layer.weight_ih_l0.grad, layer.weight_hh_l0.grad), strict=True):
        found = in_pytorch_order(gradients[name][0].numpy(), "LSTM")
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-7)
        assert np.abs(found).max() > 1e-4  # of the paragraph's pass and the question's


def test_training_lowers_the_loss_and_the_file_has_the_same_shapes(folder, tmp_path):
    run, report = begin(folder, tmp_path / "run", optim__epochs=6, optim__learning_rate=0.01), Silent()
    assert train(run, report=report)
    result = finish(run, corpus(folder), threads=1)
    assert report.epochs[-1]["train_loss"] < 0.8 * report.epochs[0]["train_loss"]
    assert (result.onnx_exact_match, result.onnx_f1) == (result.exact_match, result.f1)
    assert sizes(result.model) == sizes(folder / "small.onnx")
    assert not np.allclose(scores(result.model, folder)[0], scores(folder / "small.onnx", folder)[0], atol=0.1)
    assert toolchain.shrink(result.model).status == "nothing_to_remove"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_gives_the_very_same_numbers(folder, tmp_path, precision):
    changes = {"optim__epochs": 3, "model__dropout": 0.3, "run__precision": precision}
    whole = begin(folder, tmp_path / "whole", **changes)
    train(whole, report=Silent())
    part = begin(folder, tmp_path / "part", **changes)
    stop = whole.schedule.updates_per_epoch + 3
    assert not train(part, report=Silent(), stop=lambda: part.update + 1 == stop)
    resumed = begin(folder, tmp_path / "part", **changes)
    restore_run(resumed)
    assert train(resumed, report=Silent())
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_what_recurrent_nodes_read_is_dropped_while_training_and_only_then(folder):
    network = GraphNetwork(folder / "small.onnx", dropout=0.5)
    feeds = {name: torch.from_numpy(array) for name, array in corpus(folder).feeds(corpus(folder).valid[:2]).items()}
    with torch.no_grad():
        assert not torch.equal(network(**feeds)[0], network(**feeds)[0])
        with evaluation_mode(network):
            assert torch.equal(network(**feeds)[0], network(**feeds)[0])


def test_weights_that_stand_for_the_network_and_nothing_else_are_trained(folder):
    network = GraphNetwork(folder / "small.onnx")
    tensors = {tensor.name: tensor for tensor in onnx.load(folder / "small.onnx").graph.initializer}
    floats = [numpy_helper.to_array(t).size for t in tensors.values() if t.data_type == onnx.TensorProto.FLOAT]
    assert sum(weight.numel() for weight in network.weights) == sum(size for size in floats if size > 1)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["train", *arguments])


def test_the_command_goes_on_from_a_shrunk_reader_and_can_be_resumed(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = (str(folder / "tiny.toml"), "--data", str(folder / "squad"), "--from", str(folder / "small.onnx"))
    result = invoke(*options, "--name", "tuned")
    assert result.exit_code == 0, result.output
    first = " ".join(result.output.split())
    assert f"from {folder / 'small.onnx'}: recurrent nodes of " in first
    assert "runs/tuned: dense on dev-v1.1.json alone" in first
    assert "test F1" in result.output
    assert 'file = "start.onnx"' in (tmp_path / "runs/tuned/recipe.toml").read_text()
    assert json.loads((tmp_path / "runs/tuned/result.json").read_text())["share"] == 1.0
    again = invoke("--resume", "runs/tuned", "-o", "again.onnx")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_a_run_needs_no_file_beside_the_one_it_began_with(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given").mkdir()
    onnx.save(onnx.load(folder / "small.onnx"), "given/small.onnx", save_as_external_data=True, size_threshold=100)
    options = (str(folder / "tiny.toml"), "--data", str(folder / "squad"), "--from", "given/small.onnx")
    result = invoke(*options, "--name", "tuned")
    assert result.exit_code == 0, result.output
    shutil.rmtree("given")
    again = invoke("--resume", "runs/tuned", "-o", "again.onnx")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_the_graphs_own_method_is_dense_and_its_place_the_cpu(folder):
    with pytest.raises(TrainingError, match=r"method iss with a reader from a file; expected dense, .* Leave --method"):
        start_reader(folder / "small.onnx", recipe(folder, run__method="iss"), corpus(folder), CPU)
    with pytest.raises(TrainingError, match="expected --device cpu, got cuda"):
        start_reader(folder / "small.onnx", recipe(folder), corpus(folder), torch.device("cuda"))


def test_a_file_that_is_no_reader_of_these_words_is_refused(folder, tmp_path):
    model = onnx.load(folder / "small.onnx")
    next(entry for entry in model.metadata_props if entry.key.endswith("sha256")).value = "0" * 64
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(TrainingError, match=r"other.onnx: was trained on other words .*SHA-256 00000000, not "):
        start_reader(tmp_path / "other.onnx", recipe(folder), corpus(folder), CPU)
    model.graph.output[0].name = "first"
    model.graph.node.append(onnx.helper.make_node("Identity", ["start"], ["first"]))
    onnx.save(model, tmp_path / "no.onnx")
    with pytest.raises(TrainingError, match=r"no.onnx: .* -> end, first; expected a reader, .* -> end, start"):
        start_reader(tmp_path / "no.onnx", recipe(folder), corpus(folder), CPU)


def test_a_graph_that_pytorch_computes_otherwise_is_refused_before_training(folder, monkeypatch):
    forward = GraphNetwork.forward
    monkeypatch.setattr(GraphNetwork, "forward", lambda self, **feeds: tuple(1.001 * y for y in forward(self, **feeds)))
    with pytest.raises(TrainingError, match=r"differ by 1\.\de-03 of the largest .* Nothing was trained"):
        start_reader(folder / "small.onnx", recipe(folder), corpus(folder), CPU)


def test_a_written_graph_that_is_not_the_network_is_refused(folder, tmp_path):
    network = GraphNetwork(folder / "small.onnx")
    with torch.no_grad():
        network.weights[0].add_(0.5)
    other = GraphNetwork(folder / "small.onnx")
    with pytest.raises(ParityError, match="differs from PyTorch's"):
        export_reader(network, tmp_path / "m.onnx", write=other.write)
    assert not (tmp_path / "m.onnx").exists()


def test_a_graph_without_weights_in_float32_is_refused(folder, tmp_path):
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["T"]) for name in "xy")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y])), tmp_path / "relu.onnx")
    with pytest.raises(TrainingError, match=r"relu.onnx: keeps no weights .*; expected some to train"):
        GraphNetwork(tmp_path / "relu.onnx")


def test_a_language_model_names_no_file(folder):
    with pytest.raises(RecipeError, match=r"model.file: 'm.onnx'; expected no value, because only a reader's graph"):
        load_recipe("pydocs", overrides={"model.file": "m.onnx"})
