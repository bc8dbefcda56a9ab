"""Gates against a float64 time loop written here; the fused kernel on scaled weights computes the same."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gated_modules import ATOL, CELLS, B, Chained, H, N, T, assert_close, call, fixed_gate, make, randomise_gates
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from toolchain.errors import TrainingError
from toolchain.gates import NeuronLink, freeze_gates, gate, total_l0
from toolchain.gating.hard_concrete import HardConcrete, log_alpha_of


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def one_step(mode: str, gx: Tensor, gh: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One time step from `W x + b` and `R h + b`, by the definitions in PyTorch's documentation."""
    if mode == "LSTM":
        i, f, g, o = (gx + gh).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    if mode == "GRU":
        (rx, zx, nx), (rh, zh, nh) = gx.chunk(3, -1), gh.chunk(3, -1)
        z = torch.sigmoid(zx + zh)
        return (1 - z) * torch.tanh(nx + torch.sigmoid(rx + rh) * nh) + z * h, c
    return (torch.tanh(gx + gh) if mode == "RNN_TANH" else torch.relu(gx + gh)), c


def gated_loop(module: Any, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The definition: every neuron's output times its gate, wherever it is read. `x` is `[T, B, N]`."""
    directions = 2 if module.bidirectional else 1
    x = x.double() * fixed_gate(module.input_gate)
    h_n, c_n = [], []
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            suffix, cell = f"_l{layer}" + "_reverse" * direction, layer * directions + direction
            W, R = (getattr(module, f"weight_{kind}{suffix}").double() for kind in ("ih", "hh"))
            bias = [getattr(module, f"bias_{kind}{suffix}", None) for kind in ("ih", "hh")]
            b_W, b_R = (torch.zeros(len(W)).double() if b is None else b.double() for b in bias)
            z = fixed_gate(module.hidden_gates[cell])
            raw, c = torch.zeros(x.shape[1], module.hidden_size).double(), torch.zeros(1).double()
            c = c.expand_as(raw)
            if state is not None:
                inverse = torch.where(z > 0, 1 / z, torch.zeros_like(z))
                raw, c = state[0][cell].double() * inverse, state[1][cell].double()
            steps: list[Tensor] = []
            for x_t in x.flip(0) if direction else x:
                raw, c = one_step(module.mode, x_t @ W.T + b_W, (z * raw) @ R.T + b_R, raw, c)
                steps.append(z * raw)
            outputs.append(torch.stack(steps[::-1] if direction else steps))
            h_n.append(steps[-1])
            c_n.append(c)
        x = torch.cat(outputs, -1)
    return x, torch.stack(h_n), torch.stack(c_n)


MATRIX = list(product(CELLS, (1, 3), (False, True), (False, True)))


@pytest.mark.parametrize(("cell", "layers", "bidirectional", "given_state"), MATRIX)
def test_a_gated_module_computes_what_the_definition_says(
    cell: str, layers: int, bidirectional: bool, given_state: bool
) -> None:
    module = randomise_gates(gate(make(cell, layers=layers, bidirectional=bidirectional))).eval()
    x, cells = torch.randn(T, B, N), layers * (1 + bidirectional)
    h, c = (torch.randn(cells, B, H), torch.randn(cells, B, H)) if given_state else (None, None)
    y, h_n, c_n = call(module, x, h, c)
    wanted = gated_loop(module, x, (h, c) if given_state else None)
    assert_close(y, wanted[0])
    assert_close(h_n, wanted[1])
    if c_n is not None:
        assert_close(c_n, wanted[2])


@pytest.mark.parametrize("cell", CELLS)
def test_a_module_without_biases_computes_what_the_definition_says(cell: str) -> None:
    module = randomise_gates(gate(make(cell, layers=2, bias=False))).eval()
    x = torch.randn(T, B, N)
    assert_close(module(x)[0], gated_loop(module, x)[0])


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_reach_weights_inputs_and_every_gate_as_the_definition_says(cell: str) -> None:
    module = randomise_gates(gate(make(cell, layers=2, bidirectional=True))).eval()
    x = torch.randn(T, B, N, requires_grad=True)
    wanted = [x, *module.parameters()]
    torch.manual_seed(1)
    direction = torch.randn(T, B, 2 * H)
    actual = torch.autograd.grad((module(x)[0] * direction).sum(), wanted)
    oracle = torch.autograd.grad((gated_loop(module, x)[0] * direction).sum(), wanted)
    assert any(g.abs().max() > 1e-3 for g, p in zip(actual, wanted, strict=True) if p.dim() == 1)
    for ours, theirs in zip(actual, oracle, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("training", [False, True])
def test_a_module_whose_gates_are_all_open_equals_the_plain_one(cell: str, training: bool) -> None:
    plain = make(cell, layers=2, bidirectional=True)
    gated = gate(plain, initial_keep=1 - 1e-12).train(training)
    for gates in (m for m in gated.modules() if isinstance(m, HardConcrete)):
        gates.log_alpha.data.fill_(60.0)  # sampled as exactly 1, whatever the noise
    x, h, c = torch.randn(T, B, N), torch.randn(4, B, H), torch.randn(4, B, H)
    for actual, wanted in zip(call(gated, x, h, c)[:2], call(plain, x, h, c)[:2], strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize(("cell", "bidirectional", "batch_first"), product(CELLS, (False, True), (False, True)))
def test_batch_first_and_packed_and_unbatched_calls_agree_with_the_plain_layout(
    cell: str, bidirectional: bool, batch_first: bool
) -> None:
    module = randomise_gates(gate(make(cell, layers=2, bidirectional=bidirectional))).eval()
    x, lengths = torch.randn(T, B, N), torch.tensor([2, 6, 4])
    module.batch_first = batch_first
    batch = x.transpose(0, 1) if batch_first else x
    packed = pack_padded_sequence(batch, lengths, batch_first=batch_first, enforce_sorted=False)
    y_packed, h_packed, _ = call(module, packed, None, None)
    assert isinstance(y_packed, PackedSequence)
    y_padded, _ = pad_packed_sequence(y_packed, batch_first=batch_first)
    y_full, _, _ = call(module, batch, None, None)
    assert_close(y_full.transpose(0, 1) if batch_first else y_full, gated_loop(module, x)[0])
    for b, length in enumerate(lengths.tolist()):
        y, h_n, _ = call(module, x[:length, b], None, None)  # unbatched, 2-D
        wanted_y, wanted_h, _ = gated_loop(module, x[:length, b : b + 1])
        assert_close(y, wanted_y[:, 0])
        assert_close(h_n, wanted_h[:, 0])
        assert_close(y_padded[b, :length] if batch_first else y_padded[:length, b], wanted_y[:, 0])
        assert_close(h_packed[:, b], wanted_h[:, 0])


@pytest.mark.parametrize("cell", CELLS)
def test_feeding_the_final_state_back_equals_one_long_run(cell: str) -> None:
    module = randomise_gates(gate(make(cell, layers=2))).eval()
    x = torch.randn(2 * T, B, N)
    whole = call(module, x, None, None)
    y1, h, c = call(module, x[:T], None, None)
    y2, h_n, _ = call(module, x[T:], h, c)
    assert_close(torch.cat([y1, y2]), whole[0])
    assert_close(h_n, whole[1])


def test_dropout_between_layers_acts_in_training_only() -> None:
    module = gate(nn.LSTM(N, H, 2, dropout=0.5))
    for gates in (m for m in module.modules() if isinstance(m, HardConcrete)):
        gates.log_alpha.data.fill_(60.0)
    x = torch.randn(T, B, N)
    assert not torch.equal(module(x)[0], module(x)[0])
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])


def test_gates_are_sampled_once_per_call_in_training() -> None:
    module = gate(nn.RNN(N, H, bias=False), initial_keep=0.5)
    module.weight_hh_l0.data.zero_()  # then y_t = z * tanh(W x_t), and equal inputs give equal rows
    x = torch.randn(1, 1, N).expand(T, B, N)
    y, _ = module(x)
    assert torch.equal(y, y[:1, :1].expand_as(y))
    assert not torch.equal(y, module(x)[0])


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_samples_are_non_zero_as_often_as_the_open_probability_says(keep: float) -> None:
    gates = HardConcrete(40_000, initial_keep=keep)
    fraction = (gates.sample() != 0).float().mean().item()
    assert abs(fraction - keep) < 5 * (keep * (1 - keep) / 40_000) ** 0.5  # five standard errors
    torch.testing.assert_close(gates.open_probability(), torch.full((40_000,), keep))


def test_samples_average_to_the_distributions_mean() -> None:
    gates = HardConcrete(100_000)
    gates.log_alpha.data.fill_(0.4)
    u = (np.arange(100_000) + 0.5) / 100_000  # the mean by quadrature over u
    s = 1 / (1 + np.exp(-(np.log(u / (1 - u)) + 0.4) * 1.5))
    wanted = np.clip(s * 1.2 - 0.1, 0, 1).mean()
    assert abs(gates.sample().mean().item() - wanted) < 0.01


def test_initial_gates_are_practically_open() -> None:
    gates = gate(nn.LSTM(N, 2000)).hidden_gates[0]
    sample = gates.sample()
    assert (sample == 1).float().mean() > 0.85
    assert (sample == 0).float().mean() < 0.02
    assert torch.equal(gates.deterministic(), torch.ones(2000))


def test_in_training_a_state_behind_a_nearly_closed_gate_stays_bounded() -> None:
    module = gate(nn.GRU(N, H))
    module.hidden_gates[0].sample = lambda: torch.full((H,), 1e-6, requires_grad=True)  # type: ignore[method-assign]
    x = torch.randn(T, B, N, requires_grad=True)
    y, _ = module(x, torch.ones(1, B, H))
    y.sum().backward()
    assert y.abs().max() < 1e-4
    assert all(p.grad is None or p.grad.abs().max() < 1e3 for p in module.parameters())


def test_gating_leaves_the_argument_alone_and_keeps_its_names() -> None:
    model = nn.Sequential(nn.Linear(N, N), nn.LSTM(N, H, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gated = gate(model)
    assert type(model[1]) is nn.LSTM
    assert isinstance(gated[1], nn.LSTM)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], gated.state_dict()[name]) for name in before)
    gated[1].weight_ih_l0.data.zero_()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    added = set(gated.state_dict()) - set(before)
    assert added == {"1.input_gate.log_alpha", "1.hidden_gates.0.log_alpha", "1.hidden_gates.1.log_alpha"}


