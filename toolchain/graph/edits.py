"""The small changes that rewriting makes to a graph: new constants, new shapes, nodes in between."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.graph.dequantized import DEQUANTIZE, Pick, quantized
from toolchain.graph.subgraphs import graphs_in, values_of

Attributes = Mapping[str, Any]
LISTS_AS_INPUTS = 13  # the opset from which on Squeeze and Split take their lists as inputs


class Edits:
    """Changes one graph and those inside it; constants that end up equal and had one owner go on having one.

    New constants lie in the main graph, new nodes in the graph of the node that they serve.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[str, bytes], ir.Value] = {}
        self._names: set[str | None] = {value.name for inner in graphs_in(graph) for value in values_of(inner)}

    def put(self, node: ir.Node, index: int, array: npt.NDArray[Any]) -> None:
        """Give one input of one node a new constant; the old one stays for whoever else reads it."""
        old = node.inputs[index]
        stem = old.name if old is not None and old.name else f"{node.name}_input_{index}"
        node.replace_input_with(index, self.constant(array, stem=stem))

    def cut(self, node: ir.Node, index: int, pick: Pick) -> None:
        """Keep the positions of a constant input that `pick` takes from it; quantized ones stay integers.

        `pick` is called with arrays of the constant's shape and may only choose positions.
        """
        value = node.inputs[index]
        known = quantized(value)
        if known is None:
            assert value is not None
            assert value.const_value is not None
            self.put(node, index, pick(value.const_value.numpy()))
            return
        attributes = {name: attribute.value for name, attribute in known.node.attributes.items()}
        parts = [self.constant(array, stem=str(source.name))
                 for array, source in zip(known.cut(pick), known.node.inputs, strict=False)
                 if array is not None and source is not None]  # fmt: skip
        node.replace_input_with(index, self.before(node, DEQUANTIZE, parts, attributes)[0])

    def constant(self, array: npt.NDArray[Any], *, stem: str) -> ir.Value:
        """Return a new initializer named after `stem`, or the one made before with the same stem and content."""
        array = np.asarray(array, order="C")  # `ascontiguousarray` would turn a scalar into a vector
        key = (stem, _digest(array))
        if key not in self._made:
            tensor = ir.tensor(array)
            name = self.fresh(stem)
            value = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self._graph.register_initializer(value)
            self._made[key] = value
        return self._made[key]

    def fresh(self, stem: str) -> str:
        """Return a name that nothing in the graph has yet, and take it."""
        name, number = stem, 0
        while name in self._names:
            number += 1
            name = f"{stem}_kept{number if number > 1 else ''}"
        self._names.add(name)
        return name

    def before(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Attributes,
        *,
        num_outputs: int = 1,
    ) -> Sequence[ir.Value]:
        """Insert an operator in front of `node` and return its outputs."""
        return self._insert(node, op_type, inputs, attributes, num_outputs, after=False)

    def after(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Attributes,
        *,
        num_outputs: int = 1,
    ) -> tuple[ir.Node, Sequence[ir.Value]]:
        """Insert an operator behind `node`; return it, as the place for the next one, and its outputs."""
        outputs = self._insert(node, op_type, inputs, attributes, num_outputs, after=True)
        producer = outputs[0].producer()
        assert producer is not None
        return producer, outputs

    def _insert(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Attributes,
        num_outputs: int,
        *,
        after: bool,
    ) -> Sequence[ir.Value]:
        outputs = [ir.Value(name=self.fresh(f"{inputs[0].name}_{op_type.lower()}")) for _ in range(num_outputs)]
        new = ir.node(op_type, list(inputs), dict(attributes), outputs=outputs, name=outputs[0].name)
        graph = node.graph  # a node inside If, Loop or Scan gets its neighbours there
        assert graph is not None
        (graph.insert_after if after else graph.insert_before)(node, [new])
        return outputs


def _digest(array: npt.NDArray[Any]) -> bytes:
    """Return what tells a constant from others, without a copy of it."""
    digest = hashlib.sha256(repr((array.dtype, array.shape)).encode())
    digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.reshape(-1).view(np.uint8).data)
    return digest.digest()


def set_integers(edits: Edits, node: ir.Node, name: str, index: int, numbers: Sequence[int]) -> None:
    """Write a list of integers where the node keeps it: the attribute of older opsets, or the constant input."""
    if name in node.attributes or index >= len(node.inputs):
        node.attributes[name] = ir.AttrInt64s(name, list(numbers))
    else:
        edits.put(node, index, np.asarray(numbers, dtype=np.int64))
