"""Recurrent nodes inside If, Loop, Scan and functions: cut as planted, and ONNX Runtime finds no difference."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import GATES, constant, in_both_branches, kill, recurrent_weights, run, save, value
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper
from random_books import STATIC_BATCH, RandomGraph
from random_graphs import random_graphs
from test_properties import feeds_of

import toolchain
from toolchain.cli import cli
from toolchain.errors import ParityError
from toolchain.graph.branches import BODY, ELSE, THEN, Branch
from toolchain.interface import read_interface
from toolchain.verification import runnable, verify

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


def choice(
    path: Path,
    then: onnx.GraphProto,
    other: onnx.GraphProto,
    constants: dict[str, np.ndarray],
    after: Sequence[onnx.NodeProto] = (),
    flags: Sequence[str] = ("flag",),
) -> Path:
    """Write `Z = If(flag, then, other) @ head`; more nodes may follow."""
    nodes = [
        helper.make_node("If", ["flag"], ["chosen"], name="choose", then_branch=then, else_branch=other),
        helper.make_node("MatMul", ["chosen", "head"], ["Z"]),
        *after,
    ]
    inputs = [value("X", ["T", "B", 5]), *(value(flag, [], TensorProto.BOOL) for flag in flags)]
    return save(path, nodes, inputs, [value("Z", ["T", "B", 3])], constants)


def test_both_branches_of_an_if_share_their_outer_weights_and_go_on_sharing_them(tmp_path: Path) -> None:
    constants = {**planted(), **planted_head(), **ONE}
    source = choice(tmp_path / "m.onnx", lstm_branch("yes"), lstm_branch("no"), constants)
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE), (5, LIVE)]
    assert len([t for t in onnx.load(result.output).graph.initializer if t.name.startswith("R")]) == 1
    for flag in FLAGS:
        assert_equal(source, result.output, {"X": sequence(), "flag": flag})


def test_branches_with_weights_of_their_own_under_equal_names_are_cut(tmp_path: Path) -> None:
    then, other = (lstm_branch(name, constants=planted(seed=seed) | ONE) for name, seed in (("yes", 1), ("no", 2)))
    source = choice(tmp_path / "m.onnx", then, other, planted_head())
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE), (5, LIVE)]
    for flag in FLAGS:
        assert_equal(source, result.output, {"X": sequence(), "flag": flag})


def test_an_lstm_in_one_branch_only_narrows_the_zeros_of_the_other(tmp_path: Path) -> None:
    other = body("no", [
        helper.make_node("Shape", ["X"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "two"], ["lengths"]),
        helper.make_node("Concat", ["lengths", "eight"], ["wanted"], axis=0),
        helper.make_node("ConstantOfShape", ["wanted"], ["zeros"]),
    ], [], ["zeros"])  # fmt: skip
    numbers = {"zero": np.array([0]), "two": np.array([2]), "eight": np.array([8])}
    source = choice(tmp_path / "m.onnx", lstm_branch("yes"), other, planted() | planted_head() | ONE | numbers)
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE)]
    for flag in FLAGS:
        assert_equal(source, result.output, {"X": sequence(), "flag": flag})


def test_nested_ifs_are_cut_and_every_branch_of_them_is_run(tmp_path: Path) -> None:
    inner = body("inner", [helper.make_node("If", ["other"], ["chosen_inside"], name="inside",
                                            then_branch=lstm_branch("a", weights="a"),
                                            else_branch=lstm_branch("b", weights="b"))],
                 [], ["chosen_inside"])  # fmt: skip
    constants = planted(suffix="a", seed=1) | planted(suffix="b", seed=2) | planted(suffix="c", seed=3)
    source = choice(tmp_path / "m.onnx", inner, lstm_branch("c", weights="c"), constants | planted_head() | ONE,
                    flags=("flag", "other"))  # fmt: skip
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE)] * 3
    yes, no = Branch(node="chosen", part=THEN), Branch(node="chosen", part=ELSE)
    inside = [Branch(node="chosen_inside", part=part) for part in (THEN, ELSE)]
    forced = {case.case.forced for case in result.parity.cases}
    assert forced == {(), (yes,), (no,), (yes, inside[0]), (yes, inside[1])}
    for flag in FLAGS:
        for other in FLAGS:
            assert_equal(source, result.output, {"X": sequence(), "flag": flag, "other": other})


def test_outer_values_that_a_branch_captures_are_cut_inside_and_outside(tmp_path: Path) -> None:
    """An LSTM before the If; one branch applies a matrix to its `Y`, the other returns it as it is."""
    square = np.random.default_rng(2).standard_normal((8, 8)).astype(np.float32)
    kill(square, DEAD, axis=0)
    then = body("yes", [helper.make_node("MatMul", ["outer", "square"], ["moved"])], [], ["moved"])
    other = body("no", [helper.make_node("Identity", ["outer"], ["same"])], [], ["same"])
    nodes = [
        recurrent("LSTM", ["X", "W", "R", "B"], ["Y"]),
        helper.make_node("Squeeze", ["Y", "one"], ["outer"]),
        helper.make_node("If", ["flag"], ["chosen"], then_branch=then, else_branch=other),
        helper.make_node("Add", ["chosen", "outer"], ["sum"]),
        helper.make_node("MatMul", ["sum", "head"], ["Z"]),
    ]
    inputs = [value("X", ["T", "B", 5]), value("flag", [], TensorProto.BOOL)]
    constants = planted() | planted_head() | ONE | {"square": square}
    source = save(tmp_path / "m.onnx", nodes, inputs, [value("Z", ["T", "B", 3])], constants)
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE)]
    shapes = {tensor.name: list(tensor.dims) for tensor in onnx.load(result.output).graph.initializer}
    assert shapes["square_kept"] == [LIVE, LIVE]
    for flag in FLAGS:
        assert_equal(source, result.output, {"X": sequence(), "flag": flag})


def test_branches_of_different_shapes_are_blocked_and_what_lies_inside_is_still_cut(tmp_path: Path) -> None:
    """The branches return `Y` projected to 3 and to 1: the If is not understood, the LSTMs inside are."""
    narrow = {"narrow": planted_head()["head"][:, :1]}
    branches = [
        body(name, [
            recurrent("LSTM", ["X", "W", "R", "B"], [f"Y_{name}"]),
            helper.make_node("MatMul", [f"Y_{name}", matrix], [f"z_{name}"]),
        ], [], [f"z_{name}"])
        for name, matrix in (("yes", "head"), ("no", "narrow"))
    ]  # fmt: skip
    nodes = [helper.make_node("If", ["flag"], ["Z"], name="choose", then_branch=branches[0], else_branch=branches[1])]
    inputs = [value("X", ["T", "B", 5]), value("flag", [], TensorProto.BOOL)]
    constants = planted() | planted_head() | narrow
    source = save(tmp_path / "m.onnx", nodes, inputs, [value("Z", ["T", 1, "B", None])], constants)
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE), (5, LIVE)]
    for flag in FLAGS:
        assert_equal(source, result.output, {"X": sequence(), "flag": flag})


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


@pytest.mark.parametrize("initial", ["input", "constant", "zero"])
@pytest.mark.parametrize("stale", [False, True])
def test_a_loop_over_chunks_carries_fewer_units(initial: str, stale: bool, tmp_path: Path) -> None:
    source = chunked(tmp_path / "m.onnx", initial=initial)
    if stale:  # what an exporter wrote down from another example
        model = onnx.load(source)
        (loop,) = [node.attribute[0].g for node in model.graph.node if node.op_type == "Loop"]
        loop.output[3].CopyFrom(value("y", [9, 9, 9]))
        onnx.save(model, source)
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE)]
    batch = 1 if initial == "constant" else 2
    feeds = {"chunks": sequence(3, 4, batch, 5)}
    if initial == "input":
        feeds |= {"h0": 0.3 * sequence(1, 2, 8), "c0": 0.2 * sequence(1, 2, 8)}
    assert_equal(source, result.output, feeds)


def test_a_loop_without_states_keeps_its_two_inputs(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["go"], ["go_on"]), recurrent("LSTM", ["X", "W", "R", "B"], ["Y"])]
    loop = body("b", nodes, [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL)], ["go_on", "Y"])
    outer = [
        helper.make_node("Loop", ["count", ""], ["ys"], body=loop),
        helper.make_node("MatMul", ["ys", "head"], ["Z"]),
    ]
    constants = planted() | planted_head() | {"count": np.array(2)}
    source = save(tmp_path / "m.onnx", outer, [value("X", ["T", "B", 5])], [value("Z", [None] * 5)], constants)
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE)]
    assert_equal(source, result.output, {"X": sequence()})


def test_layers_in_a_loop_that_share_one_zero_state_are_cut_each_for_itself(tmp_path: Path) -> None:
    """Two GRUs, of three and of two dead units; onnxsim leaves them one ConstantOfShape for both states."""
    lower, upper = planted("GRU", suffix="1"), recurrent_weights("GRU", input_size=8, hidden_size=8, seed=1)
    kill(upper["W"], DEAD)
    kill(upper["R"], [0, 7])
    head = planted_head()["head"].copy()
    head[:] = np.random.default_rng(2).standard_normal(head.shape)
    kill(head, [0, 7], axis=0)
    nodes = [
        helper.make_node("Identity", ["go"], ["go_on"]),
        helper.make_node("Gather", ["chunks", "step"], ["X"], axis=0),
        recurrent("GRU", ["X", "W1", "R1", "B1", "", "h1"], ["Y1", "h1_next"]),
        helper.make_node("Squeeze", ["Y1", "one"], ["X2"]),
        recurrent("GRU", ["X2", "W2", "R2", "B2", "", "h2"], ["Y2", "h2_next"]),
        helper.make_node("Squeeze", ["Y2", "one"], ["y"]),
    ]
    inputs = [value("step", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("h1", None),
              value("h2", None)]  # fmt: skip
    loop = body("body", nodes, inputs, ["go_on", "h1_next", "h2_next", "y"])
    outer = [
        helper.make_node("Shape", ["chunks"], ["shape"]),
        helper.make_node("Slice", ["shape", "two", "three"], ["batch"]),
        helper.make_node("Concat", ["one", "batch", "eight"], ["wanted"], axis=0),
        helper.make_node("ConstantOfShape", ["wanted"], ["h0"]),
        helper.make_node("Identity", ["h0"], ["h0_again"]),
        helper.make_node("Loop", ["count", "", "h0", "h0_again"], ["last1", "last2", "ys"], body=loop),
        helper.make_node("MatMul", ["ys", "head"], ["Z"]),
    ]
    constants = lower | {f"{name}2": array for name, array in upper.items()} | ONE | {"head": head}
    constants |= {"count": np.array(3), "two": np.array([2]), "three": np.array([3]), "eight": np.array([8])}
    chunks = [value("chunks", [3, "T", "B", 5])]
    source = save(tmp_path / "m.onnx", outer, chunks, [value("Z", [3, None, None, 3])], constants)
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE), (LIVE, 6)]
    assert_equal(source, result.output, {"chunks": sequence(3, 4, 2, 5)})


def test_a_loop_body_that_returns_one_value_twice_is_cut(tmp_path: Path) -> None:
    source = chunked(tmp_path / "m.onnx", initial="zero", twice=True)
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE)]
    assert_equal(source, result.output, {"chunks": sequence(3, 4, 2, 5)})


def test_a_state_that_grows_from_step_to_step_is_not_taken_for_its_first_shape(tmp_path: Path) -> None:
    """Every step appends its `Y` to what was collected by hand; only the growing axis is unknown."""
    nodes = [
        helper.make_node("Identity", ["go"], ["go_on"]),
        helper.make_node("Gather", ["chunks", "step"], ["X"], axis=0),
        recurrent("LSTM", ["X", "W", "R", "B"], ["Y"]),
        helper.make_node("Squeeze", ["Y", "one"], ["y"]),
        helper.make_node("Concat", ["so_far", "y"], ["more"], axis=0),
    ]
    inputs = [value("step", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("so_far", None)]
    loop = body("body", nodes, inputs, ["go_on", "more"])
    outer = [
        helper.make_node("Loop", ["count", "", "start"], ["grown"], body=loop),
        helper.make_node("MatMul", ["grown", "head"], ["Z"]),
    ]
    start = np.random.default_rng(5).standard_normal((1, 2, 8)).astype(np.float32)
    constants = planted() | planted_head() | ONE | {"start": start, "count": np.array(3)}
    chunks = [value("chunks", [3, "T", 2, 5])]
    source = save(tmp_path / "m.onnx", outer, chunks, [value("Z", [None, 2, 3])], constants)
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE)]
    assert_equal(source, result.output, {"chunks": sequence(3, 4, 2, 5)})


def test_a_carried_state_that_must_keep_its_shape_is_bridged_inside_the_body(tmp_path: Path) -> None:
    """The loop's states are the model's own, so they stay whole; the gather and scatter go where the LSTM is."""
    source = chunked(tmp_path / "m.onnx", initial="input")
    model = onnx.load(source)
    model.graph.output.extend([value("h_last", [1, "B", 8]), value("c_last", [1, "B", 8])])
    onnx.save(model, source)
    assert toolchain.shrink(source).status == "nothing_to_remove"
    result = toolchain.shrink(source, carried="auto")
    assert set(result.carried) == {("h0", "h_last"), ("c0", "c_last")}
    assert sizes(result.output) == [(5, LIVE)]
    h, c = (0.3 * sequence(1, 2, 8) for _ in range(2))
    dead = [unit for unit in range(8) if unit in DEAD]
    for call in range(3):
        feeds = {"chunks": sequence(2, 4, 2, 5) * (call + 1), "h0": h, "c0": c}
        wanted, found = run(source, feeds), run(result.output, feeds)
        np.testing.assert_allclose(found["Z"], wanted["Z"], atol=1e-5)
        h, c = wanted["h_last"], wanted["c_last"]
        assert found["h_last"].shape == h.shape
        assert not found["h_last"][..., dead].any()


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


def test_a_scan_over_time_with_one_step_of_a_gru_is_cut(tmp_path: Path) -> None:
    source = scanned_steps(tmp_path / "m.onnx")
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE)]
    assert_equal(source, result.output, {"xs": sequence(), "h0": 0.3 * sequence(1, 2, 8)})


@pytest.mark.parametrize("in_axis", [1, -3])
@pytest.mark.parametrize("out_axis", [0, 2])
def test_a_scan_along_another_axis_cuts_the_lstm_in_it(in_axis: int, out_axis: int, tmp_path: Path) -> None:
    """[T, groups, B, 5], scanned over the groups; a layer before it loses what the LSTM inside does not read."""
    weights = planted()
    kill(weights["W"], [2, 3])
    nodes = [
        recurrent("LSTM", ["X", "W", "R", "B"], ["Y"]),
        helper.make_node("Squeeze", ["Y", "one"], ["y"]),
    ]
    scan = body("body", nodes, [value("X", None)], ["y"])
    outer = [
        helper.make_node("MatMul", ["raw", "front"], ["xs"]),
        helper.make_node("Scan", ["xs"], ["ys"], body=scan, num_scan_inputs=1, scan_input_axes=[in_axis],
                         scan_output_axes=[out_axis]),
        helper.make_node("MatMul", ["ys", "head"], ["Z"]),
    ]  # fmt: skip
    front = np.random.default_rng(4).standard_normal((6, 5)).astype(np.float32)
    constants = weights | planted_head() | ONE | {"front": front}
    raw = value("raw", ["T", 3, "B", 6])
    source = save(tmp_path / "m.onnx", outer, [raw], [value("Z", [None] * 4)], constants)
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(3, LIVE)]
    assert_equal(source, result.output, {"raw": sequence(4, 3, 2, 6)})


def test_a_function_with_an_lstm_that_is_called_twice_is_cut_alike(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    inner = [
        recurrent("LSTM", ["x", "w", "r", "b"], ["y4"]),
        helper.make_node("Constant", [], ["axis"], value_ints=[1]),
        helper.make_node("Squeeze", ["y4", "axis"], ["y"]),
    ]
    function = helper.make_function("own", "layer", ["x", "w", "r", "b"], ["y"], inner, opsets)
    nodes = [
        helper.make_node("layer", ["X", "W", "R", "B"], ["first"], domain="own"),
        helper.make_node("Tanh", ["X"], ["X2"]),
        helper.make_node("layer", ["X2", "W", "R", "B"], ["second"], domain="own"),
        helper.make_node("Add", ["first", "second"], ["sum"]),
        helper.make_node("MatMul", ["sum", "head"], ["Z"]),
    ]
    source = save(tmp_path / "m.onnx", nodes, [value("X", ["T", "B", 5])], [value("Z", ["T", "B", 3])],
                  planted() | planted_head())  # fmt: skip
    model = onnx.load(source)
    model.functions.append(function)
    model.opset_import.append(opsets[1])
    onnx.save(model, source)
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE), (5, LIVE)]
    assert len([t for t in onnx.load(result.output).graph.initializer if t.name.startswith("R")]) == 1
    assert_equal(source, result.output, {"X": sequence()})


def rated(path: Path) -> Path:
    """Write an If on a sample rate, which random inputs set to 16000: the else branch never runs by itself."""
    constants = planted(suffix="a", seed=1) | planted(suffix="b", seed=2) | planted_head() | ONE
    nodes = [
        helper.make_node("Equal", ["sr", "rate"], ["wide"]),
        helper.make_node("If", ["wide"], ["chosen"], name="choose", then_branch=lstm_branch("yes", weights="a"),
                         else_branch=lstm_branch("no", weights="b")),
        helper.make_node("MatMul", ["chosen", "head"], ["Z"]),
    ]  # fmt: skip
    inputs = [value("X", ["T", "B", 5]), value("sr", [], TensorProto.INT64)]
    constants |= {"rate": np.array(16000)}
    return save(path, nodes, inputs, [value("Z", ["T", "B", 3])], constants)


def with_wrong_weight(path: Path, name: str) -> Path:
    model = onnx.load(path)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    array = numpy_helper.to_array(tensor).copy()
    array[0, 3, 2] += 0.5
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    target = path.with_name("wrong.onnx")
    onnx.save(model, target)
    return target


def test_a_wrong_weight_in_a_branch_that_random_inputs_never_take_is_caught(tmp_path: Path) -> None:
    source = rated(tmp_path / "m.onnx")
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE), (5, LIVE)]
    wrong = with_wrong_weight(result.output, "Rb_kept")
    reference = read_interface(source)
    never = (Branch(node="chosen", part=ELSE),)
    verify(reference, wrong)  # without force nobody notices
    verify(reference, result.output, forced=[never])
    with pytest.raises(ParityError, match=r"output 'Z': differs by .* in the else_branch of 'chosen'; expected at"):
        verify(reference, wrong, forced=[never])


def refusing(path: Path) -> Path:
    """Write an If on a sample rate whose else branch no input gets through: it reshapes to a shape that never fits."""
    nodes = [
        helper.make_node("Reshape", ["X", "never"], ["odd"]),
        helper.make_node("Reshape", ["odd", "as_before"], ["X_again"]),
        recurrent("LSTM", ["X_again", "Wb", "Rb", "Bb"], ["Y_no"]),
        helper.make_node("Squeeze", ["Y_no", "one"], ["y"]),
    ]
    source = rated(path)
    model = onnx.load(source)
    (node,) = [node for node in model.graph.node if node.op_type == "If"]
    (other,) = [attribute for attribute in node.attribute if attribute.name == "else_branch"]
    other.g.CopyFrom(body("no", nodes, [], ["y"]))
    model.graph.initializer.extend(
        [constant("never", np.array([-1, 9973])), constant("as_before", np.array([-1, 1, 5]))]
    )
    onnx.save(model, source)
    return source


def test_what_lies_in_a_branch_that_cannot_be_run_is_left_whole_and_named(tmp_path: Path) -> None:
    source = refusing(tmp_path / "m.onnx")
    never = (Branch(node="chosen", part=ELSE),)
    assert runnable(read_interface(source), [never, (Branch(node="chosen", part=THEN),)]) == {
        (Branch(node="chosen", part=THEN),)
    }
    result = toolchain.shrink(source)
    assert result.status == "nothing_to_remove"  # both branches return one tensor, so the other is held as well
    (left,) = [node for node in result.nodes if node.name == "layer_Y_no"]
    assert left.blocked_by[0].reason == (
        "it lies in the else_branch of 'chosen', which runs at none of the inputs tried, so that a cut could not be "
        "proven"
    )


def test_a_cut_that_no_run_can_prove_is_refused(tmp_path: Path) -> None:
    source = refusing(tmp_path / "m.onnx")
    with pytest.raises(ParityError, match="what was cut in the else_branch of 'chosen' could not be run; expected a"):
        verify(read_interface(source), source, forced=[(Branch(node="chosen", part=ELSE),)])


@pytest.mark.parametrize("by_count", [True, False])
def test_a_loop_that_random_inputs_never_enter_is_run_all_the_same(by_count: bool, tmp_path: Path) -> None:
    """It runs no step unless the sample rate is 8000; the wrong weight inside shows only when it is forced to."""
    source = chunked(tmp_path / "m.onnx", initial="zero")
    model = onnx.load(source)
    model.graph.input.append(value("sr", [], TensorProto.INT64))
    model.graph.initializer.append(constant("rate", np.array(8000)))
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    extra = [helper.make_node("Equal", ["sr", "rate"], ["enter"])]
    if by_count:
        extra += [
            helper.make_node("Cast", ["enter"], ["one_or_none"], to=TensorProto.INT64),
            helper.make_node("Mul", ["count", "one_or_none"], ["steps"]),
        ]
        loop.input[0] = "steps"
    else:
        loop.input[1] = "enter"
    extra.append(helper.make_node("Tanh", ["chunks"], ["beside"]))  # what the model returns when no step runs
    model.graph.output.append(value("beside", ["C", "T", "B", 5]))
    nodes = [*model.graph.node]
    place = nodes.index(loop)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *extra, *nodes[place:]])
    onnx.save(model, source)
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE)]
    inside = (Branch(node="h_last", part=BODY),)
    assert {case.case.forced for case in result.parity.cases} == {(), inside}
    feeds = {"chunks": sequence(3, 4, 2, 5), "sr": np.array(8000)}
    assert_equal(source, result.output, feeds)
    wrong = with_wrong_weight(result.output, "R_kept")
    verify(read_interface(source), wrong)
    with pytest.raises(ParityError, match=r"differs by .* in the body of 'h_last'"):
        verify(read_interface(source), wrong, forced=[inside])


def test_a_model_without_if_or_loop_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("no branch needs to be run")

    monkeypatch.setattr("toolchain.shrinking.runnable", refuse)
    monkeypatch.setattr("toolchain.verification.save_switched", refuse)
    assert toolchain.shrink(scanned_steps(tmp_path / "m.onnx")).status == "written"


def test_shrinking_twice_equals_shrinking_once(tmp_path: Path) -> None:
    source = chunked(tmp_path / "m.onnx", initial="zero")
    once = toolchain.shrink(source)
    assert toolchain.shrink(once.output).status == "nothing_to_remove"


def test_a_dead_loop_still_comes_to_its_end(tmp_path: Path) -> None:
    """Nobody reads what the loop returns, but its own condition reads a unit that is alive for that alone."""
    nodes = [
        recurrent("GRU", ["X", "W", "R", "B", "", "h"], ["", "h_next"]),
        helper.make_node("ReduceMax", ["h_next"], ["largest"], keepdims=0),
        helper.make_node("Less", ["largest", "limit"], ["go_on"]),
    ]
    inputs = [value("step", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("h", None)]
    loop = body("body", nodes, inputs, ["go_on", "h_next"])
    outer = [
        helper.make_node("Loop", ["most", "yes", "h0"], ["h_last"], body=loop),
        helper.make_node("MatMul", ["h_last", "nothing"], ["none"]),
        helper.make_node("MatMul", ["X", "front"], ["straight"]),
        helper.make_node("Add", ["straight", "none"], ["Z"]),
    ]
    weights = recurrent_weights("GRU", input_size=5, hidden_size=8)
    constants = weights | {
        "limit": np.array(0.9, np.float32), "most": np.array(50), "yes": np.array(True),
        "nothing": np.zeros((8, 3), np.float32), "front": np.ones((5, 3), np.float32),
    }  # fmt: skip
    inputs = [value("X", [4, "B", 5]), value("h0", [1, "B", 8])]
    source = save(tmp_path / "m.onnx", outer, inputs, [value("Z", [4, "B", 3])], constants)
    assert toolchain.shrink(source).status == "nothing_to_remove"


@settings(max_examples=20, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=random_graphs())
def test_a_random_graph_is_cut_in_both_branches_of_an_if_as_it_is_by_itself(graph: RandomGraph) -> None:
    with tempfile.TemporaryDirectory() as folder:
        alone, inside = Path(folder) / "alone.onnx", Path(folder) / "inside.onnx"
        onnx.save(graph.model(), alone)
        onnx.save(in_both_branches(graph.model()), inside)
        expected, result = (toolchain.shrink(source, carried=graph.carried) for source in (alone, inside))
        wanted = [(node.input_after, node.hidden_after) for node in expected.nodes]
        assert [(node.input_after, node.hidden_after) for node in result.nodes] == wanted * 2
        states = {out for _, out in graph.carried}
        for flag in FLAGS if result.output is not None else []:
            feeds = feeds_of(graph, 4, STATIC_BATCH, 0) | {"flag": flag}
            found = run(result.output, feeds)
            for name, array in run(inside, feeds).items():
                assert found[name].shape == array.shape
                if name not in states:
                    np.testing.assert_allclose(found[name], array, atol=2e-6, rtol=1e-5)


def plain_loop(path: Path, *, branching: bool) -> Path:
    """Write a Loop whose state `h` becomes `tanh(h @ R)`, perhaps in one branch of an If only."""
    step = [helper.make_node("MatMul", ["h", "R"], ["z"], name="step"), helper.make_node("Tanh", ["z"], ["h_next"])]
    if branching:
        then = body("then", step, [], ["h_next"])
        other = body("else", [helper.make_node("Identity", ["h"], ["h_kept"])], [], ["h_kept"])
        step = [helper.make_node("If", ["go"], ["new"], then_branch=then, else_branch=other)]
    nodes = [*step, helper.make_node("Identity", ["go"], ["go_on"])]
    inputs = [value("step", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("h", None)]
    loop = body("body", nodes, inputs, ["go_on", "new" if branching else "h_next"])
    outer = [helper.make_node("Loop", ["times", "yes", "h0"], ["Z"], name="loop", body=loop)]
    constants = {"R": np.eye(8, dtype=np.float32), "times": np.array(4), "yes": np.array(True)}
    return save(path, outer, [value("h0", ["B", 8])], [value("Z", ["B", 8])], constants)


@pytest.mark.parametrize("branching", [False, True])
def test_a_loop_of_plain_matrices_is_named_with_advice(branching: bool, tmp_path: Path) -> None:
    source = plain_loop(tmp_path / "m.onnx", branching=branching)
    done = CliRunner().invoke(cli, ["shrink", str(source)])
    assert done.exit_code == 3
    assert "a Loop with its state in plain matrices at node 'loop'" in " ".join(done.output.split())
    assert "Export nn.LSTM, nn.GRU or nn.RNN as one node" in " ".join(done.output.split())
    assert not (tmp_path / "m.shrunk.onnx").exists()
