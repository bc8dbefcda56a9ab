"""Which recurrent nodes, matrices and embedding tables ONNX Runtime can quantize, and why the others stay in float."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from toolchain.recurrent import GATES, slot

MATRIX_RANK = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKept:
    """A node whose weights stay as they were, and why."""

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeQuantised:
    """A node whose weights became 8-bit integers."""

    name: str
    op_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationPlan:
    """Which nodes to quantize, and which stay and why."""

    wanted: tuple[NodeQuantised, ...]
    kept: tuple[NodeKept, ...]


def plan_quantisation(graph: ir.Graph) -> QuantisationPlan:
    """Decide about every recurrent node, matrix and embedding table; the graph's nodes have names."""
    wanted, kept = [], []
    for node in graph.all_nodes():
        weights = _weights(node)
        if weights is None:
            continue
        reason = _why_not(node, weights, graph)
        if reason is None:
            wanted.append(NodeQuantised(name=str(node.name), op_type=node.op_type))
        else:
            kept.append(NodeKept(name=str(node.name), op_type=node.op_type, reason=reason))
    return QuantisationPlan(wanted=tuple(wanted), kept=tuple(kept))


def _why_not(node: ir.Node, weights: list[ir.Value | None], graph: ir.Graph) -> str | None:
    """Return why a node stays as it is; None when it can be quantized."""
    if node.op_type == "DynamicQuantizeLSTM":
        return "is quantized already"
    if node.op_type in ("GRU", "RNN"):
        return f"ONNX Runtime has no quantized {node.op_type}"
    if node.graph is not graph:
        return "is inside a subgraph (If, Loop or Scan), which the quantizer leaves alone"
    if node.op_type in ("MatMul", "Gemm") and node.inputs[1] is not None and node.inputs[1].const_value is None:
        return "its matrix is the left operand; only right ones are quantized"
    if any(value is None or value.const_value is None for value in weights):
        return "its weights are no constant"
    types = {value.const_value.dtype for value in weights if value is not None and value.const_value is not None}
    if types != {ir.DataType.FLOAT}:
        return f"its weights are {' and '.join(sorted(kind.name.lower() for kind in types))}; only float32 is quantized"
    return _why_not_as(node, weights[0])


def _why_not_as(node: ir.Node, weights: ir.Value | None) -> str | None:
    """Return what about a node with constant float32 weights keeps the quantizer from it."""
    assert weights is not None
    if node.op_type == "Gather":
        others = {user.op_type for user, _ in weights.uses()} - {"Gather"}
        if others:
            return f"its table is read by {', '.join(sorted(others))} as well"
        if any(user.graph is not node.graph for user, _ in node.outputs[0].uses()):
            return "is read inside a subgraph (If, Loop or Scan)"
    if node.op_type in ("MatMul", "Gemm") and (weights.shape is None or len(weights.shape) != MATRIX_RANK):
        return f"its weights have the shape {weights.shape}; only matrices of two axes are quantized"
    if node.op_type == "Gemm":
        odd = [f"{name} {value:g}" for name, usual in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))
               if (value := _number(node, name, usual)) != usual]  # fmt: skip
        if odd:
            return f"is a Gemm with {', '.join(odd)}"
    return None


def _weights(node: ir.Node) -> list[ir.Value | None] | None:
    """Return the values that hold a node's weights; None for a node that has none of the kinds looked at."""
    if node.op_type == "DynamicQuantizeLSTM" or (node.op_type in GATES and not node.domain):
        return [node.inputs[slot("W")], node.inputs[slot("R")]]
    if node.domain:
        return None
    if node.op_type in ("MatMul", "Gemm"):
        return [node.inputs[1]] if any(v is not None and v.const_value is not None for v in node.inputs[:2]) else None
    table = node.inputs[0] if node.op_type == "Gather" and _number(node, "axis", 0) == 0 else None
    if table is None or table.const_value is None or len(table.const_value.shape) != MATRIX_RANK:
        return None
    return [table] if table.const_value.dtype.is_floating_point() else None


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)
