"""Gates against a float64 time loop written here; the fused kernel on scaled weights computes the same."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from toolchain.errors import TrainingError
from toolchain.gates import NeuronLink, expected_l0, fold, freeze_gates, gate, kept_neurons, total_l0
from toolchain.gating.hard_concrete import HardConcrete, log_alpha_of

N, H, T, B = 5, 7, 6, 3  # input size, hidden size, steps, sequences
ATOL = 2e-6  # 10x the worst float32 difference from the float64 loop seen over the matrix below
CELLS = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN tanh": nn.RNN,
    "RNN relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def randomise_gates(model: nn.Module) -> nn.Module:
    """Give every kind of gate to every set: closed, open, in between, and one nearly closed."""
    for module in model.modules():
        if isinstance(module, HardConcrete):
            module.log_alpha.data.normal_(0, 3)
            module.log_alpha.data[:4] = torch.tensor([-9.0, 9.0, 0.3, -2.39])
    return model


def fixed_gate(module: HardConcrete) -> Tensor:
    """The test-time gate of Louizos et al. 2018, equation 13, in float64."""
    return (torch.sigmoid(module.log_alpha.double()) * 1.2 - 0.1).clamp(0, 1)


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


def call(module: nn.Module, x: Any, h: Tensor | None, c: Tensor | None) -> tuple[Any, Tensor, Tensor | None]:
    """Call any recurrent module; `c` and the returned c_n are None unless it is an LSTM."""
    if isinstance(module, nn.LSTM):
        y, (h_n, c_n) = module(x, None if h is None else (h, c))
        return y, h_n, c_n
    y, h_n = module(x, h)
    return y, h_n, None


def assert_close(actual: Any, wanted: Any) -> None:
    torch.testing.assert_close(actual.double(), wanted.double(), atol=ATOL, rtol=0)


def make(cell: str, *, layers: int = 1, bidirectional: bool = False, **options: Any) -> Any:
    return CELLS[cell](N, H, num_layers=layers, bidirectional=bidirectional, **options)


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


class Chained(nn.Module):
    """Two modules of which the first feeds the second, and says so."""

    def __init__(self, *, tied: bool = False, bidirectional: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, N)
        first = nn.GRU(N, H, bidirectional=bidirectional)
        self.rnn = nn.ModuleList([first, nn.LSTM(H * (1 + bidirectional), N)])
        self.decoder = nn.Linear(N, 11)
        if tied:
            self.decoder.weight = self.embedding.weight

    def neuron_links(self) -> tuple[NeuronLink, ...]:
        return (
            NeuronLink(module="rnn.0", writers=(("embedding.weight", 1),), readers=(("rnn.1.weight_ih_l0", 1),)),
            NeuronLink(module="rnn.1", readers=(("decoder.weight", 1),)),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.rnn[1](self.rnn[0](self.embedding(tokens))[0])[0]
        return self.decoder(x)


class TiedEncoder(nn.Module):
    """A bidirectional module whose output is scored against its own input embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.rnn = nn.LSTM(4, 2, bidirectional=True)

    def neuron_links(self) -> tuple[NeuronLink, ...]:
        place = ("embedding.weight", 1)
        return (NeuronLink(module="rnn", writers=(place,), readers=(place,)),)


def probability(module: HardConcrete) -> np.ndarray:
    beta, gamma, zeta = 2 / 3, -0.1, 1.1
    return 1 / (1 + np.exp(-(module.log_alpha.detach().double().numpy() - beta * np.log(-gamma / zeta))))


def test_expected_l0_counts_weights_between_living_neurons() -> None:
    model = randomise_gates(gate(nn.Sequential(nn.LSTM(N, H, 2, bidirectional=True))))
    lstm = model[0]
    x = probability(lstm.input_gate).sum()
    hidden = [probability(g).sum() for g in lstm.hidden_gates]
    wanted = sum(4 * h * (x + h) for h in hidden[:2]) + sum(4 * h * (hidden[0] + hidden[1] + h) for h in hidden[2:])
    assert expected_l0(model).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_expected_l0_of_a_fed_module_uses_the_gates_that_feed_it(bidirectional: bool) -> None:
    model = randomise_gates(gate(Chained(bidirectional=bidirectional)))
    assert model.rnn[1].input_gate is None
    x, top = probability(model.rnn[0].input_gate).sum(), probability(model.rnn[1].hidden_gates[0]).sum()
    below = [probability(g).sum() for g in model.rnn[0].hidden_gates]
    wanted = sum(3 * h * (x + h) for h in below) + 4 * top * (sum(below) + top)
    assert expected_l0(model).item() == pytest.approx(wanted, rel=1e-5)


def test_expected_l0_has_a_gradient_in_every_gate_and_ends_at_the_total() -> None:
    model = gate(Chained())
    expected_l0(model).backward()
    gates = [m for m in model.modules() if isinstance(m, HardConcrete)]
    assert all((g.log_alpha.grad > 0).all() for g in gates)
    for g in gates:
        g.log_alpha.data.fill_(60.0)
    assert expected_l0(model).item() == total_l0(model) == 3 * H * (N + H) + 4 * N * (H + N)


def test_a_tied_embedding_shares_one_gate_between_inputs_and_outputs() -> None:
    model = gate(Chained(tied=True))
    assert model.rnn[0].input_gate is model.rnn[1].hidden_gates[0]
    assert gate(Chained()).rnn[0].input_gate is not None


def test_kept_neurons_are_those_whose_fixed_gate_is_above_zero() -> None:
    model = randomise_gates(gate(Chained()))
    first, second = kept_neurons(model)
    for indices, gates in (
        (first.input, model.rnn[0].input_gate),
        (first.hidden[0], model.rnn[0].hidden_gates[0]),
        (second.input, model.rnn[0].hidden_gates[0]),
        (second.hidden[0], model.rnn[1].hidden_gates[0]),
    ):
        assert indices.tolist() == torch.nonzero(fixed_gate(gates) > 0).flatten().tolist()
    assert (second.module, second.input_size, second.hidden_size) == ("rnn.1", H, N)
    assert 0 not in first.input
    assert 1 in first.input


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


def test_expected_l0_of_a_plain_model_or_a_part_is_refused() -> None:
    with pytest.raises(TrainingError, match="no gated module inside"):
        expected_l0(nn.LSTM(2, 2))
    with pytest.raises(TrainingError, match="has no input gate and no neuron link feeds it"):
        expected_l0(gate(Chained()).rnn)


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
