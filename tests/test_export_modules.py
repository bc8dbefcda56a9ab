"""Any module is exported with its state, and what comes out is what PyTorch computes; what cannot be is refused."""

from __future__ import annotations

import json
import os

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from toolchain.errors import ParityError, TrainingError
from toolchain.exporting import export
from toolchain.gates import fold, gate
from toolchain.gating.hard_concrete import HardConcrete
from toolchain.interface import CARRIED_STATE_KEY

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
ATOL = 1e-5  # 30x the worst difference seen over the cells below


class Tagger(nn.Module):
    """Scores after every frame, and the state of all layers."""

    def __init__(self, cell=nn.LSTM, **options):
        super().__init__()
        self.rnn = cell(5, 6, num_layers=2, **options)
        self.scores = nn.Linear(6, 3)

    def forward(self, frames, state=None):
        hidden, state = self.rnn(frames, state)
        return self.scores(hidden), state


class Classifier(nn.Module):
    """One answer per sequence, from both of its ends; no state."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(5, 6, bidirectional=True, batch_first=True)
        self.scores = nn.Linear(12, 3)

    def forward(self, frames):
        return self.scores(self.rnn(frames)[0].mean(1))


class Stepwise(nn.Module):
    """A loop over the steps of the example, which a tracer unrolls."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(5, 6)

    def forward(self, frames):
        hidden = frames.new_zeros(frames.shape[1], 6)
        for frame in frames:
            hidden = self.cell(frame, hidden)
        return hidden


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def example(*shape):
    return torch.randn(*shape)


@pytest.mark.parametrize("cell", CELLS)
def test_a_stream_of_frames_gives_what_pytorch_gives_for_the_whole(tmp_path, cell):
    model, path = Tagger(CELLS[cell]).eval(), tmp_path / "m.onnx"
    export(model, path, example=example(4, 2, 5))
    graph = onnx.load(path)
    carried = json.loads({entry.key: entry.value for entry in graph.metadata_props}[CARRIED_STATE_KEY])
    assert carried == [[f"state_{n}", f"state_{n}_out"] for n in range(2 if cell == "lstm" else 1)]
    session = ort.InferenceSession(path)
    assert {i.name: i.shape for i in session.get_inputs()} == {
        "input": ["T", "B", 5], **{source: [2, "B", 6] for source, _ in carried}}  # fmt: skip
    frames = example(9, 4, 5)
    state = {source: np.zeros((2, 4, 6), np.float32) for source, _ in carried}
    parts = []
    for frame in frames.numpy():
        part, *after = session.run(None, {"input": frame[None], **state})
        state = dict(zip(state, after, strict=True))
        parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts), model(frames)[0].detach(), atol=ATOL, rtol=0)


def test_a_module_without_a_state_has_one_input_and_one_output(tmp_path):
    model, path = Classifier().eval(), tmp_path / "m.onnx"
    export(model, path, example=example(2, 4, 5), batch_first=True)
    session = ort.InferenceSession(path)
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("input", ["B", "T", 5])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("output", ["B", 3])]
    assert not session.get_modelmeta().custom_metadata_map
    frames = example(3, 11, 5)
    np.testing.assert_allclose(session.run(None, {"input": frames.numpy()})[0], model(frames).detach(), atol=ATOL)


def test_folded_gates_leave_without_a_warning(tmp_path, recwarn):
    gated = gate(Tagger())
    for module in gated.modules():
        if isinstance(module, HardConcrete):
            module.log_alpha.data.normal_(0, 3)
    plain = fold(gated.eval())
    export(plain, tmp_path / "m.onnx", example=example(4, 2, 5))
    assert not [warning for warning in recwarn if "/torch/" not in warning.filename]
    frames = example(7, 1, 5)
    zeros = np.zeros((2, 1, 6), np.float32)
    found = ort.InferenceSession(tmp_path / "m.onnx").run(
        ["output"], {"input": frames.numpy(), "state_0": zeros, "state_1": zeros}
    )[0]
    np.testing.assert_allclose(found, gated(frames)[0].detach(), atol=ATOL)


def test_an_example_of_zeros_still_proves_something(tmp_path, monkeypatch):
    """A graph that ignores its input agrees with PyTorch on zeros if the network has no biases; not on frames."""

    def deaf(path, properties):
        graph = onnx.load(path)
        W = {node.input[1] for node in graph.graph.node if node.op_type == "LSTM"}
        for tensor in graph.graph.initializer:
            if tensor.name in W:
                zeros = np.zeros(tensor.dims, np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
        onnx.save(graph, path)

    monkeypatch.setattr("toolchain.exporting._annotate", deaf)
    with pytest.raises(ParityError, match=r"m.onnx: output output at T=\d, B=\d differs from PyTorch's by"):
        export(Tagger(bias=False), tmp_path / "m.onnx", example=torch.zeros(4, 2, 5))
    assert not os.listdir(tmp_path)


def test_a_network_of_one_length_only_is_refused(tmp_path):
    with pytest.warns(torch.jit.TracerWarning), pytest.raises(ParityError, match=r"m.onnx: .*T=\d, B=\d"):
        export(Stepwise(), tmp_path / "m.onnx", example=example(4, 2, 5))
    assert not os.listdir(tmp_path)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(5, 6)

    def forward(self, frames):
        return self.rnn(frames)[0], "two"


def test_what_is_no_network_on_sequences_is_refused_by_what_it_does(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(TrainingError, match=r"Pair: forward returns a tuple of a tensor \[3, 2, 6\], a str; expected"):
        export(Pair(), path, example=example(4, 2, 5))
    with pytest.raises(TrainingError, match=r"Tagger: fails on a tensor \[3, 2, 4\] .* Correct forward, or the"):
        export(Tagger(), path, example=example(4, 2, 4))
    with pytest.raises(TrainingError, match=r"Tagger: the example has shape \[4\]; expected at least a step"):
        export(Tagger(), path, example=example(4))
    with pytest.raises(TrainingError, match=r"Tagger: has no initial_state, so it is no token model; expected an exam"):
        export(Tagger(), path)
    assert not os.listdir(tmp_path)
