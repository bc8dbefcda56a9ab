"""Operators that only move positions: what leaves at one place came in at another, so cells are moved as data would be.

    Transpose, Squeeze, Unsqueeze, Reshape, Flatten, Slice, Split, Concat, Pad, Gather, Expand, Tile, Shape

Rewriting updates the constants that mention a width: shapes, bounds, sizes, indices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from toolchain.graph.cells import BlockedError, CellArray, Space, Statement, Transfer, couple, pairs
from toolchain.graph.edits import Edits, set_integers
from toolchain.graph.kept import Kept
from toolchain.graph.nodes import NodeView
from toolchain.graph.operators import linear
from toolchain.graph.shapes import check_editable, edit_shape

Neurons = dict[str, Space]


def moved(out: CellArray, read: CellArray) -> tuple[Statement, ...]:
    """Return the statements that each output cell is the input cell at its place (broadcast)."""
    return pairs(out, read, keeps_zero=True), couple(out, read)


def transpose(node: NodeView) -> Transfer:
    """Describe a permutation of the axes."""
    x, out = node.input(0), node.output(0)
    order = node.attribute("perm") or tuple(reversed(range(len(x.shape))))
    return Transfer(statements=moved(out.cells, x.cells.transpose(order)))


def squeeze(node: NodeView) -> Transfer:
    """Describe Squeeze and Unsqueeze: axes of length one come and go, the order of cells stays."""
    x, out = node.input(0), node.output(0)
    if x.size != out.size:
        raise BlockedError("the shapes around it do not agree")
    return Transfer(statements=moved(out.cells, x.cells.reshape(out.shape)))


def rewrite_squeeze(node: NodeView, neurons: Neurons, kept: Kept, edits: Edits) -> None:
    """Name the squeezed axes: without names, an axis that is cut down to one would vanish too."""
    if node.node.op_type == "Squeeze" and node.integers("axes", 1) is None:
        x = node.input(0)
        axes = [axis for axis, length in enumerate(x.shape) if length == 1 and not x.dynamic[axis]]
        if node.opset < 13:
            node.node.attributes["axes"] = ir.AttrInt64s("axes", axes)
        else:
            node.node.resize_inputs(2)
            edits.put(node.node, 1, np.asarray(axes, dtype=np.int64))


def reshape(node: NodeView) -> Transfer:
    """Describe Reshape and Flatten: static axes are regrouped from the right, the rest moves as one block.

    `[T, B, 2, H] -> [T, B, 2*H]` pairs `(d, h)` with `d*H + h`. Where an axis of run-time length is merged with a
    static one, the static positions cannot be told apart any more and share one fate.
    """
    x, out = node.input(0), node.output(0)
    if node.node.op_type == "Reshape":
        check_editable(node, 1, out)
    left = _equal_prefix(x, out)
    suffix = _aligned_suffix(x, out, left)
    head = int(np.prod(out.shape[:left], dtype=np.int64))
    before, after = x.cells.reshape(head, -1, suffix), out.cells.reshape(head, -1, suffix)
    if before.shape[1] == after.shape[1] == 1 or (not any(x.dynamic[left:]) and not any(out.dynamic[left:])):
        return Transfer(statements=moved(after, before))
    return Transfer(statements=moved(after[:, :, None, :], before[:, None, :, :]))


def _equal_prefix(x: Space, out: Space) -> int:
    """Return how many leading axes are static and the same on both sides."""
    count = 0
    for own, other, own_dynamic, other_dynamic in zip(x.shape, out.shape, x.dynamic, out.dynamic, strict=False):
        if own_dynamic or other_dynamic or own != other:
            break
        count += 1
    return count


def _aligned_suffix(x: Space, out: Space, left: int) -> int:
    """Return the number of trailing positions that are static on both sides of an equal boundary."""
    aligned = own = other = 1
    i, j = len(x.shape), len(out.shape)
    while True:
        if own == other:
            aligned = own
        if own <= other:
            i -= 1
            if i < left or x.dynamic[i]:
                return aligned
            own *= x.shape[i]
        else:
            j -= 1
            if j < left or out.dynamic[j]:
                return aligned
            other *= out.shape[j]


def rewrite_reshape(node: NodeView, neurons: Neurons, kept: Kept, edits: Edits) -> None:
    """Put the new widths into the shape that Reshape is given."""
    if node.node.op_type == "Reshape":
        edit_shape(node, 1, node.output(0), kept, edits)


def constant_of_shape(node: NodeView) -> Transfer:
    """Describe a constant made from a shape: nothing is read, and any position can go."""
    check_editable(node, 0, node.output(0))
    return Transfer()


def rewrite_constant_of_shape(node: NodeView, neurons: Neurons, kept: Kept, edits: Edits) -> None:
    """Put the new widths into the shape."""
    edit_shape(node, 0, node.output(0), kept, edits)


def expand(node: NodeView) -> Transfer:
    """Describe Expand: repeated positions of the input serve every position of the output."""
    x, out = node.input(0), node.output(0)
    check_editable(node, 1, out)
    cells = x.cells.reshape((1,) * (len(out.shape) - len(x.shape)) + x.shape)
    repeated = (couple(out.cells, cells),) if x.size > 1 else ()
    return Transfer(statements=(pairs(out.cells, cells, keeps_zero=True), *repeated))


def rewrite_expand(node: NodeView, neurons: Neurons, kept: Kept, edits: Edits) -> None:
    """Put the new widths into the shape."""
    edit_shape(node, 1, node.output(0), kept, edits)


def tile(node: NodeView) -> Transfer:
    """Describe Tile with constant repeats: every copy of a position is that position."""
    x, out = node.input(0), node.output(0)
    repeats = [1 if dynamic else int(count) for count, dynamic in zip(node.weights(1), x.dynamic, strict=True)]
    cells = np.tile(x.cells, repeats)
    if cells.shape != out.shape:
        raise BlockedError("the shapes around it do not agree")
    return Transfer(statements=moved(out.cells, cells))


def slice_(node: NodeView) -> Transfer:
    """Describe Slice with constant bounds on the axes of static length; run-time axes keep their one cell."""
    x, out = node.input(0), node.output(0)
    cells = x.cells
    for axis, picked in _sliced_axes(node, x):
        if not out.dynamic[axis] and picked.size != out.shape[axis]:
            raise BlockedError("the shapes around it do not agree")
        cells = cells.take(picked, axis=axis)
    return Transfer(statements=moved(out.cells, cells))


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
    sizes = [kept.axis(node.output(index), axis).size for index in range(len(node.node.outputs))]
    node.node.attributes.pop("num_outputs", None)
    if node.opset < 13:
        node.node.attributes["split"] = ir.AttrInt64s("split", sizes)
    else:
        node.node.resize_inputs(2)
        edits.put(node.node, 1, np.asarray(sizes, dtype=np.int64))


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
    """Describe Pad with constant, non-negative sizes: what is added stays, what was there moves."""
    x, out = node.input(0), node.output(0)
    pads, axes = node.integers("pads", 1), node.integers("axes", 3)
    if pads is None or min(pads) < 0 or node.attribute("mode", "constant") != "constant":
        raise BlockedError("it takes positions away, or repeats some")
    rank = len(x.shape)
    axes = tuple(range(rank)) if axes is None else tuple(axis % rank for axis in axes)
    inner = [slice(None)] * rank
    for place, axis in enumerate(axes):
        if not x.dynamic[axis]:
            inner[axis] = slice(pads[place], pads[place] + x.shape[axis])
    added = np.ones(out.shape, dtype=np.bool_)
    added[tuple(inner)] = False
    if out.size - int(added.sum()) != x.size:
        raise BlockedError("the shapes around it do not agree")
    return Transfer(statements=moved(out.cells[tuple(inner)], x.cells), fixed=(out.cells[added],))


def gather(node: NodeView) -> Transfer:
    """Describe Gather: an embedding table, constant indices, or indices known at run time."""
    data_rank = len(node.input(0).shape) if node.constant(0) is None else node.weights(0).ndim
    axis = node.axis("axis", 0, data_rank)
    table = linear.embedding(node, axis)
    if table is not None:
        return table
    x, out = node.input(0), node.output(0)
    indices = node.constant(1)
    if indices is None or x.dynamic[axis]:
        return Transfer(statements=_gathered_anywhere(x, out, axis))
    if indices.ndim > 1:
        raise BlockedError("its indices have more than one axis")
    picked = np.where(indices < 0, indices + x.shape[axis], indices)
    return Transfer(statements=moved(out.cells, x.cells.take(picked, axis=axis)))


def _gathered_anywhere(x: Space, out: Space, axis: int) -> tuple[Statement, ...]:
    """Indices at run time may pick any position of the axis, so its positions share one fate."""
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    indices = out.shape[axis : len(out.shape) - len(after)]
    source = x.cells.reshape((*before, 1, x.shape[axis], *after))
    target = out.cells.reshape((*before, int(np.prod(indices, dtype=np.int64)), 1, *after))
    return moved(target, source)


def rewrite_gather(node: NodeView, neurons: Neurons, kept: Kept, edits: Edits) -> None:
    """Slice the table's columns, or renumber the constant indices."""
    if "columns" in neurons:
        linear.rewrite_embedding(node, neurons, kept, edits)
        return
    x, out = node.input(0), node.output(0)
    axis = node.axis("axis", 0, len(x.shape))
    indices = node.constant(1)
    if indices is None or x.dynamic[axis]:
        return
    before = kept.axis(x, axis)
    picked = np.where(indices < 0, indices + x.shape[axis], indices)
    if picked.ndim == 1:
        picked = picked[kept.axis(out, axis)]
    edits.put(node.node, 1, np.searchsorted(before, picked).astype(indices.dtype))