def test_a_module_used_twice_stays_one_module() -> None:
    shared = nn.GRU(N, N)
    gated = gate(nn.ModuleList([shared, shared]))
    assert gated[0] is gated[1]
    assert total_l0(gated) == 3 * N * (N + N)


def test_a_gated_model_survives_saving_loading_and_copying(tmp_path: Path) -> None:
    gated = randomise_gates(gate(nn.Sequential(nn.GRU(N, H, 2)))).eval()
    x = torch.randn(T, B, N)
    torch.save(gated, tmp_path / "gated.pt")
    loaded = torch.load(tmp_path / "gated.pt", weights_only=False)
    fresh = gate(nn.Sequential(nn.GRU(N, H, 2))).eval()
    fresh.load_state_dict(gated.state_dict())
    for twin in (loaded, fresh, copy.deepcopy(gated)):
        assert torch.equal(twin(x)[0], gated(x)[0])


def test_functional_call_runs_on_the_weights_it_is_given() -> None:
    gated = randomise_gates(gate(nn.LSTM(N, H))).eval()
    x = torch.randn(T, B, N)
    doubled = {name: 2 * p.detach() for name, p in gated.named_parameters() if "weight" in name}
    y = torch.func.functional_call(gated, doubled, (x,))[0]
    for name, value in doubled.items():
        gated.get_parameter(name).data = value
    assert_close(y, gated(x)[0])


