"""The recurrent node cases of the onnx package, each with weights as constants and dead units planted.

ONNX Runtime on the planted model is the oracle; where the case is forward, ONNX's own reference must agree as well.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test.case.node as node_cases
import pytest
from graphs import constant, kill, recurrent_shapes, run, value
from onnx import helper
from onnx.backend.test.case.test_case import TestCase
from onnx.reference import ReferenceEvaluator

import toolchain

MODULES = ("lstm", "gru", "rnn")
WEIGHTS = ("W", "R", "B", "P")


def recurrent_cases() -> dict[str, TestCase]:
    for name in MODULES:
        importlib.import_module(f"{node_cases.__name__}.{name}")
    ops = ("LSTM", "GRU", "RNN")
    return {case.name: case for case in node_cases._NodeTestCases if case.model.graph.node[0].op_type in ops}


CASES = recurrent_cases()


def planted(case: TestCase, path: Path) -> tuple[dict[str, np.ndarray], int]:
    """Write the case's model, every output read by a head; return its other inputs and how many units may stay."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph, node = model.graph, model.graph.node[0]
    given = dict(zip((known.name for known in graph.input), case.data_sets[0][0], strict=True))
    hidden = given["R"].shape[2]
    dead = list(range(1, hidden, 2))
    given["R"] = given["R"].copy()
    kill(given["R"], dead)
    head = np.random.default_rng(0).standard_normal((hidden, 2)).astype(np.float32)
    kill(head, dead, axis=0)
    graph.initializer.extend(constant(name, given.pop(name)) for name in WEIGHTS if name in given)
    graph.initializer.append(constant("head", head))
    kept = [known for known in graph.input if known.name in given]
    del graph.input[:], graph.output[:]
    graph.input.extend(kept)
    for name in filter(None, list(node.output)):
        graph.node.append(helper.make_node("MatMul", [name, "head"], [f"{name}_read"]))
        graph.output.append(value(f"{name}_read", [None] * (4 if name == "Y" else 3)))
    onnx.save(model, path)
    return given, hidden - len(dead)


def test_all_cases_were_found() -> None:
    assert len(CASES) >= 18, sorted(CASES)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_planted_dead_units_go_from_the_cases_of_the_specification(case: TestCase, tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    feeds, left = planted(case, source)
    result = toolchain.shrink(source)
    (node,) = result.nodes
    attributes = {
        attribute.name: helper.get_attribute_value(attribute) for attribute in case.model.graph.node[0].attribute
    }
    if attributes.get("layout"):
        assert result.status == "nothing_to_remove"
        assert "layout=1, which ONNX Runtime does not run" in node.blocked_by[0].reason
        return
    assert node.hidden_after == left
    assert [shape[1] for shape in recurrent_shapes(result.output)] == [left]
    expected, actual = run(source, feeds), run(result.output, feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, atol=1e-6)
    if attributes.get("direction", b"forward") == b"forward" and "sequence_lens" not in feeds:
        reference = ReferenceEvaluator(onnx.load(result.output))
        for name, array in zip(expected, reference.run(list(expected), feeds), strict=True):
            np.testing.assert_allclose(array, expected[name], atol=1e-5)
