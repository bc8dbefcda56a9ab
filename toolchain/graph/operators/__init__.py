"""The table of operators: for each, how it moves demand (`transfer`) and how it is rewritten (`rewrite`).

To add an operator: write a `transfer` in the module of its family (and a `rewrite` if a constant or an attribute of it
mentions a width), add a line here, and a case to tests/test_operators.py. An operator that is not in the table demands
everything it reads, keeps its shapes, and is named to the user: it can cost size, never correctness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from toolchain.graph.cells import Space, Transfer
from toolchain.graph.edits import Edits
from toolchain.graph.kept import Kept
from toolchain.graph.nodes import NodeView
from toolchain.graph.operators import control, elementwise, linear, mixing, movement, quantised, recurrence
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
_CONV = Operator(transfer=linear.conv, rewrite=linear.rewrite, note="channels, without groups")
_MOVED = "positions are moved"
_SCALED = Operator(transfer=quantised.linear_scale, note="constant scales, per tensor or per axis; what is quantized "
                   "stays so")  # fmt: skip
_INTEGER = Operator(transfer=quantised.integer_matmul, rewrite=quantised.rewrite_integer_matmul,
                    note="a constant matrix")  # fmt: skip

OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(recurrence.OPERATORS, _RECURRENT),
    f"com.microsoft.{QUANTIZED_LSTM}": _QUANTIZED_LSTM,
    **dict.fromkeys((*elementwise.UNARY, *elementwise.VARIADIC, *elementwise.FIRST_INPUT_ONLY), _ELEMENTWISE),
    "MatMul": Operator(transfer=linear.matmul, rewrite=linear.rewrite, note="a constant matrix on one side, or on the "
                       "right one per group; or two computed values, whose summed axis is kept whole"),
    "Gemm": Operator(transfer=linear.gemm, rewrite=linear.rewrite, note="a constant B"),
    "Einsum": Operator(transfer=linear.einsum, rewrite=linear.rewrite,
                       note="one axis of a computed value contracted with a constant matrix"),
    "Conv": _CONV,
    "ConvTranspose": _CONV,
    "Transpose": Operator(transfer=movement.transpose, note=_MOVED),
    "Squeeze": Operator(transfer=movement.squeeze, rewrite=movement.rewrite_squeeze, note=_MOVED),
    "Unsqueeze": Operator(transfer=movement.squeeze, note=_MOVED),
    "Reshape": Operator(transfer=movement.reshape, rewrite=movement.rewrite_reshape,
                        note="axes regrouped; the shape constant, or a Concat with constant widths"),
    "Flatten": Operator(transfer=movement.reshape, note="axes regrouped"),
    "Slice": Operator(transfer=movement.slice_, rewrite=movement.rewrite_slice, note="constant bounds on static axes"),
    "Split": Operator(transfer=movement.split, rewrite=movement.rewrite_split, note="along a static axis"),
    "Concat": Operator(transfer=movement.concat, rewrite=movement.rewrite_concat,
                       note="positions are moved; an input that nobody reads is taken out"),
    "Pad": Operator(transfer=movement.pad, note="constant sizes; what is added stays"),
    "Gather": Operator(transfer=movement.gather, rewrite=movement.rewrite_gather,
                       note="an embedding table by columns; constant indices; others keep the gathered axis"),
    "Expand": Operator(transfer=movement.expand, rewrite=movement.rewrite_expand, note="repeated positions are free"),
    "Tile": Operator(transfer=movement.tile, note="constant repeats; every copy is cut alike"),
    "ConstantOfShape": Operator(transfer=movement.constant_of_shape, rewrite=movement.rewrite_constant_of_shape,
                                note="a constant width"),
    "Shape": Operator(transfer=movement.shape, note="lengths that are not cut"),
    **dict.fromkeys(mixing.REDUCTIONS, Operator(transfer=mixing.reduction, note="the reduced axes are kept whole")),
    **dict.fromkeys(mixing.SOFTMAXES, Operator(transfer=mixing.softmax, note="its axis is kept whole")),
    "LayerNormalization": Operator(transfer=mixing.layer_normalization, note="its axes are kept whole"),
    "BatchNormalization": Operator(transfer=mixing.batch_normalization, note="per channel"),
    "If": Operator(transfer=control.branches, note="both branches, which must return equal shapes"),
    "Loop": Operator(transfer=control.loop, note="states that keep their shape, collected outputs"),
    "Scan": Operator(transfer=control.scan, note="states, scanned inputs and outputs along any axis; from opset 9"),
    "QuantizeLinear": _SCALED,
    "DequantizeLinear": _SCALED,
    "DynamicQuantizeLinear": Operator(transfer=quantised.dynamic, note="only positions that are always zero can go"),
    "MatMulInteger": _INTEGER,
    "QLinearMatMul": _INTEGER,
    **dict.fromkeys(quantised.REFUSED, Operator(transfer=quantised.refused, note="left whole")),
}  # fmt: skip


def operator_of(node: ir.Node) -> Operator | None:
    """Return a node's row of the table; operators of other domains than ONNX's own are listed as `domain.name`."""
    own = node.domain in ("", "ai.onnx")
    return OPERATORS.get(node.op_type if own else f"{node.domain}.{node.op_type}")
