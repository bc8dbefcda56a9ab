"""Bring any exporter's graph into the form that the surgery reads, without changing an output bit.

inline      model-local functions become nodes; Constant nodes become initializers, those of bodies the main graph's;
            a constant has one name
simplify    onnxsim folds what is constant in the shape arithmetic (large weights are lifted out, so that it is
            quick and never touches them); if it cannot, the graph is used as it is
fold        chains of constants that end in weights (Slice, Concat, Transpose, Cast, ...) are evaluated
zero state  an initial state that is provably zero is dropped: zero is what the operator assumes without one; of a zero
            that starts several states of a Loop or Scan, each gets its own
shapes      stale shapes are forgotten and inferred again
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

from toolchain.graph import inference
from toolchain.graph.subgraphs import (
    fresh_name,
    give_unique_names,
    graphs_in,
    hoist_constants,
    lower_quantized,
    remove_unused,
    values_of,
)
from toolchain.recurrent import GATES, slot

# Tensors above this many elements are weights, not shape arithmetic; onnxsim need not see them.
LIFTED_ELEMENTS = 1024
_FOLDED = frozenset({"Cast", "Concat", "Flatten", "Gather", "Identity", "Neg", "Reshape", "Slice", "Split", "Squeeze",
                     "Transpose", "Unsqueeze"})  # fmt: skip
_ZERO_STAYS_ZERO = frozenset({"Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split",
                              "Squeeze", "Tile", "Transpose", "Unsqueeze"})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalised:
    """A model that the surgery may rewrite.

    `declared` holds the output shapes as the file declares them; `not_simplified` is why onnxsim could not run.
    """

    model: ir.Model
    declared: dict[str, ir.Shape | None]
    not_simplified: str | None


def normalise(model: ir.Model) -> Normalised:
    """Return an equal model in normal form; the argument is used up."""
    _lift_constants(model)
    _join_aliases(model.graph)
    declared = {str(value.name): value.shape for value in model.graph.outputs}
    model, problem = _simplified(model)
    _fold_constants(model.graph)
    _drop_zero_states(model.graph)
    _split_zero_states(model.graph)
    remove_unused(model)
    lower_quantized(model)
    return Normalised(model=model, declared=declared, not_simplified=problem)


def with_inferred_shapes(model: ir.Model) -> ir.Model:
    """Return the model as it is, with the shapes that follow from its inputs; the argument is used up.

    Functions are inlined and Constant nodes become initializers. A shape that cannot be inferred is unknown, those of
    the outputs too, whatever the file declares.
    """
    _lift_constants(model)
    lifted = _lift_weights(model.graph)
    inferred = ir.from_proto(inference.with_inferred_shapes(ir.to_proto(model)))
    _return_weights(inferred.graph, lifted)
    return inferred


def with_own_names(model: ir.Model) -> None:
    """Inline model-local functions and give every value a name of its own; a model always gets the same names."""
    if model.functions:
        common.InlinePass()(model)
    give_unique_names(model)


def _lift_constants(model: ir.Model) -> None:
    with_own_names(model)
    hoist_constants(model)
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version or 0, 4)  # before 4 every initializer had to be an input too


def _join_aliases(graph: ir.Graph) -> None:
    """Let everybody read a constant by one name, so that a weight under two is seen to be one."""
    for node in graph.all_nodes():
        constant = node.inputs[0] if node.op_type == "Identity" else None
        if constant is not None and constant.const_value is not None and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(constant)


def _simplified(model: ir.Model) -> tuple[ir.Model, str | None]:
    """Fold shape arithmetic and infer shapes on a skeleton without the large weights, then put them back."""
    import onnxsim

    lifted = _lift_weights(model.graph)
    skeleton = ir.to_proto(model)
    problem = None
    try:
        skeleton, _ = onnxsim.simplify(skeleton, perform_optimization=False, certify=False)
    except (
        RuntimeError,
        ValueError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        problem = " ".join(str(error).split())[:200]
    result = ir.from_proto(inference.with_inferred_shapes(skeleton, folded=True))
    _return_weights(result.graph, lifted)
    hoist_constants(result)
    result.metadata_props.clear()  # onnxsim adds some twenty entries on what it did
    result.metadata_props.update(model.metadata_props)
    return result, problem


def _lift_weights(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Turn large initializers into inputs; return what they held."""
    outputs = {value.name for value in graph.outputs}
    lifted: dict[str, ir.TensorProtocol] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or name in outputs or tensor.dtype == ir.DataType.STRING:
            continue
        if tensor.size <= LIFTED_ELEMENTS:
            value.const_value = ir.tensor(np.array(tensor.numpy()), name=name)  # in memory, wherever it was
        else:
            lifted[name] = tensor
            del graph.initializers[name]
            value.const_value = None
            value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
            graph.inputs.append(value)
    return lifted


