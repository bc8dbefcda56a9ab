"""Random recurrent graphs with planted dead units, and what must be left of each node.

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
from graphs import GATES, constant, value
from hypothesis import strategies as st
from onnx import TensorProto, helper

INPUT_SIZE = 3
TOKENS = 7
STATIC_BATCH = 2
FIXED = 0
# Each changed the form of some operator in use here; the last one is the newest that ONNX Runtime 1.20 runs.
OPSETS = (9, 10, 11, 13, 14, 17, 18, 20, 21)
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

    # --- nodes ---

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
        return (sign * self.rng.uniform(0.1, 0.6, shape)).astype(np.float32)

    def matrix(self, x: Features, columns: int) -> np.ndarray:
        W = self.weights(len(x), columns)
        W[np.array(x.dead, dtype=bool)] = 0
        return W

    # --- sources and sinks ---

    def batch(self) -> int | str:
        return STATIC_BATCH if self.static_batch else "B"

    def source(self) -> Features:
        """Numbers, or tokens and a table whose columns may go."""
        if self.chance(0.6):
            self.inputs.append(value("X", ["T", self.batch(), INPUT_SIZE]))
            return self.fixed("X", INPUT_SIZE)
        self.inputs.append(value("tokens", ["T", self.batch()], TensorProto.INT64))
        width = self.choose([2, 4, 5])
        columns = [self.element() for _ in range(width)]
        return self.planted(self.op("Gather", [self.const(self.weights(TOKENS, width), "table"), "tokens"]), columns)

    def fixed(self, name: str, width: int) -> Features:
        return Features(name=name, elements=(FIXED,) * width, reads=(frozenset({FIXED}),) * width,
                        dead=(False,) * width, zero=(False,) * width)  # fmt: skip

    def planted(self, name: str, elements: Sequence[int]) -> Features:
        """New features, some of which nobody will read."""
        dead = self.some(len(elements), len(elements) - 1)
        return Features(name=name, elements=tuple(elements), reads=tuple(frozenset({e}) for e in elements),
                        dead=tuple(place in dead for place in range(len(elements))),
                        zero=(False,) * len(elements))  # fmt: skip

    def head(self, x: Features) -> None:
        """One output that reads all living features: at every step, the last one, or their mean over the steps."""
        kind = self.choose(["all", "last", "mean"])
        name, rank = x.name, 3
        if kind == "last":
            if self.opset >= 11:
                name, rank = self.op("Gather", [x.name, self.const(np.array(-1))], axis=0), 2
            else:
                name, rank = self.with_axes("Squeeze", self.slice(x.name, -1, 2**31, 0), [0], 13), 2
        elif kind == "mean":
            name, rank = self.with_axes("ReduceMean", x.name, [0], 18, keepdims=0), 2
        W = self.matrix(x, 2)
        if rank == 2 and self.chance():
            out = self.op("Gemm", [name, self.const(W.T), self.const(self.weights(2))], transB=1)
        else:
            out = self.op("MatMul", [name, self.const(W)])
        self.outputs.append(value(out, [None] * rank))
        self.roots |= x.read()

    # --- recurrent nodes ---

    def layer(self, x: Features) -> Features:
        """A recurrent node with any of its inputs and attributes, and its directions brought side by side or summed."""
        op_type = self.choose(["LSTM", "GRU", "RNN"])
        direction = self.choose(["forward", "reverse", "bidirectional", "bidirectional"])
        directions, hidden = (2 if direction == "bidirectional" else 1), self.choose([2, 3, 5, 6])
        dead = [self.some(hidden, hidden - 1) for _ in range(directions)]
        attributes = {"hidden_size": hidden, "direction": direction, **self.cell_attributes(op_type, directions)}
        given = self.cell_weights(op_type, x, directions, hidden, dead)
        units = self.add_units(x, directions, hidden, dead)
        given["sequence_lens"] = self.lengths() if self.chance(0.15) else ""
        state = self.initial_state(op_type, given, directions, hidden)
        names = ["X", "W", "R", "B", "sequence_lens", "initial_h", *(["initial_c", "P"] if op_type == "LSTM" else [])]
        slots = [x.name, *(given.get(name, "") for name in names[1:])]
        while not slots[-1]:
            slots.pop()
        Y = self.op(op_type, slots, outputs=3 if op_type == "LSTM" else 2, **attributes)
        self.recurrent.append(Recurrent(name=Y, units=units, inputs=x))
        self.hand_back(Y, state, op_type, directions, hidden)
        out = self.side_by_side(Y, units, dead, directions, hidden)
        if self.chance(0.2) and len(self.recurrent) < 4 and not any(self.carried):
            return self.twin(out, x, slots, op_type, attributes, directions, hidden, units, dead)
        return out

    def cell_attributes(self, op_type: str, directions: int) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        if op_type == "GRU" and self.chance():
            attributes["linear_before_reset"] = 1
        if self.chance(0.2):
            attributes["clip"] = 0.7
        if op_type == "LSTM" and self.chance(0.1):
            attributes["input_forget"] = 1
        if self.chance(0.25):
            one = {"LSTM": ["HardSigmoid", "Tanh", "Softsign"], "GRU": ["Sigmoid", "Relu"], "RNN": ["Relu"]}[op_type]
            attributes["activations"] = one * directions
        return attributes

    def cell_weights(
        self, op_type: str, x: Features, directions: int, hidden: int, dead: list[list[int]]
    ) -> dict[str, str]:
        rows = GATES[op_type] * hidden
        W, R = self.weights(directions, rows, len(x)), self.weights(directions, rows, hidden)
        W[:, :, np.array(x.dead, dtype=bool)] = 0
        for direction, units in enumerate(dead):
            R[direction][:, units] = 0
        given = {"W": self.const(W, "W"), "R": self.const(R, "R")}
        if self.chance(0.8):
            given["B"] = self.const(self.weights(directions, 2 * rows), "B")
        if op_type == "LSTM" and self.chance(0.2):
            given["P"] = self.const(self.weights(directions, 3 * hidden), "P")
        return given

    def add_units(
        self, x: Features, directions: int, hidden: int, dead: list[list[int]]
    ) -> tuple[tuple[int, ...], ...]:
        """Number the units; each needs what the layer reads and the living units of its direction."""
        units = tuple(tuple(self.element() for _ in range(hidden)) for _ in range(directions))
        for row, gone in zip(units, dead, strict=True):
            living = frozenset(unit for place, unit in enumerate(row) if place not in gone)
            for unit in row:
                self.needs[unit] = living | x.read()
        return units

    def lengths(self) -> str:
        if not any(known.name == "lengths" for known in self.inputs):
            self.inputs.append(value("lengths", [self.batch()], TensorProto.INT32))
        return "lengths"

    def initial_state(self, op_type: str, given: dict[str, str], directions: int, hidden: int) -> str:
        """Choose where the state starts; return "carried" if the caller feeds it back."""
        kind = self.choose(["none", "none", "zero", "given", "carried", "constant"])
        shape = [directions, self.batch(), hidden]
        for name in ("initial_h", "initial_c")[: 2 if op_type == "LSTM" else 1]:
            if kind in ("given", "carried"):
                given[name] = self.fresh(name)
                self.inputs.append(value(given[name], shape))
            elif kind == "constant" and self.static_batch:
                given[name] = self.const(self.weights(directions, STATIC_BATCH, hidden), name)
            elif kind == "zero":
                given[name] = self.zero_state(directions, hidden)
        if kind == "carried":
            self.carried += [(given[name], "") for name in ("initial_h", "initial_c") if name in given]
        return kind

    def zero_state(self, directions: int, hidden: int) -> str:
        """Zeros of the input's batch size, as exporters write them."""
        first = next(known.name for known in self.inputs if known.name in ("X", "tokens"))
        batch = self.op("Gather", [self.op("Shape", [first]), self.const(np.array([1]))])
        shape = self.op("Concat", [self.const([directions]), batch, self.const([hidden])], axis=0)
        return self.op("ConstantOfShape", [shape])

    def hand_back(self, Y: str, state: str, op_type: str, directions: int, hidden: int) -> None:
        """Return the carried state; now and then return the final state of a layer that is not carried."""
        shape = [directions, self.batch(), hidden]
        outputs = [f"{Y}_1", f"{Y}_2"][: 2 if op_type == "LSTM" else 1]
        if state == "carried":
            self.carried = [(into, out or outputs.pop(0)) for into, out in self.carried]
            kept = self.carried[-(2 if op_type == "LSTM" else 1) :]
            self.outputs += [value(out, shape) for _, out in kept]
        elif self.chance(0.06):
            self.outputs.append(value(f"{Y}_1", shape))
            self.roots |= {unit for row in self.recurrent[-1].units for unit in row}
            self.blocked.setdefault(Y, set()).add(f"{Y}_1")

    def side_by_side(
        self, Y: str, units: tuple[tuple[int, ...], ...], dead: list[list[int]], directions: int, hidden: int
    ) -> Features:
        """Bring Y `[T, D, B, H]` to `[T, B, D*H]`, or add the two directions to `[T, B, H]`."""
        books = Features(
            name=Y,
            elements=tuple(unit for row in units for unit in row),
            reads=tuple(frozenset({unit}) for row in units for unit in row),
            dead=tuple(place in gone for gone in dead for place in range(hidden)),
            zero=(False,) * (directions * hidden),
        )
        if directions == 2 and self.chance(0.3):
            halves = [self.with_axes("Squeeze", self.slice(Y, d, d + 1, 1), [1], 13) for d in range(2)]
            first, second = (books.take(half, range(d * hidden, (d + 1) * hidden)) for d, half in enumerate(halves))
            return self.paired("Add", first, second)
        if directions == 1 and self.chance(0.7):
            return replace(books, name=self.with_axes("Squeeze", Y, [1], 13))
        turned = self.op("Transpose", [Y], perm=[0, 2, 1, 3])
        width = self.choose([-1, directions * hidden])
        return replace(books, name=self.op("Reshape", [turned, self.const([0, 0, width])]))

    def twin(
        self, first: Features, x: Features, slots: list[str], op_type: str, attributes: dict[str, Any],
        directions: int, hidden: int, units: tuple[tuple[int, ...], ...], dead: list[list[int]],
    ) -> Features:  # fmt: skip
        """A second node with the same weights on the same input turned around in sign; one joint decision."""
        other = replace(x, name=self.op("Neg", [x.name]))
        again = self.add_units(x, directions, hidden, dead)
        for row, other_row in zip(units, again, strict=True):
            for one, two in zip(row, other_row, strict=True):
                self.join([one, two])
        slots = [other.name, *slots[1:]]
        Y = self.op(op_type, slots, outputs=3 if op_type == "LSTM" else 2, **attributes)
        self.recurrent.append(Recurrent(name=Y, units=again, inputs=other))
        second = self.side_by_side(Y, again, dead, directions, hidden)
        return self.joined([first, second])

    # --- between the layers ---

    def paired(self, op_type: str, a: Features, b: Features) -> Features:
        """An elementwise operator of two values: what is paired is cut alike."""
        self.values += (a, b)
        for one, other in zip(a.elements, b.elements, strict=True):
            self.join([one, other])
        gone = [[dead or zero for dead, zero in zip(x.dead, x.zero, strict=True)] for x in (a, b)]
        zero = tuple(p and q for p, q in zip(a.zero, b.zero, strict=True))
        return Features(
            name=self.op(op_type, [a.name, b.name]),
            elements=a.elements,
            reads=tuple(p | q for p, q in zip(a.reads, b.reads, strict=True)),
            dead=tuple(p and q and not z for p, q, z in zip(*gone, zero, strict=True)),
            zero=zero,
        )

    def joined(self, parts: Sequence[Features]) -> Features:
        """Put values side by side; of one that nobody reads the elements stay out of it."""
        self.values += parts
        name = self.op("Concat", [part.name for part in parts], axis=self.choose([-1, 2] if self.opset >= 11 else [2]))
        for part in parts:
            self.stretches.append((tuple(self.element() for _ in part.elements), part.elements))
        elements = tuple(element for out, _ in self.stretches[-len(parts) :] for element in out)
        reads = [reads for part in parts for reads in part.reads]
        return Features(
            name=name,
            elements=elements,
            reads=tuple(own | {element} for own, element in zip(reads, elements, strict=True)),
            dead=tuple(dead for part in parts for dead in part.dead),
            zero=tuple(zero for part in parts for zero in part.zero),
        )

    def between(self, x: Features) -> Features:
        step = self.choose(list(STEPS))
        self.values.append(x)
        return STEPS[step](self, x)

    def function(self, x: Features) -> Features:
        op_type = self.choose([*KEEP_ZERO, *MOVE_ZERO])
        name = self.op(op_type, [x.name])
        return replace(x, name=name) if op_type in KEEP_ZERO else x.nonzero(name)

    def with_constant(self, x: Features) -> Features:
        op_type = self.choose(["Add", "Sub", "Mul", "Div", "Max", "PRelu"])
        if op_type == "Max" and self.opset < 8:
            op_type = "Mul"
        shape = self.choose([(1,), (len(x),), (1, 1, len(x))])
        name = self.op(op_type, [x.name, self.const(self.weights(*shape))])
        return replace(x, name=name) if op_type in ("Mul", "Div", "PRelu") else x.nonzero(name)

    def masked(self, x: Features) -> Features:
        """Multiply by a constant with zeros."""
        gone = self.some(len(x), len(x) - 1)
        mask = self.weights(len(x))
        mask[gone] = 0
        zero = tuple(place in gone or was for place, was in enumerate(x.zero))
        dead = tuple(was and not now for was, now in zip(x.dead, zero, strict=True))
        return replace(x, name=self.op("Mul", [self.const(mask), x.name]), zero=zero, dead=dead)

    def turned(self, x: Features) -> Features:
        there = self.op("Transpose", [x.name], perm=[1, 2, 0])
        return replace(x, name=self.op("Transpose", [self.op("Relu", [there])], perm=[2, 0, 1]))

    def sliced(self, x: Features) -> Features:
        start = self.draw(st.integers(0, len(x) - 1))
        end = self.draw(st.integers(start + 1, len(x)))
        if self.opset >= 10 and self.chance(0.3):  # backwards
            places = list(range(len(x)))[end - 1 : None if start == 0 else start - 1 : -1]
            last = -len(x) - 1 if start == 0 else start - 1
            return x.take(self.slice(x.name, end - 1, last, 2, -1), places)
        return x.take(self.slice(x.name, start, end, 2), range(start, end))

    def gathered(self, x: Features) -> Features:
        places = self.draw(st.lists(st.integers(0, len(x) - 1), min_size=1, max_size=len(x), unique=self.chance(0.7)))
        if len(set(places)) < len(places):
            self.exact = False  # a unit that stands twice fills two places of a direction at once
        return x.take(self.op("Gather", [x.name, self.const(np.array(places))], axis=2), places)

    def split(self, x: Features) -> Features:
        if len(x) < 2:
            return x
        cut = self.draw(st.integers(1, len(x) - 1))
        sizes = [cut, len(x) - cut]
        if self.opset < 13:
            a = self.op("Split", [x.name], outputs=2, axis=2, split=sizes)
        else:
            a = self.op("Split", [x.name, self.const(np.array(sizes))], outputs=2, axis=2)
        halves = [x.take(a, range(cut)), x.take(f"{a}_1", range(cut, len(x)))]
        return self.joined([self.function(halves[1]), halves[0]])

    def padded(self, x: Features) -> Features:
        left, right = self.draw(st.integers(0, 2)), self.draw(st.integers(0, 2))
        pads = [0, 0, left, 0, 0, right]
        if self.opset < 11:
            name = self.op("Pad", [x.name], pads=pads)
        else:
            name = self.op("Pad", [x.name, self.const(np.array(pads))])
        new = replace(self.fixed(name, left + right), zero=(False,) * (left + right))
        books = [(*getattr(new, b)[:left], *getattr(x, b), *getattr(new, b)[left:]) for b in
                 ("elements", "reads", "dead", "zero")]  # fmt: skip
        return Features(name=name, elements=books[0], reads=books[1], dead=books[2], zero=books[3])

    def residual(self, x: Features) -> Features:
        """Add a function or a linear map of a value to itself."""
        other = self.function(x) if self.chance(0.4) else self.linear(x, width=len(x))
        return self.paired(self.choose(["Add", "Sub", "Max"]), x, other)

    def skip(self, x: Features) -> Features:
        return self.joined([x, self.function(x)])

    def linear(self, x: Features, width: int | None = None) -> Features:
        """A matrix, in three dimensions or flattened to two; some of its columns may be dead."""
        width = width or self.choose([2, 4])
        W, needs = self.matrix(x, width), x.read()
        columns = [self.element(needs) for _ in range(width)]
        if self.chance(0.6):
            out = self.op("MatMul", [x.name, self.const(W)])
            if self.chance():
                out = self.op("Add", [out, self.const(self.weights(width))])
            return self.planted(out, columns)
        flat = self.op("Reshape", [x.name, self.const([-1, len(x)])])
        out = self.op("Gemm", [flat, self.const(W), self.const(self.weights(width))])
        shape = self.op("Shape", [x.name])
        old = self.opset < 10  # ONNX infers no values through its Slice
        lengths = self.op("Gather", [shape, self.const([0, 1])]) if old else self.slice(shape, 0, 2, 0)
        shape = self.op("Concat", [lengths, self.const([width])], axis=0)
        return self.planted(self.op("Reshape", [out, shape]), columns)

    def grouped(self, x: Features) -> Features:
        """Split the features into two groups and back: an even layout, so not always all dead units can go."""
        if len(x) % 2:
            return x
        self.exact = False
        apart = self.op("Reshape", [x.name, self.const([0, 0, 2, len(x) // 2])])
        return replace(x, name=self.op("Reshape", [self.op("Tanh", [apart]), self.const([0, 0, -1])]))

    def mixed(self, x: Features) -> Features:
        """Softmax over the features: all or none."""
        name = self.op("Softmax", [x.name], axis=2)
        self.join(x.elements)
        everything = frozenset().union(*x.reads)
        return replace(x.nonzero(name), reads=(everything,) * len(x))

    def unknown(self, x: Features) -> Features:
        """An operator that the surgery does not know: kept whole, and named."""
        name = self.op("SampleOp", [x.name], domain="com.microsoft")
        first, self.opaque = not self.opaque, True  # behind the first, nothing is described that could be named
        self.join([FIXED, *x.elements])
        everything = frozenset().union(*x.reads)
        self.roots |= everything
        for node in self.recurrent:
            if first and everything & {unit for row in node.units for unit in row}:
                self.blocked.setdefault(node.name, set()).add(name)
        return replace(x.nonzero(name), reads=(everything,) * len(x))

    # --- the answer ---

    def expected_sizes(self) -> list[tuple[int, int]]:
        """Return (input_size, hidden_size) that must be left of every recurrent node."""
        live, apart = self._reachable(), self.stretches
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
        graph = helper.make_graph(self.nodes, "random", self.inputs, self.outputs, tensors)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


STEPS: dict[str, Callable[[RandomGraph, Features], Features]] = {
    "function": RandomGraph.function,
    "with_constant": RandomGraph.with_constant,
    "masked": RandomGraph.masked,
    "turned": RandomGraph.turned,
    "sliced": RandomGraph.sliced,
    "gathered": RandomGraph.gathered,
    "split": RandomGraph.split,
    "padded": RandomGraph.padded,
    "residual": RandomGraph.residual,
    "skip": RandomGraph.skip,
    "linear": RandomGraph.linear,
    "grouped": RandomGraph.grouped,
    "mixed": RandomGraph.mixed,
    "unknown": RandomGraph.unknown,
}


@st.composite
def random_graphs(draw: Callable[[st.SearchStrategy[Any]], Any]) -> RandomGraph:
    """Draw a graph of one to four recurrent nodes."""
    graph = RandomGraph(draw=draw, opset=draw(st.sampled_from(OPSETS)), static_batch=draw(st.integers(0, 4)) == 0,
                        rng=np.random.default_rng(draw(st.integers(0, 2**16))))  # fmt: skip
    x = graph.source()
    layers = draw(st.integers(1, 3))
    for _ in range(layers):
        if len(graph.recurrent) < 4:
            x = graph.layer(x)
        for _ in range(draw(st.integers(0, 2))):
            x = graph.between(x)
        graph.values.append(x)
    graph.head(x)
    return graph
