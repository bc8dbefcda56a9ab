"""One node, seen the way the operators need it: spaces of its inputs and outputs, constants, attributes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.graph.cells import BlockedError, Space
from toolchain.graph.dequantized import SHRINK_FIRST, constant_of, content_of, is_dequantized, quantized

# A value with more static positions than this is kept whole: 4 Mi cells are 32 MiB of numbers, and no recurrent
# model seen so far carries a hidden axis in a value that large.
MAX_CELLS = 1 << 22


class Numbering:
    """Gives the cells of every space their numbers, in the order of first use."""

    def __init__(self) -> None:
        self.size = 0
        self.spaces: dict[Hashable, Space] = {}

    def space(self, key: Hashable, shape: tuple[int | None, ...]) -> Space:
        """Return the space of `key`, numbering it on first use; None marks an axis of run-time length."""
        if key not in self.spaces:
            lengths = tuple(1 if length is None else length for length in shape)
            space = Space(first=self.size, shape=lengths, dynamic=tuple(length is None for length in shape))
            self.spaces[key] = space
            self.size += space.size
        return self.spaces[key]

    def of_value(self, value: ir.Value) -> Space:
        """Return the space of a value; one cell when its shape is unknown or too large to track."""
        shape = static_shape(value)
        return self.space(id(value), () if shape is None else shape)


def static_shape(value: ir.Value) -> tuple[int | None, ...] | None:
    """Return the axes' lengths, None for a run-time length; None when unknown, empty, or past `MAX_CELLS`."""
    if value.shape is None:
        return None
    shape = tuple(length if isinstance(length, int) else None for length in value.shape)
    cells = np.prod([1 if length is None else length for length in shape], dtype=np.float64)
    return shape if 0 < cells <= MAX_CELLS else None


class NodeView:
    """A node together with the numbering of its graph.

    `input` and `output` raise `BlockedError` where a shape is unknown, which the caller turns into a blocked transfer.
    """

    def __init__(self, node: ir.Node, numbering: Numbering, opset: int) -> None:
        self.node = node
        self.opset = opset
        self.described: set[int] = set()  # inputs whose cells a transfer has asked for
        self._numbering = numbering

    def has_input(self, index: int) -> bool:
        """Tell whether an optional input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def has_output(self, index: int) -> bool:
        """Tell whether an optional output is wanted by name (it may still have no reader)."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index].name)

    def inputs(self) -> Iterator[int]:
        """Yield the indices of the inputs that are given."""
        return (index for index in range(len(self.node.inputs)) if self.has_input(index))

    def value(self, index: int) -> ir.Value:
        """Return the value of an input that must be given."""
        value = self.node.inputs[index] if self.has_input(index) else None
        if value is None:
            raise BlockedError(f"input {index} is missing")
        return value

    def input(self, index: int) -> Space:
        """Return the space of an input; a constant has one of its own for each place where it is used."""
        value = self.value(index)
        self.described.add(index)
        shape = static_shape(value)
        if shape is None:
            raise BlockedError(f"the shape of its input {value.name!r} is not known")
        if value.const_value is not None:
            return self._numbering.space((id(self.node), index), shape)
        return self._numbering.of_value(value)

    def output(self, index: int = 0) -> Space:
        """Return the space of an output."""
        value = self.node.outputs[index]
        if static_shape(value) is None:
            raise BlockedError(f"the shape of its output {value.name!r} is not known")
        return self._numbering.of_value(value)

    def inner(self, value: ir.Value) -> Space:
        """Return the space of a value of a graph inside the node."""
        if static_shape(value) is None:
            raise BlockedError(f"the shape of {value.name!r} inside it is not known")
        return self._numbering.of_value(value)

    def space_of(self, value: ir.Value | None) -> Space | None:
        """Return the space of a computed value of another node, None where its shape is unknown."""
        return None if value is None or static_shape(value) is None else self._numbering.of_value(value)

    def neurons(self, name: str, *shape: int) -> Space:
        """Return a space that belongs to the node itself, such as the units of an LSTM."""
        return self._numbering.space((id(self.node), name), shape)

    def constant(self, index: int) -> npt.NDArray[Any] | None:
        """Return the content of a constant input, dequantized; None when it is absent or computed."""
        return content_of(self.node.inputs[index]) if self.has_input(index) else None

    def is_constant(self, index: int) -> bool:
        """Tell whether an input is a constant, quantized or not."""
        return self.has_input(index) and constant_of(self.node.inputs[index]) is not None

    def weights(self, index: int) -> npt.NDArray[Any]:
        """Return the content of an input that must be constant."""
        array = self.constant(index)
        if array is None:
            value = self.value(index)
            if is_dequantized(value):
                raise BlockedError(f"its input {value.name!r} is quantized in blocks; {SHRINK_FIRST}")
            raise BlockedError(f"its input {value.name!r} is computed at run time, not a constant")
        return array

    def input_is_quantized(self, index: int) -> bool:
        """Tell whether an input is a constant that the file keeps as integers."""
        return self.has_input(index) and quantized(self.node.inputs[index]) is not None

    def quantized_axis(self, index: int) -> int | None:
        """Return the axis along which a quantized constant has a scale per position, None where it has none."""
        known = quantized(self.node.inputs[index]) if self.has_input(index) else None
        return None if known is None else known.axis

    def numbered(self) -> bool:
        """Tell whether the cells of the first output have been asked for."""
        return id(self.node.outputs[0]) in self._numbering.spaces

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute's Python value, or `default` when the node does not carry it."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def integers(self, name: str, index: int) -> tuple[int, ...] | None:
        """Return a list of integers that older opsets keep in an attribute and newer ones in a constant input."""
        if name in self.node.attributes:
            return tuple(int(number) for number in np.atleast_1d(self.attribute(name)))
        if not self.has_input(index):
            return None
        return tuple(int(number) for number in np.atleast_1d(self.weights(index)))

    def axis(self, name: str, default: int, rank: int) -> int:
        """Return an axis attribute counted from the front."""
        axis = int(self.attribute(name, default))
        return axis + rank if axis < 0 else axis
