"""Explanations of a plan: what is live, what is coupled, and what a blocker costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import kill, layer_with_head, recurrent_weights, save, value
from onnx import TensorProto, helper

import toolchain
from toolchain.graph.explanation import Coupling, NodeExplanation, explain
from toolchain.graph.loading import load_model
from toolchain.graph.normalise import normalise
from toolchain.graph.operators import OPERATORS
from toolchain.graph.surgery import SurgeryPlan, plan_surgery

DEAD = (1, 4, 5)
RELU = [helper.make_node("Squeeze", ["Y", "one"], ["S"]), helper.make_node("Relu", ["S"], ["M"], name="relu")]
MEAN = [
    helper.make_node("Squeeze", ["Y", "one"], ["S"]),
    helper.make_node("ReduceMean", ["S"], ["M"], axes=[0], keepdims=0, name="mean"),
]
TURNED = [
    helper.make_node("Transpose", ["Y"], ["T"], perm=[0, 2, 3, 1], name="turn"),
    helper.make_node("Reshape", ["T", "shape"], ["M"]),
]
CONSTANTS = {"one": np.array([1]), "shape": np.array([0, 0, -1])}


def planned(path: Path, *, carried: Sequence[tuple[str, str]] = (), compact_state: bool = False) -> SurgeryPlan:
    model, _ = load_model(path)
    return plan_surgery(normalise(model).model.graph, carried=carried, compact_state=compact_state)


def explained(path: Path) -> tuple[NodeExplanation, ...]:
    return explain(planned(path))


def with_states(path: Path, outputs: Sequence[str]) -> Path:
    """Write an LSTM whose head reads five of eight units, and whose states are outputs of the model."""
    weights = recurrent_weights("LSTM", input_size=5, hidden_size=8)
    head = np.ones((8, 3), dtype=np.float32)
    kill(weights["R"], DEAD)
    kill(head, DEAD, axis=0)
    nodes = [
        helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y", "hn", "cn"], name="layer", hidden_size=8),
        helper.make_node("Squeeze", ["Y", "one"], ["M"]),
        helper.make_node("MatMul", ["M", "head"], ["Z"]),
    ]
    shapes = {"Z": ["T", "B", 3], "hn": [1, "B", 8], "cn": [1, "B", 8], "Y": ["T", 1, "B", 8]}
    constants = {**weights, "head": head, **CONSTANTS}
    return save(path, nodes, [value("X", ["T", "B", 5])], [value(name, shapes[name]) for name in outputs], constants)


def test_live_units_are_those_that_something_reads(tmp_path: Path) -> None:
    (node,) = explained(layer_with_head(tmp_path / "m.onnx", dead=[DEAD]))
    assert (node.name, node.op_type, node.hidden_size, node.live, node.kept) == ("layer", "LSTM", 8, (5,), 5)
    assert (node.coupled_with, node.blocked_by, node.would_free_together) == ((), (), None)


def test_a_direction_may_keep_more_than_are_live_so_that_both_keep_equally_many(tmp_path: Path) -> None:
    (node,) = explained(layer_with_head(tmp_path / "m.onnx", directions=2, dead=[(1, 4, 5), (2,)]))
    assert (node.live, node.kept) == ((5, 7), 7)


@pytest.mark.parametrize(("operator", "middle", "rank"), [("Relu", RELU, 3), ("ReduceMean", MEAN, 2)])
def test_a_blocker_costs_the_units_that_go_where_it_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: str, middle: list[onnx.NodeProto], rank: int
) -> None:
    # The head does not read unit 0, but living units do.
    path = layer_with_head(
        tmp_path / "m.onnx", dead=[DEAD], dead_rows=[0, *DEAD], middle=middle, extra=CONSTANTS, out_rank=rank
    )
    truth = planned(path).units_removed
    assert truth == 3
    monkeypatch.delitem(OPERATORS, operator)
    blocked = planned(path)
    assert blocked.units_removed == 0
    (node,) = explain(blocked)
    assert (node.live, node.kept) == ((8,), 8)
    (blocker,) = node.blocked_by
    assert (blocker.node, blocker.op_type, blocker.would_free) == (middle[-1].name, operator, truth)
    assert blocker.reason == "no transfer function is known for this operator"


def test_explaining_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = layer_with_head(tmp_path / "m.onnx", dead=[DEAD], middle=RELU, extra=CONSTANTS)
    monkeypatch.delitem(OPERATORS, "Relu")
    plan = planned(path)
    kept = plan.layout.kept.mask.copy()
    assert explain(plan) == explain(plan)
    np.testing.assert_array_equal(plan.layout.kept.mask, kept)


def test_the_price_of_a_blocker_that_moves_the_axis_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = layer_with_head(tmp_path / "m.onnx", dead=[DEAD], middle=TURNED, extra=CONSTANTS)
    monkeypatch.delitem(OPERATORS, "Transpose")
    (node,) = explained(path)
    assert [(blocker.node, blocker.would_free) for blocker in node.blocked_by] == [("turn", None)]
    assert node.would_free_together is None


def test_an_output_that_alone_keeps_units_has_its_price(tmp_path: Path) -> None:
    (node,) = explained(with_states(tmp_path / "m.onnx", ["Z", "hn"]))
    assert [(blocker.node, blocker.would_free) for blocker in node.blocked_by] == [("hn", 3)]
    assert node.coupled_with == ()  # a state that keeps its shape is bridged


def test_a_state_whose_shape_may_shrink_is_coupled_with_the_units(tmp_path: Path) -> None:
    weights = recurrent_weights("RNN", input_size=5, hidden_size=8)
    nodes = [
        helper.make_node("RNN", ["X", "W", "R", "B", "", "h0"], ["Y", "hn"], name="layer", hidden_size=8),
        helper.make_node("Squeeze", ["Y", "one"], ["M"]),
        helper.make_node("MatMul", ["M", "head"], ["Z"]),
    ]
    constants = {**weights, "head": np.ones((8, 3), dtype=np.float32), **CONSTANTS}
    inputs = [value("X", ["T", "B", 5]), value("h0", [1, "B", 8])]
    path = save(tmp_path / "m.onnx", nodes, inputs, [value("Z", ["T", "B", 3]), value("hn", [1, "B", 8])], constants)
    (node,) = explain(planned(path, carried=[("h0", "hn")], compact_state=True))
    assert node.coupled_with == (Coupling(name="h0", part="graph input"), Coupling(name="hn", part="graph output"))
    (node,) = explain(planned(path, carried=[("h0", "hn")]))
    assert node.coupled_with == ()


def test_a_node_whose_weights_are_computed_blocks_itself_at_an_unknown_price(tmp_path: Path) -> None:
    weights = recurrent_weights("GRU", input_size=8, hidden_size=8)
    nodes = [
        helper.make_node("Mul", ["W", "scale"], ["scaled"]),
        helper.make_node("GRU", ["X", "scaled", "R"], ["Y"], name="layer", hidden_size=8),
        helper.make_node("Squeeze", ["Y", "one"], ["M"]),
        helper.make_node("MatMul", ["M", "head"], ["Z"]),
    ]
    constants = {"W": weights["W"], "R": weights["R"], "head": np.zeros((8, 3), dtype=np.float32), **CONSTANTS}
    inputs = [value("X", ["T", "B", 8]), value("scale", [1])]
    (node,) = explained(save(tmp_path / "m.onnx", nodes, inputs, [value("Z", ["T", "B", 3])], constants))
    assert (node.live, node.kept) == ((8,), 8)
    assert [(blocker.node, blocker.would_free) for blocker in node.blocked_by] == [("layer", None)]
    assert "is computed at run time, not a constant" in node.blocked_by[0].reason


def test_two_outputs_that_keep_the_same_units_have_a_price_together(tmp_path: Path) -> None:
    (node,) = explained(with_states(tmp_path / "m.onnx", ["Z", "hn", "cn"]))
    assert {blocker.node: blocker.would_free for blocker in node.blocked_by} == {"hn": 0, "cn": 0}
    assert node.would_free_together == 3


def test_the_only_output_has_no_price(tmp_path: Path) -> None:
    (node,) = explained(with_states(tmp_path / "m.onnx", ["Y"]))
    assert [(blocker.node, blocker.would_free) for blocker in node.blocked_by] == [("Y", None)]
    assert Coupling(name="Y", part="graph output") in node.coupled_with


def test_layers_that_are_added_are_coupled_and_a_chain_is_coupled_with_the_next_input(tmp_path: Path) -> None:
    weights = recurrent_weights("GRU", input_size=8, hidden_size=8)
    first = {f"{name}0": array for name, array in recurrent_weights("GRU", input_size=5, hidden_size=8).items()}
    nodes = [
        helper.make_node("GRU", ["X", "W0", "R0", "B0"], ["Y0"], name="below", hidden_size=8),
        helper.make_node("Squeeze", ["Y0", "one"], ["S0"]),
        helper.make_node("GRU", ["S0", "W", "R", "B"], ["Y1"], name="above", hidden_size=8),
        helper.make_node("Squeeze", ["Y1", "one"], ["S1"]),
        helper.make_node("Add", ["S0", "S1"], ["M"]),
        helper.make_node("MatMul", ["M", "head"], ["Z"]),
    ]
    constants = {**weights, **first, "head": np.ones((8, 3), dtype=np.float32), **CONSTANTS}
    path = save(tmp_path / "m.onnx", nodes, [value("X", ["T", "B", 5])], [value("Z", ["T", "B", 3])], constants)
    below, above = explained(path)
    assert below.coupled_with == (Coupling(name="above", part="units"), Coupling(name="above", part="input"))
    assert above.coupled_with == (Coupling(name="below", part="units"), Coupling(name="above", part="input"))


def test_nodes_inside_a_subgraph_are_explained_with_the_others(tmp_path: Path) -> None:
    weights = recurrent_weights("GRU", input_size=5, hidden_size=8)
    gru = helper.make_node("GRU", ["X", "W", "R", "B"], ["", "inner"], name="hidden", hidden_size=8)
    other = helper.make_node("GRU", ["X", "W", "R", "B"], ["", "inner2"], name="other", hidden_size=8)
    branches = [
        helper.make_graph([node], name, [], [value(node.output[1], None)])
        for node, name in ((gru, "then"), (other, "else"))
    ]
    nodes = [helper.make_node("If", ["flag"], ["Z"], then_branch=branches[0], else_branch=branches[1])]
    inputs = [value("X", ["T", "B", 5]), value("flag", [], TensorProto.BOOL)]
    path = save(tmp_path / "m.onnx", nodes, inputs, [value("Z", [1, "B", 8])], weights)
    explanations = {explanation.name: explanation for explanation in explained(path)}
    assert set(explanations) == {"hidden", "other"}
    assert Coupling(name="other", part="units") in explanations["hidden"].coupled_with  # they share their weights
    (blocker,) = explanations["hidden"].blocked_by
    assert (blocker.node, blocker.op_type) == ("Z", "graph output")


def test_a_quantized_lstm_is_explained_by_its_range(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "W": rng.integers(-9, 9, (1, 5, 32)).astype(np.int8),
        "R": rng.integers(-9, 9, (1, 8, 32)).astype(np.int8),
        "scale": np.array([0.1], dtype=np.float32),
        "zero": np.array([0], dtype=np.int8),
    }
    inputs = ["X", "W", "R", "", "", "", "", "", "scale", "zero", "scale", "zero"]
    nodes = [helper.make_node("DynamicQuantizeLSTM", inputs, ["Y"], domain="com.microsoft", name="q", hidden_size=8)]
    path = save(tmp_path / "m.onnx", nodes, [value("X", ["T", "B", 5])], [value("Y", ["T", 1, "B", 8])], constants)
    (node,) = toolchain.shrink(path, dry_run=True, explained=True).explanations
    assert (node.op_type, node.live, node.kept) == ("DynamicQuantizeLSTM", (8,), 8)
    assert {blocker.op_type for blocker in node.blocked_by} == {"DynamicQuantizeLSTM", "graph output"}
