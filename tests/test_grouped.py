"""A hidden axis split into groups: each keeps units of its own, all equally many, or a node is named that keeps all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from graphs import initializer, layer_with_head, recurrent_shapes, run
from onnx import helper

import toolchain

HIDDEN = 8
WIDTH = 4  # columns of each group's matrix


def grouped(path: Path, *, groups: int, dead: Sequence[Sequence[int]], dead_columns: Sequence[int] = ()) -> Path:
    """Write a layer whose units, both directions side by side, are split into groups with a matrix each."""
    features = HIDDEN * len(dead)
    size = features // groups
    W = np.random.default_rng(0).standard_normal((groups, size, WIDTH)).astype(np.float32)
    for direction, units in enumerate(dead):
        for feature in (direction * HIDDEN + unit for unit in units):
            W[feature // size, feature % size] = 0
    middle = [
        helper.make_node("Transpose", ["Y"], ["Yt"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["Yt", "apart"], ["A"]),
        helper.make_node("MatMul", ["A", "W_group"], ["P"], name="grouped"),
        helper.make_node("Relu", ["P"], ["Q"]),
        helper.make_node("Reshape", ["Q", "together"], ["M"]),
    ]
    extra = {"apart": np.array([0, 0, groups, 1, size]), "together": np.array([0, 0, WIDTH * groups]), "W_group": W}
    return layer_with_head(path, directions=len(dead), hidden_size=HIDDEN, dead=dead, middle=middle, extra=extra,
                           head_rows=WIDTH * groups, dead_rows=dead_columns)  # fmt: skip


def assert_equal_outputs(source: Path, shrunk: Path) -> None:
    for steps, batch in ((1, 1), (6, 2)):
        X = np.random.default_rng(steps).standard_normal((steps, batch, 5)).astype(np.float32)
        np.testing.assert_allclose(run(shrunk, {"X": X})["Z"], run(source, {"X": X})["Z"], atol=2e-6)


@pytest.mark.parametrize(
    ("groups", "dead", "left"),
    [
        (2, [(0, 1, 4, 5)], 4),
        (2, [(0, 1, 5)], 6),  # two are live in the first group, three in the second
        (4, [(1, 2, 4, 7)], 4),
        (4, [(1, 2, 4, 5)], 8),  # nothing is live in the third group, which cannot vanish, and two in the last
        (2, [(0, 1, 5), (2, 3, 7)], 5),  # a group is a direction
        (4, [(0, 1, 5, 6), (2, 3, 4, 7)], 4),  # two groups in each direction
        (1, [(0, 1, 5, 6), (2, 3, 4, 7)], 4),  # one group of both
        (8, [(0, 1, 5, 6), (2, 3, 4, 7)], 8),
    ],
)
def test_groups_keep_equally_many_units_each_its_own(
    groups: int, dead: Sequence[Sequence[int]], left: int, tmp_path: Path
) -> None:
    source = grouped(tmp_path / "m.onnx", groups=groups, dead=dead)
    result = toolchain.shrink(source)
    assert [node.hidden_after for node in result.nodes] == [left]
    if result.output is None:
        assert left == HIDDEN
        return
    assert recurrent_shapes(result.output) == [(5, left)]
    assert initializer(result.output, "W_group_kept").shape == (groups, left * len(dead) // groups, WIDTH)
    assert_equal_outputs(source, result.output)
    assert toolchain.shrink(result.output).status == "nothing_to_remove"


def test_columns_of_each_group_go_that_nobody_reads(tmp_path: Path) -> None:
    source = grouped(tmp_path / "m.onnx", groups=2, dead=[(0, 1, 4, 5)], dead_columns=(1, 2, 4, 6, 7))
    result = toolchain.shrink(source)
    assert result.output is not None
    assert initializer(result.output, "W_group_kept").shape == (2, 2, 2)  # one column of the second group fills up
    assert_equal_outputs(source, result.output)


def test_groups_taken_apart_by_split_may_keep_unequal_numbers(tmp_path: Path) -> None:
    one, other = (np.random.default_rng(seed).standard_normal((4, 3)).astype(np.float32) for seed in range(2))
    one[[0, 1, 2]] = 0
    other[1] = 0
    middle = [
        helper.make_node("Squeeze", ["Y", "axis"], ["S"]),
        helper.make_node("Split", ["S"], ["a", "b"], axis=2, name="split"),
        helper.make_node("MatMul", ["a", "one"], ["C"]),
        helper.make_node("MatMul", ["b", "other"], ["D"]),
        helper.make_node("Concat", ["C", "D"], ["M"], axis=2),
    ]
    extra = {"axis": np.array([1]), "one": one, "other": other}
    source = layer_with_head(tmp_path / "m.onnx", dead=[(0, 1, 2, 5)], middle=middle, extra=extra, head_rows=6,
                             dead_rows=())  # fmt: skip
    result = toolchain.shrink(source)
    assert [node.hidden_after for node in result.nodes] == [4]
    assert result.output is not None
    assert [initializer(result.output, f"{name}_kept").shape for name in ("one", "other")] == [(1, 3), (3, 3)]
    assert_equal_outputs(source, result.output)


def test_matrices_that_all_multiply_one_value_are_cut_alike(tmp_path: Path) -> None:
    W = np.random.default_rng(0).standard_normal((2, HIDDEN, WIDTH)).astype(np.float32)
    W[:, [1, 4, 5]] = 0
    middle = [
        helper.make_node("Transpose", ["Y"], ["A"], perm=[0, 1, 2, 3]),  # [T, 1, B, 8], against [2, 8, 4]
        helper.make_node("MatMul", ["A", "W_group"], ["P"], name="spread"),
        helper.make_node("ReduceSum", ["P", "axis"], ["M"], keepdims=0),
    ]
    extra = {"axis": np.array([1]), "W_group": W}
    source = layer_with_head(tmp_path / "m.onnx", middle=middle, extra=extra, head_rows=WIDTH, dead_rows=())
    result = toolchain.shrink(source)
    assert [node.hidden_after for node in result.nodes] == [5]
    assert result.output is not None
    assert initializer(result.output, "W_group_kept").shape == (2, 5, WIDTH)
    assert_equal_outputs(source, result.output)
