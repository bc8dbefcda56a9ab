"""Small recurrent graphs with planted dead units, built from the operator's specification alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from toolchain.runtime import RUNTIME_ERRORS

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
OPSET = 17


def recurrent_weights(
    op_type: str,
    *,
    input_size: int,
    hidden_size: int,
    directions: int = 1,
    seed: int = 0,
    dtype: type = np.float32,
) -> dict[str, np.ndarray]:
    """Return W, R and B with random content, stacked gate by gate."""
    rng = np.random.default_rng(seed)
    rows = GATES[op_type] * hidden_size
    shapes = {
        "W": (directions, rows, input_size),
        "R": (directions, rows, hidden_size),
        "B": (directions, 2 * rows),
    }
    return {name: (0.4 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def kill(columns_of: np.ndarray, dead: Sequence[int], axis: int = -1) -> None:
    """Zero the weights that read the dead units."""
    index = [slice(None)] * columns_of.ndim
    index[axis] = list(dead)
    columns_of[tuple(index)] = 0


def constant(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array, order="C"), name)  # `ascontiguousarray` makes scalars vectors


def value(name: str, shape: Sequence[int | str | None], element: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray],
    *,
    opset: int = OPSET,
) -> Path:
    """Write a checked model."""
    tensors = [constant(name, array) for name, array in constants.items()]
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save(model, path)
    return path


def layer_with_head(
    path: Path,
    *,
    op_type: str = "LSTM",
    directions: int = 1,
    hidden_size: int = 8,
    dead: Sequence[Sequence[int]] = ((1, 4, 5),),
    middle: Sequence[onnx.NodeProto] | None = None,
    head_rows: int | None = None,
    extra: dict[str, np.ndarray] | None = None,
    dead_rows: Sequence[int] | None = None,
    opset: int = OPSET,
    out_rank: int = 3,
) -> Path:
    """Write `X [T, B, 5] -> recurrent -> (middle) -> MatMul -> Z`, with dead units per direction.

    `middle` nodes turn `Y` [T, D, B, H] into `M`, whose last axis meets the head's rows; by default the directions
    are put side by side. `dead_rows` are the head's rows that read nothing, by default those of the dead units.
    """
    weights = recurrent_weights(op_type, input_size=5, hidden_size=hidden_size, directions=directions)
    for direction, units in enumerate(dead):
        kill(weights["R"][direction], units)
    rows = head_rows or directions * hidden_size
    head = np.random.default_rng(1).standard_normal((rows, 3)).astype(np.float32)
    if dead_rows is None:
        dead_rows = [direction * hidden_size + unit for direction, units in enumerate(dead) for unit in units]
    kill(head, dead_rows, axis=0)
    attributes = {"hidden_size": hidden_size, "direction": "bidirectional" if directions == 2 else "forward"}
    if middle is None:
        middle = [
            helper.make_node("Transpose", ["Y"], ["Yt"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", ["Yt", "side_by_side"], ["M"]),
        ]
        extra = {"side_by_side": np.array([0, 0, -1]), **(extra or {})}
    nodes = [
        helper.make_node(op_type, ["X", "W", "R", "B"], ["Y", "Y_h"], name="layer", **attributes),
        *middle,
        helper.make_node("MatMul", ["M", "head"], ["Z"], name="head"),
    ]
    inputs, outputs = [value("X", ["T", "B", 5])], [value("Z", [None] * out_rank)]
    return save(path, nodes, inputs, outputs, {**weights, "head": head, **(extra or {})}, opset=opset)


def unrolled_rnn(path: Path, *, steps: int, between: str | None = None, tied: bool = True) -> Path:
    """Write `h = tanh(h @ R)`, so many times, with one `R` for all (`tied`) and perhaps an operator between steps."""
    rng = np.random.default_rng(0)
    matrices = {f"R{step}": rng.standard_normal((8, 8)).astype(np.float32) for step in range(1 if tied else steps)}
    nodes = []
    for step in range(steps):
        matrix = "R0" if tied else f"R{step}"
        nodes.append(helper.make_node("MatMul", [f"h{step}", matrix], [f"z{step}"], name=f"step{step}"))
        nodes.append(helper.make_node("Tanh", [f"z{step}"], [f"t{step}" if between else f"h{step + 1}"]))
        if between:
            nodes.append(helper.make_node(between, [f"t{step}"], [f"h{step + 1}"]))
    return save(path, nodes, [value("h0", ["B", 8])], [value(f"h{steps}", ["B", 8])], matrices)


def in_both_branches(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose whole graph stands in both branches of an If."""
    branches = []
    for prefix in ("yes/", "no/"):
        branch = onnx.compose.add_prefix_graph(model.graph, prefix, rename_inputs=False)
        del branch.input[:]
        branches.append(branch)
    names = [output.name for output in model.graph.output]
    node = helper.make_node("If", ["flag"], names, name="choose", then_branch=branches[0], else_branch=branches[1])
    inputs = [*model.graph.input, value("flag", [], TensorProto.BOOL)]
    graph = helper.make_graph([node], "graph", inputs, list(model.graph.output))
    wrapped = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    wrapped.metadata_props.extend(model.metadata_props)
    return wrapped


def run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a model in ONNX Runtime: the oracle."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def newest_opset() -> int:
    """Return the newest opset that both the installed onnx knows and the installed ONNX Runtime runs."""
    import onnxruntime as ort

    for opset in range(onnx.defs.onnx_opset_version(), OPSET, -1):
        nodes = [helper.make_node("Relu", ["X"], ["Z"])]
        graph = helper.make_graph(nodes, "graph", [value("X", [1])], [value("Z", [1])])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        try:
            ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except RUNTIME_ERRORS:
            continue
        return opset
    return OPSET


def initializer(path: Path, name: str) -> np.ndarray:
    """Return a constant by name."""
    tensors = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    return numpy_helper.to_array(tensors[name])


def recurrent_shapes(path: Path) -> list[tuple[int, int]]:
    """Return (input_size, hidden_size) of every recurrent node, from its weights' shapes."""
    model = onnx.load(path)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in GATES]
    return [(shapes[node.input[1]][2], shapes[node.input[2]][2]) for node in nodes]
