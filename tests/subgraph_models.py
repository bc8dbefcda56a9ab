"""Models with recurrent layers inside If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from graphs import GATES, constant, kill, recurrent_weights, run, save, value
from onnx import TensorProto, helper

DEAD = (1, 4, 5)
LIVE = 8 - len(DEAD)


FLAGS = [np.array(False), np.array(True)]
ONE = {"one": np.array([1])}


def planted(op_type: str = "LSTM", *, suffix: str = "", input_size: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """Return weights of 8 units, three of which no unit reads."""
    weights = recurrent_weights(op_type, input_size=input_size, hidden_size=8, seed=seed)
    kill(weights["R"], DEAD)
    return {f"{name}{suffix}": array for name, array in weights.items()}


def planted_head() -> dict[str, np.ndarray]:
    head = np.random.default_rng(1).standard_normal((8, 3)).astype(np.float32)
    kill(head, DEAD, axis=0)
    return {"head": head}


def recurrent(op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> onnx.NodeProto:
    name = f"layer_{next(name for name in outputs if name)}"
    return helper.make_node(op_type, list(inputs), list(outputs), name=name, hidden_size=8, **attributes)


def body(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
    constants: dict[str, np.ndarray] | None = None,
) -> onnx.GraphProto:
    tensors = [constant(own, array) for own, array in (constants or {}).items()]
    kinds = {"go_on": TensorProto.BOOL}
    results = [value(out, None, kinds.get(out, TensorProto.FLOAT)) for out in outputs]
    return helper.make_graph(list(nodes), name, list(inputs), results, tensors)


def lstm_branch(name: str, *, weights: str = "", constants: dict[str, np.ndarray] | None = None) -> onnx.GraphProto:
    """Return a branch whose `y` [T, B, 8] an LSTM computes from the outer `X`."""
    nodes = [
        recurrent("LSTM", ["X", f"W{weights}", f"R{weights}", f"B{weights}"], [f"Y_{name}"]),
        helper.make_node("Squeeze", [f"Y_{name}", "one"], ["y"]),
    ]
    return body(name, nodes, [], ["y"], constants)


def graphs_in(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs_in(attribute.g)


def sizes(path: Path) -> list[tuple[int, int]]:
    """Return (input_size, hidden_size) of every recurrent node at any depth, sorted."""
    graphs = list(graphs_in(onnx.load(path).graph))
    shapes = {tensor.name: tuple(tensor.dims) for graph in graphs for tensor in graph.initializer}
    nodes = [node for graph in graphs for node in graph.node if node.op_type in GATES]
    return sorted((shapes[node.input[1]][2], shapes[node.input[2]][2]) for node in nodes)


def assert_equal(source: Path, shrunk: Path | None, feeds: dict[str, np.ndarray]) -> None:
    assert shrunk is not None
    onnx.checker.check_model(str(shrunk), full_check=True)
    wanted, found = run(source, feeds), run(shrunk, feeds)
    assert wanted.keys() == found.keys()
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, atol=1e-5)


def sequence(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape or (7, 2, 5)).astype(np.float32)


def chunked(path: Path, *, initial: str, twice: bool = False) -> Path:
    """Write a Loop over chunks [C, T, B, 5]: an LSTM whose states go from chunk to chunk.

    `initial` is where the states start: "input", "constant" or "zero" (made from the batch size).
    """
    inputs = [value("step", [], TensorProto.INT64), value("go", [], TensorProto.BOOL),
              value("h", None), value("c", None)]  # fmt: skip
    nodes = [
        helper.make_node("Identity", ["go"], ["go_on"]),
        helper.make_node("Gather", ["chunks", "step"], ["X"], axis=0),
        recurrent("LSTM", ["X", "W", "R", "B", "", "h", "c"], ["Y", "h_next", "c_next"]),
        helper.make_node("Squeeze", ["Y", "one"], ["y"]),
    ]
    collected = ["y", "y"] if twice else ["y"]
    loop = body("body", nodes, inputs, ["go_on", "h_next", "c_next", *collected])
    outer, constants, extra = [], planted() | planted_head() | ONE, []
    if initial == "input":
        extra = [value("h0", [1, "B", 8]), value("c0", [1, "B", 8])]
    elif initial == "constant":
        states = 0.3 * np.random.default_rng(3).standard_normal((2, 1, 1, 8)).astype(np.float32)
        constants |= {"h0": states[0], "c0": states[1]}
    else:
        constants |= {"two": np.array([2]), "three": np.array([3]), "eight": np.array([8])}
        outer = [
            helper.make_node("Shape", ["chunks"], ["shape"]),
            helper.make_node("Slice", ["shape", "two", "three"], ["batch"]),
            helper.make_node("Concat", ["one", "batch", "eight"], ["wanted"], axis=0),
            helper.make_node("ConstantOfShape", ["wanted"], ["h0"]),
            helper.make_node("Identity", ["h0"], ["c0"]),
        ]
    results = ["h_last", "c_last", "ys", *(["ys2"] if twice else [])]
    outer += [
        helper.make_node("Shape", ["chunks"], ["all"]),
        helper.make_node("Gather", ["all", "first"], ["count"], axis=0),
        helper.make_node("Loop", ["count", "", "h0", "c0"], results, name="loop", body=loop),
        helper.make_node("MatMul", ["ys", "head"], ["Z"]),
    ]
    outputs = [value("Z", [None, None, None, 3])]
    if twice:
        outer.append(helper.make_node("MatMul", ["ys2", "head"], ["Z2"]))
        outputs.append(value("Z2", [None, None, None, 3]))
    constants |= {"first": np.array(0)}
    batch = 1 if initial == "constant" else "B"
    return save(path, outer, [value("chunks", ["C", "T", batch, 5]), *extra], outputs, constants)


def scanned_steps(path: Path) -> Path:
    """Write a Scan over time, a GRU of one step in its body."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "zero"], ["X"]),
        recurrent("GRU", ["X", "W", "R", "B", "", "h"], ["", "h_next"]),
        helper.make_node("Squeeze", ["h_next", "zero"], ["y"]),
    ]
    scan = body("body", nodes, [value("h", None), value("x", None)], ["h_next", "y"])
    outer = [
        helper.make_node("Scan", ["h0", "xs"], ["h_last", "ys"], body=scan, num_scan_inputs=1),
        helper.make_node("MatMul", ["ys", "head"], ["Z"]),
    ]
    constants = planted("GRU") | planted_head() | {"zero": np.array([0])}
    inputs = [value("xs", ["T", "B", 5]), value("h0", [1, "B", 8])]
    return save(path, outer, inputs, [value("Z", ["T", "B", 3])], constants)
