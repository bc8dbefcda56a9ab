"""Shapes of a graph, inferred from its inputs alone.

ONNX's own inference is asked again, with what it cannot know added, until nothing new follows:

shape      ONNX follows shape arithmetic (`Shape -> Gather -> Concat -> Reshape`) only in newer opsets. Where it gives
           up, the shape that an operator is given still tells lengths that matter: `Concat(lengths, [width])` ends in
           `width`
operator   LSTM, GRU and RNN define the shapes of what they read: where nothing else does, `X` is `[?, ?, input_size]`
stand-in   operators that ONNX's inference does not know are inferred as those that it does
captured   inside If, Loop and Scan ONNX knows the shapes of the surrounding graph's constants, not their content:
           while it infers, the bodies have copies of the constants that they read
states     a Loop's state may change its shape from step to step, so ONNX assumes nothing about it. Here it is assumed
           to keep the shape that it starts with; lengths that then do not come out of the body as they went in are
           unknown, and so on until the assumption holds: what is left is proven, step by step
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx

from toolchain.graph.lengths import Entries, Known, bodies_of, fold_lengths, known_lengths, shape_input
from toolchain.graph.stand_ins import put_stand_ins, take_stand_ins_out
from toolchain.recurrent import GATES, QUANTIZED_LSTM, column_axis, slot

Shape = tuple[int | None, ...]
_STATES_FIRST = {"Loop": (2, 1), "Scan": (0, 0)}  # how many inputs and outputs of the body stand before the states


@dataclass(slots=True, kw_only=True)
class _Assumption:
    """What is taken for the shape of one state; `lost` once no shape can be assumed."""

    shape: Shape | None = None
    element: int = 0
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scope:
    """What is known inside one graph, that of the graphs around it included."""

    known: ChainMap[str, onnx.ValueInfoProto] = field(default_factory=ChainMap)
    constants: ChainMap[str, onnx.TensorProto] = field(default_factory=ChainMap)
    producers: ChainMap[str, tuple[onnx.NodeProto, onnx.GraphProto]] = field(default_factory=ChainMap)
    declared: set[str] = field(default_factory=set)

    def inside(self, graph: onnx.GraphProto) -> _Scope:
        values = (*graph.input, *graph.value_info, *graph.output)
        return _Scope(
            known=self.known.new_child({value.name: value for value in values}),
            constants=self.constants.new_child({tensor.name: tensor for tensor in graph.initializer}),
            producers=self.producers.new_child({name: (node, graph) for node in graph.node for name in node.output}),
            declared=self.declared,
        )

    def shape(self, name: str) -> Shape | None:
        """Return a value's shape, None when its rank is unknown."""
        if name in self.constants:
            return tuple(self.constants[name].dims)
        value = self.known.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        axes = value.type.tensor_type.shape.dim
        return tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in axes)

    def element(self, name: str) -> int:
        if name in self.constants:
            return int(self.constants[name].data_type)
        return int(self.known[name].type.tensor_type.elem_type) if name in self.known else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """One state of a Loop or Scan: the value that it starts as, its two ends in the body, and the node's output."""

    first: str
    entering: onnx.ValueInfoProto
    leaving: onnx.ValueInfoProto
    result: str
    scope: _Scope


def with_inferred_shapes(proto: onnx.ModelProto, *, folded: bool = False) -> onnx.ModelProto:
    """Forget every shape that is not an input's and infer anew, because exporters leave stale ones; changes `proto`.

    With `folded`, lengths that are known take the place of the nodes that compute them.
    """
    while True:
        lent = _lend_constants(proto.graph, {})
        proto = _settled(proto)
        changed = folded and fold_lengths(proto.graph)  # not before what was assumed is proven
        _return_constants(proto.graph, lent)
        if not changed:
            return proto


