"""Folding gates into weights: plain modules that compute the same, in PyTorch and in ONNX."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import onnxruntime
import pytest
import torch
from gated_modules import CELLS, B, H, N, T, assert_close, call, fixed_gate, make, randomise_gates
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from toolchain.gates import fold, gate
from toolchain.gating.hard_concrete import HardConcrete


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


FOLD_MATRIX = list(product(CELLS, (1, 3), (False, True), (False, True), (False, True)))


@pytest.mark.parametrize(("cell", "layers", "bidirectional", "batch_first", "given_state"), FOLD_MATRIX)
def test_a_folded_module_equals_the_gated_one_in_evaluation_mode(
    cell: str, layers: int, bidirectional: bool, batch_first: bool, given_state: bool
) -> None:
    gated = randomise_gates(gate(make(cell, layers=layers, bidirectional=bidirectional, batch_first=batch_first)))
    folded = fold(gated.train()).eval()
    gated.eval()
    assert not any(isinstance(m, HardConcrete) for m in folded.modules())
    x, cells = torch.randn(B, T, N), layers * (1 + bidirectional)
    packed = pack_padded_sequence(x, torch.tensor([6, 3, 1]), batch_first=True)
    h, c = (torch.randn(cells, B, H), torch.randn(cells, B, H)) if given_state else (None, None)
    for value in (x if batch_first else x.transpose(0, 1), packed):
        for _ in range(2):  # the second call starts from the state the first one returned
            y, h_n, c_n = call(folded, value, h, c)
            wanted = call(gated, value, h, c)
            assert_close(y.data, wanted[0].data)
            assert_close(h_n, wanted[1])
            if c_n is not None:
                assert_close(c_n, wanted[2])
            h, c = h_n, c_n
        h = c = None


def test_folding_zeroes_every_column_and_scale_of_a_removed_neuron() -> None:
    gated = randomise_gates(gate(nn.LSTM(N, H, 2)))
    folded = fold(gated)
    removed = [torch.nonzero(fixed_gate(g) == 0).flatten() for g in gated.hidden_gates]
    assert all(len(r) for r in removed)
    assert not folded.weight_ih_l0[:, fixed_gate(gated.input_gate) == 0].any()
    assert not folded.weight_hh_l0[:, removed[0]].any()
    assert not folded.weight_ih_l1[:, removed[0]].any()
    assert not folded.weight_hh_l1[:, removed[1]].any()
    assert not folded.output_scale[1, removed[1]].any()
    assert gated.weight_hh_l0[:, removed[0]].all()


def test_folding_open_gates_gives_the_plain_class_with_the_same_weights() -> None:
    plain = nn.Sequential(nn.GRU(N, H))
    folded = fold(gate(plain))
    assert type(folded[0]) is nn.GRU
    assert folded.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, folded.state_dict()[name]) for name, value in plain.state_dict().items())


def test_folding_modules_that_share_a_weight_scales_each_by_its_own_gates() -> None:
    pair = nn.ModuleList([nn.RNN(N, H), nn.RNN(N, H)])
    pair[1].weight_hh_l0 = pair[0].weight_hh_l0
    gated = randomise_gates(gate(pair)).eval()
    folded = fold(gated)
    x = torch.randn(T, B, N)
    for ours, theirs in zip(folded, gated, strict=True):
        assert_close(ours(x)[0], theirs(x)[0])


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN tanh"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_folded_module_exports_to_onnx_and_computes_the_same(cell: str, bidirectional: bool, tmp_path: Path) -> None:
    folded = fold(randomise_gates(gate(make(cell, bidirectional=bidirectional)))).eval()
    x, h, c = torch.randn(T, B, N), torch.randn(1 + bidirectional, B, H), torch.randn(1 + bidirectional, B, H)
    state = (h, c) if cell == "LSTM" else h
    path = tmp_path / "folded.onnx"
    torch.onnx.export(folded, (x, state), str(path), dynamo=False, input_names=["x", "h", "c"][: 2 + (cell == "LSTM")])
    session = onnxruntime.InferenceSession(str(path))
    feed = {"x": x, "h": h} | ({"c": c} if cell == "LSTM" else {})
    outputs = session.run(None, {name: value.numpy() for name, value in feed.items()})
    y, h_n, _ = call(folded, x, h, c)
    assert_close(torch.from_numpy(outputs[0]), y)
    assert_close(torch.from_numpy(outputs[1]), h_n)
