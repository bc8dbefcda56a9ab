"""Operators whose every output position depends on all positions of an axis: that axis is kept whole or dies whole.

Along their other axes they are transparent. Softmax and the normalisations keep the axis, reductions remove it or leave
it with length one. BatchNormalization mixes nothing at inference: it scales each channel by constants of its own.
"""

from __future__ import annotations

from toolchain.graph.cells import BlockedError, CellArray, Statement, Transfer, couple, pairs
from toolchain.graph.nodes import NodeView

REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_NOT_ZERO_OF_ZEROS = frozenset({"ReduceLogSum", "ReduceLogSumExp"})
SOFTMAXES = ("Softmax", "LogSoftmax", "Hardmax")
# Before opset 13 the softmaxes flattened all axes from `axis` (1 by default) on.
_SOFTMAX_ONE_AXIS_OPSET = 13


def softmax(node: NodeView) -> Transfer:
    """Describe a softmax over one axis, or over all axes from one on in older opsets."""
    rank = len(node.input(0).shape)
    if node.opset >= _SOFTMAX_ONE_AXIS_OPSET:
        return _mixed(node, (node.axis("axis", -1, rank),))
    return _mixed(node, tuple(range(node.axis("axis", 1, rank), rank)))


def layer_normalization(node: NodeView) -> Transfer:
    """Describe a normalisation over all axes from `axis` on; its scale and bias stay whole with them."""
    rank = len(node.input(0).shape)
    if any(node.has_output(index) for index in (1, 2)):
        raise BlockedError("its mean and deviation are used as well")
    return _mixed(node, tuple(range(node.axis("axis", -1, rank), rank)))


def _mixed(node: NodeView, axes: tuple[int, ...]) -> Transfer:
    x, out = node.input(0), node.output(0)
    if x.shape != out.shape:
        raise BlockedError("the shapes around it do not agree")
    ends = out.cells
    for axis in axes:
        ends = ends.take([0], axis=axis)
    # One cell per line stands for the line: any of its outputs needs it, and it needs all of the line's inputs.
    return Transfer(
        statements=(
            pairs(out.cells, ends),
            pairs(ends, x.cells),
            couple(out.cells, ends),
            couple(out.cells, x.cells),
        )
    )


def reduction(node: NodeView) -> Transfer:
    """Describe a reduction over constant axes."""
    x, out = node.input(0), node.output(0)
    rank = len(x.shape)
    axes = node.integers("axes", 1)
    if axes is None and node.attribute("noop_with_empty_axes", 0):
        axes = ()
    axes = tuple(range(rank)) if axes is None else tuple(axis % rank for axis in axes)
    shape = [1 if axis in axes else length for axis, length in enumerate(x.shape)]
    reduced = out.cells.reshape(shape)
    keeps_zero = node.node.op_type not in _NOT_ZERO_OF_ZEROS
    statements: tuple[Statement, ...] = (pairs(reduced, x.cells, keeps_zero=keeps_zero), couple(reduced, x.cells))
    return Transfer(statements=statements)


def batch_normalization(node: NodeView) -> Transfer:
    """Describe per-channel scaling by four constants of one number per channel (axis 1)."""
    x, out = node.input(0), node.output(0)
    if any(node.has_output(index) for index in range(1, len(node.node.outputs))):
        raise BlockedError("it is in training mode")

    def along_channels(vector: CellArray) -> CellArray:
        return vector.reshape((1, -1) + (1,) * (len(out.shape) - 2))

    vectors = [along_channels(node.input(index).cells) for index in range(1, 5)]
    return Transfer(
        statements=(
            pairs(out.cells, x.cells),
            couple(out.cells, x.cells),
            *(statement for vector in vectors for statement in (pairs(out.cells, vector), couple(out.cells, vector))),
        )
    )
