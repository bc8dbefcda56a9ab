"""Loop and Scan: what is dead in their bodies goes, carried state included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import kill, recurrent_weights, run, save, value
from onnx import TensorProto, helper
from subgraph_models import (
    DEAD,
    LIVE,
    ONE,
    assert_equal,
    body,
    chunked,
    planted,
    planted_head,
    recurrent,
    scanned_steps,
    sequence,
    sizes,
)

import toolchain
from toolchain.cli import cli


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