def test_autocast_runs_in_bfloat16_and_keeps_gates_in_float32() -> None:
    module = gate(nn.LSTM(N, H, 2))
    x = torch.randn(T, B, N)
    with torch.autocast("cpu", torch.bfloat16):
        y, (h_n, _) = module(x)
        assert module.hidden_gates[0]().dtype == torch.float32
    assert y.dtype == h_n.dtype == torch.bfloat16
    y.float().sum().backward()
    assert module.input_gate.log_alpha.grad.dtype == torch.float32
    module.eval()
    with torch.autocast("cpu", torch.bfloat16):
        rough = module(x)[0]
    torch.testing.assert_close(rough.float(), module(x)[0], atol=0.02, rtol=0)


class TiedEncoder(nn.Module):
    """A bidirectional module whose output is scored against its own input embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.rnn = nn.LSTM(4, 2, bidirectional=True)

    def neuron_links(self) -> tuple[NeuronLink, ...]:
        place = ("embedding.weight", 1)
        return (NeuronLink(module="rnn", writers=(place,), readers=(place,)),)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "Linear: no recurrent module inside"),
        (nn.LSTM(4, 6, proj_size=3), "module '': proj_size is 3; expected 0"),
        (gate(nn.LSTM(2, 2)), "module '': gated already"),
        (type("Mine", (nn.GRU,), {})(2, 2), "module '': is a Mine; expected exactly nn.LSTM"),
        (TiedEncoder(), "bidirectional; expected one direction"),
    ],
)
def test_what_cannot_be_gated_is_named(model: nn.Module, message: str) -> None:
    with pytest.raises(TrainingError) as caught:
        gate(model)
    assert message in str(caught.value)


def test_an_initial_keep_probability_out_of_range_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"initial_keep: 1\.5; expected a probability"):
        gate(nn.LSTM(2, 2), initial_keep=1.5)


def test_a_state_of_the_wrong_size_is_refused_as_by_pytorch() -> None:
    module = gate(nn.GRU(N, H, 2)).eval()
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        module(torch.randn(T, B, N), torch.zeros(1, B, H))


@pytest.mark.parametrize(
    ("link", "message"),
    [
        (NeuronLink(module="rnn.7"), "no such recurrent module"),
        (NeuronLink(module="rnn.0", readers=(("decoder.weight", 1),)), "expected 7 neurons along axis 1"),
        (NeuronLink(module="rnn.0", writers=(("missing", 0),)), "missing has no such parameter"),
        (
            NeuronLink(module="rnn.1", readers=(("decoder.weight", 1),), reader_biases=(None, None)),
            "2 reader_biases for 1 readers",
        ),
    ],
)
def test_a_wrong_link_is_named(link: NeuronLink, message: str) -> None:
    model = Chained()
    model.neuron_links = lambda: (link,)  # type: ignore[method-assign]
    with pytest.raises(TrainingError) as caught:
        gate(model)
    assert message in str(caught.value)


def test_log_alpha_of_inverts_the_open_probability() -> None:
    assert 1 / (1 + np.exp(-(log_alpha_of(0.3) + 2 / 3 * np.log(11)))) == pytest.approx(0.3)


def test_frozen_gates_are_those_of_evaluation_while_the_weights_learn_on() -> None:
    gated = randomise_gates(gate(nn.LSTM(N, H, num_layers=2))).train()
    x = torch.randn(T, B, N)
    assert not torch.equal(gated(x)[0], gated(x)[0])  # samples
    freeze_gates(gated)
    expected = gated.eval()(x)[0]
    assert torch.allclose(gated.train()(x)[0], expected, atol=ATOL)
    before = {name: parameter.clone() for name, parameter in gated.named_parameters()}
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.1)
    gated(x)[0].square().sum().backward()
    optimizer.step()
    changed = {name for name, parameter in gated.named_parameters() if not torch.equal(parameter, before[name])}
    assert {"weight_ih_l0", "weight_hh_l1"} <= changed
    assert not [name for name in changed if name.endswith("log_alpha")]
    with pytest.raises(TrainingError, match=r"LSTM: no gated module inside; expected one. Call gate\(model\) first"):
        freeze_gates(nn.LSTM(N, H))
