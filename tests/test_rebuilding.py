"""`train --from`: the network of an ONNX file in PyTorch again; the exported network's own weights are the oracle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graphs import layer_with_head
from onnx import helper, numpy_helper
from tiny_training import ALONE, WORDS, Silent, tiny_corpus, tiny_recipe
from toolchain.models.language_model import LanguageModel, LanguageModelConfig

from toolchain.errors import ModelFileError, TrainingError
from toolchain.exporting import export
from toolchain.graph.token_model import read_token_model
from toolchain.quantisation import quantise
from toolchain.shrinking import shrink
from toolchain.training import rebuilding
from toolchain.training.loop import finish, train
from toolchain.training.rebuilding import check_start, rebuild
from toolchain.training.training_run import begin_run

DEAD = {0: [1, 4, 5, 10], 1: [0, 7]}  # units per layer that nobody reads
DEAD_COLUMNS = [2, 3, 9]  # of the embedding


def build(cell: str = "lstm", *, tied: bool = False, dead: bool = False) -> LanguageModel:
    """Return a tiny network; dead: some units and embedding columns are read by zeros only."""
    torch.manual_seed(0)
    sizes = (12, 10) if tied else (12, 9)
    config = LanguageModelConfig(vocabulary_size=WORDS, embedding_size=10, hidden_sizes=sizes, cell=cell, tied=tied,
                                 init_scale=0.6)  # fmt: skip
    network = LanguageModel(config)
    if dead:
        with torch.no_grad():
            network.rnn[0].weight_ih_l0[:, DEAD_COLUMNS] = 0
            for layer, units in DEAD.items():
                network.rnn[layer].weight_hh_l0[:, units] = 0
            network.rnn[1].weight_ih_l0[:, DEAD[0]] = 0
            network.decoder.weight[:, DEAD[1]] = 0
    return network


def exported(folder: Path, network: LanguageModel, **metadata: str) -> Path:
    export(network, folder / "m.onnx", metadata=metadata)
    return folder / "m.onnx"


def edited(path: Path, change: object) -> Path:
    model = onnx.load(path)
    change(model)  # type: ignore[operator]
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_the_weights_come_back_bit_by_bit(tmp_path: Path, cell: str) -> None:
    network = build(cell)
    start = rebuild(exported(tmp_path, network), tiny_recipe(tmp_path))
    assert (start.section.cell, start.section.hidden_sizes, start.section.embedding_size) == (cell, (12, 9), 10)
    assert start.weights.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(start.weights[name], tensor), name


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("compact", [False, True])
def test_a_shrunk_model_comes_back_narrow_and_with_the_same_perplexity(
    tmp_path: Path, cell: str, compact: bool
) -> None:
    source = exported(tmp_path, build(cell, dead=True))
    shrink(source, tmp_path / "small.onnx", compact_state=compact)
    start = rebuild(tmp_path / "small.onnx", tiny_recipe(tmp_path))
    assert start.section.hidden_sizes == (8, 7)
    assert start.section.embedding_size == 7
    assert start.section.dropout == 0.1  # the recipe's
    assert start.state_widths == ((8, 7) if compact else (12, 9))
    check = check_start(start, tiny_corpus(), threads=1)
    assert check.torch == pytest.approx(check.onnx, rel=1e-5)
    assert check.tokens == len(tiny_corpus().valid)


def test_constants_added_behind_the_output_matrix_become_its_bias(tmp_path: Path) -> None:
    network = build()
    shift = np.linspace(-1, 1, WORDS).astype(np.float32)

    def add(model: onnx.ModelProto) -> None:
        model.graph.output[0].name = "shifted"
        model.graph.initializer.append(numpy_helper.from_array(shift, "shift"))
        model.graph.node.append(helper.make_node("Add", ["logits", "shift"], ["shifted"]))

    start = rebuild(edited(exported(tmp_path, network), add), tiny_recipe(tmp_path))
    np.testing.assert_allclose(start.weights["decoder.bias"], network.decoder.bias.detach().numpy() + shift, atol=1e-6)
    check_start(start, tiny_corpus(), threads=1)


@pytest.mark.parametrize("dead", [False, True])
def test_tied_tables_stay_tied_while_they_are_equal(tmp_path: Path, dead: bool) -> None:
    network = build(tied=True)
    path = exported(tmp_path, network)
    recipe = tiny_recipe(tmp_path, model__tied=True, model__hidden_sizes=[12, 10])
    if dead:

        def change(model: onnx.ModelProto) -> None:
            (matrix,) = [node for node in model.graph.node if node.op_type == "MatMul"]
            tensor = next(t for t in model.graph.initializer if t.name == matrix.input[1])
            array = numpy_helper.to_array(tensor).copy()
            array[0, 0] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

        edited(path, change)
    start = rebuild(path, recipe)
    assert (start.section.tied, start.untied) == (not dead, dead)
    assert not rebuild(path, tiny_recipe(tmp_path)).section.tied  # the recipe's network is not
    check_start(start, tiny_corpus(), threads=1)


@pytest.mark.parametrize("method", ["dense", "neuron-selection"])
def test_training_goes_on_from_the_shrunk_network(tmp_path: Path, method: str) -> None:
    source = exported(tmp_path, build(dead=True))
    shrink(source, tmp_path / "small.onnx")
    recipe = tiny_recipe(tmp_path, run__method=method)
    start = rebuild(tmp_path / "small.onnx", recipe)
    before = check_start(start, tiny_corpus(), threads=1).torch
    recipe = replace(recipe, model=start.section)
    (tmp_path / "run").mkdir()
    run = begin_run(recipe, tiny_corpus(), folder=tmp_path / "run", processes=ALONE,
                    weights=start.weights)  # fmt: skip
    assert train(run, report=Silent())
    result = finish(run, tiny_corpus(), threads=1)
    assert result.onnx_perplexity < before / 2
    assert result.share == pytest.approx(1.0 if method == "dense" else 0.3, abs=0.03)
    sizes = {
        value.name: value.type.tensor_type.shape.dim[-1].dim_value for value in onnx.load(result.model).graph.input
    }
    assert (sizes["h_0"], sizes["h_1"]) == (8, 7)


def test_a_wrong_gate_order_is_caught_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = exported(tmp_path, build())
    monkeypatch.setattr(rebuilding, "in_pytorch_order", lambda array, op_type: array)  # ONNX's order left as it is
    start = rebuild(path, tiny_recipe(tmp_path))
    with pytest.raises(TrainingError, match=r"m\.onnx: its perplexity is .* in ONNX Runtime and .* in the network "
                       r"rebuilt from it; expected equal ones\. Nothing was trained"):  # fmt: skip
        check_start(start, tiny_corpus(), threads=1)


def test_other_words_are_refused(tmp_path: Path) -> None:
    path = exported(tmp_path, build(), **{"toolchain.vocabulary_sha256": "0123456789abcdef"})
    start = rebuild(path, tiny_recipe(tmp_path))
    with pytest.raises(TrainingError, match=r"m\.onnx: was trained on other words than those of a cycle \(SHA-256 "
                       r"01234567, not [0-9a-f]{8}\); expected the same vocabulary"):  # fmt: skip
        check_start(start, tiny_corpus())
    larger = replace(tiny_corpus(), vocabulary=(*tiny_corpus().vocabulary, "more"))
    with pytest.raises(TrainingError, match=r"m\.onnx: knows 12 words, a cycle has 13; expected the text that it was"):
        check_start(start, larger)


def test_a_network_of_the_users_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"recipe tiny: model\.factory is mine:network; expected a network that is "
                       r"known by its sizes"):  # fmt: skip
        rebuild(exported(tmp_path, build()), tiny_recipe(tmp_path, model__factory="mine:network"))


def with_states(model: onnx.ModelProto, pairs: object) -> None:
    properties = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, {**properties, "toolchain.carried_state": json.dumps(pairs)})


def crossed(model: onnx.ModelProto) -> None:
    with_states(model, [["h_0", "c_0_out"], ["c_0", "h_0_out"], ["h_1", "h_1_out"], ["c_1", "c_1_out"]])


def undeclared(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def relu_activation(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "LSTM")
    node.attribute.append(helper.make_attribute("activations", ["Sigmoid", "Relu", "Tanh"]))


def normalised(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "probabilities"
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"]))


def between_layers(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    second = [node for node in nodes if node.op_type == "LSTM"][1]
    nodes.insert(nodes.index(second), helper.make_node("Tanh", [second.input[0]], ["squashed"], name="squash"))
    second.input[0] = "squashed"
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (crossed, r"\(LSTM\) does not write the state 'c_0_out' that continues 'h_0'"),
        (undeclared, "has 5 outputs beside the carried state that it declares; expected one"),
        (relu_activation, r"\(LSTM\) has other activations, which PyTorch's layers have not"),
        (normalised, r"\(Softmax\) stands where a language model has MatMul; expected token ids -> embedding"),
        (between_layers, r"node 'squash' \(Tanh\) stands where a language model has Gather or Squeeze"),
    ],
)
def test_a_graph_of_another_kind_is_refused_by_the_node_that_does_not_belong(
    tmp_path: Path, change: object, message: str
) -> None:
    with pytest.raises(ModelFileError, match=message) as error:
        read_token_model(edited(exported(tmp_path, build()), change))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'm.onnx'}: ")


def test_state_that_is_read_from_other_units_than_it_was_written_to_is_refused(tmp_path: Path) -> None:
    shrink(exported(tmp_path, build(dead=True)), tmp_path / "small.onnx")

    def swap(model: onnx.ModelProto) -> None:
        bridge = next(node for node in model.graph.node if node.op_type == "Gather" and node.input[0] == "h_0")
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == bridge.input[1])
        own = numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), "swapped")
        bridge.input[1] = "swapped"
        model.graph.initializer.append(own)

    with pytest.raises(ModelFileError, match="reads from 'h_0' other positions than it writes to 'h_0_out'"):
        read_token_model(edited(tmp_path / "small.onnx", swap))


def test_models_that_are_no_language_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"expected token ids -> embedding -> recurrent layers -> output layer"):
        read_token_model(layer_with_head(tmp_path / "other.onnx"))
    quantise(exported(tmp_path, build()), tmp_path / "int8.onnx")
    with pytest.raises(ModelFileError, match=r"Continue a model that `toolchain train` wrote, before it was quantized"):
        read_token_model(tmp_path / "int8.onnx")