def _settled(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Infer with assumptions about the states until they hold."""
    assumptions = [_Assumption() for _ in _states(proto.graph, _Scope())]
    while True:
        _forget(proto.graph)
        for assumption, state in zip(assumptions, _states(proto.graph, _Scope()), strict=True):
            _assume(assumption, state)
        inferred = _inferred(proto)
        if inferred is None:
            _forget(proto.graph)  # shapes stay unknown: what depends on them is kept whole and named
            return proto
        proto = inferred
        states = list(zip(assumptions, _states(proto.graph, _Scope()), strict=True))
        # An inner loop may still be without its assumption, so nothing is doubted before all have been made.
        made = [_make(*pair) for pair in states]
        if not any(made):
            weakened = [_weaken(*pair) for pair in states]
            if not any(weakened):
                return proto


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """Infer until nothing new follows; None where the graph contradicts itself."""
    declared: set[str] = set()
    while True:
        try:
            proto = _by_onnx(proto)
        except (RuntimeError, onnx.shape_inference.InferenceError):
            return None
        if not _add_known(proto.graph, _Scope(declared=declared)):
            return proto


def _by_onnx(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Let ONNX infer once, with stand-ins for the operators that it does not know."""
    opset = next((known.version for known in proto.opset_import if known.domain in ("", "ai.onnx")), 1)
    replaced = put_stand_ins(proto.graph, opset)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    finally:
        take_stand_ins_out(proto.graph, replaced)
    take_stand_ins_out(inferred.graph, replaced)
    return inferred


def _lend_constants(graph: onnx.GraphProto, around: dict[str, onnx.TensorProto]) -> set[str]:
    """Give each body a copy of every constant that it captures; return their names."""
    read = {name for node in graph.node for name in node.input}
    captured = [tensor for name, tensor in around.items() if name in read]
    visible = around | {tensor.name: tensor for tensor in graph.initializer}
    graph.initializer.extend(captured)
    lent = {tensor.name for tensor in captured}
    return lent.union(*(_lend_constants(body, visible) for node in graph.node for body in bodies_of(node)))


def _return_constants(graph: onnx.GraphProto, lent: set[str]) -> None:
    for body in (body for node in graph.node for body in bodies_of(node)):
        own = [tensor for tensor in body.initializer if tensor.name not in lent]
        del body.initializer[:]
        body.initializer.extend(own)
        _return_constants(body, lent)


def _forget(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for value in graph.output:
        _forget_shape(value)
    for node in graph.node:
        for body in bodies_of(node):
            counted = _STATES_FIRST[node.op_type][0] if node.op_type == "Loop" else 0
            for value in body.input[counted:]:  # a Loop's step and condition are one number each, as declared
                _forget_shape(value)
            _forget(body)


def _forget_shape(value: onnx.ValueInfoProto) -> None:
    if value.type.HasField("tensor_type"):  # a sequence or an optional value has no such field to clear
        value.type.tensor_type.ClearField("shape")


def _states(graph: onnx.GraphProto, around: _Scope) -> Iterator[_State]:
    """Yield every Loop's and Scan's states, always in the same order: assumptions are told apart by place."""
    scope = around.inside(graph)
    for node in graph.node:
        for body in bodies_of(node):
            if node.op_type in _STATES_FIRST:
                inputs, outputs = _STATES_FIRST[node.op_type]
                scanned = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), 0)
                for place in range(len(body.input) - inputs - scanned):
                    result = node.output[place] if place < len(node.output) else ""
                    yield _State(first=node.input[inputs + place], entering=body.input[inputs + place],
                                 leaving=body.output[outputs + place], result=result, scope=scope)  # fmt: skip
            yield from _states(body, scope)


def _assume(assumption: _Assumption, state: _State) -> None:
    """Declare what a state enters the body with, and what the node returns, as assumed."""
    if assumption.shape is None:
        return
    element = state.entering.type.tensor_type.elem_type or assumption.element
    state.entering.CopyFrom(onnx.helper.make_tensor_value_info(state.entering.name, element, assumption.shape))
    if state.result:
        _declare(state.result, element, assumption.shape, state.scope)


def _make(assumption: _Assumption, state: _State) -> bool:
    """Make an assumption as soon as the shape is known that a state starts with; tell whether it was made."""
    start = state.scope.shape(state.first)
    if assumption.lost or assumption.shape is not None or start is None:
        return False
    assumption.shape, assumption.element = start, state.scope.element(state.first)
    return True


def _weaken(assumption: _Assumption, state: _State) -> bool:
    """Give up of an assumption what does not hold of a start or of a step; tell whether anything was."""
    if assumption.shape is None:
        return False
    before = assumption.shape
    inside = _Scope().inside(onnx.GraphProto(output=[state.leaving]))
    for found in (state.scope.shape(state.first), inside.shape(state.leaving.name)):
        if assumption.shape is not None and found is not None and len(found) == len(before):
            assumption.shape = tuple(a if a == b else None for a, b in zip(assumption.shape, found, strict=True))
        else:
            assumption.shape, assumption.lost = None, True
    return assumption.shape != before


