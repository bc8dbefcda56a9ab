"""The table of operators: for each, how it moves demand (`transfer`) and how it is rewritten (`rewrite`).

To add an operator: write a `transfer` in the module of its family (and a `rewrite` if a constant or an attribute of it
mentions a width), add a line here, and a case to tests/operator_cases.py. An operator that is not in the table demands
everything it reads, keeps its shapes, and is named to the user: it can cost size, never correctness.

Operators of other domains than ONNX's own are listed by domain and name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from toolchain.graph.cells import Space, Transfer
from toolchain.graph.edits import Edits
from toolchain.graph.kept import Kept
from toolchain.graph.nodes import NodeView
from toolchain.graph.operators import (
    control,
    convolution,
    einsum,
    elementwise,
    indexing,
    linear,
    mixing,
    movement,
    quantised,
    recurrence,
    slicing,
)
from toolchain.recurrent import QUANTIZED_LSTM


def _nothing(node: NodeView, neurons: dict[str, Space], kept: Kept, edits: Edits) -> None:
    """Rewrite nothing: constant operands are sliced for every operator alike, by their cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One row of the table; `note` is its line in the documentation."""

    transfer: Callable[[NodeView], Transfer]
    rewrite: Callable[[NodeView, dict[str, Space], Kept, Edits], None] = _nothing
    note: str


_ELEMENTWISE = Operator(transfer=elementwise.transfer, note="position by position, with broadcasting")
_RECURRENT = Operator(transfer=recurrence.transfer, rewrite=recurrence.rewrite,
                      note="units by least fixpoint, inputs, carried state; both directions")  # fmt: skip
_QUANTIZED_LSTM = Operator(transfer=recurrence.transfer, rewrite=recurrence.rewrite,
                           note="as LSTM, but only units and inputs that are always zero can go")  # fmt: skip
_MATMUL = Operator(transfer=linear.matmul, rewrite=linear.rewrite, note="a constant matrix, stack of matrices, one per "
                   "group, or vector on one side; or two computed values, whose summed axis is kept whole but for "
                   "positions at which one of them is always zero")  # fmt: skip
_GEMM = Operator(transfer=linear.gemm, rewrite=linear.rewrite, note="a constant B")
_CONV = Operator(transfer=convolution.conv, rewrite=convolution.rewrite,
                 note="channels; depthwise channel by channel; of groups equally many each")  # fmt: skip
_NORMALIZATION = Operator(transfer=mixing.normalization, note="its axes are kept whole")
_SKIP_NORMALIZATION = Operator(transfer=mixing.skip_normalization, note="the last axis is kept whole")
_POOLING = Operator(transfer=mixing.pooling, note="channel by channel")
_RESIZE = Operator(transfer=mixing.resize, rewrite=mixing.rewrite_resize, note="axes whose length does not change")
_MOVED = "positions are moved"
_BLOCKS = Operator(transfer=movement.depth_to_space, note="channels that become one another are cut alike")
_PICKED = "constant indices; others keep the addressed axes whole"
_SCATTERED = "constant indices; others keep the addressed axes whole, and any update may replace any position"
_SCALED = Operator(transfer=quantised.linear_scale, note="constant scales, per tensor or per axis; what is quantized "
                   "stays so")  # fmt: skip
_INTEGER = Operator(transfer=quantised.integer_matmul, rewrite=quantised.rewrite_integer_matmul,
                    note="a constant matrix")  # fmt: skip

OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(recurrence.OPERATORS, _RECURRENT),
    **dict.fromkeys((*elementwise.UNARY, *elementwise.VARIADIC, *elementwise.FIRST_INPUT_ONLY), _ELEMENTWISE),
    "MatMul": _MATMUL,
    "Gemm": _GEMM,
    "Einsum": Operator(transfer=einsum.einsum, rewrite=einsum.rewrite,
                       note="one computed value, rearranged, summed, or contracted with a constant"),
    "Conv": _CONV,
    "ConvTranspose": _CONV,
    "Transpose": Operator(transfer=movement.transpose, note=_MOVED),
    "Squeeze": Operator(transfer=movement.squeeze, rewrite=movement.rewrite_squeeze, note=_MOVED),
    "Unsqueeze": Operator(transfer=movement.squeeze, note=_MOVED),
    "Reshape": Operator(transfer=movement.reshape, rewrite=movement.rewrite_reshape,
                        note="axes regrouped; the shape's widths constant, or computed from lengths that are known"),
    "Flatten": Operator(transfer=movement.reshape, note="axes regrouped"),
    "DepthToSpace": _BLOCKS,
    "SpaceToDepth": _BLOCKS,
    "ReverseSequence": Operator(transfer=movement.reverse_sequence, note="axes other than time and batch"),
    "Slice": Operator(transfer=slicing.slice_, rewrite=slicing.rewrite_slice, note="constant bounds on static axes"),
    "Split": Operator(transfer=slicing.split, rewrite=slicing.rewrite_split, note="along a static axis"),
    "Concat": Operator(transfer=slicing.concat, rewrite=slicing.rewrite_concat,
                       note="positions are moved; an input that nobody reads is taken out"),
    "Pad": Operator(transfer=slicing.pad, note="constant sizes; what is added stays; run-time axes in any mode"),
    "Gather": Operator(transfer=indexing.gather, rewrite=indexing.rewrite_gather,
                       note="an embedding table by columns; constant indices; others keep the gathered axis"),
    "GatherElements": Operator(transfer=indexing.gather_elements, rewrite=indexing.rewrite, note=_PICKED),
    "GatherND": Operator(transfer=indexing.gather_nd, rewrite=indexing.rewrite, note=_PICKED),
    "Scatter": Operator(transfer=indexing.scatter_elements, rewrite=indexing.rewrite, note=_SCATTERED),
    "ScatterElements": Operator(transfer=indexing.scatter_elements, rewrite=indexing.rewrite, note=_SCATTERED),
    "ScatterND": Operator(transfer=indexing.scatter_nd, rewrite=indexing.rewrite, note=_SCATTERED),
    "Expand": Operator(transfer=movement.expand, rewrite=movement.rewrite_expand, note="repeated positions are free"),
    "Tile": Operator(transfer=movement.tile, note="constant repeats; every copy is cut alike"),
    "ConstantOfShape": Operator(transfer=movement.constant_of_shape, rewrite=movement.rewrite_constant_of_shape,
                                note="a constant width"),
    "Shape": Operator(transfer=movement.shape, note="lengths that are not cut"),
    **dict.fromkeys(mixing.REDUCTIONS, Operator(transfer=mixing.reduction, note="the reduced axes are kept whole")),
    **dict.fromkeys(mixing.PICKS, Operator(transfer=mixing.pick, note="its axis is kept whole")),
    **dict.fromkeys(mixing.SOFTMAXES, Operator(transfer=mixing.softmax, note="its axis is kept whole")),
    **dict.fromkeys(mixing.NORMALIZATIONS, _NORMALIZATION),
    **dict.fromkeys(mixing.POOLINGS, _POOLING),
    "TopK": Operator(transfer=mixing.top_k, note="its axis is kept whole"),
    "OneHot": Operator(transfer=mixing.one_hot, note="kept whole"),
    "CumSum": Operator(transfer=mixing.cumulative_sum, note="its axis is kept whole"),
    "Trilu": Operator(transfer=mixing.triangle, note="the last two axes are kept whole"),
    "Resize": _RESIZE,
    "Upsample": _RESIZE,
    "BatchNormalization": Operator(transfer=mixing.batch_normalization, note="per channel"),
    "InstanceNormalization": Operator(transfer=mixing.instance_normalization, note="per channel"),
    "GroupNormalization": Operator(transfer=mixing.group_normalization, note="the channels are kept whole"),
    "MeanVarianceNormalization": Operator(transfer=mixing.mean_variance_normalization, note="its axes are kept whole"),
    "If": Operator(transfer=control.branches, note="both branches, which must return equal shapes"),
    "Loop": Operator(transfer=control.loop, note="states that keep their shape, collected outputs"),
    "Scan": Operator(transfer=control.scan, note="states, scanned inputs and outputs along any axis; from opset 9"),
    "QuantizeLinear": _SCALED,
    "DequantizeLinear": _SCALED,
    "DynamicQuantizeLinear": Operator(transfer=quantised.dynamic, note="only positions that are always zero can go"),
    "MatMulInteger": _INTEGER,
    "QLinearMatMul": _INTEGER,
    **dict.fromkeys(quantised.REFUSED, Operator(transfer=quantised.refused, note="left whole")),
    **{f"com.microsoft.{name}": operator for name, operator in {
        QUANTIZED_LSTM: _QUANTIZED_LSTM,
        **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu", "QuickGelu"), _ELEMENTWISE),
        **dict.fromkeys(mixing.SKIP_NORMALIZATIONS, _SKIP_NORMALIZATION),
        "FusedConv": _CONV, "FusedGemm": _GEMM, "FusedMatMul": _MATMUL}.items()},
}  # fmt: skip


def operator_of(node: ir.Node) -> Operator | None:
    """Return a node's row of the table, None when it has none."""
    name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    return OPERATORS.get(name)
