"""LSTM, GRU and RNN in PyTorch's fused kernels, straight from weights in ONNX's layout.

Each direction runs on its own: the kernel once forward, or over X turned around within each sequence's length. A GRU
with `linear_before_reset=0` has no kernel in PyTorch, whose candidate is `tanh(x W + b + r * (h R + b))`; ONNX's is
`tanh(x W + b + (r * h) R + b)`: a loop over the steps.

Source: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from toolchain.recurrent import GATES, PYTORCH_GATES, slot
from toolchain.torch_graph.node import TorchNode

Kernel = Callable[..., tuple[Tensor, ...]]
Weights = tuple[Tensor, Tensor, Tensor, Tensor]  # W, R, Wb, Rb of one direction, gates in the kernel's order
_ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
_RNN_KERNELS: dict[tuple[str, ...], Kernel] = {("tanh",): torch.rnn_tanh, ("relu",): torch.rnn_relu}


def unsupported(node: TorchNode, given: list[bool]) -> str | None:
    """Return what of a recurrent node is not computed here, None when all is; `given` tells which inputs there are."""
    if node.attribute("layout", 0):
        return "layout=1"
    if node.attribute("clip") is not None or node.attribute("input_forget", 0):
        return "clip or input_forget"
    if len(given) > slot("P") and given[slot("P")]:
        return "peepholes"
    chosen = {_activations(node, direction) for direction in range(_num_directions(node))}
    allowed = set(_RNN_KERNELS) if node.op_type == "RNN" else {_ACTIVATIONS[node.op_type]}
    return None if chosen <= allowed else f"activations {', '.join(node.attribute('activations'))}"


def recurrent(
    node: TorchNode,
    X: Tensor,
    W: Tensor,
    R: Tensor,
    B: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run all directions; return Y, Y_h and, of an LSTM, Y_c, in the shapes of `toolchain.recurrent`."""
    lengths = None if sequence_lens is None or bool((sequence_lens == X.shape[0]).all()) else sequence_lens.long()
    zeros = X.new_zeros(W.shape[0], X.shape[1], R.shape[2])
    initial = [zeros if state is None else state for state in (initial_h, initial_c)]
    outputs = []
    for d in range(W.shape[0]):
        turned = d == 1 or node.attribute("direction", "forward") == "reverse"
        x = _turned(X, lengths) if turned else X
        states = [state[d : d + 1] for state in initial[: 2 if node.op_type == "LSTM" else 1]]
        weights = _weights(node.op_type, W[d], R[d], None if B is None else B[d])
        y, *last = _sequence(_kernel(node, d), x, lengths, states, weights)
        outputs.append((_turned(y, lengths) if turned else y, *last))
    Y, *final = zip(*outputs, strict=True)
    return torch.stack(Y, dim=1), *(
        torch.cat(state) for state in final
    )  # Y [seq_length, num_directions, batch, hidden]


def _num_directions(node: TorchNode) -> int:
    return 2 if node.attribute("direction", "forward") == "bidirectional" else 1


def _activations(node: TorchNode, direction: int) -> tuple[str, ...]:
    default = _ACTIVATIONS[node.op_type]
    named = node.attribute("activations") or default * _num_directions(node)
    return tuple(name.lower() for name in named[direction * len(default) : (direction + 1) * len(default)])


def _kernel(node: TorchNode, direction: int) -> Kernel:
    if node.op_type == "RNN":
        return _RNN_KERNELS[_activations(node, direction)]
    if node.op_type == "GRU":
        return torch.gru if node.attribute("linear_before_reset", 0) else _reset_before_linear
    return torch.lstm


def _weights(op_type: str, W: Tensor, R: Tensor, B: Tensor | None) -> Weights:
    """Return one direction's weights with the gate blocks in the kernel's order."""
    Wb, Rb = (W.new_zeros(len(W)), W.new_zeros(len(W))) if B is None else B.chunk(2)
    order = [GATES[op_type].index(gate) for gate in PYTORCH_GATES[op_type]]
    W, R, Wb, Rb = (torch.cat([part.chunk(len(order))[gate] for gate in order]) for part in (W, R, Wb, Rb))
    return W, R, Wb, Rb


def _turned(sequences: Tensor, lengths: Tensor | None) -> Tensor:
    """Return `[seq_length, batch_size, size]` backwards in time, each sequence within its own length."""
    if lengths is None:
        return sequences.flip(0)
    steps = torch.arange(len(sequences))[:, None]
    order = torch.where(steps < lengths, lengths - 1 - steps, steps)  # [seq_length, batch_size]
    return sequences.gather(0, order[:, :, None].expand_as(sequences))


def _sequence(
    kernel: Kernel, X: Tensor, lengths: Tensor | None, states: list[Tensor], weights: Weights
) -> tuple[Tensor, ...]:
    """Run one direction; past a sequence's end Y is zero and the state stays."""
    if kernel is _reset_before_linear:
        return _reset_before_linear(X, lengths, states[0], weights)
    settings = (True, 1, 0.0, False, False)  # biases, layers, dropout, training, bidirectional
    lstm = len(states) > 1
    if lengths is None:
        return kernel(X, states if lstm else states[0], weights, *settings, False)
    packed = pack_padded_sequence(X, lengths, enforce_sorted=False)
    order, back = packed.sorted_indices, packed.unsorted_indices
    assert order is not None
    assert back is not None
    states = [state.index_select(1, order) for state in states]
    Y, *last = kernel(packed.data, packed.batch_sizes, states if lstm else states[0], weights, *settings)
    padded, _ = pad_packed_sequence(packed._replace(data=Y), total_length=len(X))
    return padded, *(state.index_select(1, back) for state in last)


def _reset_before_linear(X: Tensor, lengths: Tensor | None, initial_h: Tensor, weights: Weights) -> tuple[Tensor, ...]:
    W, R, Wb, Rb = weights
    H = R.shape[1]
    projected = X @ W.T + Wb + Rb  # [seq_length, batch_size, 3*hidden_size]
    h, steps = initial_h[0], []
    for t, (gates, candidate) in enumerate(zip(projected[..., : 2 * H], projected[..., 2 * H :], strict=True)):
        r, z = torch.sigmoid(gates + h @ R[: 2 * H].T).chunk(2, dim=-1)
        after = (1 - z) * torch.tanh(candidate + (r * h) @ R[2 * H :].T) + z * h
        running = None if lengths is None else (t < lengths)[:, None]
        h = after if running is None else torch.where(running, after, h)
        steps.append(h if running is None else h * running)
    return torch.stack(steps), h[None]
