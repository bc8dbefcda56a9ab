"""Convolutions between their channels; a kernel position other than zero counts as a read.

    one group       z[n] = sum_k x[k] * W[n, k]                  as any contraction, along axis 1
    groups          the same within each group; every group keeps equally many channels
    depthwise       z[n] = x[n // m] * W[n]                      position by position, kernels cut with their channels

Conv holds `W [out, in / groups, ...]`, ConvTranspose `W [in, out / groups, ...]`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from toolchain.graph.cells import BlockedError, CellArray, Linear, Space, Statement, Transfer, couple, pairs
from toolchain.graph.dequantized import SHRINK_FIRST
from toolchain.graph.edits import Edits
from toolchain.graph.kept import Kept
from toolchain.graph.nodes import NodeView
from toolchain.graph.operators.linear import bias_of, contraction

_RESIDUAL = 3  # a fused convolution may add another value


def conv(node: NodeView) -> Transfer:
    """Describe a convolution of constant kernel, of one group or more."""
    if node.has_input(_RESIDUAL):
        raise BlockedError("it adds another value to its result")
    groups, W = int(node.attribute("group", 1)), node.weights(1)
    if groups == 1:
        return contraction(node, data=0, axis=1, weights=_reads(node)[0].T, out_axis=1, bias=2)
    x, out = node.input(0), node.output(0)
    if len(x.shape) != W.ndim or x.dynamic[1] or out.dynamic[1] or x.shape[1] % groups or out.shape[1] % groups:
        raise BlockedError("the shapes around it do not agree with its kernel")
    return _depthwise(node, x, out) if x.shape[1] == groups else _grouped(node, x, out)


def _reads(node: NodeView) -> np.ndarray:
    """Return which output channel reads which input channel, shape `[groups, out per group, in per group]`."""
    W, groups = node.weights(1), int(node.attribute("group", 1))
    reads: np.ndarray = (W != 0).any(axis=tuple(range(2, W.ndim)))
    reads = reads.reshape(groups, reads.shape[0] // groups, reads.shape[1])
    return reads.swapaxes(1, 2) if _is_transposed(node) else reads


def _is_transposed(node: NodeView) -> bool:
    return node.node.op_type == "ConvTranspose"


def _grouped(node: NodeView, x: Space, out: Space) -> Transfer:
    if node.input_is_quantized(1):
        raise BlockedError(f"it has groups, and its kernel is quantized; {SHRINK_FIRST}")
    reads = _reads(node)
    rows = node.neurons("rows", reads.shape[0], reads.shape[2])
    columns = node.neurons("columns", reads.shape[0], reads.shape[1])
    x_row, out_column = _channels(rows, len(x.shape)), _channels(columns, len(out.shape))
    statements: list[Statement] = [pairs(out.cells, out_column), couple(out.cells, out_column)]
    statements += bias_of(node, 2, columns) if node.has_input(2) else []
    statements += [Linear(reader=columns.cells[group], read=rows.cells[group], weights=weights)
                   for group, weights in enumerate(reads)]  # fmt: skip
    statements += [pairs(x_row, x.cells, keeps_zero=True), couple(x.cells, x_row)]
    return Transfer(statements=tuple(statements), neurons={"rows": rows, "columns": columns})


def _channels(space: Space, rank: int) -> CellArray:
    return space.cells.reshape(1, -1, *(1,) * (rank - 2))


def _depthwise(node: NodeView, x: Space, out: Space) -> Transfer:
    """Each channel has kernels of its own, so they go together; one whose kernels are zero reads nothing."""
    kernels, channels = node.input(1), node.neurons("channels", x.shape[1])
    multiplier = out.shape[1] // x.shape[1]
    of_out = _channels(channels, len(out.shape)).repeat(multiplier, axis=1)
    of_kernels = channels.cells.repeat(kernels.shape[0] // channels.size).reshape(-1, *(1,) * (len(kernels.shape) - 1))
    statements: list[Statement] = [pairs(out.cells, of_out), couple(out.cells, of_out)]
    if node.has_input(2):
        bias = node.input(2)
        each = channels.cells.repeat(multiplier)
        statements += [pairs(each, bias.cells), couple(each, bias.cells)]
    used = _reads(node).any(axis=(1, 2))
    statements += [
        pairs(of_kernels, kernels.cells),
        couple(of_kernels, kernels.cells),
        pairs(_channels(channels, len(x.shape))[:, used], x.cells[:, used], keeps_zero=True),
        couple(_channels(channels, len(x.shape)), x.cells),
    ]
    return Transfer(statements=tuple(statements), neurons={"channels": channels})


def rewrite(node: NodeView, neurons: dict[str, Space], kept: Kept, edits: Edits) -> None:
    """Slice the kernel to the channels that stay; with groups, to the groups that still have an output."""
    if "channels" in neurons:
        node.node.attributes["group"] = ir.AttrInt64("group", kept.table(neurons["channels"]).size)
        return
    rows, columns = kept.table(neurons["rows"]), kept.table(neurons["columns"])
    if rows.ndim == 1:
        first, second = (rows, columns) if _is_transposed(node) else (columns, rows)
        edits.cut(node.node, 1, lambda W: W[first][:, second])
        return
    groups = columns[:, 0] // neurons["columns"].shape[1]
    rows, is_read = _rows_of_groups(groups, rows, neurons["rows"].shape[1])
    _feed(node, rows, kept.table(neurons["rows"]).ravel(), edits)
    within = rows % neurons["rows"].shape[1]
    outer, inner = (rows, columns % neurons["columns"].shape[1]) if _is_transposed(node) else (columns, within)
    W = node.weights(1)
    slices = [W[outer[group]][:, inner[group]] for group in range(groups.size)]
    for kernels, read in zip(slices, is_read, strict=True):
        if not read:
            kernels[:] = 0
    edits.put(node.node, 1, np.concatenate(slices))
    node.node.attributes["group"] = ir.AttrInt64("group", groups.size)


def _rows_of_groups(groups: CellArray, rows: CellArray, width: int) -> tuple[CellArray, list[bool]]:
    """Return the rows of each group that stays, and whether it has any; a group without takes another's, unread."""
    of_group = {int(row[0]) // width: row for row in rows}
    is_read = [int(group) in of_group for group in groups]
    return np.array([of_group.get(int(group), rows[0]) for group in groups]), is_read


def _feed(node: NodeView, wanted: CellArray, there: CellArray, edits: Edits) -> None:
    """Where the channels that stay are not those that the groups want, gather them in front."""
    if np.array_equal(wanted.ravel(), there):
        return
    value = node.value(0)
    places = np.searchsorted(there, wanted.ravel()).astype(np.int64)
    picked = edits.constant(places, stem=f"{value.name}_channels")
    (gathered,) = edits.before(node.node, "Gather", [value, picked], {"axis": 1})
    node.node.replace_input_with(0, gathered)
