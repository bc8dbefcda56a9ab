"""Shapes that a graph computes: which of their entries are known, and constants in place of those.

Exporters read a width where they could have written it: `Gather(Shape(x), 2)`, `Concat(Slice(Shape(x), 0, 2), [8])`.
Followed from the shapes that are known, each entry of such a vector is a number, the run-time length of one axis of one
value, or unknown. Then

    a vector of numbers                 becomes a constant
    a shape with some numbers in it     becomes Concat(Gather(Shape(x), axes), [numbers], ...)

so that widths are constants, which the surgery can edit, and only lengths that it never cuts are read at run time.
"""

from __future__ import annotations

import itertools
import math
from collections import ChainMap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

# The input that is a shape, of the operators whose shapes the surgery edits.
_SHAPE_INPUT = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3}
_MAX_ENTRIES = 64  # tensors have few axes; a longer vector is data
_INTEGERS = (TensorProto.INT64, TensorProto.INT32)


@dataclass(frozen=True, slots=True)
class Length:
    """The run-time length of one axis of one value."""

    value: str
    axis: int


Entries = npt.NDArray[np.object_]  # of int, Length, or None for what is not known; the computed value's own shape


@dataclass(slots=True)
class Known:
    """What is known inside a graph: values' declared shapes, small integer constants, and entries of shapes.

    What is known of the graphs around it is included.
    """

    values: ChainMap[str, onnx.ValueInfoProto] = field(default_factory=ChainMap)
    constants: ChainMap[str, npt.NDArray[np.integer[Any]]] = field(default_factory=ChainMap)
    entries: ChainMap[str, Entries] = field(default_factory=ChainMap)

    def of(self, name: str) -> Entries | None:
        """Return a vector's entries, at least how many they are; None when not even that is known."""
        if name in self.entries:
            return self.entries[name]
        dims = _dims(self.values.get(name))
        if dims is None or len(dims) != 1 or not dims[0].dim_value:
            return None
        return np.full(dims[0].dim_value, None)

    def integers(self, name: str) -> list[int] | None:
        """Return a constant list of integers."""
        return [int(number) for number in self.constants[name].ravel()] if name in self.constants else None


def shape_input(node: onnx.NodeProto) -> int | None:
    """Return which input tells a node the lengths of all of its output's axes, None when none does."""
    index = _SHAPE_INPUT.get(node.op_type)
    given = index is not None and index < len(node.input) and bool(node.input[index])
    return index if given and not any(attribute.name == "axes" for attribute in node.attribute) else None


def bodies_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs directly inside a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def known_lengths(graph: onnx.GraphProto, around: Known | None = None) -> Known:
    """Follow the entries of every shape through a graph; `around` is what is known of those around it."""
    around = around or Known()
    constants = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type in _INTEGERS and math.prod(tensor.dims) <= _MAX_ENTRIES
    }
    values = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    entries = {name: array.astype(object) for name, array in constants.items() if array.dtype == np.int64}
    known = Known(
        around.values.new_child(values), around.constants.new_child(constants), around.entries.new_child(entries)
    )
    for node in graph.node:
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        found = None if rule is None else rule(node, known)
        if found is not None and found.size <= _MAX_ENTRIES:
            known.entries[node.output[0]] = found
    return known


def fold_lengths(graph: onnx.GraphProto) -> bool:
    """Put constants in place of the lengths that are known; tell whether there were any. Changes `graph`.

    Lengths inside If, Loop and Scan are folded too, with what is known of the graphs around them.
    """
    return _fold(graph, None, _fresh_names(_names_in(graph)))


