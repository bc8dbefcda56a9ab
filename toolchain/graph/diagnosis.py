"""Known ills of recurrent ONNX models, each with its remedy.

    error     the model does not run in ONNX Runtime on a CPU, or computes something else than what was trained
    warning   it runs, but units cannot be cut, or lengths other than the example's are refused
    note      worth knowing; may be meant

Each check reads the graph and changes nothing; the traps were all met in files that exporters really write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from toolchain.axes import BATCH, TIME
from toolchain.errors import LayoutError
from toolchain.graph import unrolled
from toolchain.graph.dequantized import constant_of
from toolchain.graph.normalise import is_zero
from toolchain.graph.unrolled import constant_root, is_recurrent, name_of
from toolchain.interface import ModelInput
from toolchain.recurrent import GATES, QUANTIZED_LSTM, check_shapes, slot

Severity = Literal["error", "warning", "note"]
Length = int | str | None  # static, symbolic, unknown
# PyTorch's dynamo exporter keeps the traced call here; `weight_hr` is the projection that it then forgets.
_TRACED_CALL = "pkg.torch.onnx.fx_node"
_PROJECTION = "weight_hr"

_FREE_AXES = "Export with a dynamic axis (dynamic_axes, dynamic_shapes) unless that is meant"
# Every kind of ill: how bad it is, and its remedy.
KINDS: dict[str, tuple[Severity, str]] = {
    "lost_projection": (
        "error",
        "ONNX has no LSTM with a projection: train with proj_size=0 and a smaller hidden_size",
    ),
    "shapes": ("error", "Export the model again"),
    "layout": ("error", "Export with layout=0; a Transpose around the node gives batch first"),
    "unrolled": ("warning", unrolled.REMEDY),
    "quantized": ("warning", "Shrink the float model first, then quantize the result"),
    "computed_weights": ("warning", "Compute them before the export, if they are constant"),
    "frozen_reshape": ("error", "Export with dynamic axes, one model per process; or with dynamo=False"),
    "stale_output_shape": ("warning", "Correct the declaration, or export again with every varying axis dynamic"),
    "frozen_time": ("warning", _FREE_AXES),
    "frozen_batch": ("warning", _FREE_AXES),
    "one_step": ("note", _FREE_AXES),
    "one_sequence": ("note", _FREE_AXES),
    "unfolded": ("note", "ONNX Runtime folds them as it loads the model, and `toolchain shrink` where it cuts"),
    "shared_zero_state": ("note", "Without a state the operator starts at zero; `toolchain shrink` drops it"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ill:
    """One thing that is wrong, where, and what to do about it; `kind` is a key of `KINDS`, for scripts."""

    kind: str
    severity: Severity
    subject: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        """Return the ill as one line."""
        return f"{self.subject}: {self.problem}. {self.remedy}."


def diagnose(
    graph: ir.Graph, *, inputs: Sequence[ModelInput], declared: Mapping[str, ir.Shape | None]
) -> tuple[Ill, ...]:
    """Return the ills of a graph, the worst first.

    Args:
        graph: its shapes inferred, see `toolchain.graph.normalise.with_inferred_shapes`.
        inputs: the graph's inputs, their axes labelled.
        declared: the shapes of the outputs as the file declares them.
    """
    nodes = [node for node in graph.all_nodes() if is_recurrent(node)]
    loops = unrolled.find_unrolled(graph)
    ills = [
        *(_unrolled(loop) for loop in loops),
        *(ill for node in nodes for ill in _node_ills(node)),
        *_shared_zero_state(nodes),
        *(_frozen_axes(inputs) if nodes or loops else ()),
        *(ill for node in graph.all_nodes() if (nodes or loops) and (ill := _frozen_reshape(node)) is not None),
        *_stale_outputs(graph, declared),
    ]
    order: tuple[Severity, ...] = ("error", "warning", "note")
    return tuple(sorted(ills, key=lambda ill: order.index(ill.severity)))


def _ill(kind: str, subject: str, problem: str) -> Ill:
    severity, remedy = KINDS[kind]
    return Ill(kind=kind, severity=severity, subject=subject, problem=problem, remedy=remedy)


def _unrolled(loop: unrolled.Unrolled) -> Ill:
    times = f" (written {loop.count} times)" if loop.count > 1 else ""
    return _ill("unrolled", f"node {loop.node!r}", f"the recurrence is {loop.what}{times}; no unit of it can be cut")


def _node_ills(node: ir.Node) -> Iterator[Ill]:
    """Yield what is wrong with one recurrent node."""
    subject = f"{node.op_type} {name_of(node)!r}"
    if node.op_type == QUANTIZED_LSTM:
        text = "it quantizes by ranges at run time; only units that are always zero can be cut"
        yield _ill("quantized", subject, text)
        return
    if _PROJECTION in node.metadata_props.get(_TRACED_CALL, ""):
        yield _ill("lost_projection", subject, "PyTorch's exporter dropped the projection (proj_size) that it had")
    else:
        yield from _shape_ills(node, subject)
    layout = node.attributes.get("layout")
    if layout is not None and layout.as_int() == 1:
        yield _ill("layout", subject, "it has layout=1, which ONNX Runtime does not run on a CPU")
    yield from _weight_ills(node, subject)


def _shape_ills(node: ir.Node, subject: str) -> Iterator[Ill]:
    W, R, B, P = (_shape(node, name) for name in ("W", "R", "B", "P"))
    hidden = node.attributes.get("hidden_size")
    hidden_size = None if hidden is None else hidden.as_int()
    if W is None or R is None:
        return
    rows = len(GATES[node.op_type]) * (hidden_size or 0)
    if len(R) == 3 and R[1] == rows and R[2] != hidden_size:
        text = f"R has shape {list(R)}, whose last axis is not hidden_size {hidden_size}: a projection was lost"
        yield _ill("lost_projection", subject, text)
        return
    try:
        check_shapes(name_of(node), node.op_type, hidden_size=hidden_size, W=W, R=R, B=B, P=P)
    except LayoutError as error:
        yield _ill("shapes", subject, str(error).split(": ", 1)[1].split("; expected")[0])


def _shape(node: ir.Node, name: str) -> tuple[int, ...] | None:
    value = node.inputs[slot(name)] if slot(name) < len(node.inputs) else None
    shape = None if value is None else value.const_value.shape if value.const_value is not None else value.shape
    lengths = () if shape is None else tuple(length for length in shape if isinstance(length, int))
    return lengths if shape is not None and len(lengths) == len(shape) else None


def _weight_ills(node: ir.Node, subject: str) -> Iterator[Ill]:
    """Tell why a node's `W` or `R` is not a plain constant; the first such reason is enough."""
    computed = [value for value in node.inputs[1:3] if value is not None and constant_of(value) is None]
    if not computed:
        return
    roots, operators = _origins(computed[0])
    if "DequantizeLinear" in operators:
        yield _ill("quantized", subject, "its weights are quantized in blocks, or in more than a DequantizeLinear; "
                                         "its units cannot be cut")  # fmt: skip
    elif all(root.const_value is not None for root in roots):
        text = f"its weights are computed from constants ({', '.join(sorted(operators))})"
        yield _ill("unfolded", subject, text)
    else:
        sources = ", ".join(sorted(str(root.name) for root in roots if root.const_value is None))
        yield _ill("computed_weights", subject, f"its weights depend on {sources}; its units cannot be cut")


