"""Operators whose every output position depends on all positions of an axis: that axis is kept whole or dies whole.

Along their other axes they are transparent. Softmax and the normalisations keep the axis, reductions and pooling remove
it or make it shorter. BatchNormalization mixes nothing at inference: it scales each channel by constants of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolchain.graph.cells import BlockedError, CellArray, Space, Statement, Transfer, couple, pairs
from toolchain.graph.edits import Edits
from toolchain.graph.kept import Kept
from toolchain.graph.nodes import NodeView
from toolchain.graph.shapes import check_editable, edit_shape

REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_NOT_ZERO_OF_ZEROS = frozenset({"ArgMax", "ArgMin", "ReduceLogSum", "ReduceLogSumExp"})
PICKS = ("ArgMax", "ArgMin")
SOFTMAXES = ("Softmax", "LogSoftmax", "Hardmax")
NORMALIZATIONS = ("LayerNormalization", "LpNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
SKIP_NORMALIZATIONS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
POOLINGS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
# Before opset 13 the softmaxes flattened all axes from `axis` (1 by default) on.
_SOFTMAX_ONE_AXIS_OPSET = 13
_SIZES = 3  # of Resize


def softmax(node: NodeView) -> Transfer:
    """Describe a softmax over one axis, or over all axes from one on in older opsets."""
    rank = len(node.input(0).shape)
    if node.opset >= _SOFTMAX_ONE_AXIS_OPSET:
        return _same_shape(node, (node.axis("axis", -1, rank),))
    return _same_shape(node, tuple(range(node.axis("axis", 1, rank), rank)))


def normalization(node: NodeView) -> Transfer:
    """Describe a normalisation over all axes from `axis` on; its scale and bias stay whole with them."""
    rank = len(node.input(0).shape)
    if any(node.has_output(index) for index in (1, 2)):
        raise BlockedError("its mean and deviation are used as well")
    first = node.axis("axis", -1, rank)
    return _same_shape(node, (first,) if node.node.op_type == "LpNormalization" else tuple(range(first, rank)))


def skip_normalization(node: NodeView) -> Transfer:
    """Describe the normalisation of a sum of two values over the last axis; the sum may be returned as well."""
    if any(node.has_output(index) for index in (1, 2)):
        raise BlockedError("its mean and deviation are used as well")
    x, skip = node.input(0), node.input(1)
    outs = [node.output(index) for index in (0, 3) if node.has_output(index)]
    if any(space.shape != x.shape for space in (skip, *outs)):
        raise BlockedError("the shapes around it do not agree")
    return _whole(outs, [x, skip], (len(x.shape) - 1,))


def mean_variance_normalization(node: NodeView) -> Transfer:
    """Describe a normalisation over any axes, by default all but the channels."""
    rank = len(node.input(0).shape)
    return _same_shape(node, tuple(axis % rank for axis in node.attribute("axes", (0, 2, 3))))


def group_normalization(node: NodeView) -> Transfer:
    """Describe a normalisation over groups of channels: all channels stay, because the groups are counted off."""
    return _same_shape(node, tuple(range(1, len(node.input(0).shape))))


def instance_normalization(node: NodeView) -> Transfer:
    """Describe a normalisation of each channel over its positions, with a scale and a bias per channel."""
    x, out = node.input(0), node.output(0)
    transfer = _same_shape(node, tuple(range(2, len(x.shape))))
    return Transfer(statements=(*_per_channel(node, out, (1, 2)), *transfer.statements))


def cumulative_sum(node: NodeView) -> Transfer:
    """Describe a sum of all positions before each one."""
    (axis,) = np.atleast_1d(node.weights(1))
    return _same_shape(node, (int(axis) % len(node.input(0).shape),))


def triangle(node: NodeView) -> Transfer:
    """Describe Trilu: which positions become zero is counted along the last two axes, so these stay whole."""
    rank = len(node.input(0).shape)
    return _same_shape(node, (rank - 2, rank - 1))


def _same_shape(node: NodeView, axes: Sequence[int]) -> Transfer:
    x, out = node.input(0), node.output(0)
    if x.shape != out.shape:
        raise BlockedError("the shapes around it do not agree")
    return _whole([out], [x], axes)


def _whole(outs: Sequence[Space], read: Sequence[Space], axes: Sequence[int]) -> Transfer:
    """Let the positions along some axes share one fate, those of outputs and inputs alike."""
    ends = outs[0].cells
    for axis in axes:
        ends = ends.take([0], axis=axis)
    # One cell per line stands for the line: any of its outputs needs it, and it needs all of the line's inputs.
    return Transfer(
        statements=(
            *(statement for out in outs for statement in (pairs(out.cells, ends), couple(out.cells, ends))),
            *(statement for x in read for statement in (pairs(ends, x.cells), couple(ends, x.cells))),
        )
    )


def reduction(node: NodeView) -> Transfer:
    """Describe a reduction over constant axes."""
    rank = len(node.input(0).shape)
    axes = node.integers("axes", 1)
    if not axes:
        axes = () if node.attribute("noop_with_empty_axes", 0) else tuple(range(rank))
    return _reduced(node, {axis % rank for axis in axes})


def pick(node: NodeView) -> Transfer:
    """Describe ArgMax and ArgMin over one axis."""
    return _reduced(node, {node.axis("axis", 0, len(node.input(0).shape))})


def _reduced(node: NodeView, axes: set[int]) -> Transfer:
    x, out = node.input(0), node.output(0)
    shape = [1 if axis in axes else length for axis, length in enumerate(x.shape)]
    if np.prod(shape) != out.size:
        raise BlockedError("the shapes around it do not agree")
    reduced = out.cells.reshape(shape)
    keeps_zero = node.node.op_type not in _NOT_ZERO_OF_ZEROS
    statements: tuple[Statement, ...] = (pairs(reduced, x.cells, keeps_zero=keeps_zero), couple(reduced, x.cells))
    return Transfer(statements=statements)


def top_k(node: NodeView) -> Transfer:
    """Describe the largest positions of an axis and where they are."""
    x, outs = node.input(0), [node.output(index) for index in (0, 1) if node.has_output(index)]
    axis = node.axis("axis", -1, len(x.shape))
    return _whole(outs, [x], (axis,))


def one_hot(node: NodeView) -> Transfer:
    """Describe OneHot: one position for each value that an index may have, none of which can be told apart."""
    indices, out = node.input(0), node.output(0)
    axis = node.axis("axis", -1, len(out.shape))
    read = np.expand_dims(indices.cells, axis)
    return Transfer(statements=(pairs(out.cells, read),), fixed=(out.cells.ravel(), indices.cells.ravel()))


def pooling(node: NodeView) -> Transfer:
    """Describe pooling: each channel by itself, over all of its positions."""
    if node.has_output(1):
        raise BlockedError("the places of its maxima are used as well")
    return _whole([node.output(0)], [node.input(0)], range(2, len(node.input(0).shape)))


def resize(node: NodeView) -> Transfer:
    """Describe Resize and Upsample: an axis whose length does not change passes through."""
    x, out = node.input(0), node.output(0)
    if node.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise BlockedError("it resizes a part of its input")
    axes = node.attribute("axes")
    changed = [axis for axis, length in enumerate(x.shape) if x.dynamic[axis] or length != out.shape[axis]]
    if node.has_input(_SIZES) and axes is None:
        check_editable(node, _SIZES, out)
    elif node.has_input(_SIZES):  # every listed size is a width that would have to be edited
        changed = sorted({*changed, *(axis % len(x.shape) for axis in axes)})
    return _whole([out], [x], changed)


def rewrite_resize(node: NodeView, neurons: dict[str, Space], kept: Kept, edits: Edits) -> None:
    """Put the new widths into the sizes."""
    if node.has_input(_SIZES) and node.attribute("axes") is None:
        edit_shape(node, _SIZES, node.output(0), kept, edits)


def batch_normalization(node: NodeView) -> Transfer:
    """Describe per-channel scaling by four constants of one number per channel (axis 1)."""
    x, out = node.input(0), node.output(0)
    if any(node.has_output(index) for index in range(1, len(node.node.outputs))):
        raise BlockedError("it is in training mode")
    channels = _per_channel(node, out, range(1, 5))
    return Transfer(statements=(pairs(out.cells, x.cells), couple(out.cells, x.cells), *channels))


def _per_channel(node: NodeView, out: Space, indices: Sequence[int]) -> list[Statement]:
    """Describe inputs that hold one number per channel of the output."""

    def along_channels(vector: CellArray) -> CellArray:
        return vector.reshape((1, -1) + (1,) * (len(out.shape) - 2))

    vectors = [along_channels(node.input(index).cells) for index in indices]
    return [statement for vector in vectors for statement in (pairs(out.cells, vector), couple(out.cells, vector))]
