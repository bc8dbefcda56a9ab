"""LSTM layers of odd sizes on PyTorch's bfloat16 kernels of the CPU, which want even ones.

The kernels (oneDNN) multiply bfloat16 numbers in pairs. Of 50 steps and 32 columns, forward and backward together took
17 ms with 224 neurons that read 296 inputs, and 56 ms with 223 that read 297; in float32 both take the same. A network
that is cut as it learns has whatever sizes the gates leave, so for such a call a layer gets one more input and one more
neuron, all of whose weights are zeros. That neuron says 0, and nobody sees it.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import PackedSequence

Cell = TypeVar("Cell", bound=nn.RNNBase)


def with_weights(module: nn.RNNBase, kind: type[Cell], weights: list[Tensor]) -> Cell:
    """Return a view of `module` for one call: everything shared, only the kernel's weight list is its own.

    The module itself is not touched, so one module may run in several threads.

    Args:
        module: whose parameters, gates and hooks are shared.
        kind: whose `forward` the view has; the module's own class, or a plain one that it derives from.
        weights: in `nn.RNNBase` order, as `gated_weights` returns them.
    """
    view = kind.__new__(kind)
    view.__dict__.update(module.__dict__, _flat_weights=weights)
    return view


class EvenLSTM(nn.LSTM):
    """A view of an `nn.LSTM` whose kernel has even sizes; what goes in and comes out has the module's own.

    Attributes:
        width: the module's own `hidden_size`.
    """

    width: int

    def forward(  # type: ignore[override]  # nn.LSTM declares two overloads, of which one is for packed sequences
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run as the module does."""
        more = self.hidden_size - self.width
        if hx is not None:
            hx = (pad(hx[0], (0, more)), pad(hx[1], (0, more)))
        output, (h_n, c_n) = super().forward(pad(input, (0, self.input_size - input.shape[-1])), hx)
        return output[..., : self.width], (h_n[..., : self.width], c_n[..., : self.width])


def evened(layer: Cell, input: Tensor | PackedSequence) -> Cell | EvenLSTM:
    """Return a view of a plain LSTM layer for one call under bfloat16 on the CPU; otherwise the layer itself.

    Args:
        layer: of one direction, if it is to get even sizes; its `_flat_weights` are those of this call.
        input: of this call.
    """
    odd = layer.input_size % 2 or layer.hidden_size % 2
    if not odd or type(layer) is not nn.LSTM or layer.num_layers > 1 or layer.bidirectional or layer.proj_size:
        return layer
    weights: list[Tensor] = list(layer._flat_weights)  # type: ignore[arg-type]
    if isinstance(input, PackedSequence) or input.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return layer
    width, more = layer.hidden_size, layer.hidden_size % 2
    columns = (layer.input_size % 2, more)  # of W and of R
    for number, weight in enumerate(weights):  # W [4*H, I], R [4*H, H], then the biases [4*H]: gates are blocks of H
        gates = weight.reshape(4, width, *weight.shape[1:])
        sides = (0, columns[number], 0, more) if number < len(columns) else (0, more)
        weights[number] = pad(gates, sides).flatten(0, 1)
    view = with_weights(layer, EvenLSTM, weights)
    view.__dict__.update(
        input_size=layer.input_size + layer.input_size % 2, hidden_size=layer.hidden_size + more, width=width
    )
    return view