def _names_in(graph: onnx.GraphProto) -> set[str]:
    own = {value.name for value in (*graph.input, *graph.value_info, *graph.output)}
    own |= {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    return own.union(*(_names_in(body) for node in graph.node for body in bodies_of(node)))


def _fold(graph: onnx.GraphProto, around: Known | None, fresh: Iterator[str]) -> bool:
    known = known_lengths(graph, around)
    changed = _fold_own(graph, known, fresh)
    inside = [_fold(body, known, fresh) for node in graph.node for body in bodies_of(node)]
    return changed or any(inside)


def _fold_own(graph: onnx.GraphProto, known: Known, fresh: Iterator[str]) -> bool:
    """Fold the lengths that a graph's own nodes compute."""
    folded = {
        node.output[0]: known.entries[node.output[0]]
        for node in graph.node
        if len(node.output) == 1 and node.output[0] in known.entries and _numbers(known.entries[node.output[0]])
    }
    outputs = {value.name for value in graph.output}
    producers = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    changed = False
    for node in graph.node:
        name = node.output[0] if node.output else ""
        if name in folded and name not in outputs:
            graph.initializer.append(numpy_helper.from_array(folded[name].astype(np.int64), name))
            changed = True
            continue
        index = shape_input(node)
        if index is not None:
            spelled = _spelled_out(graph, node, index, known, producers, fresh)
            nodes += spelled
            changed |= bool(spelled)
        nodes.append(node)
    if changed:
        del graph.node[:]
        graph.node.extend(nodes)
    return changed


def _fresh_names(taken: Collection[str]) -> Iterator[str]:
    names = (f"shape_piece{number}" for number in itertools.count())
    return (name for name in names if name not in taken)


def _spelled_out(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    index: int,
    known: Known,
    producers: Mapping[str, onnx.NodeProto],
    fresh: Iterator[str],
) -> list[onnx.NodeProto]:
    """Put a shape together anew from its numbers and the run-time lengths; return the nodes that do it."""
    shape = node.input[index]
    pieces = list(_pieces(shape, known, producers))
    has_numbers = any(not isinstance(piece, str) and _numbers(piece) for piece in pieces)
    if shape in known.constants or not has_numbers or _is_spelled_out(shape, known, producers):
        return []
    nodes: list[onnx.NodeProto] = []
    inputs: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            inputs.append(piece)
            continue
        inputs.append(next(fresh))
        if _numbers(piece):
            graph.initializer.append(numpy_helper.from_array(piece.astype(np.int64), inputs[-1]))
            continue
        lengths, axes = next(fresh), next(fresh)
        numbers = np.array([entry.axis for entry in piece], dtype=np.int64)
        graph.initializer.append(numpy_helper.from_array(numbers, axes))
        nodes += [helper.make_node("Shape", [piece[0].value], [lengths], name=lengths),
                  helper.make_node("Gather", [lengths, axes], [inputs[-1]], name=inputs[-1], axis=0)]  # fmt: skip
    whole = next(fresh)
    nodes.append(helper.make_node("Concat", inputs, [whole], name=whole, axis=0))
    node.input[index] = whole
    return nodes


def _is_spelled_out(shape: str, known: Known, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Tell whether a shape is a Concat of constants and of pieces that hold no number."""
    producer = producers.get(shape)
    if producer is None or producer.op_type != "Concat":
        return False
    computed = [list(_pieces(name, known, producers)) for name in producer.input if name not in known.constants]
    return all(len(some) == 1 and (isinstance(some[0], str) or not _numbers(some[0])) for some in computed)


def _pieces(name: str, known: Known, producers: Mapping[str, onnx.NodeProto]) -> Iterator[str | Entries]:
    """Yield a vector's runs of numbers and of lengths of one value, and the names of stretches that are neither."""
    entries, producer = known.of(name), producers.get(name)
    if entries is not None and entries.ndim == 1 and all(entry is not None for entry in entries):
        for _, run in itertools.groupby(entries, lambda entry: entry.value if isinstance(entry, Length) else None):
            yield np.array(list(run), dtype=object)
    elif producer is not None and producer.op_type == "Concat":
        for piece in producer.input:
            yield from _pieces(piece, known, producers)
    else:
        yield name


def _numbers(entries: Entries) -> bool:
    return all(isinstance(entry, int) for entry in entries.ravel())


def _dims(value: onnx.ValueInfoProto | None) -> list[onnx.TensorShapeProto.Dimension] | None:
    if value is None or not value.type.tensor_type.HasField("shape"):
        return None
    return list(value.type.tensor_type.shape.dim)


def _shape(node: onnx.NodeProto, known: Known) -> Entries | None:
    name, dims = node.input[0], _dims(known.values.get(node.input[0]))
    if dims is None:
        return None
    lengths = [dim.dim_value if dim.HasField("dim_value") else Length(name, axis) for axis, dim in enumerate(dims)]
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    entries = np.empty(len(dims), dtype=object)
    entries[:] = lengths
    return entries[slice(bounds.get("start", 0), bounds.get("end"))]


def _size(node: onnx.NodeProto, known: Known) -> Entries | None:
    lengths = _shape(node, known)
    return None if lengths is None or not _numbers(lengths) else np.array(math.prod(lengths), dtype=object)


def _gather(node: onnx.NodeProto, known: Known) -> Entries | None:
    entries, indices = known.of(node.input[0]), known.constants.get(node.input[1])
    if entries is None or entries.ndim != 1 or indices is None:
        return None
    if indices.max(initial=0) >= entries.size or indices.min(initial=0) < -entries.size:
        return None
    return np.asarray(entries.take(indices), dtype=object)


def _slice(node: onnx.NodeProto, known: Known) -> Entries | None:
    """Cut a vector by the bounds that attributes give in old opsets and inputs in newer ones."""
    entries = known.of(node.input[0])
    given: dict[str, list[int] | None] = {attribute.name: list(attribute.ints) for attribute in node.attribute}
    for name, value in zip(("starts", "ends", "axes", "steps"), node.input[1:], strict=False):
        given[name] = known.integers(value) if value else None
        if value and given[name] is None:
            return None
    starts, ends, steps = given.get("starts"), given.get("ends"), given.get("steps") or [1]
    if entries is None or entries.ndim != 1 or not starts or not ends:
        return None
    return entries[slice(starts[0], ends[0] if ends[0] >= -entries.size or steps[0] > 0 else None, steps[0])]


def _concat(node: onnx.NodeProto, known: Known) -> Entries | None:
    parts = [known.of(name) for name in node.input]
    whole = [part for part in parts if part is not None and part.ndim == 1]
    return np.concatenate(whole) if len(whole) == len(parts) else None


def _same(node: onnx.NodeProto, known: Known) -> Entries | None:
    return known.entries.get(node.input[0])


def _cast(node: onnx.NodeProto, known: Known) -> Entries | None:
    return _same(node, known) if node.attribute[0].i == TensorProto.INT64 else None


def _squeeze(node: onnx.NodeProto, known: Known) -> Entries | None:
    entries = _same(node, known)
    return entries.reshape(()) if entries is not None and entries.shape == (1,) else None


def _unsqueeze(node: onnx.NodeProto, known: Known) -> Entries | None:
    entries = _same(node, known)
    return entries.reshape(1) if entries is not None and entries.shape == () else None


def _reshape(node: onnx.NodeProto, known: Known) -> Entries | None:
    entries, shape = _same(node, known), known.integers(node.input[1])
    return entries.reshape(-1) if entries is not None and shape == [-1] else None


def _product(node: onnx.NodeProto, known: Known) -> Entries | None:
    entries = _same(node, known)
    keep = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
    if entries is None or entries.ndim != 1 or not _numbers(entries):
        return None
    product = np.array(math.prod(entries), dtype=object)
    return product.reshape(1) if keep else product


def _arithmetic(compute: Callable[[int, int], int]) -> Callable[[onnx.NodeProto, Known], Entries | None]:
    def rule(node: onnx.NodeProto, known: Known) -> Entries | None:
        a, b = (known.entries.get(name) for name in node.input)
        if a is None or b is None or not _numbers(a) or not _numbers(b) or (b == 0).any():
            return None
        if min(a.min(initial=0), b.min(initial=0)) < 0:
            return None  # rounding differs
        return np.asarray(np.frompyfunc(compute, 2, 1)(a, b), dtype=object)

    return rule


_RULES: dict[str, Callable[[onnx.NodeProto, Known], Entries | None]] = {
    "Shape": _shape, "Size": _size, "Gather": _gather, "Slice": _slice, "Concat": _concat, "Identity": _same,
    "Cast": _cast, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Reshape": _reshape, "ReduceProd": _product,
    "Add": _arithmetic(lambda a, b: a + b), "Sub": _arithmetic(lambda a, b: a - b),
    "Mul": _arithmetic(lambda a, b: a * b), "Div": _arithmetic(lambda a, b: a // b),
}  # fmt: skip
