"""Random recurrent graphs with planted dead units: one to four layers between a source and a head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from graphs import value
from hypothesis import strategies as st
from onnx import TensorProto
from random_books import INPUT_SIZE, OPSETS, TOKENS, Features, RandomGraph
from random_layers import layer
from random_steps import between


def source(graph: RandomGraph) -> Features:
    """Numbers, or tokens and a table whose columns may go."""
    if graph.chance(0.6):
        graph.inputs.append(graph.value("X", ["T", graph.batch(), INPUT_SIZE]))
        return graph.fixed("X", INPUT_SIZE)
    graph.inputs.append(value("tokens", ["T", graph.batch()], TensorProto.INT64))
    width = graph.choose([2, 4, 5])
    columns = [graph.element() for _ in range(width)]
    return graph.planted(graph.op("Gather", [graph.const(graph.weights(TOKENS, width), "table"), "tokens"]), columns)


def head(graph: RandomGraph, x: Features) -> None:
    """One output that reads all living features: at every step, the last one, or their mean over the steps."""
    kind = graph.choose(["all", "last", "mean"])
    name, rank = x.name, 3
    if kind == "last":
        if graph.opset >= 11:
            name, rank = graph.op("Gather", [x.name, graph.const(np.array(-1))], axis=0), 2
        else:
            name, rank = graph.with_axes("Squeeze", graph.slice(x.name, -1, 2**31, 0), [0], 13), 2
    elif kind == "mean":
        name, rank = graph.with_axes("ReduceMean", x.name, [0], 18, keepdims=0), 2
    W = graph.matrix(x, 2)
    if rank == 2 and graph.chance():
        out = graph.op("Gemm", [name, graph.const(W.T), graph.const(graph.weights(2))], transB=1)
    else:
        out = graph.op("MatMul", [name, graph.const(W)])
    graph.outputs.append(graph.value(out, [None] * rank))
    graph.roots |= x.read()


@st.composite
def random_graphs(draw: Callable[[st.SearchStrategy[Any]], Any]) -> RandomGraph:
    """Draw a graph of one to four recurrent nodes."""
    graph = RandomGraph(draw=draw, opset=draw(st.sampled_from(OPSETS)), static_batch=draw(st.integers(0, 4)) == 0,
                        rng=np.random.default_rng(draw(st.integers(0, 2**16))), listed=draw(st.integers(0, 9)) == 0,
                        dtype=np.float16 if draw(st.integers(0, 9)) == 0 else np.float32)  # fmt: skip
    x = source(graph)
    layers = draw(st.integers(1, 3))
    for _ in range(layers):
        if len(graph.recurrent) < 4:
            x = layer(graph, x)
        for _ in range(draw(st.integers(0, 2))):
            x = between(graph, x)
        graph.values.append(x)
    head(graph, x)
    return graph
