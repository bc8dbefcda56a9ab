"""Recurrent modules whose neurons carry gates, on PyTorch's own fused kernels.

A gate is constant over a sequence, so it moves out of the recurrence. With z_x the gates of the inputs, z_h
those of a layer's neurons, and `raw` the state that the kernel computes:

    W (z_x * x) + R (z_h * raw)  =  (W * z_x) x + (R * z_h) raw        columns of W and R are scaled
    Y = z_h * raw,  h_n = z_h * raw_n                                  what readers see is scaled
    raw_0 = h_0 / z_h  where z_h > 0, else 0                           a given state is what readers saw

and the next layer of a stack reads z_h through its columns of W. So one call of the kernel runs the whole
stack, both directions and the dropout between layers included. The gates are sampled once per call.

`Gated*` multiply sampled or fixed gates on every call. `Folded*` hold weights that are multiplied already and
scale only their state and what they return, by constants: exporters write each as one Mul.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from toolchain.gating.even_sizes import evened, with_weights
from toolchain.gating.hard_concrete import HardConcrete

# In training the gates of this call are not those of the call that made h_0. Without a floor, a gate sampled
# at 1e-6 would make a raw state, and gradients, a million times too large; with it the state fades as z -> 0.
TRAINING_STATE_FLOOR = 0.1
SMALLEST_GATE = 1e-30  # its inverse is still finite in float32

Input = TypeVar("Input", Tensor, PackedSequence)


class GatedLSTM(nn.LSTM):
    """An `nn.LSTM` whose inputs and neurons are scaled by gates; made by `toolchain.gates.gate`.

    `input_gate` has `input_size` gates, or is None where the inputs are another module's gated neurons.
    `hidden_gates` has `hidden_size` gates per (layer, direction), in the order of `h_n`'s first axis.
    """

    input_gate: HardConcrete | None
    hidden_gates: nn.ModuleList

    def forward(self, input: Input, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Input, tuple[Tensor, Tensor]]:
        """Run as `nn.LSTM` does; `h_0` and `h_n` are what readers see (gated), `c_0` and `c_n` are raw."""
        z_h = hidden_gate_values(self)  # [num_layers*num_directions, hidden_size]
        if hx is not None:
            hx = (scale_state(hx[0], inverse_gates(z_h, floor=_state_floor(self))), hx[1])
        kernel = evened(with_weights(self, nn.LSTM, gated_weights(self, z_h)), input)
        output, (h_n, c_n) = kernel.forward(input, hx)
        return scale_output(output, _last_layer(self, z_h)), (scale_state(h_n, z_h), c_n)


class GatedGRU(nn.GRU):
    """An `nn.GRU` whose inputs and neurons are scaled by gates; attributes as in `GatedLSTM`."""

    input_gate: HardConcrete | None
    hidden_gates: nn.ModuleList

    def forward(self, input: Input, hx: Tensor | None = None) -> tuple[Input, Tensor]:
        """Run as `nn.GRU` does; `h_0` and `h_n` are what readers see (gated)."""
        z_h = hidden_gate_values(self)
        if hx is not None:
            hx = scale_state(hx, inverse_gates(z_h, floor=_state_floor(self)))
        output, h_n = nn.GRU.forward(with_weights(self, nn.GRU, gated_weights(self, z_h)), input, hx)
        return scale_output(output, _last_layer(self, z_h)), scale_state(h_n, z_h)


class GatedRNN(nn.RNN):
    """An `nn.RNN` whose inputs and neurons are scaled by gates; attributes as in `GatedLSTM`."""

    input_gate: HardConcrete | None
    hidden_gates: nn.ModuleList

    def forward(self, input: Input, hx: Tensor | None = None) -> tuple[Input, Tensor]:
        """Run as `nn.RNN` does; `h_0` and `h_n` are what readers see (gated)."""
        z_h = hidden_gate_values(self)
        if hx is not None:
            hx = scale_state(hx, inverse_gates(z_h, floor=_state_floor(self)))
        output, h_n = nn.RNN.forward(with_weights(self, nn.RNN, gated_weights(self, z_h)), input, hx)
        return scale_output(output, _last_layer(self, z_h)), scale_state(h_n, z_h)


class FoldedLSTM(nn.LSTM):
    """An `nn.LSTM` that holds its gates in its weights; its buffers have shape `[cells, hidden_size]`."""

    output_scale: Tensor
    inverse_scale: Tensor

    def forward(self, input: Input, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Input, tuple[Tensor, Tensor]]:
        """Run as the `GatedLSTM` it was made from does in evaluation mode."""
        if hx is not None:
            hx = (scale_state(hx[0], self.inverse_scale), hx[1])
        output, (h_n, c_n) = super().forward(input, hx)
        output = scale_output(output, _last_layer(self, self.output_scale))
        return output, (scale_state(h_n, self.output_scale), c_n)


class FoldedGRU(nn.GRU):
    """An `nn.GRU` that holds its gates in its weights; buffers as in `FoldedLSTM`."""

    output_scale: Tensor
    inverse_scale: Tensor

    def forward(self, input: Input, hx: Tensor | None = None) -> tuple[Input, Tensor]:
        """Run as the `GatedGRU` it was made from does in evaluation mode."""
        if hx is not None:
            hx = scale_state(hx, self.inverse_scale)
        output, h_n = super().forward(input, hx)
        return scale_output(output, _last_layer(self, self.output_scale)), scale_state(h_n, self.output_scale)


class FoldedRNN(nn.RNN):
    """An `nn.RNN` that holds its gates in its weights; buffers as in `FoldedLSTM`."""

    output_scale: Tensor
    inverse_scale: Tensor

    def forward(self, input: Input, hx: Tensor | None = None) -> tuple[Input, Tensor]:
        """Run as the `GatedRNN` it was made from does in evaluation mode."""
        if hx is not None:
            hx = scale_state(hx, self.inverse_scale)
        output, h_n = super().forward(input, hx)
        return scale_output(output, _last_layer(self, self.output_scale)), scale_state(h_n, self.output_scale)


GatedModule = GatedLSTM | GatedGRU | GatedRNN


def hidden_gate_values(module: GatedModule) -> Tensor:
    """Return the neurons' gates for one call, shape `[num_layers*num_directions, hidden_size]`."""
    return torch.stack([gate() for gate in module.hidden_gates])


