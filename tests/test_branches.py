"""If nodes: what is dead in their branches goes, inside and outside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from graphs import kill, save, value
from onnx import TensorProto, helper
from subgraph_models import (
    DEAD,
    FLAGS,
    LIVE,
    ONE,
    assert_equal,
    body,
    lstm_branch,
    planted,
    planted_head,
    recurrent,
    sequence,
    sizes,
)

import toolchain
from toolchain.graph.branches import ELSE, THEN, Branch


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
