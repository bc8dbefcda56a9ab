"""Shapes given as tensors (to Reshape, Expand, ConstantOfShape): may they be edited, and the edit.

Such a shape is a constant, or a Concat of pieces of which those that mention a width are constants. Zeros ("copy this
length") and -1 ("infer it") are left as they are wherever they still say the right thing.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from toolchain.graph.cells import BlockedError, Space
from toolchain.graph.edits import Edits
from toolchain.graph.kept import Kept
from toolchain.graph.nodes import NodeView


def check_editable(node: NodeView, index: int, out: Space) -> None:
    """Refuse a computed shape whose static lengths are not constants.

    Raises:
        BlockedError: with the reason.
    """
    if node.constant(index) is not None:
        return
    known = {axis for axis, _, _ in _constant_entries(node.value(index))}
    for axis, length in enumerate(out.shape):
        if length > 1 and axis not in known:
            raise BlockedError(f"the length {length} of its axis {axis} is computed at run time")


def edit_shape(node: NodeView, index: int, out: Space, kept: Kept, edits: Edits) -> None:
    """Write the kept lengths of `out` into the shape that input `index` gives."""
    lengths = kept.table(out).shape
    copied = kept.table(node.input(0)).shape if node.node.op_type == "Reshape" else lengths  # what a 0 stands for
    constant = node.constant(index)
    if constant is not None:
        edits.put(node.node, index, _edited(constant, 0, out, lengths, copied))
        return
    concat = node.value(index).producer()
    assert concat is not None
    pieces: list[ir.Value] = [value for value in concat.inputs if value is not None]
    first_axes = {place: axis for axis, place, _ in reversed(_constant_entries(node.value(index)))}
    for place, axis in first_axes.items():
        piece = pieces[place].const_value
        assert piece is not None
        pieces[place] = edits.constant(_edited(piece.numpy(), axis, out, lengths, copied), stem=str(pieces[place].name))
    (shape,) = edits.before(node.node, "Concat", pieces, {"axis": 0})
    node.node.replace_input_with(index, shape)


def _edited(
    entries: np.ndarray, first_axis: int, out: Space, lengths: tuple[int, ...], copied: tuple[int, ...]
) -> np.ndarray:
    """Replace the entries of cut axes; -1 stays, because the operator infers it from the cut input."""
    edited = entries.copy()
    for place in range(entries.size):
        axis = first_axis + place
        cut = lengths[axis] != out.shape[axis]
        stale_copy = entries.flat[place] == 0 and not out.dynamic[axis] and copied[axis : axis + 1] != (lengths[axis],)
        if (entries.flat[place] > 0 and cut) or stale_copy:
            edited.flat[place] = lengths[axis]
    return edited


def _constant_entries(shape: ir.Value) -> list[tuple[int, int, int]]:
    """Return (axis, input of the Concat, entry) for each entry of a concatenated shape that is a constant."""
    producer = shape.producer()
    if producer is None or producer.op_type != "Concat":
        return []
    entries: list[tuple[int, int, int]] = []
    axis = 0
    for place, piece in enumerate(producer.inputs):
        if piece is None or piece.shape is None or not isinstance(piece.shape[0], int):
            return []  # from here on the axes cannot be counted
        if piece.const_value is not None:
            values = piece.const_value.numpy().ravel()
            entries += [(axis + offset, place, int(entry)) for offset, entry in enumerate(values)]
        axis += piece.shape[0]
    return entries