def gated_weights(module: GatedModule, z_h: Tensor) -> list[Tensor]:
    """Multiply every gate into the weight columns that read it.

    Args:
        module: gives the weights and the gates of the inputs.
        z_h: the neurons' gates, shape `[num_layers*num_directions, hidden_size]`.

    Returns:
        The kernel's weight list, in `nn.RNNBase` order: W, R and, with biases, Wb, Rb of each cell. W and R
        are new tensors, the biases are the module's own.
    """
    module._update_flat_weights()  # as nn.LSTM.forward does first: functional_call may have swapped them
    weights: list[Tensor] = list(module._flat_weights)  # type: ignore[arg-type]
    per_cell = 4 if module.bias else 2
    num_directions = num_directions_of(module)
    below = None if module.input_gate is None else module.input_gate()  # [input_size]
    for layer in range(module.num_layers):
        cells = range(layer * num_directions, (layer + 1) * num_directions)
        for cell in cells:
            W, R = cell * per_cell, cell * per_cell + 1
            if below is not None:
                weights[W] = scale_columns(weights[W], below)
            weights[R] = scale_columns(weights[R], z_h[cell])
        below = z_h[cells.start : cells.stop].flatten()  # [num_directions*hidden_size]
    return weights


def scale_columns(weight: Tensor, z: Tensor) -> Tensor:
    """Return `weight * z` in the weight's own precision, shapes `[rows, columns]` and `[columns]`."""
    return weight * z.to(weight.dtype)


def scale_output(output: Input, z: Tensor) -> Input:
    """Return Y as readers see it; `z` has shape `[num_directions*hidden_size]`."""
    if isinstance(output, PackedSequence):
        return output._replace(data=output.data * z.to(output.data.dtype))
    return output * z.to(output.dtype)


def scale_state(state: Tensor, z_h: Tensor) -> Tensor:
    """Multiply each neuron of a state by its gate.

    Args:
        state: shape `[num_layers*num_directions, batch_size, hidden_size]`, or unbatched without the middle.
        z_h: shape `[num_layers*num_directions, hidden_size]`.

    Raises:
        RuntimeError: the sizes differ; `nn.LSTM` raises it too, but would not see a state that broadcasts.
    """
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # it would warn of the comparison
    if not tracing and (state.shape[0] != z_h.shape[0] or state.shape[-1] != z_h.shape[-1]):
        expected = f"({z_h.shape[0]}, batch_size, {z_h.shape[1]})"
        raise RuntimeError(f"Expected hidden size {expected}, got {list(state.shape)}")
    z = z_h if state.dim() == 2 else z_h.unsqueeze(1)
    return state * z.to(state.dtype)


def inverse_gates(z_h: Tensor, *, floor: float = SMALLEST_GATE) -> Tensor:
    """Return what turns the state that readers saw into the raw one: `1 / max(z_h, floor)`, 0 if closed."""
    return torch.where(z_h > 0, 1 / z_h.clamp_min(floor), 0.0)


def num_directions_of(module: nn.RNNBase) -> int:
    """Return 2 for a bidirectional module, else 1."""
    return 2 if module.bidirectional else 1


def _last_layer(module: nn.RNNBase, z_h: Tensor) -> Tensor:
    return z_h[-num_directions_of(module) :].flatten()


def _state_floor(module: nn.Module) -> float:
    return TRAINING_STATE_FLOOR if module.training else SMALLEST_GATE
