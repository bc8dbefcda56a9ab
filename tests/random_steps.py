"""What may stand between two recurrent layers of a random graph, with its books."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from random_books import FIXED, KEEP_ZERO, MOVE_ZERO, Features, RandomGraph


def paired(graph: RandomGraph, op_type: str, a: Features, b: Features) -> Features:
    """An elementwise operator of two values: what is paired is cut alike."""
    graph.values += (a, b)
    for one, other in zip(a.elements, b.elements, strict=True):
        graph.join([one, other])
    gone = [[dead or zero for dead, zero in zip(x.dead, x.zero, strict=True)] for x in (a, b)]
    zero = tuple(p and q for p, q in zip(a.zero, b.zero, strict=True))
    return Features(
        name=graph.op(op_type, [a.name, b.name]),
        elements=a.elements,
        reads=tuple(p | q for p, q in zip(a.reads, b.reads, strict=True)),
        dead=tuple(p and q and not z for p, q, z in zip(*gone, zero, strict=True)),
        zero=zero,
    )


def joined(graph: RandomGraph, parts: Sequence[Features]) -> Features:
    """Put values side by side; of one that nobody reads the elements stay out of it."""
    graph.values += parts
    name = graph.op("Concat", [part.name for part in parts], axis=graph.choose([-1, 2] if graph.opset >= 11 else [2]))
    for part in parts:
        graph.stretches.append((tuple(graph.element() for _ in part.elements), part.elements))
    elements = tuple(element for out, _ in graph.stretches[-len(parts) :] for element in out)
    reads = [reads for part in parts for reads in part.reads]
    return Features(
        name=name,
        elements=elements,
        reads=tuple(own | {element} for own, element in zip(reads, elements, strict=True)),
        dead=tuple(dead for part in parts for dead in part.dead),
        zero=tuple(zero for part in parts for zero in part.zero),
    )


def between(graph: RandomGraph, x: Features) -> Features:
    step = graph.choose(list(STEPS))
    graph.values.append(x)
    return STEPS[step](graph, x)


def function(graph: RandomGraph, x: Features) -> Features:
    op_type = graph.choose([*KEEP_ZERO, *MOVE_ZERO])
    name = graph.op(op_type, [x.name])
    return replace(x, name=name) if op_type in KEEP_ZERO else x.nonzero(name)


def with_constant(graph: RandomGraph, x: Features) -> Features:
    op_type = graph.choose(["Add", "Sub", "Mul", "Div", "Max", "PRelu"])
    if op_type == "Max" and graph.opset < 8:
        op_type = "Mul"
    shape = graph.choose([(1,), (len(x),), (1, 1, len(x))])
    name = graph.op(op_type, [x.name, graph.const(graph.weights(*shape))])
    return replace(x, name=name) if op_type in ("Mul", "Div", "PRelu") else x.nonzero(name)


def masked(graph: RandomGraph, x: Features) -> Features:
    """Multiply by a constant with zeros."""
    gone = graph.some(len(x), len(x) - 1)
    mask = graph.weights(len(x))
    mask[gone] = 0
    zero = tuple(place in gone or was for place, was in enumerate(x.zero))
    dead = tuple(was and not now for was, now in zip(x.dead, zero, strict=True))
    return replace(x, name=graph.op("Mul", [graph.const(mask), x.name]), zero=zero, dead=dead)


def turned(graph: RandomGraph, x: Features) -> Features:
    there = graph.op("Transpose", [x.name], perm=[1, 2, 0])
    return replace(x, name=graph.op("Transpose", [graph.op("Relu", [there])], perm=[2, 0, 1]))


def sliced(graph: RandomGraph, x: Features) -> Features:
    start = graph.draw(st.integers(0, len(x) - 1))
    end = graph.draw(st.integers(start + 1, len(x)))
    if graph.opset >= 10 and graph.chance(0.3):  # backwards
        places = list(range(len(x)))[end - 1 : None if start == 0 else start - 1 : -1]
        last = -len(x) - 1 if start == 0 else start - 1
        return x.take(graph.slice(x.name, end - 1, last, 2, -1), places)
    return x.take(graph.slice(x.name, start, end, 2), range(start, end))


def gathered(graph: RandomGraph, x: Features) -> Features:
    places = graph.draw(st.lists(st.integers(0, len(x) - 1), min_size=1, max_size=len(x), unique=graph.chance(0.7)))
    if len(set(places)) < len(places):
        graph.exact = False  # a unit that stands twice fills two places of a direction at once
    return x.take(graph.op("Gather", [x.name, graph.const(np.array(places))], axis=2), places)


def replaced(graph: RandomGraph, x: Features) -> Features:
    """Put constants in the place of some features; what they replace is read by nobody, but holds its place."""
    places = graph.some(len(x), len(x) - 1)
    if not places or graph.opset < 11 or graph.dtype == np.float16:  # ONNX Runtime crashes, see `by_coordinates`
        return x
    front = graph.op("Transpose", [x.name], perm=[2, 0, 1])
    lengths = graph.slice(graph.op("Shape", [front]), 1, 3, 0)
    shape = graph.op("Concat", [graph.const([len(places)]), lengths], axis=0)
    updates = graph.op("ConstantOfShape", [shape], value=graph.tensor(np.full(1, 0.5)))
    scattered = graph.op("ScatterND", [front, graph.const(np.array(places)[:, None]), updates])
    graph.values.append(x.take(updates, places))
    new = {place: graph.element() for place in places}
    for place, element in new.items():
        graph.join([element, x.elements[place]])
    return Features(
        name=graph.op("Transpose", [scattered], perm=[1, 2, 0]),
        elements=x.elements,
        reads=tuple(frozenset({new[place]}) if place in new else reads for place, reads in enumerate(x.reads)),
        dead=tuple(dead and place not in new for place, dead in enumerate(x.dead)),
        zero=tuple(zero and place not in new for place, zero in enumerate(x.zero)),
    )


def by_coordinates(graph: RandomGraph, x: Features) -> Features:
    """Pick features by GatherND, of whose data they must be the first axis."""
    # ONNX Runtime 1.32 dies of a segmentation fault on float16 GatherND or ScatterND -> Transpose -> MatMul.
    if graph.opset < 11 or graph.dtype == np.float16:
        return x
    places = graph.draw(st.lists(st.integers(0, len(x) - 1), min_size=1, max_size=len(x), unique=True))
    front = graph.op("Transpose", [x.name], perm=[2, 0, 1])
    picked = graph.op("GatherND", [front, graph.const(np.array(places)[:, None])])
    return x.take(graph.op("Transpose", [picked], perm=[1, 2, 0]), places)


def over_time(graph: RandomGraph, x: Features) -> Features:
    """Something that mixes the steps and leaves the features alone."""
    since = {"centred": 9, "Softmax": 13, "CumSum": 11 if graph.dtype == np.float32 else 14}
    kind = graph.choose([kind for kind, opset in since.items() if graph.opset >= opset])
    if kind == "CumSum":
        return x.nonzero(graph.op("CumSum", [x.name, graph.const(np.array(0))]))
    if kind == "Softmax":
        return x.nonzero(graph.op("Softmax", [x.name], axis=0))
    return replace(x, name=graph.op("Sub", [x.name, graph.with_axes("ReduceMean", x.name, [0], 18, keepdims=1)]))


def depthwise(graph: RandomGraph, x: Features) -> Features:
    """A convolution over time with a kernel of its own for each feature."""
    channels = graph.op("Transpose", [x.name], perm=[1, 2, 0])
    inputs = [channels, graph.const(graph.weights(len(x), 1, 3))]
    inputs += [graph.const(graph.weights(len(x)))] if graph.chance() else []
    out = graph.op("Conv", inputs, group=len(x), pads=[1, 1])
    return x.nonzero(graph.op("Transpose", [out], perm=[2, 0, 1]))


def split(graph: RandomGraph, x: Features) -> Features:
    if len(x) < 2:
        return x
    cut = graph.draw(st.integers(1, len(x) - 1))
    sizes = [cut, len(x) - cut]
    if graph.opset < 13:
        a = graph.op("Split", [x.name], outputs=2, axis=2, split=sizes)
    else:
        a = graph.op("Split", [x.name, graph.const(np.array(sizes))], outputs=2, axis=2)
    halves = [x.take(a, range(cut)), x.take(f"{a}_1", range(cut, len(x)))]
    return joined(graph, [function(graph, halves[1]), halves[0]])


def padded(graph: RandomGraph, x: Features) -> Features:
    left, right = graph.draw(st.integers(0, 2)), graph.draw(st.integers(0, 2))
    pads = [0, 0, left, 0, 0, right]
    if graph.opset < 11:
        name = graph.op("Pad", [x.name], pads=pads)
    else:
        name = graph.op("Pad", [x.name, graph.const(np.array(pads))])
    new = replace(graph.fixed(name, left + right), zero=(False,) * (left + right))
    books = [(*getattr(new, b)[:left], *getattr(x, b), *getattr(new, b)[left:]) for b in
             ("elements", "reads", "dead", "zero")]  # fmt: skip
    return Features(name=name, elements=books[0], reads=books[1], dead=books[2], zero=books[3])


def residual(graph: RandomGraph, x: Features) -> Features:
    """Add a function or a linear map of a value to itgraph."""
    other = function(graph, x) if graph.chance(0.4) else linear(graph, x, width=len(x))
    return paired(graph, graph.choose(["Add", "Sub", "Max"]), x, other)


def skip(graph: RandomGraph, x: Features) -> Features:
    return joined(graph, [x, function(graph, x)])


def linear(graph: RandomGraph, x: Features, width: int | None = None) -> Features:
    """A matrix, in three dimensions or flattened to two; some of its columns may be dead."""
    width = width or graph.choose([2, 4])
    W, needs = graph.matrix(x, width), x.read()
    columns = [graph.element(needs) for _ in range(width)]
    kind = graph.choose(["MatMul", "MatMul", "stack", *(["Einsum"] if graph.opset >= 12 else []), "flat", "flat"])
    if kind != "flat":
        if kind == "Einsum":
            out = graph.op("Einsum", [x.name, graph.const(W)], equation="tbk,kn->tbn")
        else:
            out = graph.op("MatMul", [x.name, graph.const(W if kind == "MatMul" else W[None])])
        if graph.chance():
            out = graph.op("Add", [out, graph.const(graph.weights(width))])
        return graph.planted(out, columns)
    flat = graph.op("Reshape", [x.name, graph.const([-1, len(x)])])
    out = graph.op("Gemm", [flat, graph.const(W), graph.const(graph.weights(width))])
    shape = graph.op("Shape", [x.name])
    old = graph.opset < 10  # ONNX infers no values through its Slice
    lengths = graph.op("Gather", [shape, graph.const([0, 1])]) if old else graph.slice(shape, 0, 2, 0)
    shape = graph.op("Concat", [lengths, graph.const([width])], axis=0)
    return graph.planted(graph.op("Reshape", [out, shape]), columns)


def grouped(graph: RandomGraph, x: Features) -> Features:
    """Split the features into two groups and back: an even layout, so not always all dead units can go."""
    if len(x) % 2:
        return x
    graph.exact = False
    apart = graph.op("Reshape", [x.name, graph.const([0, 0, 2, len(x) // 2])])
    return replace(x, name=graph.op("Reshape", [graph.op("Tanh", [apart]), graph.const([0, 0, -1])]))


def mixed(graph: RandomGraph, x: Features) -> Features:
    """Softmax over the features: all or none."""
    name = graph.op("Softmax", [x.name], axis=2)
    graph.join(x.elements)
    everything = frozenset().union(*x.reads)
    return replace(x.nonzero(name), reads=(everything,) * len(x))


def unknown(graph: RandomGraph, x: Features) -> Features:
    """An operator that the surgery does not know: kept whole, and named."""
    name = graph.op("SampleOp", [x.name], domain="com.microsoft")
    first, graph.opaque = not graph.opaque, True  # behind the first, nothing is described that could be named
    graph.join([FIXED, *x.elements])
    everything = frozenset().union(*x.reads)
    graph.roots |= everything
    for node in graph.recurrent:
        if first and everything & {unit for row in node.units for unit in row}:
            graph.blocked.setdefault(node.name, set()).add(name)
    return replace(x.nonzero(name), reads=(everything,) * len(x))


STEPS: dict[str, Callable[[RandomGraph, Features], Features]] = {
    "function": function,
    "with_constant": with_constant,
    "masked": masked,
    "turned": turned,
    "sliced": sliced,
    "gathered": gathered,
    "by_coordinates": by_coordinates,
    "replaced": replaced,
    "over_time": over_time,
    "depthwise": depthwise,
    "split": split,
    "padded": padded,
    "residual": residual,
    "skip": skip,
    "linear": linear,
    "grouped": grouped,
    "mixed": mixed,
    "unknown": unknown,
}
