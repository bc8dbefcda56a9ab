"""A quantized graph without its roundings: what it computes, apart from what falls on which side of a step.

    DequantizeLinear(QuantizeLinear(x))            ->  x, clipped to the range of the integers
    MatMulInteger(DynamicQuantizeLinear(x), b)     ->  MatMul(x, b - b_zero_point), with a scale of 1
    DynamicQuantizeLSTM                            ->  LSTM with the same weights, dequantized
    DequantizeLinear(constant)                     ->  the float constant: ONNX Runtime may round what meets it as well

Cutting units changes the order of float sums, and so the last bit of what is rounded next; where that falls on the
other side of a step, an output moves by a step of 255. Two graphs equal without roundings differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from toolchain.graph.dequantized import DEQUANTIZE, Array, quantized
from toolchain.graph.edits import Edits
from toolchain.graph.loading import load_model, save_model
from toolchain.graph.normalise import with_own_names
from toolchain.graph.subgraphs import hoist_constants, remove_unused
from toolchain.recurrent import NUM_LSTM_INPUTS, QUANTIZED_LSTM, slot


def write_unrounded(source: Path, target: Path) -> bool:
    """Write a model without its roundings; return False, and write nothing, where there are none to take out.

    Nodes keep the names of their outputs, those inside If, Loop and Scan as `with_own_names` gives them.
    """
    model, _ = load_model(source)
    graph = model.graph
    with_own_names(model)
    hoist_constants(model)
    edits = Edits(graph)
    rewrites = {
        "QuantizeLinear": _clip,
        "DynamicQuantizeLinear": _pass_through,
        QUANTIZED_LSTM: _dequantize_lstm,
        DEQUANTIZE: _fold,
    }
    changed = [rewrites[node.op_type](node, edits) for node in list(graph.all_nodes())
               if node.op_type in rewrites]  # fmt: skip
    if not any(changed):
        return False
    for value in [value for node in graph.all_nodes() for value in node.outputs if not value.is_graph_output()]:
        value.shape, value.type = None, None  # what were integers are floats now
    remove_unused(model)
    save_model(model, target, weights_name=f"{target.name}.weights")
    return True


def _fold(node: ir.Node, edits: Edits) -> bool:
    """Replace a quantized constant by its content wherever it is read."""
    known, uses = quantized(node.outputs[0]), tuple(node.outputs[0].uses())
    if known is None or not uses:
        return False
    content = edits.constant(known.content(), stem=str(node.outputs[0].name))
    for reader, index in uses:
        reader.replace_input_with(index, content)
    return True


def _clip(node: ir.Node, edits: Edits) -> bool:
    """Turn `QuantizeLinear -> DequantizeLinear` of a computed value into a Clip."""
    x, (scale, zero_point) = node.inputs[0], _content(node.inputs[1:3], 2)
    readers = [reader for reader, _ in node.outputs[0].uses()]
    paired = all(reader.op_type == DEQUANTIZE and _same_scales(node, reader) for reader in readers)
    if x is None or x.const_value is not None or scale is None or not paired or node.outputs[0].is_graph_output():
        return False
    if zero_point is None:
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            return False
        zero_point = np.zeros(1, dtype=np.uint8)
    if zero_point.dtype.kind not in "iu":
        return False
    limits = np.iinfo(zero_point.dtype)
    low, high = ((end - zero_point.astype(np.float64)) * scale for end in (limits.min, limits.max))
    if scale.size > 1:
        rank, axis = _rank_and_axis(node)
        if rank is None:
            return False
        low, high = (end.reshape([-1 if a == axis else 1 for a in range(rank)]) for end in (low, high))
    else:
        low, high = low.reshape(()), high.reshape(())
    (above,) = edits.before(node, "Max", [x, edits.constant(low.astype(scale.dtype), stem="least")], {})
    _become(node, "Min", [above, edits.constant(high.astype(scale.dtype), stem="largest")])
    for reader in readers:
        _become(reader, "Identity", [node.outputs[0]])
    return True


def _rank_and_axis(node: ir.Node) -> tuple[int | None, int]:
    value = node.inputs[0]
    rank = None if value is None or value.shape is None else len(value.shape)
    named = node.attributes.get("axis")
    axis = 1 if named is None else named.as_int()
    return rank, axis + (rank or 0) if axis < 0 else axis


def _pass_through(node: ir.Node, edits: Edits) -> bool:
    """Turn DynamicQuantizeLinear, all of whose readers are MatMulInteger with a constant, into nothing."""
    integers, scale, zero_point = node.outputs
    products = [reader for reader, index in integers.uses() if reader.op_type == "MatMulInteger" and index == 0]
    matrices = [_content([product.inputs[1], *product.inputs[3:4]], 2) for product in products]
    own = {id(product) for product in products if len(product.inputs) > 2 and product.inputs[2] is zero_point}
    plain = len(own) == len(integers.uses()) and {id(reader) for reader, _ in zero_point.uses()} <= own
    returned = any(value.is_graph_output() for value in (*node.outputs, *(product.outputs[0] for product in products)))
    scaled = all(reader.op_type == "Cast" for product in products for reader, _ in product.outputs[0].uses())
    if not plain or returned or not scaled or any(b is None for b, _ in matrices):
        return False
    for product, (b, b_zero) in zip(products, matrices, strict=True):
        assert b is not None
        matrix = b.astype(np.float32) - (0 if b_zero is None else b_zero.astype(np.float32))
        _become(product, "MatMul", [integers, edits.constant(matrix, stem=str(product.name))])
    scale.replace_all_uses_with(edits.constant(np.ones((), dtype=np.float32), stem="one"))
    x = node.inputs[0]
    assert x is not None
    integers.replace_all_uses_with(x)
    return True


def _dequantize_lstm(node: ir.Node, edits: Edits) -> bool:
    """Turn DynamicQuantizeLSTM into LSTM."""
    weights: dict[str, Array] = {}
    for name in ("W", "R"):
        places = [slot(part) for part in (name, f"{name}_scale", f"{name}_zero_point")]
        x, scale, zero_point = _content([node.inputs[place] for place in places], 3)
        if x is None or scale is None:
            return False
        D = x.shape[0]
        zero = 0 if zero_point is None else zero_point.astype(np.float32).reshape(D, 1, -1)
        weights[name] = ((x.astype(np.float32) - zero) * scale.reshape(D, 1, -1)).transpose(0, 2, 1)
    inputs = list(node.inputs[:NUM_LSTM_INPUTS])
    for name, array in weights.items():
        inputs[slot(name)] = edits.constant(array, stem=f"{node.name}_{name}")
    attributes = dict(node.attributes)
    _become(node, "LSTM", inputs)
    node.domain = ""
    node.attributes.update(attributes)
    return True


def _become(node: ir.Node, op_type: str, inputs: list[ir.Value | None]) -> None:
    """Make another operator of a node, without attributes; its outputs stay."""
    node.op_type = op_type
    node.attributes.clear()
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)


def _same_scales(quantize: ir.Node, dequantize: ir.Node) -> bool:
    """Tell whether two nodes have equal constant scales and zero points."""
    one, other = (_content(node.inputs[1:3], 2) for node in (quantize, dequantize))
    axes = [node.attributes["axis"].as_int() if "axis" in node.attributes else 1 for node in (quantize, dequantize)]
    return axes[0] == axes[1] and all(
        (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


def _content(values: Iterable[ir.Value | None], count: int) -> list[Array | None]:
    """Return the contents of constants, None for each that is absent or computed."""
    tensors = [None if value is None else value.const_value for value in values]
    arrays = [None if tensor is None else tensor.numpy() for tensor in tensors]
    return arrays + [None] * (count - len(arrays))
