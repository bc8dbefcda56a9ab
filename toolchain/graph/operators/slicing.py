"""Operators that take an axis apart and put it together: Slice, Split, Concat, Pad.

Rewriting updates bounds and sizes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from toolchain.graph.cells import BlockedError, CellArray, Space, Statement, Transfer, couple, pairs
from toolchain.graph.edits import LISTS_AS_INPUTS, Edits, set_integers
from toolchain.graph.kept import Kept
from toolchain.graph.nodes import NodeView
from toolchain.graph.operators.indexing import cut_alike, moved

Neurons = dict[str, Space]


def slice_(node: NodeView) -> Transfer:
    """Describe Slice with constant bounds on the axes of static length; run-time axes keep their one cell."""
    x, out = node.input(0), node.output(0)
    cells = x.cells
    for axis, picked in _sliced_axes(node, x):
        if not out.dynamic[axis] and picked.size != out.shape[axis]:
            raise BlockedError("the shapes around it do not agree")
        cells = cells.take(picked, axis=axis)
    alike = [statement for axis, _ in _sliced_axes(node, x) for statement in cut_alike(x, axis)]
    return Transfer(statements=(*moved(out.cells, cells), *alike))


def _sliced_axes(node: NodeView, x: Space) -> list[tuple[int, CellArray]]:
    """Return each sliced axis of static length with the positions it keeps."""
    axes = node.integers("axes", 3)
    rank = len(x.shape)
    starts_value = None if "starts" in node.node.attributes else node.value(1)
    if axes is None:
        count = len(node.attribute("starts")) if starts_value is None else _length(starts_value)
        axes = tuple(range(count))
    axes = tuple(axis % rank for axis in axes)
    if all(x.dynamic[axis] for axis in axes):
        return []
    starts, ends, steps = node.integers("starts", 1), node.integers("ends", 2), node.integers("steps", 4)
    assert starts is not None
    assert ends is not None
    steps = steps or (1,) * len(axes)
    bounds = zip(axes, starts, ends, steps, strict=True)
    return [
        (
            axis,
            np.arange(x.shape[axis])[slice(start, end if end >= -x.shape[axis] or step > 0 else None, step)],
        )
        for axis, start, end, step in bounds
        if not x.dynamic[axis]
    ]


def _length(value: ir.Value) -> int:
    if value.shape is None or not isinstance(value.shape[0], int):
        raise BlockedError(f"the shape of its input {value.name!r} is not known")
    return value.shape[0]


def rewrite_slice(node: NodeView, neurons: Neurons, kept: Kept, edits: Edits) -> None:
    """Replace the bounds on each cut axis, by a gather in front where a range cannot say it."""
    x, rank = node.input(0), len(node.input(0).shape)
    for axis, picked in _sliced_axes(node, x):
        before = kept.axis(x, axis)
        if before.size == x.shape[axis]:
            continue
        wanted = np.searchsorted(before, picked[np.isin(picked, before)])  # places among what is kept
        value = node.value(0)
        (gathered,) = edits.before(
            node.node,
            "Gather",
            [value, edits.constant(wanted.astype(np.int64), stem=f"{value.name}_kept")],
            {"axis": axis},
        )
        node.node.replace_input_with(0, gathered)
        _slice_everything(node, axis % rank, rank, edits)


def _slice_everything(node: NodeView, axis: int, rank: int, edits: Edits) -> None:
    """Make Slice pass one axis through unchanged."""
    axes = node.integers("axes", 3)
    starts, ends, steps = node.integers("starts", 1), node.integers("ends", 2), node.integers("steps", 4)
    assert starts is not None
    assert ends is not None
    place = axis if axes is None else [one % rank for one in axes].index(axis)
    set_integers(edits, node.node, "starts", 1, [*starts[:place], 0, *starts[place + 1 :]])
    set_integers(edits, node.node, "ends", 2, [*ends[:place], np.iinfo(np.int64).max, *ends[place + 1 :]])
    if steps is not None:
        set_integers(edits, node.node, "steps", 4, [*steps[:place], 1, *steps[place + 1 :]])


def split(node: NodeView) -> Transfer:
    """Describe Split along an axis of static length."""
    x = node.input(0)
    axis = node.axis("axis", 0, len(x.shape))
    outputs = [node.output(index) for index in range(len(node.node.outputs))]
    if x.dynamic[axis]:
        raise BlockedError("it splits an axis of run-time length")
    ends = np.cumsum([out.shape[axis] for out in outputs])
    if ends[-1] != x.shape[axis]:
        raise BlockedError("the shapes around it do not agree")
    parts = np.split(x.cells, ends[:-1], axis=axis)
    return Transfer(statements=sum((moved(out.cells, part) for out, part in zip(outputs, parts, strict=True)), ()))


def rewrite_split(node: NodeView, neurons: Neurons, kept: Kept, edits: Edits) -> None:
    """Write the new sizes, where an equal split may have had none."""
    axis = node.axis("axis", 0, len(node.input(0).shape))
    sizes = [kept.table(node.output(index)).shape[axis] for index in range(len(node.node.outputs))]
    node.node.attributes.pop("num_outputs", None)
    if node.opset >= LISTS_AS_INPUTS:
        node.node.resize_inputs(2)
    set_integers(edits, node.node, "split", 1, sizes)


def concat(node: NodeView) -> Transfer:
    """Describe Concat: each input is a stretch of the output's axis."""
    out = node.output(0)
    axis = node.axis("axis", 0, len(out.shape))
    parts = [node.input(index) for index in node.inputs()]
    if out.dynamic[axis]:  # every part's positions meet in the one cell of a run-time axis
        return Transfer(statements=sum((moved(out.cells, part.cells) for part in parts), ()))
    ends = np.cumsum([part.shape[axis] for part in parts])
    if ends[-1] != out.shape[axis]:
        raise BlockedError("the shapes around it do not agree")
    statements: list[Statement] = []
    for stretch, part in zip(np.split(out.cells, ends[:-1], axis=axis), parts, strict=True):
        statements += [pairs(stretch, part.cells, keeps_zero=True), couple(stretch, part.cells, severable=True)]
    return Transfer(statements=tuple(statements))


