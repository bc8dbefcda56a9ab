"""Operators that only move positions, and the arithmetic of shapes that steers them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from toolchain.torch_graph.node import Result, TorchNode

Operator = Callable[..., Result]


def _transpose(node: TorchNode, x: Tensor) -> Tensor:
    return x.permute(node.integers("perm") or tuple(reversed(range(x.ndim))))


def _squeeze(node: TorchNode, x: Tensor, axes: Tensor | None = None) -> Tensor:
    numbers = node.integers("axes", axes)
    return x.squeeze() if numbers is None else x.squeeze(tuple(numbers))


def _unsqueeze(node: TorchNode, x: Tensor, axes: Tensor | None = None) -> Tensor:
    numbers = node.integers("axes", axes) or []
    rank = x.ndim + len(numbers)
    for axis in sorted(number % rank for number in numbers):
        x = x.unsqueeze(axis)
    return x


def _reshape(node: TorchNode, x: Tensor, shape: Tensor) -> Tensor:
    lengths = node.integers("shape", shape) or []
    if not node.attribute("allowzero", 0):
        lengths = [length or x.shape[axis] for axis, length in enumerate(lengths)]
    return x.reshape(lengths)


def _flatten(node: TorchNode, x: Tensor) -> Tensor:
    axis = node.attribute("axis", 1)
    lead = x.shape[: axis + x.ndim if axis < 0 else axis]
    return x.reshape(int(np.prod(lead, dtype=np.int64)), -1)


def _slice(
    node: TorchNode,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = node.integers("starts", starts) or [], node.integers("ends", ends) or []
    along = node.integers("axes", axes) or list(range(len(first)))
    stride = node.integers("steps", steps) or [1] * len(first)
    for axis, start, end, step in zip(along, first, last, stride, strict=True):
        positions = range(*slice(start, end, step).indices(x.shape[axis]))
        if step > 0:
            index = (slice(None),) * (axis % x.ndim) + (slice(positions.start, positions.stop, step),)
            x = x[index]
        else:  # PyTorch has no negative strides
            x = x.index_select(axis, torch.tensor(positions, dtype=torch.int64))
    return x


def _split(node: TorchNode, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = node.attribute("axis", 0)
    lengths = node.integers("split", sizes)
    return torch.split(x, -(-x.shape[axis] // node.outputs) if lengths is None else lengths, axis)


def _concat(node: TorchNode, *operands: Tensor) -> Tensor:
    return torch.cat(operands, node.attribute("axis", 0))


def _gather(node: TorchNode, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.attribute("axis", 0) % x.ndim
    rows = torch.where(indices < 0, indices + x.shape[axis], indices).reshape(-1)
    return x.index_select(axis, rows).reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _gather_elements(node: TorchNode, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.attribute("axis", 0)
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def _pad(
    node: TorchNode,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    amounts = node.integers("pads", pads) or []
    along = [axis % x.ndim for axis in node.integers("axes", axes) or range(x.ndim)]
    ends = dict(zip(along, zip(amounts, amounts[len(along) :], strict=False), strict=True))  # axis: (before, behind)
    mode = node.attribute("mode", "constant")
    if mode == "constant":
        fill = node.attribute("value", 0.0) if value is None else value.item()
        flat = [amount for axis in reversed(range(x.ndim)) for amount in ends.get(axis, (0, 0))]
        return functional.pad(x, flat, value=fill)
    for axis, (before, behind) in ends.items():
        positions = np.pad(np.arange(x.shape[axis]), (before, behind), mode=mode)
        x = x.index_select(axis, torch.from_numpy(positions))
    return x


def _expand(node: TorchNode, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(x.shape, tuple(shape.tolist())))


def _tile(node: TorchNode, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(tuple(repeats.tolist()))


def _shape(node: TorchNode, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[node.attribute("start", 0) : node.attribute("end")], dtype=torch.int64)


def _size(node: TorchNode, x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


def _constant_of_shape(node: TorchNode, shape: Tensor) -> Tensor:
    tensor = node.attribute("value")
    fill = np.zeros(1, np.float32) if tensor is None else tensor.numpy()
    return torch.from_numpy(np.full(shape.tolist(), fill.item(), fill.dtype))


def _range(node: TorchNode, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


MOVEMENT: dict[str, Operator] = {
    "Transpose": _transpose, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Reshape": _reshape, "Flatten": _flatten,
    "Slice": _slice, "Split": _split, "Concat": _concat, "Gather": _gather, "GatherElements": _gather_elements,
    "Pad": _pad, "Expand": _expand, "Tile": _tile, "Shape": _shape, "Size": _size,
    "ConstantOfShape": _constant_of_shape, "Range": _range,
}  # fmt: skip
