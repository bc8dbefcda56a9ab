"""Operators that only rearrange axes: what leaves at one place came in at another, so cells are moved as data would be.

    Transpose, Squeeze, Unsqueeze, Reshape, Flatten, Expand, Tile, DepthToSpace, SpaceToDepth, ReverseSequence, Shape

Rewriting updates the shapes that mention a width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from toolchain.graph.cells import BlockedError, Space, Transfer, couple, pairs
from toolchain.graph.edits import LISTS_AS_INPUTS, Edits, set_integers
from toolchain.graph.kept import Kept
from toolchain.graph.nodes import NodeView
from toolchain.graph.operators.indexing import moved
from toolchain.graph.shapes import check_editable, edit_shape

Neurons = dict[str, Space]


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
        if node.opset >= LISTS_AS_INPUTS:
            node.node.resize_inputs(2)
        set_integers(edits, node.node, "axes", 1, axes)


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


def depth_to_space(node: NodeView) -> Transfer:
    """Describe DepthToSpace and SpaceToDepth: the channels that one channel is spread over share one fate."""
    x, out = node.input(0), node.output(0)
    deep, flat = (x, out) if node.node.op_type == "DepthToSpace" else (out, x)
    blocks = deep.shape[1] // flat.shape[1]
    channels_last = node.node.op_type == "SpaceToDepth" or node.attribute("mode", "DCR") == "DCR"
    if channels_last:
        apart = deep.cells.reshape(deep.shape[0], blocks, flat.shape[1], -1, 1)
    else:
        apart = deep.cells.reshape(deep.shape[0], flat.shape[1], blocks, -1, 1).swapaxes(1, 2)
    together = flat.cells.reshape(flat.shape[0], 1, flat.shape[1], 1, -1)
    return Transfer(statements=moved(together, apart) if deep is x else moved(apart, together))


def reverse_sequence(node: NodeView) -> Transfer:
    """Describe ReverseSequence: steps trade places by lengths known at run time; other axes pass through."""
    x, out = node.input(0), node.output(0)
    axes = {node.axis("time_axis", 0, len(x.shape)), node.axis("batch_axis", 1, len(x.shape))}
    ends = x.cells
    for axis in axes:
        ends = ends.take([0], axis=axis)
    return Transfer(statements=(*moved(out.cells, ends), pairs(ends, x.cells), couple(ends, x.cells)))


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
    if reader.op_type == "Slice" and "starts" in reader.attributes:
        starts, ends = (reader.attributes[name].as_ints() for name in ("starts", "ends"))
        return list(range(rank)[slice(starts[0], ends[0])])
    if reader.op_type == "Slice" and len(reader.inputs) >= 3:
        numbers = [None if value is None else value.const_value for value in (*reader.inputs[1:3], *reader.inputs[4:])]
        if all(number is not None for number in numbers):
            bounds = (int(number.numpy().ravel()[0]) for number in numbers if number is not None)
            return list(range(rank)[slice(*bounds)])
    return None
