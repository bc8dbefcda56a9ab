"""What may stand between a recurrent layer and its head, operator by operator, and how many units must be left.

Every case says how many of the 8 units must be left, so doing nothing fails as surely as cutting too much.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from graphs import layer_with_head
from onnx import NodeProto, helper

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


def write(case: Case, path: Path) -> Path:
    """Write the layer, what stands between, and the head."""
    dead = (case.dead, case.dead)[: case.directions]
    opset_one = {"one": np.array([1])} if any("one" in n.input for n in case.middle) else {}
    return layer_with_head(
        path, directions=case.directions, dead=dead, middle=case.middle, head_rows=case.head_rows,
        extra={**opset_one, **case.extra}, dead_rows=case.dead_rows, opset=case.opset, out_rank=case.out_rank,
    )  # fmt: skip


def node(op_type: str, inputs: list[str], outputs: list[str], **attributes: object) -> NodeProto:
    return helper.make_node(op_type, inputs, outputs, name=f"{op_type}_{outputs[0]}", **attributes)


def array(*numbers: float, dtype: type = np.int64) -> np.ndarray:
    return np.array(numbers, dtype=dtype)


def microsoft(op_type: str, inputs: list[str], outputs: list[str], **attributes: object) -> NodeProto:
    return node(op_type, inputs, outputs, domain="com.microsoft", **attributes)


DEAD_MASK = np.isin(np.arange(8), DEAD).astype(np.float32)
DEAD_ROWS = np.where(np.isin(np.arange(8), DEAD)[:, None], 0, rng.random((8, 8))).astype(np.float32)
TO_CHANNELS = node("Transpose", ["S"], ["C"], perm=[1, 2, 0])  # [T, B, 8] -> [B, 8, T]
FROM_CHANNELS = node("Transpose", ["K"], ["M"], perm=[2, 0, 1])
BY_DIRECTION = node("Transpose", ["Y"], ["D"], perm=[1, 0, 2, 3])  # [T, D, B, H] -> [D, T, B, H]
LAST_STEP = node("Squeeze", ["Y_h", "zero"], ["S"])  # [1, B, 8] -> [B, 8]


def group_kernel(groups: int) -> np.ndarray:
    """Return a kernel `[out, in / groups, 1]` that does not read the dead units."""
    kernel = rng.random((8, 8 // groups, 1), np.float32)
    for unit in DEAD:
        group, place = divmod(unit, 8 // groups)
        kernel[group * (8 // groups) : (group + 1) * (8 // groups), place] = 0
    return kernel


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
    Case("product with itself over units that are set to zero",
         (SQUEEZE, node("Mul", ["S", "v"], ["z"]), node("Transpose", ["z"], ["a"], perm=[1, 0, 2]),
          node("Transpose", ["z"], ["b"], perm=[1, 2, 0]), node("MatMul", ["a", "b"], ["scores"]),
          node("MatMul", ["scores", "a"], ["M"])), dead_rows=(), extra={"v": 1.0 - DEAD_MASK}),
    Case("product over units of which one factor is set to zero",
         (SQUEEZE, node("Mul", ["S", "v"], ["z"]), node("Transpose", ["S"], ["a"], perm=[1, 0, 2]),
          node("Transpose", ["z"], ["b"], perm=[1, 2, 0]), node("MatMul", ["a", "b"], ["scores"]),
          node("Transpose", ["z"], ["c"], perm=[1, 0, 2]), node("MatMul", ["scores", "c"], ["M"])), dead_rows=(),
         extra={"v": 1.0 - DEAD_MASK}),
    Case("steps chosen at run time of units that are set to zero",
         (SQUEEZE, node("Mul", ["S", "v"], ["z"]), node("Shape", ["X"], ["shape"]),
          node("Gather", ["shape", "first"], ["T"]), node("Sub", ["T", "one"], ["last"]),
          node("Gather", ["z", "last"], ["M"], axis=0)), dead_rows=(),
         extra={"v": 1.0 - DEAD_MASK, "first": array(0)}),
    Case("gelu in one operator", (SQUEEZE, microsoft("BiasGelu", ["S", "v"], ["M"])),
         extra={"v": rng.random(8, np.float32)}),
    Case("fused product", (SQUEEZE, microsoft("FusedMatMul", ["S", "w"], ["M"], transB=1, alpha=0.5)), dead_rows=(),
         extra={"w": np.where(np.isin(np.arange(8), DEAD), 0, rng.random((8, 8))).astype(np.float32)}),
    Case("fused product of two computed values",
         (SQUEEZE, node("Transpose", ["S"], ["a"], perm=[1, 0, 2]),
          microsoft("FusedMatMul", ["a", "a"], ["s"], transB=1),
          node("MatMul", ["s", "a"], ["M"])), left=WHOLE),
    Case("fused gemm", (SQUEEZE, node("Reshape", ["S", "flat"], ["F"]),
                        microsoft("FusedGemm", ["F", "w", "v"], ["M"], activation="Relu")), dead_rows=(), out_rank=2,
         extra={"w": DEAD_ROWS, "v": rng.random(8, np.float32), "flat": array(-1, 8)}),
    Case("fused convolution", (SQUEEZE, TO_CHANNELS, microsoft("FusedConv", ["C", "kernel"], ["K"], activation="Tanh"),
                               FROM_CHANNELS), dead_rows=(), extra={"kernel": DEAD_ROWS.T[..., None].copy()}),
    Case("skip normalisation over the units",
         (SQUEEZE, microsoft("SkipLayerNormalization", ["S", "S", "v"], ["M"])), left=WHOLE,
         extra={"v": rng.random(8, np.float32)}),
    Case("layer normalisation before the standard had it",
         (node("Squeeze", ["Y"], ["S"], axes=[1]), node("LayerNormalization", ["S", "v"], ["M"])), left=WHOLE,
         extra={"v": rng.random(8, np.float32)}, opset=12),
    Case("root mean square normalisation", (SQUEEZE, node("RMSNormalization", ["S", "v"], ["M"])), left=WHOLE,
         extra={"v": rng.random(8, np.float32)}, opset=23),
    Case("normalisation over the steps", (SQUEEZE, node("LpNormalization", ["S"], ["M"], axis=0))),
    Case("normalisation over steps and batch",
         (SQUEEZE, node("MeanVarianceNormalization", ["S"], ["M"], axes=[0, 1]))),
    Case("instance normalisation", (SQUEEZE, TO_CHANNELS, node("InstanceNormalization", ["C", "v", "v"], ["K"]),
                                    FROM_CHANNELS), extra={"v": 0.5 + rng.random(8, np.float32)}),
    Case("group normalisation", (SQUEEZE, TO_CHANNELS, node("GroupNormalization", ["C", "v", "v"], ["K"], num_groups=2),
                                 FROM_CHANNELS), extra={"v": 0.5 + rng.random(8, np.float32)}, left=WHOLE, opset=21),
    Case("depthwise convolution", (SQUEEZE, TO_CHANNELS, node("Conv", ["C", "kernel", "v"], ["K"],
         group=8, pads=[1, 1]),
                                   FROM_CHANNELS),
         extra={"kernel": rng.random((8, 1, 3), np.float32), "v": rng.random(8, np.float32)}),
    Case("depthwise convolution with two kernels each",
         (SQUEEZE, TO_CHANNELS, node("Conv", ["C", "kernel"], ["K"], group=8), FROM_CHANNELS), head_rows=16,
         dead_rows=[row for unit in DEAD for row in (2 * unit, 2 * unit + 1)],
         extra={"kernel": rng.random((16, 1, 1), np.float32)}),
    Case("depthwise convolution with kernels of zero",
         (SQUEEZE, TO_CHANNELS, node("Conv", ["C", "kernel"], ["K"], group=8), FROM_CHANNELS), dead_rows=(), left=WHOLE,
         extra={"kernel": np.where(np.isin(np.arange(8), DEAD), 0, 1).astype(np.float32).reshape(8, 1, 1)}),
    Case("convolution in two groups", (SQUEEZE, TO_CHANNELS, node("Conv", ["C", "kernel", "v"], ["K"], group=2),
                                       FROM_CHANNELS), dead_rows=(), left=6,
         extra={"kernel": group_kernel(2), "v": rng.random(8, np.float32)}),
    Case("transposed convolution in two groups",
         (SQUEEZE, TO_CHANNELS, node("ConvTranspose", ["C", "kernel"], ["K"], group=2), FROM_CHANNELS), dead_rows=(),
         left=6, extra={"kernel": DEAD_ROWS[:, :4, None].copy()}),
    Case("convolution of which a whole group is read by nobody",
         (SQUEEZE, TO_CHANNELS, node("Conv", ["C", "kernel"], ["K"], group=2), FROM_CHANNELS), dead=(4, 5, 6, 7),
         dead_rows=(4, 5, 6, 7), left=4, extra={"kernel": rng.random((8, 4, 1), np.float32)}),
    Case("a group without readers beside a residual path",
         (SQUEEZE, TO_CHANNELS, node("Conv", ["C", "kernel"], ["K"], group=2),
          node("Concat", ["K", "C"], ["J"], axis=1),
          node("Transpose", ["J"], ["M"], perm=[2, 0, 1])), head_rows=16, dead_rows=(4, 5, 6, 7), left=WHOLE, dead=(),
         extra={"kernel": rng.random((8, 4, 1), np.float32)}),
    Case("maximum over the steps by pooling",
         (SQUEEZE, TO_CHANNELS, node("GlobalMaxPool", ["C"], ["P"]), node("Squeeze", ["P", "last"], ["M"])), out_rank=2,
         extra={"last": array(2)}),
    Case("stretched in time", (SQUEEZE, TO_CHANNELS, node("Resize", ["C", "", "scales"], ["K"], mode="nearest"),
                               FROM_CHANNELS), extra={"scales": array(1, 1, 2, dtype=np.float32)}),
    Case("stretched to a length read from the shape",
         (SQUEEZE, TO_CHANNELS, node("Shape", ["C"], ["shape"]), node("Slice", ["shape", "zero", "two"], ["lead"]),
          node("Concat", ["lead", "seven"], ["sizes"], axis=0),
          node("Resize", ["C", "", "", "sizes"], ["K"], mode="linear"), FROM_CHANNELS),
         extra={"zero": array(0), "two": array(2), "seven": array(7)}),
    Case("matrix on the left", (SQUEEZE, TO_CHANNELS, node("MatMul", ["w", "C"], ["K"]), FROM_CHANNELS), dead_rows=(),
         head_rows=4, extra={"w": DEAD_ROWS.T[:4].copy()}),
    Case("stack of one matrix", (SQUEEZE, node("MatMul", ["S", "w"], ["M"])), dead_rows=(),
         extra={"w": DEAD_ROWS[None]}),
    Case("a matrix for each direction, cut alike", (BY_DIRECTION, node("MatMul", ["D", "w"], ["P"]),
                                                    node("ReduceSum", ["P", "front"], ["M"], keepdims=0)),
         directions=2, dead_rows=(), head_rows=8, extra={"w": np.stack([DEAD_ROWS, 2 * DEAD_ROWS])[:, None],
                                                         "front": array(0)}),
    Case("product with a vector",
         (SQUEEZE, node("MatMul", ["S", "v"], ["a"]), node("Unsqueeze", ["a", "last"], ["M"])),
          dead_rows=(), head_rows=1,
         extra={"v": np.where(np.isin(np.arange(8), DEAD), 0, rng.random(8)).astype(np.float32), "last": array(2)}),
    Case("attention whose matrices broadcast",
         (SQUEEZE, node("Transpose", ["S"], ["a"], perm=[1, 0, 2]), node("MatMul", ["a", "w"], ["M"])), dead_rows=(),
         extra={"w": DEAD_ROWS[None, None]}, out_rank=4),
    Case("einsum with an ellipsis", (SQUEEZE, node("Einsum", ["S", "w"], ["M"], equation="...k,kn->...n")),
         dead_rows=(), extra={"w": DEAD_ROWS}),
    Case("einsum that turns axes", (SQUEEZE, node("Einsum", ["S"], ["M"], equation="tbk->btk"))),
    Case("einsum that sums the steps", (SQUEEZE, node("Einsum", ["S"], ["M"], equation="tbk->bk")), out_rank=2),
    Case("einsum over heads, which lose as many each",
         (SQUEEZE, node("Reshape", ["S", "heads"], ["G"]),
          node("Einsum", ["G", "w"], ["M"], equation="tbhk,hkn->tbn")), dead_rows=(), left=6,
         extra={"heads": array(0, 0, 2, 4), "w": DEAD_ROWS.reshape(2, 4, 8)}),
    Case("einsum with new axes in another order",
         (SQUEEZE, node("Einsum", ["w", "S"], ["E"], equation="nmk,tbk->mtbn"),
          node("ReduceSum", ["E", "front"], ["M"], keepdims=0)), dead_rows=(),
         extra={"w": np.stack([DEAD_ROWS.T, DEAD_ROWS.T], axis=1), "front": array(0)}),
    Case("units gathered twice over", (SQUEEZE, node("Gather", ["S", "chosen"], ["G"], axis=2),
                                       node("Reshape", ["G", "flat"], ["M"])), dead=(1, 4, 5, 6, 7), head_rows=4,
         dead_rows=(1,), left=4, extra={"chosen": array(0, 1, 2, 3).reshape(2, 2), "flat": array(0, 0, 4)}),
    Case("units gathered one by one",
         (LAST_STEP, node("Slice", ["S", "zero", "one", "zero"], ["F"]),
          node("GatherElements", ["F", "chosen"], ["M"], axis=1)),
         dead=(1, 4, 5, 6, 7), head_rows=4, dead_rows=(1,), left=3, out_rank=2,
         extra={"chosen": array(3, 1, 0, 2).reshape(1, 4), "zero": array(0)}),
    Case("the last step by lengths", (SQUEEZE, node("Shape", ["S"], ["shape"]),
                                      node("Slice", ["shape", "one", "three"], ["lengths"]),
                                      node("Concat", ["one", "lengths"], ["full"], axis=0),
                                      node("ConstantOfShape", ["full"], ["at"],
          value=helper.make_tensor("v", 7, [1], [0])),
                                      node("GatherElements", ["S", "at"], ["M"], axis=0)),
         extra={"one": array(1), "three": array(3)}),
    Case("one step by coordinates", (SQUEEZE, node("GatherND", ["S", "at"], ["M"])), extra={"at": array(-1)},
         out_rank=2),
    Case("units by coordinates", (LAST_STEP, node("Transpose", ["S"], ["t"], perm=[1, 0]),
         node("GatherND", ["t", "at"], ["u"]),
                                  node("Transpose", ["u"], ["M"], perm=[1, 0])),
         dead=(1, 4, 5, 6, 7), head_rows=4, dead_rows=(1,), left=3, out_rank=2,
         extra={"at": array(3, 1, 0, 2).reshape(4, 1), "zero": array(0)}),
    Case("steps by coordinates known at run time",
         (SQUEEZE, node("Shape", ["X"], ["shape"]), node("Gather", ["shape", "first"], ["T"]),
          node("Sub", ["T", "one"], ["at"]), node("GatherND", ["S", "at"], ["M"])),
         extra={"first": array(0), "one": array(1)}, out_rank=2),
    Case("some units replaced by constants",
         (SQUEEZE, node("Transpose", ["S"], ["t"], perm=[2, 0, 1]),
          node("ReduceMean", ["t"], ["m"], axes=[0], keepdims=1),
          node("Concat", ["m", "m"], ["two"], axis=0), node("ScatterND", ["t", "at", "two"], ["u"]),
          node("Transpose", ["u"], ["M"], perm=[1, 2, 0])), left=WHOLE, extra={"at": array(2, 3).reshape(2, 1)}),
    Case("units replaced by inputs",
         (SQUEEZE, node("Transpose", ["S"], ["t"], perm=[2, 0, 1]), node("Transpose", ["X"], ["x"], perm=[2, 0, 1]),
          node("ScatterND", ["t", "at", "x"], ["u"]), node("Transpose", ["u"], ["M"], perm=[1, 2, 0])),
         dead=(0, 1, 2, 4, 5, 6), dead_rows=(1,), left=7, extra={"at": array(0, 2, 4, 5, 6).reshape(5, 1)}),
    Case("a step replaced", (SQUEEZE, node("ReduceMean", ["S"], ["mean"], axes=[0], keepdims=1),
                             node("ScatterND", ["S", "at", "mean"], ["M"])), extra={"at": array(0).reshape(1, 1)}),
    Case("a step replaced at run time",
         (SQUEEZE, node("ReduceMean", ["S"], ["mean"], axes=[0], keepdims=1), node("Shape", ["X"], ["shape"]),
          node("Gather", ["shape", "first"], ["T"]), node("Sub", ["T", "one"], ["last"]),
          node("Unsqueeze", ["last", "zero"], ["at"]), node("ScatterND", ["S", "at", "mean"], ["M"])),
         extra={"first": array(0), "one": array(1), "zero": array(0)}),
    Case("units replaced one by one",
         (LAST_STEP, node("Slice", ["S", "zero", "one", "zero"], ["F"]),
          node("ScatterElements", ["F", "at", "new"], ["M"], axis=1)), dead=(0, 1, 2, 4, 5), left=5, dead_rows=DEAD,
         extra={"at": array(2, 0).reshape(1, 2), "new": array(1, 2, dtype=np.float32).reshape(1, 2), "zero": array(0)},
         out_rank=2),
    Case("a step replaced unit by unit",
         (SQUEEZE, node("ReduceMean", ["S"], ["mean"], axes=[0], keepdims=1), node("Shape", ["mean"], ["shape"]),
          node("ConstantOfShape", ["shape"], ["at"], value=helper.make_tensor("v", 7, [1], [0])),
          node("ScatterElements", ["S", "at", "mean"], ["M"], axis=0))),
    Case("largest unit", (SQUEEZE, node("ArgMax", ["S"], ["a"], axis=2), node("Cast", ["a"], ["M"], to=1)), left=WHOLE,
         head_rows=1, dead_rows=()),
    Case("three largest units", (SQUEEZE, node("TopK", ["S", "three"], ["M", "places"], axis=-1)), left=WHOLE,
         head_rows=3, dead_rows=(), extra={"three": array(3)}),
    Case("one hot of the largest unit",
         (SQUEEZE, node("ArgMax", ["S"], ["a"], axis=2, keepdims=0), node("OneHot", ["a", "depth", "values"], ["M"])),
         left=WHOLE, dead_rows=(), extra={"depth": array(8), "values": array(0, 1, dtype=np.float32)}),
    Case("sum up to each step", (SQUEEZE, node("CumSum", ["S", "axis"], ["M"])), extra={"axis": array(0)[0]}),
    Case("sum up to each unit", (SQUEEZE, node("CumSum", ["S", "axis"], ["M"])), left=WHOLE,
         extra={"axis": array(2)[0]}),
    Case("triangle", (SQUEEZE, node("Trilu", ["S"], ["M"])), left=WHOLE),
    Case("steps reversed by lengths",
         (SQUEEZE, node("Shape", ["X"], ["shape"]), node("Gather", ["shape", "one"], ["batch"]),
          node("ConstantOfShape", ["batch"], ["lens"], value=helper.make_tensor("v", 7, [1], [1])),
          node("ReverseSequence", ["S", "lens"], ["M"], time_axis=0, batch_axis=1)), extra={"one": array(1)}),
    Case("depth to space and back",
         (SQUEEZE, TO_CHANNELS, node("Unsqueeze", ["C", "three"], ["I"]),
          node("DepthToSpace", ["I"], ["d"], blocksize=2),
          node("Relu", ["d"], ["r"]), node("SpaceToDepth", ["r"], ["s"], blocksize=2),
          node("Squeeze", ["s", "three"], ["K"]), FROM_CHANNELS), dead=(1, 3, 5, 7), left=4,
         extra={"three": array(3)}),
    Case("reflected in time", (SQUEEZE, TO_CHANNELS, node("Pad", ["C", "pads"], ["K"], mode="edge"), FROM_CHANNELS),
         extra={"pads": array(0, 0, 1, 0, 0, 1)}),
    Case("width read from a shape, slice by attributes",
         (node("Squeeze", ["Y"], ["S"], axes=[1]), node("Shape", ["S"], ["shape"]),
          node("Slice", ["shape"], ["rest"], starts=[1], ends=[3], axes=[0]),
          node("Concat", ["free", "rest"], ["full"], axis=0),
          node("Reshape", ["S", "full"], ["M"])), extra={"free": array(-1)}, opset=9),
    Case("width computed from shapes in an old opset",
         (node("Shape", ["Y"], ["shape"]), node("Gather", ["shape", "d"], ["D"]), node("Gather", ["shape", "h"], ["H"]),
          node("Mul", ["D", "H"], ["DH"]), node("Unsqueeze", ["DH"], ["width"], axes=[0]),
          node("Slice", ["shape"], ["T"], starts=[0], ends=[1]),
          node("Concat", ["T", "free", "width"], ["full"], axis=0),
          node("Transpose", ["Y"], ["Yt"], perm=[0, 2, 1, 3]), node("Reshape", ["Yt", "full"], ["M"])),
         directions=2, extra={"d": array(1)[0], "h": array(3)[0], "free": array(-1)}, opset=9),
    Case("a step replaced by a constant of run-time shape, in an opset without inference of it",
         (node("Squeeze", ["Y"], ["S"], axes=[1]), node("Shape", ["S"], ["shape"]),
          node("Slice", ["shape", "one", "three"], ["lengths"]), node("Concat", ["one", "lengths"], ["full"], axis=0),
          node("ConstantOfShape", ["full"], ["new"]), node("ScatterND", ["S", "at", "new"], ["M"])),
         extra={"three": array(3), "at": array(0).reshape(1, 1)}, opset=11),
    Case("another value's whole shape",
         (SQUEEZE, node("Shape", ["S"], ["shape"]), node("Reshape", ["Y", "shape"], ["M"]))),
    Case("expanded to another value's shape",
         (SQUEEZE, node("Shape", ["S"], ["shape"]), node("ReduceMean", ["S"], ["mean"], axes=[0], keepdims=1),
          node("Expand", ["mean", "shape"], ["M"]))),
    Case("mean by a count of numbers",
         (SQUEEZE, node("Size", ["S"], ["n"]), node("Cast", ["n"], ["f"], to=1), node("Div", ["S", "f"], ["M"])),
          left=WHOLE),
]  # fmt: skip