def _return_weights(graph: ir.Graph, lifted: dict[str, ir.TensorProtocol]) -> None:
    for value in [value for value in graph.inputs if value.name in lifted]:
        graph.inputs.remove(value)
        value.const_value = lifted[str(value.name)]
        graph.register_initializer(value)


def _fold_constants(graph: ir.Graph) -> None:
    """Evaluate nodes that move constants into place, so that weights become initializers.

    Equal results become one: branches that put one weight into place each for itself go on sharing it.
    """
    made: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
    for node in list(graph.all_nodes()):
        if node.op_type not in _FOLDED or node.domain or not node.inputs:
            continue
        tensors = [None if value is None else value.const_value for value in node.inputs]
        if any(value is not None and tensor is None for value, tensor in zip(node.inputs, tensors, strict=True)):
            continue
        if any(value.is_graph_output() for value in node.outputs):
            continue
        arrays = _evaluate(graph, node, [None if tensor is None else tensor.numpy() for tensor in tensors])
        for value, array in zip(node.outputs, arrays, strict=True):
            key = (str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).digest())
            if key not in made:
                made[key] = _constant(graph, value, array)
            value.replace_all_uses_with(made[key])
        assert node.graph is not None
        node.graph.remove(node, safe=True)


def _constant(graph: ir.Graph, computed: ir.Value, array: np.ndarray) -> ir.Value:
    """Register an array as an initializer with the name of the value that it takes the place of."""
    name, tensor = computed.name, ir.tensor(array)
    computed.name = f"{name}_computed"
    constant = ir.Value(name=name, shape=ir.Shape(array.shape), const_value=tensor, type=ir.TensorType(tensor.dtype))
    graph.register_initializer(constant)
    return constant


def _evaluate(graph: ir.Graph, node: ir.Node, arrays: list[np.ndarray | None]) -> list[np.ndarray]:
    """Run one node on constants by ONNX's own reference implementation."""
    proto = ir.to_proto(node)
    given = {name: array for name, array in zip(proto.input, arrays, strict=True) if array is not None}
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
              for name, array in given.items()]  # fmt: skip
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output]
    alone = onnx.helper.make_graph([proto], "constant", inputs, outputs)
    opset = [onnx.helper.make_opsetid("", graph.opset_imports.get("", 1))]
    results = ReferenceEvaluator(onnx.helper.make_model(alone, opset_imports=opset)).run(None, given)
    return [np.asarray(result) for result in results]


def _drop_zero_states(graph: ir.Graph) -> None:
    for node in graph.all_nodes():
        if node.op_type in GATES:
            for name in ("initial_h", "initial_c"):
                index = slot(name)
                state = node.inputs[index] if index < len(node.inputs) else None
                if state is not None and is_zero(state):
                    node.replace_input_with(index, None)


def _split_zero_states(graph: ir.Graph) -> None:
    """Give each zero state of a Loop or Scan operators of its own: one for all would tie the widths of all layers."""
    taken: set[str | None] = {value.name for inner in graphs_in(graph) for value in values_of(inner)}
    for node in [node for node in graph.all_nodes() if node.op_type in ("Loop", "Scan")]:
        for index, value in enumerate(node.inputs):
            if value is not None and is_zero(value):
                node.replace_input_with(index, _copied(value, node, taken))


def _copied(value: ir.Value, place: ir.Node, taken: set[str | None]) -> ir.Value:
    """Copy the operators that make a zero, in front of `place`; a constant is cut for each user apart anyway."""
    producer, graph = value.producer(), place.graph
    if producer is None or graph is None or value.const_value is not None:
        return value
    shaped = producer.op_type == "ConstantOfShape"
    inputs = [source if source is None or shaped or not is_zero(source) else _copied(source, place, taken)
              for source in producer.inputs]  # fmt: skip
    outputs = [ir.Value(name=fresh_name(str(old.name), taken), shape=old.shape, type=old.type)
               for old in producer.outputs]  # fmt: skip
    taken.update(output.name for output in outputs)
    copy = ir.Node(producer.domain, producer.op_type, inputs, list(producer.attributes.values()), outputs=outputs)
    graph.insert_before(place, [copy])
    return outputs[value.index() or 0]


def is_zero(value: ir.Value) -> bool:
    """Tell whether a value is zero whatever the inputs: a constant, a filled shape, or positions of such."""
    if value.const_value is not None:
        return value.const_value.size > 0 and not np.any(value.const_value.numpy())
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is None or not np.any(fill.as_tensor().numpy())
    if node.op_type == "Concat":
        return all(part is not None and is_zero(part) for part in node.inputs)
    return node.op_type in _ZERO_STAYS_ZERO and node.inputs[0] is not None and is_zero(node.inputs[0])
