"""Measure how the surgery's time grows with the number of nodes: reading, normalising, planning, rewriting.

python -m toolchain.bench.graph_size                                   five families of graphs, to 5,000 nodes
python -m toolchain.bench.graph_size --nodes 500,1000 --family chain   one of them, smaller

    unrolled   an LSTM, then steps of an LSTM cell in plain operators, ten nodes each, all reading one matrix
    chain      elementwise operators in a row, an LSTM after every 48 of them
    layers     LSTM and Squeeze again and again
    residual   x + LSTM(x), again and again, so that all units of all layers are coupled with the input
    moves      an LSTM, then Slice, Slice, Concat, Transpose, Transpose again and again

A quarter of the LSTMs' units is dead. Linear growth keeps the time per node constant.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

_HIDDEN = 16  # small, so that the time is the graph's and not the weights'
_DEAD = range(0, _HIDDEN, 4)


class _Graph:
    """A graph in the making; every value is `[T, B, 16]`."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, npt.NDArray[np.generic]] = {"one": np.array([1]), "half": np.array(0.5, np.float32)}
        self._random = np.random.default_rng(0)

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [out], name=f"{op_type}_{len(self.nodes)}", **attributes))
        return out

    def matrix(self, name: str, *shape: int) -> str:
        """Make a constant that does not read the dead units."""
        weights = (0.3 * self._random.standard_normal(shape)).astype(np.float32)
        weights[(..., list(_DEAD)) if len(shape) == 3 else (list(_DEAD),)] = 0
        self.constants[name] = weights
        return name

    def lstm(self, x: str) -> str:
        weights = [self.matrix(f"{kind}{len(self.nodes)}", 1, 4 * _HIDDEN, _HIDDEN) for kind in "WR"]
        return self.add("Squeeze", self.add("LSTM", x, *weights, hidden_size=_HIDDEN), "one")

    def save(self, path: Path, out: str) -> None:
        head = self.add("MatMul", out, self.matrix("head", _HIDDEN, 3))
        value = helper.make_tensor_value_info
        tensors = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "growing", [value("x", TensorProto.FLOAT, ["T", "B", _HIDDEN])],
                                  [value(head, TensorProto.FLOAT, ["T", "B", 3])], tensors)  # fmt: skip
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _unrolled(graph: _Graph, nodes: int) -> str:
    x = graph.lstm("x")
    matrix = graph.matrix("cell", _HIDDEN, 4 * _HIDDEN)
    graph.constants["quarters"] = np.full(4, _HIDDEN)
    h = c = x
    while len(graph.nodes) < nodes:
        gates = [f"gate{len(graph.nodes)}_{index}" for index in range(4)]
        product = graph.add("MatMul", h, matrix)
        graph.nodes.append(helper.make_node("Split", [product, "quarters"], gates, name=gates[0], axis=-1))
        i, f, o = (graph.add("Sigmoid", gate) for gate in gates[:3])
        fresh = graph.add("Mul", i, graph.add("Tanh", gates[3]))
        c = graph.add("Add", graph.add("Mul", f, c), fresh)
        h = graph.add("Mul", o, graph.add("Tanh", c))
    return h


def _chain(graph: _Graph, nodes: int) -> str:
    x = "x"
    while len(graph.nodes) < nodes:
        x = graph.lstm(x)
        for _ in range(16):
            x = graph.add("Add", graph.add("Tanh", graph.add("Mul", x, "half")), x)
    return x


def _layers(graph: _Graph, nodes: int) -> str:
    x = "x"
    while len(graph.nodes) < nodes:
        x = graph.lstm(x)
    return x


def _residual(graph: _Graph, nodes: int) -> str:
    x = "x"
    while len(graph.nodes) < nodes:
        x = graph.add("Add", x, graph.lstm(x))
    return x


def _moves(graph: _Graph, nodes: int) -> str:
    x = graph.lstm("x")
    graph.constants |= {"zero": np.array([0]), "eight": np.array([8]), "end": np.array([99]), "last": np.array([2])}
    while len(graph.nodes) < nodes:
        low, high = graph.add("Slice", x, "zero", "eight", "last"), graph.add("Slice", x, "eight", "end", "last")
        x = graph.add("Concat", high, low, axis=2)
        x = graph.add("Transpose", graph.add("Transpose", x, perm=[2, 0, 1]), perm=[1, 2, 0])
    return x


FAMILIES: dict[str, Callable[[_Graph, int], str]] = {
    "unrolled": _unrolled, "chain": _chain, "layers": _layers, "residual": _residual, "moves": _moves
}  # fmt: skip


def write_graph(path: Path, family: str, nodes: int) -> None:
    """Write a graph of a family with about so many nodes."""
    graph = _Graph()
    graph.save(path, FAMILIES[family](graph, nodes))


def measure(path: Path) -> tuple[dict[str, float], int]:
    """Return the seconds of each step, without verification, and the units that went."""
    from toolchain.graph.loading import load_model
    from toolchain.graph.normalise import normalise
    from toolchain.graph.surgery import apply_surgery, plan_surgery
    from toolchain.graph.unrolled import find_unrolled

    clock = [time.perf_counter()]
    model, _ = load_model(path)
    clock.append(time.perf_counter())
    normalised = normalise(model)
    clock.append(time.perf_counter())
    plan = plan_surgery(normalised.model.graph, carried=(), compact_state=False)
    clock.append(time.perf_counter())
    find_unrolled(normalised.model.graph)
    clock.append(time.perf_counter())
    apply_surgery(plan, normalised)
    clock.append(time.perf_counter())
    steps = ("read", "normalise", "plan", "unrolled", "rewrite")
    spent = {step: after - before for step, before, after in zip(steps, clock, clock[1:], strict=False)}
    return spent, plan.units_removed


@click.command()
@click.option("--nodes", default="625,1250,2500,5000", show_default=True, help="Sizes, with commas between.")
@click.option("--family", "families", multiple=True, type=click.Choice(list(FAMILIES)), help="Which [all].")
def main(nodes: str, families: tuple[str, ...]) -> None:
    """Print the seconds that each step takes on growing graphs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "warm.onnx"
        write_graph(path, "layers", 10)
        measure(path)  # what is imported on first use counts for none of them
        for family in families or FAMILIES:
            for size in map(int, nodes.split(",")):
                write_graph(path, family, size)
                seconds, removed = measure(path)
                total = sum(seconds.values())
                steps = "  ".join(f"{step} {spent:.2f}" for step, spent in seconds.items())
                click.echo(f"{family:<9} {size:>6} nodes {total:7.2f} s = {1e3 * total / size:5.2f} ms a node  "
                           f"({steps}); {removed} units removed")  # fmt: skip


if __name__ == "__main__":
    main()
