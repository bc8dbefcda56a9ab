"""Constants that the file keeps as integers: DequantizeLinear of constants.

    W[p] = (x[p] - zero_point) * scale          per tensor
    W[p] = (x[p] - zero_point[p_a]) * scale[p_a]    per position of one axis a

The surgery reads `W` and cuts `x`, and with it the scales of the axis that is cut: what was an integer stays one, where
folding would make the file four times as large. Scales in blocks (opset 21) are left whole.

Source: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]
Pick = Callable[[Array], Array]

DEQUANTIZE = "DequantizeLinear"
SHRINK_FIRST = "shrink the float model first, then quantize the result"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A quantized constant; `axis` is None where one scale serves all, and `node` is what dequantizes it."""

    node: ir.Node
    x: Array
    scale: Array
    zero_point: Array | None
    axis: int | None

    def content(self) -> Array:
        """Return what the constant stands for, in the scale's type."""
        zero = 0.0 if self.zero_point is None else self._along(self.zero_point).astype(np.float64)
        return (self.x.astype(np.float64) - zero).astype(self.scale.dtype) * self._along(self.scale)

    def cut(self, pick: Pick) -> tuple[Array, Array, Array | None]:
        """Return `x`, scale and zero point of the positions that `pick` takes from an array of the shape of `x`."""
        x = pick(self.x)
        if self.axis is None:
            return x, self.scale, self.zero_point
        axis = self.axis
        places = pick(np.broadcast_to(self._along(np.arange(self.scale.size)), self.x.shape))
        line = np.moveaxis(places, axis, 0).reshape(places.shape[axis], -1)[:, 0]
        shape = [-1 if a == axis else 1 for a in range(places.ndim)]
        assert (places == line.reshape(shape)).all(), "a scale serves one position of its axis"
        return x, self.scale[line], None if self.zero_point is None else self.zero_point[line]

    def _along(self, numbers: Array) -> Array:
        return numbers if self.axis is None else numbers.reshape([-1 if a == self.axis else 1
                                                                  for a in range(self.x.ndim)])  # fmt: skip


def quantized(value: ir.Value | None) -> Quantized | None:
    """Return a value as a quantized constant, None when it is something else or scaled in blocks."""
    node = None if value is None or not is_dequantized(value) else value.producer()
    if node is None:
        return None
    tensors = [None if source is None else source.const_value for source in node.inputs]
    if tensors[0] is None or tensors[1] is None or (len(node.inputs) > 2 and node.inputs[2] and tensors[2] is None):
        return None
    x, scale, *rest = (None if tensor is None else tensor.numpy() for tensor in tensors)
    assert x is not None
    assert scale is not None
    zero_point = rest[0] if rest else None
    axis = None
    if scale.size != 1:
        named = node.attributes.get("axis")
        axis = 1 if named is None else named.as_int()
        axis = axis + x.ndim if axis < 0 else axis
        if scale.ndim != 1 or not 0 <= axis < x.ndim or scale.size != x.shape[axis]:
            return None
    return Quantized(node=node, x=x, scale=scale, zero_point=zero_point, axis=axis)


def is_dequantized(value: ir.Value) -> bool:
    """Tell whether a value comes from DequantizeLinear."""
    node = value.producer()
    return node is not None and is_dequantize(node)


def is_dequantize(node: ir.Node) -> bool:
    """Tell whether a node is ONNX's own DequantizeLinear."""
    return node.op_type == DEQUANTIZE and node.domain in ("", "ai.onnx")


def constant_of(value: ir.Value | None) -> ir.Value | None:
    """Return the value that holds a constant's numbers: itself, or the integers behind it; None when computed."""
    if value is None or value.const_value is not None:
        return value
    known = quantized(value)
    return None if known is None else known.node.inputs[0]


def content_of(value: ir.Value | None) -> Array | None:
    """Return the content of a constant, dequantized; None when it is absent or computed."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    known = quantized(value)
    return None if known is None else known.content()
