from __future__ import annotations

import json
import math
import os

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from toolchain.models.language_model import LanguageModel, LanguageModelConfig

from toolchain.errors import ModelFileError, OutputError, ParityError
from toolchain.evaluation import onnx_perplexity, torch_perplexity
from toolchain.exporting import export
from toolchain.interface import CARRIED_STATE_KEY

NODES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}


def build(cell="lstm", **changes) -> LanguageModel:
    torch.manual_seed(0)
    sizes = {"vocabulary_size": 11, "embedding_size": 6, "hidden_sizes": (5, 4), "init_scale": 0.5, **changes}
    return LanguageModel(LanguageModelConfig(cell=cell, **sizes))


@pytest.mark.parametrize("cell", NODES)
def test_the_graph_carries_its_state_and_says_so(tmp_path, cell):
    path = tmp_path / "m.onnx"
    export(build(cell), path, metadata={"task": "words"})
    graph = onnx.load(path)
    recurrent = [node for node in graph.graph.node if node.op_type == NODES[cell]]
    assert len(recurrent) == 2
    initializers = {tensor.name for tensor in graph.graph.initializer}
    assert all({node.input[1], node.input[2], node.input[3]} <= initializers for node in recurrent)
    properties = {entry.key: entry.value for entry in graph.metadata_props}
    names = [f"{part}_{layer}" for layer in range(2) for part in ("hc" if cell == "lstm" else "h")]
    assert json.loads(properties[CARRIED_STATE_KEY]) == [[name, f"{name}_out"] for name in names]
    assert properties["task"] == "words"
    session = ort.InferenceSession(path)
    inputs = {value.name: value.shape for value in session.get_inputs()}
    outputs = {value.name: value.shape for value in session.get_outputs()}
    states = {name: [1, "B", 5 if name.endswith("0") else 4] for name in names}
    assert inputs == {"tokens": ["T", "B"], **states}
    assert outputs == {"logits": ["T", "B", 11], **{f"{name}_out": shape for name, shape in states.items()}}
    assert os.listdir(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize("cell", NODES)
def test_onnx_runtime_reaches_pytorchs_perplexity_over_a_whole_text(tmp_path, cell):
    model, path = build(cell), tmp_path / "m.onnx"
    export(model, path)
    tokens = np.random.default_rng(0).integers(0, 11, 700).astype(np.int32)
    column = torch.from_numpy(tokens).long()[:, None]
    expected = torch_perplexity(model, column)
    assert onnx_perplexity(path, tokens, threads=1) == pytest.approx(expected, rel=1e-5)
    assert torch_perplexity(model, column, chunk=33) == pytest.approx(expected, rel=1e-5)
    assert torch_perplexity(model, column[::2]) != pytest.approx(expected, rel=1e-5)


def test_perplexity_is_what_its_definition_says():
    """Against a float64 sum over the whole text in one call."""
    model = build().double().eval()
    tokens = torch.randint(11, (300, 1))
    with torch.no_grad():
        state = tuple(tuple(part.double() for part in layer) for layer in model.initial_state(1))
        log_p = model(tokens[:-1], state)[0].log_softmax(-1).gather(2, tokens[1:, :, None])
    expected = math.exp(-float(log_p.sum()) / 299)
    assert torch_perplexity(model.float(), tokens) == pytest.approx(expected, rel=1e-5)
    assert torch_perplexity(build().train(), tokens) == pytest.approx(expected, rel=1e-5)


def test_neither_mode_nor_weights_of_the_model_change(tmp_path):
    model = build(dropout=0.5).train()
    model.rnn[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export(model, tmp_path / "m.onnx")
    assert model.training
    assert not model.rnn[0].training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_export_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    def perturbed(path, properties):
        graph = onnx.load(path)
        tensor = next(t for t in graph.graph.initializer if len(t.dims) == 3)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[0, 0, 0] += 0.1
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(graph, path)

    monkeypatch.setattr("toolchain.exporting._annotate", perturbed)
    with pytest.raises(ParityError, match=r"m.onnx: output \w+ at T=\d, B=\d differs from PyTorch's by"):
        export(build(), tmp_path / "m.onnx")
    assert not os.listdir(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"gone/m.onnx: cannot be written"):
        export(build(), tmp_path / "gone" / "m.onnx")
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(OutputError, match=r"m.onnx: is a folder"):
        export(build(), tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_perplexity_of_something_else_is_refused(tmp_path):
    tokens = np.zeros(10, np.int32)
    with pytest.raises(ModelFileError, match=r"gone.onnx: no such file"):
        onnx_perplexity(tmp_path / "gone.onnx", tokens)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelFileError, match=r"text.onnx: ONNX Runtime .* does not take it"):
        onnx_perplexity(tmp_path / "text.onnx", tokens)
    export(build(), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match=r"m.onnx: no metadata toolchain.carried_state"):
        onnx_perplexity(tmp_path / "m.onnx", tokens)