def rewrite_concat(node: NodeView, neurons: Neurons, kept: Kept, edits: Edits) -> None:
    """Take out the inputs of which nothing is kept; the others were cut as their stretch of the output was."""
    out = node.output(0)
    axis = node.axis("axis", 0, len(out.shape))
    if out.dynamic[axis]:
        return
    ends = np.cumsum([node.input(index).shape[axis] for index in node.inputs()])
    stretches = np.split(kept.of(out), ends[:-1], axis=axis)
    for index, stretch in reversed(list(enumerate(stretches))):
        if not stretch.any():
            remaining = [value for place, value in enumerate(node.node.inputs) if place != index]
            for place, value in enumerate(remaining):
                node.node.replace_input_with(place, value)
            node.node.resize_inputs(len(remaining))


def pad(node: NodeView) -> Transfer:
    """Describe Pad with constant, non-negative sizes: what is added stays, what was there moves.

    An axis of run-time length may be padded and cropped in any way.
    """
    x, out = node.input(0), node.output(0)
    pads, axes = node.integers("pads", 1), node.integers("axes", 3)
    rank = len(x.shape)
    axes = tuple(range(rank)) if axes is None else tuple(axis % rank for axis in axes)
    here = {axis: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)} if pads else {}
    static = [sizes for axis, sizes in here.items() if not x.dynamic[axis]]
    if pads is None or any(min(sizes) < 0 for sizes in static):
        raise BlockedError("it takes positions away")
    if any(any(sizes) for sizes in static) and node.attribute("mode", "constant") != "constant":
        raise BlockedError("it repeats some positions")
    inner = [slice(None)] * rank
    for axis, (left, _) in here.items():
        if not x.dynamic[axis]:
            inner[axis] = slice(left, left + x.shape[axis])
    added = np.ones(out.shape, dtype=np.bool_)
    added[tuple(inner)] = False
    if out.size - int(added.sum()) != x.size:
        raise BlockedError("the shapes around it do not agree")
    return Transfer(statements=moved(out.cells[tuple(inner)], x.cells), fixed=(out.cells[added],))
