"""A random recurrent graph as it grows: its nodes, its books of dead units, and what must be left of each node.

A graph is grown value by value, `[seq_length, batch_size, features]` at every stage. The generator keeps its own books
of each feature, at the granularity of one neuron and independent of the code under test:

    element   what the feature is kept or removed with: a unit, a column of a matrix or a table, or FIXED
    reads     the elements that somebody needs who reads the feature
    dead      whoever reads the feature gives it a zero weight
    zero      the feature is zero for certain, so it may be given any weight

`expected_sizes` follows reads from the output, joins elements that the runtime pairs, and evens out directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx.printer
from graphs import constant, newest_opset, value
from hypothesis import strategies as st
from onnx import helper

INPUT_SIZE = 3
TOKENS = 7
STATIC_BATCH = 2
FIXED = 0
NEWEST_OPSET = newest_opset()
# Each changed the form of some operator in use here.
OPSETS = tuple(version for version in (9, 10, 11, 13, 14, 17, 18, 20, 21, 22, NEWEST_OPSET) if version <= NEWEST_OPSET)
KEEP_ZERO = ("Relu", "Tanh", "LeakyRelu", "Neg", "Abs", "Identity")
MOVE_ZERO = ("Sigmoid", "Exp", "HardSigmoid")


@dataclass(frozen=True, kw_only=True)
class Features:
    """A value `[seq_length, batch_size, features]` and the books of each feature."""

    name: str
    elements: tuple[int, ...]
    reads: tuple[frozenset[int], ...]
    dead: tuple[bool, ...]
    zero: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.elements)

    def take(self, name: str, places: Sequence[int]) -> Features:
        picked = [
            tuple(books[place] for place in places) for books in (self.elements, self.reads, self.dead, self.zero)
        ]
        return Features(name=name, elements=picked[0], reads=picked[1], dead=picked[2], zero=picked[3])

    def nonzero(self, name: str) -> Features:
        """A function that is not zero at zero: what was zero for certain now needs zero weights."""
        dead = tuple(a or b for a, b in zip(self.dead, self.zero, strict=True))
        return replace(self, name=name, dead=dead, zero=(False,) * len(self))

    def read(self) -> frozenset[int]:
        """Elements that are needed by whoever reads this with a dense matrix."""
        used = [reads for reads, dead, zero in zip(self.reads, self.dead, self.zero, strict=True) if not (dead or zero)]
        return frozenset().union(*used)


@dataclass(frozen=True, kw_only=True)
class Recurrent:
    """One recurrent node: its units' elements by direction, and the features that it reads."""

    name: str
    units: tuple[tuple[int, ...], ...]
    inputs: Features


