"""The reader: what it computes, its gates, its ONNX graph, and that the graph shrinks."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import tiny_squad
import torch
from toolchain.models.reader import Reader, ReaderConfig, lengths_of
from toolchain.models.reader_export import export_reader
from toolchain.models.squad import load_squad
from toolchain.models.squad_evaluation import onnx_scores, torch_scores
from torch import nn

import toolchain
from toolchain.errors import ModelFileError, ParityError, TrainingError
from toolchain.gates import expected_l0, fold, gate, kept_l0, total_l0
from toolchain.gating.hard_concrete import HardConcrete

SIZES = (8, 7, 6, 5)
INPUTS = ("paragraph", "paragraph_characters", "question", "question_characters")


@pytest.fixture
def corpus(tmp_path):
    return load_squad(folder=tiny_squad.write(tmp_path / "squad"))


def build(corpus, **changes) -> Reader:
    torch.manual_seed(0)
    config = {"embedding_size": 12, "character_channels": 6, "hidden_sizes": SIZES, **changes}
    return Reader(ReaderConfig(vocabulary_size=len(corpus.vocabulary), **config)).eval()


def tensors(corpus, questions):
    return {name: torch.from_numpy(array) for name, array in corpus.feeds(questions).items()}


def layers(model):
    """Return the recurrent layers from the bottom, both directions of each."""
    return [(each.ahead, each.back) for each in (model.encoder, *model.modeling, model.output)]


@torch.no_grad()
def test_what_is_computed_for_a_paragraph_does_not_depend_on_the_others_in_its_batch(corpus):
    model = build(corpus)
    batch = sorted(corpus.train[:7], key=lambda q: len(q.paragraph.forms))
    together = model(**tensors(corpus, batch))
    assert len(batch[0].paragraph.forms) < len(batch[-1].paragraph.forms)
    for column, question in enumerate(batch):
        length = len(question.paragraph.forms)
        for logits, alone in zip(together, model(**tensors(corpus, [question])), strict=True):
            torch.testing.assert_close(logits[:length, column], alone[:, 0], atol=1e-6, rtol=1e-5)


def test_sequences_are_turned_around_by_their_own_length():
    words = torch.tensor([[3, 6], [4, 7], [5, 0]])  # [T, B]: lengths 3 and 2
    turned = words.flatten()[lengths_of(words).turned]
    assert turned.tolist() == [[5, 7], [4, 6], [3, 0]]


@torch.no_grad()
def test_a_layer_is_the_bidirectional_lstm_of_pytorch_on_packed_sequences(corpus):
    layer = build(corpus).encoder
    both = nn.LSTM(layer.ahead.input_size, layer.ahead.hidden_size, bidirectional=True)
    for name, parameter in both.named_parameters():
        own = layer.back if name.endswith("_reverse") else layer.ahead
        parameter.copy_(getattr(own, name.removesuffix("_reverse")))
    words = torch.tensor([[1, 1], [1, 1], [1, 0]])
    x = torch.randn(3, 2, layer.ahead.input_size)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]))
    expected, _ = nn.utils.rnn.pad_packed_sequence(both(packed)[0])
    torch.testing.assert_close(layer(x, lengths_of(words)) * (words != 0)[..., None], expected)


@torch.no_grad()
def test_attention_is_that_of_the_paper(corpus):
    model = build(corpus)
    T, J, width = 4, 3, 2 * SIZES[0]
    h, u = torch.randn(T, 1, width), torch.randn(J, 1, width)
    in_question = torch.tensor([[True], [True], [False]])
    g = model._attend(h, u, torch.ones(T, 1, dtype=torch.bool), in_question)[:, 0]
    w = torch.cat(list(model.similarity))
    h, u = h[:, 0], u[:2, 0]  # the last word of the question is padding
    s = torch.stack([torch.stack([w @ torch.cat([h[t], u[j], h[t] * u[j]]) for j in range(2)]) for t in range(T)])
    a = s.softmax(dim=1) @ u
    b = s.amax(dim=1).softmax(dim=0) @ h
    torch.testing.assert_close(g, torch.cat([h, a, h * a, h * b], dim=1))


def test_gates_price_every_direction_and_folding_keeps_what_is_computed(corpus):
    model = build(corpus)
    gated = gate(model).eval()
    dense = sum(4 * lstm.hidden_size * (lstm.input_size + lstm.hidden_size) for pair in layers(model) for lstm in pair)
    assert total_l0(model) == dense
    assert expected_l0(gate(model, initial_keep=1 - 1e-7)).item() == pytest.approx(dense, rel=1e-4)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in gated.modules():
            if isinstance(module, HardConcrete):
                module.log_alpha.copy_(4 * torch.rand(len(module.log_alpha), generator=random) - 2)
        feeds = tensors(corpus, corpus.train[:4])
        for expected, found in zip(gated(**feeds), fold(gated)(**feeds), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_exported_graph_answers_as_pytorch_does_at_any_length(corpus, tmp_path):
    model = build(corpus)
    export_reader(model, tmp_path / "m.onnx", metadata={"key": "value"})
    expected = torch_scores(model, corpus, corpus.train)
    found = onnx_scores(tmp_path / "m.onnx", corpus, corpus.train, threads=1)
    assert found == expected
    assert 0 < found.f1 < 100
    graph = onnx.load(tmp_path / "m.onnx")
    assert [(p.key, p.value) for p in graph.metadata_props] == [("key", "value")]
    names = {i.name: [axis.dim_param for axis in i.type.tensor_type.shape.dim[:2]] for i in graph.graph.input}
    assert names == {name: ["J" if "question" in name else "T", "B"] for name in INPUTS}
    assert not any(list(node.input[5:]) for node in graph.graph.node if node.op_type == "LSTM")  # no initial state


def test_a_graph_that_computes_something_else_is_not_written(corpus, tmp_path, monkeypatch):
    model = build(corpus)
    real = onnx.load

    def swapped(path):
        graph = real(path)
        end = next(node for node in graph.graph.node if "end" in node.output)
        start = next(node for node in graph.graph.node if "start" in node.output)
        start.output[0], end.output[0] = "end", "start"
        return graph

    monkeypatch.setattr("toolchain.models.reader_export.onnx.load", swapped)
    with pytest.raises(ParityError, match=r"m.onnx: output start at T=.* differs from PyTorch's"):
        export_reader(model, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_another_kind_of_model_is_no_reader(corpus, tmp_path):
    x = onnx.helper.make_tensor_value_info("x", 1, [1])
    y = onnx.helper.make_tensor_value_info("y", 1, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match=r"other.onnx: x -> y; expected a reader, paragraph, "):
        onnx_scores(tmp_path / "other.onnx", corpus, corpus.test)


def test_a_layer_has_no_gates_for_inputs_that_are_other_layers_neurons(corpus):
    gated = gate(build(corpus))
    names = {name.removesuffix(".log_alpha") for name, _ in gated.named_parameters() if name.endswith("log_alpha")}
    layers = ("encoder", "modeling.0", "modeling.1", "output")
    hidden = {f"{layer}.{direction}.hidden_gates.0" for layer in layers for direction in ("ahead", "back")}
    assert names == hidden


@torch.no_grad()
def test_a_closed_neuron_of_the_encoder_saves_four_columns_of_each_modeling_direction(corpus):
    gated = gate(build(corpus), initial_keep=1 - 1e-9).eval()
    before = expected_l0(gated)
    gated.encoder.back.hidden_gates[0].log_alpha[3] = -30.0
    saved = 4 * (18 + 8 + 7) + 4 * 4 * 2 * 7  # its rows and its column in R, then 4 columns of 4*7 rows, twice
    assert (before - expected_l0(gated)).item() == pytest.approx(saved, rel=1e-3)
    assert total_l0(gated) - kept_l0(gated) == saved


def test_a_source_that_does_not_fit_is_named(corpus, monkeypatch):
    monkeypatch.setattr(Reader, "neuron_sources", lambda self: {"output.ahead": ("modeling.1.ahead",)})
    with pytest.raises(TrainingError, match=r"neuron sources 'output.ahead': 1 of 1 modules are there, with 6 neurons"):
        gate(build(corpus))
    monkeypatch.setattr(Reader, "neuron_sources", lambda self: {"output.ahead": ("gone",)})
    with pytest.raises(TrainingError, match=r"neuron sources 'output.ahead': 0 of 1 modules are there"):
        gate(build(corpus))


DEAD = ((1, 4), (0, 6), (2,), (3,))


@torch.no_grad()
def kill(model, dead=DEAD, only_ahead=()):
    """Make units of each layer silent: nothing drives them."""
    for number, (pair, units) in enumerate(zip(layers(model), dead, strict=True)):
        for lstm in pair[:1] if number in only_ahead else pair:
            for parameter in lstm.parameters():
                parameter.unflatten(0, (4, lstm.hidden_size))[:, list(units)] = 0.0


def shrunk(model, tmp_path):
    export_reader(model, tmp_path / "m.onnx")
    result = toolchain.shrink(tmp_path / "m.onnx")
    assert result.output is not None
    return result


def test_silent_units_leave_every_layer_of_the_graph_through_the_attention(corpus, tmp_path):
    model = build(corpus)
    kill(model)
    result = shrunk(model, tmp_path)
    encoder, first, second, output = (size - len(units) for size, units in zip(SIZES, DEAD, strict=True))
    sizes = [(node.input_after, node.hidden_after) for node in result.nodes]
    assert sizes == [
        *[(18, encoder)] * 4,  # both directions, of the paragraph and of the question
        *[(8 * encoder, first)] * 2,
        *[(2 * first, second)] * 2,
        *[(2 * second, output)] * 2,
    ]
    assert onnx_scores(result.output, corpus, corpus.train, threads=1) == torch_scores(model, corpus, corpus.train)


def test_directions_may_differ_in_size(corpus, tmp_path):
    model = build(corpus)
    kill(model, only_ahead=(0, 1, 2, 3))
    sizes = [node.hidden_after for node in shrunk(model, tmp_path).nodes]
    assert sorted(sizes) == sorted([6, 8, 6, 8, 5, 7, 5, 6, 4, 5])


def test_closed_gates_leave_the_graph(corpus, tmp_path):
    gated = gate(build(corpus)).eval()
    with torch.no_grad():
        for (ahead, back), units in zip(layers(gated), DEAD, strict=True):
            for lstm in (ahead, back):
                lstm.hidden_gates[0].log_alpha[list(units)] = -10.0
    result = shrunk(fold(gated), tmp_path)
    encoder, first, second, output = (size - len(units) for size, units in zip(SIZES, DEAD, strict=True))
    sizes = [node.hidden_after for node in result.nodes]
    assert sizes == [*[encoder] * 4, *[first] * 2, *[second] * 2, *[output] * 2]
    once = [*result.nodes[:2], *result.nodes[4:]]  # the encoder reads questions as well, which is not priced
    left = sum(4 * node.hidden_after * (node.input_after + node.hidden_after) for node in once)
    assert left == kept_l0(gated)


@torch.no_grad()
def test_units_that_nothing_reads_leave_the_modeling_layers(corpus, tmp_path):
    model = build(corpus)
    for lstm in layers(model)[2]:
        lstm.weight_ih_l0[:, [0, 7 + 6]] = 0.0  # first modeling layer, ahead 0 and back 6
    for lstm, unit in zip(layers(model)[1], (0, 6), strict=True):
        lstm.weight_hh_l0[:, unit] = 0.0
    result = shrunk(model, tmp_path)
    assert [node.hidden_after for node in result.nodes][4:6] == [6, 6]


def test_a_live_reader_is_left_alone(corpus, tmp_path):
    export_reader(build(corpus), tmp_path / "m.onnx")
    result = toolchain.shrink(tmp_path / "m.onnx")
    assert result.output is None
    assert np.array_equal([n.hidden_before for n in result.nodes], [n.hidden_after for n in result.nodes])