def _origins(value: ir.Value) -> tuple[list[ir.Value], set[str]]:
    """Return the values that a value is computed from, and the operators in between."""
    roots, operators, pending = [], set(), [value]
    seen: set[ir.Value] = set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        producer = value.producer()
        if producer is None or value.const_value is not None:
            roots.append(value)
        else:
            operators.add(producer.op_type)
            pending += [source for source in producer.inputs if source is not None]
    return roots, operators


def _shared_zero_state(nodes: Sequence[ir.Node]) -> Iterator[Ill]:
    sharers: dict[ir.Value, list[str]] = {}
    for node in nodes:
        states = [node.inputs[slot(name)] for name in ("initial_h", "initial_c") if slot(name) < len(node.inputs)]
        zeros = {_made_at(state) for state in states if state is not None and is_zero(state)}
        for zero in zeros:
            sharers.setdefault(zero, []).append(name_of(node))
    for zero, names in sharers.items():
        if len(names) > 1:
            text = f"one zero state starts {len(names)} nodes ({', '.join(names)})"
            yield _ill("shared_zero_state", f"value {str(zero.name)!r}", text)


def _made_at(zero: ir.Value) -> ir.Value:
    """Follow a zero state back to where it was made."""
    producer = zero.producer()
    while producer is not None and producer.op_type not in ("ConstantOfShape", "Expand", "Tile", "Concat"):
        if producer.inputs[0] is None:
            break
        zero = producer.inputs[0]
        producer = zero.producer()
    return constant_root(zero) or zero