def shape(node: NodeView) -> Transfer:
    """Describe Shape when only lengths that cannot be cut are taken from it: run-time axes and axes of one."""
    x = node.input(0)
    free = {axis for axis, length in enumerate(x.shape) if length == 1}
    start = int(node.attribute("start", 0)) % max(len(x.shape), 1)
    for node_reading, _ in node.node.outputs[0].uses():
        read = _lengths_read(node_reading, len(x.shape))
        if read is None or not {start + axis for axis in read} <= free:
            raise BlockedError("a length that it returns would change")
    return Transfer(fixed=(node.output(0).cells,))  # one number per axis, whichever of them are read


def _lengths_read(reader: ir.Node, rank: int) -> Sequence[int] | None:
    """Return the axes whose length a reader of Shape picks out; None when that cannot be told."""
    if reader.op_type == "Gather" and reader.inputs[1] is not None and reader.inputs[1].const_value is not None:
        return [int(axis) % rank for axis in np.atleast_1d(reader.inputs[1].const_value.numpy())]
    if reader.op_type == "Slice" and len(reader.inputs) >= 3:
        numbers = [None if value is None else value.const_value for value in (*reader.inputs[1:3], *reader.inputs[4:])]
        if all(number is not None for number in numbers):
            bounds = (int(number.numpy().ravel()[0]) for number in numbers if number is not None)
            return list(range(rank)[slice(*bounds)])
    return None
