"""Each operator between a recurrent layer and its head: the planted dead units go, or a named node keeps them.

Every case says how many of the 8 units must be left, so doing nothing fails as surely as cutting too much.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from graphs import layer_with_head, recurrent_shapes, run
from onnx import NodeProto, helper

import toolchain
from toolchain.graph.operators import OPERATORS
from toolchain.graph.support import support_table

DEAD = (1, 4, 5)
LEFT = 5
WHOLE = 8
SQUEEZE = helper.make_node("Squeeze", ["Y", "one"], ["S"])  # Y [T, 1, B, 8] -> S [T, B, 8]
BOTH = helper.make_node("Transpose", ["Y"], ["Yt"], perm=[0, 2, 1, 3])  # [T, D, B, H] -> [T, B, D, H]
rng = np.random.default_rng(5)


@dataclass(frozen=True)
class Case:
    """What stands between the layer and its head."""

    name: str
    middle: tuple[NodeProto, ...]
    left: int = LEFT
    dead: tuple[int, ...] = DEAD
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    directions: int = 1
    head_rows: int | None = None
    dead_rows: tuple[int, ...] | None = None
    opset: int = 17
    out_rank: int = 3


def node(op_type: str, inputs: list[str], outputs: list[str], **attributes: object) -> NodeProto:
    return helper.make_node(op_type, inputs, outputs, name=f"{op_type}_{outputs[0]}", **attributes)


def array(*numbers: float, dtype: type = np.int64) -> np.ndarray:
    return np.array(numbers, dtype=dtype)


CASES = [
    Case("unary", (SQUEEZE, node("Relu", ["S"], ["M"]))),
    Case("constant per unit", (SQUEEZE, node("Add", ["S", "v"], ["M"])), extra={"v": rng.random(8, np.float32)}),
    Case("scalar", (SQUEEZE, node("Div", ["S", "v"], ["M"])), extra={"v": array(2.0, dtype=np.float32)[0]}),
    Case("zero factor", (SQUEEZE, node("Mul", ["S", "v"], ["M"])), left=3, dead=(0, 1, 2, 4, 5), dead_rows=DEAD,
         extra={"v": array(0, 1, 0, 1, 1, 1, 1, 1, dtype=np.float32)}),
    Case("zero factor before a gate of its own",
         (SQUEEZE, node("Mul", ["S", "v"], ["z"]), node("Sigmoid", ["z"], ["g"]), node("Mul", ["z", "g"], ["M"])),
         left=3, dead=(0, 1, 2, 4, 5), dead_rows=DEAD, extra={"v": array(0, 1, 0, 1, 1, 1, 1, 1, dtype=np.float32)}),
    Case("where with a constant condition", (SQUEEZE, node("Where", ["c", "S", "v"], ["M"])), dead=(0, 1, 2, 4, 5),
         dead_rows=DEAD,
         extra={"c": array(0, 1, 0, 1, 1, 1, 1, 1, dtype=np.bool_), "v": rng.random(8, np.float32)}),
    Case("clip", (SQUEEZE, node("Clip", ["S", "lo", "hi"], ["M"])),
         extra={"lo": np.float32(-0.1).reshape(()), "hi": np.float32(0.1).reshape(())}),
    Case("slope per unit", (SQUEEZE, node("PRelu", ["S", "v"], ["M"])), extra={"v": rng.random(8, np.float32)}),
    Case("residual", (SQUEEZE, node("Tanh", ["S"], ["A"]), node("Add", ["A", "S"], ["M"]))),
    Case("scaled by one number per step",
         (SQUEEZE, node("ReduceMean", ["X"], ["s"], axes=[2], keepdims=1), node("Mul", ["S", "s"], ["M"]))),
    Case("softmax over the units", (SQUEEZE, node("Softmax", ["S"], ["M"], axis=-1)), left=WHOLE),
    Case("softmax over the steps", (SQUEEZE, node("Softmax", ["S"], ["M"], axis=0))),
    Case("layer normalisation", (SQUEEZE, node("LayerNormalization", ["S", "v"], ["M"])), left=WHOLE,
         extra={"v": rng.random(8, np.float32)}),
    Case("mean over the steps", (SQUEEZE, node("ReduceMean", ["S"], ["M"], axes=[0], keepdims=0)), out_rank=2),
    Case("sum over the units", (SQUEEZE, node("ReduceSum", ["S", "last"], ["r"], keepdims=1),
                                node("Add", ["S", "r"], ["M"])), left=WHOLE, extra={"last": array(-1)}),
    Case("reshape to a constant width", (node("Reshape", ["Y", "shape"], ["M"]),), extra={"shape": array(0, -1, 8)}),
    Case("flatten steps and batch", (SQUEEZE, node("Reshape", ["S", "shape"], ["M"])), extra={"shape": array(-1, 8)},
         out_rank=2),
    Case("shape put together at run time",
         (node("Shape", ["X"], ["shape"]), node("Gather", ["shape", "two"], ["lengths"]),
          node("Concat", ["lengths", "width"], ["full"], axis=0), node("Reshape", ["Y", "full"], ["M"])),
         extra={"two": array(0, 1), "width": array(8)}),
    Case("units split into groups and back",
         (SQUEEZE, node("Reshape", ["S", "groups"], ["G"]), node("Relu", ["G"], ["g"]),
          node("Reshape", ["g", "flat"], ["M"])), left=6, extra={"groups": array(0, 0, 2, 4), "flat": array(0, 0, 8)}),
    Case("slice of the units", (SQUEEZE, node("Slice", ["S", "from", "to", "axis"], ["M"])), head_rows=5, left=3,
         dead=(0, 1, 2, 5, 7), dead_rows=(0, 3), extra={"from": array(2), "to": array(7), "axis": array(2)}),
    Case("slice backwards", (SQUEEZE, node("Slice", ["S", "from", "to", "axis", "step"], ["M"])),
         dead_rows=(2, 3, 6), extra={"from": array(-1), "to": array(-9), "axis": array(-1), "step": array(-1)}),
    Case("every second unit", (SQUEEZE, node("Slice", ["S", "from", "to", "axis", "step"], ["M"])), head_rows=4,
         dead=(1, 3, 4, 5, 7), dead_rows=(2,), left=3,
         extra={"from": array(0), "to": array(8), "axis": array(2), "step": array(2)}),
    Case("last step", (SQUEEZE, node("Gather", ["S", "end"], ["M"], axis=0)), extra={"end": array(-1)[0]}, out_rank=2),
    Case("chosen units", (SQUEEZE, node("Gather", ["S", "chosen"], ["M"], axis=2)), head_rows=4,
         dead=(1, 4, 5, 6, 7), dead_rows=(1,), left=3, extra={"chosen": array(0, 1, 2, 3)}),
    Case("split and join", (SQUEEZE, node("Split", ["S", "parts"], ["a", "b"], axis=2),
                            node("Sigmoid", ["b"], ["c"]), node("Concat", ["a", "c"], ["M"], axis=2)),
         extra={"parts": array(3, 5)}),
    Case("equal split", (SQUEEZE, node("Split", ["S"], ["a", "b"], axis=2), node("Concat", ["b", "a"], ["M"], axis=2)),
         dead_rows=(5, 0, 1)),
    Case("skip connection", (SQUEEZE, node("Concat", ["S", "X"], ["M"], axis=2)), head_rows=13, dead_rows=DEAD),
    Case("expand", (SQUEEZE, node("Unsqueeze", ["S", "zero"], ["U"]), node("Expand", ["U", "shape"], ["E"]),
                    node("ReduceMax", ["E"], ["M"], axes=[0], keepdims=0)),
         extra={"zero": array(0), "shape": array(3, 1, 1, 8)}),
    Case("tile", (SQUEEZE, node("Tile", ["S", "repeats"], ["M"])), head_rows=16, dead_rows=(1, 4, 5, 9, 12, 13),
         extra={"repeats": array(1, 1, 2)}),
    Case("tile along the steps", (SQUEEZE, node("Tile", ["S", "repeats"], ["M"])), extra={"repeats": array(2, 1, 1)}),
    Case("einsum that contracts the units", (SQUEEZE, node("Einsum", ["S", "w"], ["M"], equation="tbk,kn->tbn")),
         dead_rows=(),
         extra={"w": np.where(np.isin(np.arange(8), DEAD)[:, None], 0, rng.random((8, 8))).astype(np.float32)}),
    Case("einsum with the matrix first and turned",
         (SQUEEZE, node("Einsum", ["w", "S"], ["M"], equation="nk,tbk->tbn")), dead_rows=(),
         extra={"w": np.where(np.isin(np.arange(8), DEAD), 0, rng.random((8, 8))).astype(np.float32)}),
    Case("einsum of two computed values",
         (SQUEEZE, node("Einsum", ["S", "S"], ["M"], equation="tbk,tbk->tbk")), left=WHOLE),
    Case("padding on the right", (SQUEEZE, node("Pad", ["S", "pads"], ["M"])), head_rows=10,
         extra={"pads": array(0, 0, 0, 0, 0, 2)}),
    Case("bidirectional, side by side", (BOTH, node("Reshape", ["Yt", "shape"], ["M"])), directions=2,
         extra={"shape": array(0, 0, 16)}),
    Case("bidirectional, summed", (node("ReduceSum", ["Y", "axis"], ["M"], keepdims=0),), directions=2, head_rows=8,
         dead_rows=DEAD, extra={"axis": array(1)}),
    Case("bidirectional, one direction read",
         (node("Gather", ["Y", "first"], ["M"], axis=1),), directions=2, head_rows=8, dead_rows=DEAD,
         extra={"first": array(0)[0]}),
    Case("older opset", (node("Squeeze", ["Y"], ["S"], axes=[1]), node("Clip", ["S"], ["M"], min=-1.0, max=1.0)),
         opset=10),
    Case("the second length alone",
         (SQUEEZE, node("Shape", ["S"], ["shape"]), node("Slice", ["shape", "one", "two"], ["batch"]),
          node("Concat", ["free", "batch", "width"], ["full"], axis=0), node("Reshape", ["S", "full"], ["M"])),
         extra={"one": array(1), "two": array(2), "free": array(-1), "width": array(8)}),
    Case("shape put together at run time, in an opset without inference of it",
         (node("Shape", ["X"], ["shape"]), node("Gather", ["shape", "two"], ["lengths"]),
          node("Concat", ["lengths", "width"], ["full"], axis=0), node("Reshape", ["Y", "full"], ["S"]),
          node("Relu", ["S"], ["M"])),
         extra={"two": array(0, 1), "width": array(8)}, opset=9),
    Case("lengths sliced with a step",
         (SQUEEZE, node("Shape", ["S"], ["shape"]), node("Slice", ["shape", "zero", "two", "zero", "one"], ["lengths"]),
          node("Concat", ["lengths", "width"], ["full"], axis=0), node("Reshape", ["S", "full"], ["M"])),
         extra={"zero": array(0), "one": array(1), "two": array(2), "width": array(8)}),
    Case("channels of a convolution",
         (SQUEEZE, node("Transpose", ["S"], ["C"], perm=[1, 2, 0]), node("Conv", ["C", "kernel"], ["K"]),
          node("Transpose", ["K"], ["M"], perm=[2, 0, 1])), left=7, head_rows=8, dead_rows=(),
         extra={"kernel": np.where(np.arange(8)[None, :, None] == 1, 0, rng.random((8, 8, 1))).astype(np.float32)}),
    Case("batch normalisation",
         (SQUEEZE, node("Transpose", ["S"], ["C"], perm=[1, 2, 0]),
          node("BatchNormalization", ["C", "v", "v", "v", "v"], ["K"]),
          node("Transpose", ["K"], ["M"], perm=[2, 0, 1])),
         extra={"v": 0.5 + rng.random(8, np.float32)}),
    Case("product with itself over the units",
         (SQUEEZE, node("Transpose", ["S"], ["a"], perm=[1, 0, 2]), node("Transpose", ["S"], ["b"], perm=[1, 2, 0]),
          node("MatMul", ["a", "b"], ["scores"]), node("MatMul", ["scores", "a"], ["M"])), left=WHOLE),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_planted_dead_units_go_through(case: Case, tmp_path: Path) -> None:
    dead = (case.dead, case.dead)[: case.directions]
    opset_one = {"one": np.array([1])} if any("one" in n.input for n in case.middle) else {}
    source = layer_with_head(
        tmp_path / "m.onnx", directions=case.directions, dead=dead, middle=case.middle, head_rows=case.head_rows,
        extra={**opset_one, **case.extra}, dead_rows=case.dead_rows, opset=case.opset, out_rank=case.out_rank,
    )  # fmt: skip
    result = toolchain.shrink(source)
    sizes = [node.hidden_after for node in result.nodes]
    assert sizes == [case.left], result.nodes
    assert (result.status == "written") == (case.left < WHOLE)
    if result.output is None:
        return
    assert recurrent_shapes(result.output) == [(5, case.left)]
    for steps, batch in ((1, 1), (6, 2)):
        X = np.random.default_rng(steps).standard_normal((steps, batch, 5)).astype(np.float32)
        expected, actual = run(source, {"X": X}), run(result.output, {"X": X})
        assert actual["Z"].shape == expected["Z"].shape
        np.testing.assert_allclose(actual["Z"], expected["Z"], atol=1e-6)


def test_the_documented_table_is_the_code(request: pytest.FixtureRequest) -> None:
    documented = request.config.rootpath / "docs" / "operators.md"
    assert documented.read_text() == support_table(), "run python -m toolchain.graph.support > docs/operators.md"
    assert all(name in support_table() for name in OPERATORS)
