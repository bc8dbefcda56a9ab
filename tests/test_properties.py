"""Random recurrent graphs: shrunk equals zeroed, every planted dead unit goes, twice equals once.

`python -m pytest tests/test_properties.py` tries 300 graphs, `make fuzz` 10,000 others.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from graphs import kill, recurrent_shapes, recurrent_weights, run, save, value
from hypothesis import HealthCheck, event, given, settings
from onnx import TensorProto, helper
from random_books import STATIC_BATCH, TOKENS, RandomGraph
from random_graphs import random_graphs

import toolchain
from toolchain.graph.carried import find_state
from toolchain.graph.normalise import normalise
from toolchain.shrink_result import ShrinkResult

SHAPES = ((1, 1), (4, 3))
CALLS = 3
# Sums of a few dozen products of numbers below one; their order changes when zeros are taken out.
ATOL, RTOL = 2e-6, 1e-5
# ONNX Runtime computes float16 in float32, with casts between operators that it leaves out where it can.
HALF_ATOL, HALF_RTOL = 5e-3, 5e-3

# How many graphs to draw at random; the default run draws the same 300 every time.
FUZZ = os.environ.get("FUZZ_GRAPHS")
GRAPHS = settings(max_examples=int(FUZZ or 300), derandomize=FUZZ is None, deadline=None,
                  suppress_health_check=list(HealthCheck))  # fmt: skip


def feeds_of(graph: RandomGraph, steps: int, batch: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng((seed, steps, batch))
    feeds: dict[str, np.ndarray] = {}
    for known in graph.inputs:
        lengths = {"T": steps, "B": batch}
        dims = known.type.tensor_type.shape.dim
        shape = [dim.dim_value or lengths[dim.dim_param] for dim in dims]
        element = known.type.tensor_type.elem_type
        if element in (TensorProto.FLOAT, TensorProto.FLOAT16):
            feeds[known.name] = rng.standard_normal(shape).astype(graph.dtype)
        elif element == TensorProto.INT32:
            feeds[known.name] = rng.integers(1, steps + 1, shape).astype(np.int32)
        else:
            feeds[known.name] = rng.integers(0, TOKENS, shape)
    return feeds


def assert_equal_outputs(graph: RandomGraph, source: Path, shrunk: Path) -> None:
    """Compare all outputs but carried state, over calls that feed the state back."""
    states = {out for _, out in graph.carried}
    atol, rtol = (ATOL, RTOL) if graph.dtype == np.float32 else (HALF_ATOL, HALF_RTOL)
    for steps, batch in ((4, STATIC_BATCH),) if graph.static_batch else SHAPES:
        fed_back: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
        for call in range(CALLS if graph.carried else 1):
            feeds = feeds_of(graph, steps, batch, call)
            expected, actual = (
                run(path, feeds | state) for path, state in zip((source, shrunk), fed_back, strict=True)
            )
            assert expected.keys() == actual.keys()
            for name, array in expected.items():
                assert (actual[name].shape, actual[name].dtype) == (array.shape, array.dtype)
                if name not in states:
                    np.testing.assert_allclose(actual[name], array, atol=atol, rtol=rtol)
            fed_back = tuple({into: results[out] for into, out in graph.carried} for results in (expected, actual))


def assert_sizes(graph: RandomGraph, result: ShrinkResult) -> None:
    """Check that exactly the planted dead units went, and that what blocks is named."""
    expected = graph.expected_sizes()
    event(result.status)
    event("exact" if graph.exact else "bounded")
    kept_by_name = graph.opaque and any(node.blocked_by for node in result.nodes)
    for node, (input_size, hidden_size) in zip(result.nodes, expected, strict=True):
        got, wanted = (node.input_after, node.hidden_after), (max(1, input_size), max(1, hidden_size))
        if graph.exact and not kept_by_name:
            assert got == wanted, node
    for node in result.nodes:
        assert graph.blocked.get(node.name, set()) <= {blocker.node for blocker in node.blocked_by}


@GRAPHS
@given(graph=random_graphs())
def test_a_random_graph_loses_its_planted_dead_units_and_nothing_else(graph: RandomGraph) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, shrunk = Path(folder) / "m.onnx", Path(folder) / "m.shrunk.onnx"
        onnx.save(graph.model(), source)
        before = source.read_bytes()
        result = toolchain.shrink(source, carried=graph.carried)
        assert source.read_bytes() == before
        assert_sizes(graph, result)
        if not graph.opaque:
            assert set(graph.carried) <= set(find_state(normalise(ir.load(source)).model.graph))
        if result.output is None:
            return
        assert_equal_outputs(graph, source, shrunk)
        onnx.checker.check_model(onnx.load(shrunk), full_check=True)
        assert toolchain.shrink(shrunk, carried=graph.carried).status == "nothing_to_remove"


def test_a_twin_that_nobody_reads_has_no_say_in_what_the_other_loses() -> None:
    weights = recurrent_weights("GRU", input_size=5, hidden_size=8, directions=2)
    head = np.random.default_rng(1).standard_normal((16, 3)).astype(np.float32)
    for direction, dead in enumerate([(1, 4), (0, 2)]):
        kill(weights["R"][direction], dead)
        kill(head, [8 * direction + unit for unit in dead], axis=0)
    numbers = {"flat": [0, 0, 16], "start": [0], "end": [16], "one": [1], "two": [2]}
    attributes = {"hidden_size": 8, "direction": "bidirectional"}
    nodes = [
        helper.make_node("Neg", ["X"], ["N"], name="negated"),
        helper.make_node("GRU", ["X", "W", "R", "B"], ["Y"], name="read", **attributes),
        helper.make_node("GRU", ["N", "W", "R", "B"], ["U"], name="unread", **attributes),
        helper.make_node("Transpose", ["Y"], ["Yt"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["Yt", "flat"], ["S"]),
        helper.make_node("ReduceSum", ["U", "one"], ["V"], keepdims=0),  # pairs the directions of the unread node
        helper.make_node("Concat", ["S", "V"], ["both"], axis=2),
        helper.make_node("Slice", ["both", "start", "end", "two"], ["M"]),
        helper.make_node("MatMul", ["M", "head"], ["Z"], name="head"),
    ]
    constants = {**weights, "head": head, **{name: np.array(array) for name, array in numbers.items()}}
    with tempfile.TemporaryDirectory() as folder:
        source, shrunk = Path(folder) / "m.onnx", Path(folder) / "m.shrunk.onnx"
        save(source, nodes, [value("X", ["T", "B", 5])], [value("Z", ["T", "B", 3])], constants)
        toolchain.shrink(source)
        assert recurrent_shapes(shrunk) == [(5, 6)]
        X = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
        np.testing.assert_allclose(run(shrunk, {"X": X})["Z"], run(source, {"X": X})["Z"], atol=ATOL)
        assert toolchain.shrink(shrunk).status == "nothing_to_remove"