@dataclass(kw_only=True, repr=False)
class RandomGraph:
    """A graph as it grows; `exact` is lost where an even layout has more than one good answer."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    opset: int
    static_batch: bool
    rng: np.random.Generator
    dtype: type = np.float32
    listed: bool = False  # initializers are inputs as well, as before version 4 of the format
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    carried: list[tuple[str, str]] = field(default_factory=list)
    recurrent: list[Recurrent] = field(default_factory=list)
    blocked: dict[str, set[str]] = field(default_factory=dict)  # recurrent node: nodes that must be named
    parents: list[int] = field(default_factory=lambda: [FIXED])
    needs: dict[int, frozenset[int]] = field(default_factory=dict)
    roots: set[int] = field(default_factory=lambda: {FIXED})
    values: list[Features] = field(default_factory=list)
    stretches: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)  # of a Concat: out, in
    twins: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)  # units with shared weights
    exact: bool = True
    opaque: bool = False  # behind an unknown operator no shape is known, so what follows may be kept, with its reason
    count: int = 0

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints of a failing example."""
        printer.text(self.text())

    def text(self) -> str:
        return onnx.printer.to_text(helper.make_graph(self.nodes, f"opset{self.opset}", self.inputs, self.outputs))

    # --- books ---

    def element(self, needs: frozenset[int] = frozenset()) -> int:
        self.parents.append(len(self.parents))
        self.needs[len(self.parents) - 1] = needs
        return len(self.parents) - 1

    def find(self, element: int) -> int:
        while self.parents[element] != element:
            element = self.parents[element]
        return element

    def join(self, elements: Sequence[int]) -> None:
        roots = sorted({self.find(element) for element in elements})
        for root in roots[1:]:
            self.parents[root] = roots[0]

    def chance(self, probability: float = 0.5) -> bool:
        return bool(self.draw(st.integers(0, 99)) < 100 * probability)

    def choose(self, options: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def some(self, size: int, at_most: int) -> list[int]:
        return sorted(self.draw(st.sets(st.integers(0, size - 1), max_size=at_most)))

    def batch(self) -> int | str:
        return STATIC_BATCH if self.static_batch else "B"

    def fixed(self, name: str, width: int) -> Features:
        return Features(name=name, elements=(FIXED,) * width, reads=(frozenset({FIXED}),) * width,
                        dead=(False,) * width, zero=(False,) * width)  # fmt: skip

    def planted(self, name: str, elements: Sequence[int]) -> Features:
        """New features, some of which nobody will read."""
        dead = self.some(len(elements), len(elements) - 1)
        return Features(name=name, elements=tuple(elements), reads=tuple(frozenset({e}) for e in elements),
                        dead=tuple(place in dead for place in range(len(elements))),
                        zero=(False,) * len(elements))  # fmt: skip

    # --- nodes ---

    def value(self, name: str, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
        return value(name, shape, helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))

    def input(self, stem: str, shape: Sequence[int | str | None]) -> str:
        name = self.fresh(stem)
        self.inputs.append(self.value(name, shape))
        return name

    def tensor(self, array: np.ndarray) -> onnx.TensorProto:
        return constant("", array.astype(self.dtype))

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def const(self, array: Any, stem: str = "k") -> str:
        name = self.fresh(stem)
        self.constants[name] = np.asarray(array)
        return name

    def op(self, op_type: str, inputs: Sequence[str], outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """Append a node named after its first output; further outputs are NAME_1, NAME_2."""
        name = self.fresh(op_type.lower())
        names = [name, *(f"{name}_{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, name=name, domain=domain, **attributes))
        return name

    def with_axes(self, op_type: str, x: str, axes: list[int], since: int, **attributes: Any) -> str:
        """An operator whose axes are an attribute before opset `since` and an input from then on."""
        if self.opset < since:
            return self.op(op_type, [x], axes=axes, **attributes)
        return self.op(op_type, [x, self.const(np.array(axes))], **attributes)

    def slice(self, x: str, start: int, end: int, axis: int, step: int = 1) -> str:
        if self.opset < 10:
            return self.op("Slice", [x], starts=[start], ends=[end], axes=[axis])
        numbers = [self.const(np.array([number])) for number in (start, end, axis, step)]
        return self.op("Slice", [x, *numbers])

    def weights(self, *shape: int) -> np.ndarray:
        """Random weights, none of them zero."""
        sign = self.rng.choice([-1.0, 1.0], shape)
        return (sign * self.rng.uniform(0.1, 0.6, shape)).astype(self.dtype)

    def matrix(self, x: Features, columns: int) -> np.ndarray:
        W = self.weights(len(x), columns)
        W[np.array(x.dead, dtype=bool)] = 0
        return W

    # --- the answer ---

    def expected_sizes(self) -> list[tuple[int, int]]:
        """Return (input_size, hidden_size) that must be left of every recurrent node."""
        live, apart = self._reachable(), self.stretches
        for one, other in self.twins:
            if live & set(one) and live & set(other):  # a twin that nobody needs has no say
                for pair in zip(one, other, strict=True):
                    self.join(pair)
        while True:
            classes = {self.find(element) for element in live} | {self.find(FIXED)}
            kept = {element for element in range(len(self.parents)) if self.find(element) in classes}
            read = [stretch for stretch in apart if kept & set(stretch[0])]
            if read:
                apart = [stretch for stretch in apart if stretch not in read]
                for out, part in read:
                    for one, other in zip(out, part, strict=True):
                        self.join([one, other])
                live = self._reachable()
                continue
            for node in self.recurrent:
                rows = [[unit in kept for unit in row] for row in node.units]
                self.exact &= all(map(any, rows))
                for row, mask in zip(node.units, rows, strict=True):
                    free = [unit for unit, stays in zip(row, mask, strict=True) if not stays]
                    live |= set(free[: max(map(sum, rows)) - sum(mask)])
            if live <= kept:
                break
        # A value of which nobody reads anything keeps one position all the same.
        self.exact &= all(any(element in kept for element in known.elements) for known in self.values)
        return [(sum(element in kept for element in node.inputs.elements), sum(unit in kept for unit in node.units[0]))
                for node in self.recurrent]  # fmt: skip

    def _reachable(self) -> set[int]:
        live, pending = set(), list(self.roots)
        while pending:
            element = pending.pop()
            if element not in live:
                live.add(element)
                pending += self.needs.get(element, frozenset())
        return live

    def model(self) -> onnx.ModelProto:
        tensors = [constant(name, array) for name, array in self.constants.items()]
        known = [value(tensor.name, tensor.dims, tensor.data_type) for tensor in tensors if self.listed]
        graph = helper.make_graph(self.nodes, "random", [*self.inputs, *known], self.outputs, tensors)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)