def _add_known(graph: onnx.GraphProto, around: _Scope, outer: Known | None = None) -> bool:
    """Declare shapes that ONNX did not infer, in a graph and those inside it; tell whether any was."""
    scope, lengths = around.inside(graph), known_lengths(graph, outer)
    found = [_add_shaped(node, scope, lengths) or _add_operands(node, scope) for node in graph.node]
    found += [_add_known(body, scope, lengths) for node in graph.node for body in bodies_of(node)]
    return any(found)


def _add_operands(node: onnx.NodeProto, scope: _Scope) -> bool:
    """Declare what a recurrent node reads by what its weights say about it."""
    W = scope.shape(node.input[slot("W")]) if node.op_type in GATES and len(node.input) > slot("W") else None
    hidden = next((a.i for a in node.attribute if a.name == "hidden_size"), 0)
    if W is None or len(W) != 3 or not hidden or any(a.name == "layout" and a.i for a in node.attribute):
        return False
    state: Shape = (W[0], None, hidden)
    features = W[column_axis(node.op_type)]
    element = onnx.TensorProto.FLOAT if node.op_type == QUANTIZED_LSTM else scope.element(node.input[slot("W")])
    wanted: dict[str, Shape] = {"X": (None, None, features), "initial_h": state, "initial_c": state}
    found = False
    for name, shape in wanted.items():
        index = slot(name)
        if index < len(node.input) and node.input[index] and scope.shape(node.input[index]) is None:
            found |= _declare(node.input[index], element, shape, scope)
    return found


def _add_shaped(node: onnx.NodeProto, scope: _Scope, lengths: Known) -> bool:
    """Declare what follows for the output of an operator that is given its shape, where it is news."""
    index = shape_input(node)
    entries = None if index is None else lengths.of(node.input[index])
    if entries is None or node.input[0] not in scope.known:
        return False
    shape = _lengths(node, entries, scope.shape(node.input[0]))
    if shape is None:
        return False
    name = node.output[0]
    if scope.shape(name) is not None:
        return _fill_in(scope.known[name], shape)
    element = scope.element(name) or _element(node, scope.element(node.input[0]))
    return _declare(name, element, shape, scope)


def _lengths(node: onnx.NodeProto, entries: Entries, data: Shape | None) -> Shape | None:
    """Return the output's lengths; those copied from the data, inferred or computed are not known."""
    lengths: list[int | None] = [entry if isinstance(entry, int) and entry > 0 else None for entry in entries.ravel()]
    if node.op_type != "Expand":
        return tuple(lengths)
    if data is None:
        return None
    own = [length or None for length in data]
    rank = max(len(own), len(lengths))
    padded = ((*[1] * (rank - len(some)), *some) for some in (own, lengths))
    return tuple(_broadcast(one, other) for one, other in zip(*padded, strict=True))


def _broadcast(one: int | None, other: int | None) -> int | None:
    if one is not None and one > 1:
        return one
    return other if one == 1 or (other is not None and other > 1) else None


def _element(node: onnx.NodeProto, data: int) -> int:
    """Return the number type of an output: the data's, or that of what a shape is filled with."""
    if node.op_type != "ConstantOfShape":
        return data
    return next((attribute.t.data_type for attribute in node.attribute), onnx.TensorProto.FLOAT)


def _fill_in(value: onnx.ValueInfoProto, shape: Shape) -> bool:
    """Set the lengths that were not known before; tell whether there were any."""
    dims = value.type.tensor_type.shape.dim
    if len(dims) != len(shape):
        return False
    news = [(dim, length) for dim, length in zip(dims, shape, strict=True) if length and not dim.HasField("dim_value")]
    for dim, length in news:
        dim.dim_value = length
    return bool(news)


def _declare(name: str, element: int, shape: Shape, scope: _Scope) -> bool:
    """Write a shape where a node's output is declared, once; what no node computes is left alone."""
    if name not in scope.producers or name in scope.declared:
        return False
    _, graph = scope.producers[name]
    value = scope.known[name] if name in scope.known else graph.value_info.add()
    value.CopyFrom(onnx.helper.make_tensor_value_info(name, element, shape))
    scope.declared.add(name)
    return True
