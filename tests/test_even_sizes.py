"""An LSTM layer of odd sizes computes the same with one more neuron of zeros, and hands out its own sizes."""

from __future__ import annotations

import pytest
import torch
from toolchain.models.language_model import LanguageModel, LanguageModelConfig
from torch import nn

from toolchain.gates import gate
from toolchain.gating.even_sizes import EvenLSTM, evened


@pytest.mark.parametrize("sizes", [(5, 7), (4, 7), (5, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_layer(sizes: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(*sizes, bias=bias)
    x = torch.randn(3, 2, sizes[0], requires_grad=True)
    state = tuple(torch.randn(1, 2, sizes[1], requires_grad=True) for _ in range(2))
    leaves = [x, *state, *layer.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        view = evened(layer, x)
    assert isinstance(view, EvenLSTM)
    assert (view.input_size % 2, view.hidden_size % 2) == (0, 0)
    found, wanted = ((y, *after) for y, after in (view(x, state), layer(x, state)))  # in float32: exact but for order
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(sum((part**2).sum() for part in parts), leaves) for parts in (found, wanted)]
    torch.testing.assert_close(*gradients)
    without_state = view(x)[0]
    torch.testing.assert_close(without_state, layer(x)[0])
    assert (layer.input_size, layer.hidden_size) == sizes


def test_only_what_gets_faster_is_padded() -> None:
    x = torch.randn(3, 2, 5)
    odd = nn.LSTM(5, 7)
    assert evened(odd, x) is odd  # float32
    with torch.autocast("cpu", torch.bfloat16):
        for layer in (nn.LSTM(4, 6), nn.LSTM(5, 7, num_layers=2), nn.LSTM(5, 7, bidirectional=True), nn.GRU(5, 7)):
            assert evened(layer, x) is layer
        packed = nn.utils.rnn.pack_sequence([x[:, 0]])
        assert evened(odd, packed) is odd


@pytest.mark.parametrize("gated", [False, True])
def test_a_language_model_runs_its_odd_layers_with_even_sizes(gated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model: nn.Module = LanguageModel(LanguageModelConfig(vocabulary_size=12, embedding_size=5, hidden_sizes=(7, 3)))
    if gated:
        gate(model)
    sizes = []
    run = nn.LSTM.forward

    def noted(self, *args):
        sizes.append((self.input_size, self.hidden_size))
        return run(self, *args)

    monkeypatch.setattr(nn.LSTM, "forward", noted)
    tokens, state = torch.randint(0, 12, (4, 2)), model.initial_state(2)
    with torch.autocast("cpu", torch.bfloat16):
        logits, after = model.eval()(tokens, state)
    assert [size for size in sizes if not size[0] % 2 and not size[1] % 2] == [(6, 8), (8, 4)]
    plain, _ = model(tokens, state)
    torch.testing.assert_close(logits.float(), plain, rtol=0.02, atol=0.02)
    assert [part.shape[-1] for layer in after for part in layer] == [7, 7, 3, 3]