def _frozen_axes(inputs: Sequence[ModelInput]) -> Iterator[Ill]:
    """Name the time and batch axes whose length the interface fixes; a length of one may be a stream's."""
    for label in (TIME, BATCH):
        frozen = {known.name: length for known in inputs for length, axis in zip(known.shape, known.labels, strict=True)
                  if axis == label and isinstance(length, int)}  # fmt: skip
        if frozen:
            length = max(frozen.values())
            kind = f"frozen_{label}" if length != 1 else "one_step" if label == TIME else "one_sequence"
            yield _ill(kind, f"input {', '.join(map(repr, frozen))}", f"the {label} axis is fixed at {length}")


def _frozen_reshape(node: ir.Node) -> Ill | None:
    """Find a constant shape into which the exporter wrote a length of its example.

    `[T, B, 1, 5] -> [6, -1, 5]`: six times as many static positions come out as went in, and 6 stands where `T` stood.
    (Frames put side by side, `[B, T, 80] -> [0, -1, 160]`, put the factor where a static length stood.)
    """
    if node.op_type != "Reshape" or len(node.inputs) < 2:
        return None
    data, shape = node.inputs[0], node.inputs[1]
    if data is None or data.shape is None or data.const_value is not None or shape is None or shape.const_value is None:
        return None
    target = [int(length) for length in shape.const_value.numpy().ravel()]
    before = _lengths(data.shape)
    copied = [before[axis] for axis, length in enumerate(target) if length == 0 and axis < len(before)]
    static = _product(before)
    instead = [length for length, old in zip(target, before, strict=False) if not isinstance(old, int)]
    factor, rest = divmod(_product([*target, *copied]), static)
    if rest or factor <= 1 or factor not in (*instead, _product(instead)):
        return None
    text = f"its shape {target} holds a length of the exporter's example; other lengths are refused or mixed up"
    return _ill("frozen_reshape", f"Reshape {name_of(node)!r}", text)


def _product(lengths: Sequence[Length]) -> int:
    """Multiply the static lengths; 0 and -1 stand for others, and an empty axis counts as one."""
    return int(np.prod([length for length in lengths if isinstance(length, int) and length > 0], dtype=np.int64))


def _stale_outputs(graph: ir.Graph, declared: Mapping[str, ir.Shape | None]) -> Iterator[Ill]:
    """Compare the declared output shapes with those that follow from the graph."""
    symbols = {length for value in graph.inputs for length in _lengths(value.shape) if isinstance(length, str)}
    for value in graph.outputs:
        shape = declared.get(str(value.name))
        if shape is None or value.shape is None:
            continue
        told, found = _lengths(shape), _lengths(value.shape)
        if len(told) != len(found) or any(_differ(*pair, symbols) for pair in zip(told, found, strict=True)):
            text = f"it is declared {_text(told)}, but the graph makes it {_text(found)}"
            yield _ill("stale_output_shape", f"output {str(value.name)!r}", text)


def _lengths(shape: ir.Shape | None) -> list[Length]:
    return [] if shape is None else [length if isinstance(length, int) else length.value for length in shape]


def _differ(told: Length, found: Length, symbols: set[str]) -> bool:
    """Tell whether two lengths cannot both hold; a name that no input has may stand for anything."""
    known = all(isinstance(length, int) or length in symbols for length in (told, found))
    return known and told != found


def _text(lengths: Sequence[Length]) -> str:
    return "[" + ", ".join("?" if length is None else str(length) for length in lengths) + "]"
