"""Carried state in every form that exporters and hand-written loops give it: found, kept right, shrunk.

The oracle is ONNX Runtime on the model before: chained calls, each fed the state of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import kill, recurrent_shapes, recurrent_weights, run, save, value
from onnx import NodeProto, helper

import toolchain
from toolchain.graph.carried import find_state
from toolchain.graph.normalise import normalise

HIDDEN = 6
DEAD = ((0, 2, 5), (3,))  # per layer
LEFT = [HIDDEN - len(dead) for dead in DEAD]
PAIR = [("state", "state_out")]


def node(op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> NodeProto:
    return helper.make_node(op_type, inputs, outputs, name=f"{op_type}_{outputs[0]}", **attributes)


def two_layers(
    path: Path, op_type: str, *, taken: Sequence[NodeProto], given: Sequence[NodeProto], state: Sequence[int | str],
    extra: dict[str, np.ndarray], opset: int = 17,
) -> Path:  # fmt: skip
    """Write `X -> layer0 -> layer1 -> Z`; `taken` nodes make h0, h1 (c0, c1) of `state`, `given` make `state_out`."""
    nodes, constants, x = list(taken), dict(extra), "X"
    for layer, dead in enumerate(DEAD):
        weights = recurrent_weights(op_type, input_size=3 if layer == 0 else HIDDEN, hidden_size=HIDDEN, seed=layer)
        kill(weights["R"], dead)
        if layer:
            kill(weights["W"], DEAD[layer - 1])
        constants |= {f"{name}{layer}": array for name, array in weights.items()}
        states = [f"h{layer}", f"c{layer}"][: 2 if op_type == "LSTM" else 1]
        outputs = [f"Y{layer}", f"hn{layer}", f"cn{layer}"][: len(states) + 1]
        nodes.append(node(op_type, [x, *(f"{w}{layer}" for w in "WRB"), "", *states], outputs, hidden_size=HIDDEN))
        nodes.append(node("Squeeze", [f"Y{layer}", "axis1"], [f"S{layer}"]))
        x = f"S{layer}"
    head = np.random.default_rng(9).standard_normal((HIDDEN, 2)).astype(np.float32)
    kill(head, DEAD[1], axis=0)
    constants |= {"head": head, "axis1": np.array([1])}
    nodes += [node("MatMul", [x, "head"], ["Z"]), *given]
    inputs = [value("X", ["T", "B", 3]), value("state", state)]
    return save(path, nodes, inputs, [value("Z", ["T", "B", 2]), value("state_out", state)], constants, opset=opset)


def hidden_and_cell_stacked(path: Path) -> Path:
    """`[2 * layers, B, H]`: every h, then every c, each cut out by a Slice."""
    names = ["h0", "h1", "c0", "c1"]
    taken = [node("Slice", ["state", f"k{i}", f"k{i + 1}", "k0"], [name]) for i, name in enumerate(names)]
    given = [node("Concat", ["hn0", "hn1", "cn0", "cn1"], ["state_out"], axis=0)]
    extra = {f"k{number}": np.array([number]) for number in range(5)}
    return two_layers(path, "LSTM", taken=taken, given=given, state=[4, "B", HIDDEN], extra=extra)


def side_by_side(path: Path) -> Path:
    """`[B, 4 * H]`: h and c of both layers along the last axis, taken apart by one Split."""
    names = ["h0", "c0", "h1", "c1"]
    taken = [node("Split", ["state"], [f"{name}_flat" for name in names], axis=-1)]
    taken += [node("Unsqueeze", [f"{name}_flat", "axis0"], [name]) for name in names]
    given = [node("Squeeze", [name, "axis0"], [f"{name}_flat"]) for name in ("hn0", "cn0", "hn1", "cn1")]
    given.append(node("Concat", [f"{name}_flat" for name in ("hn0", "cn0", "hn1", "cn1")], ["state_out"], axis=-1))
    return two_layers(path, "LSTM", taken=taken, given=given, state=["B", 4 * HIDDEN], extra={"axis0": np.array([0])})


def cache_by_scatter(path: Path) -> Path:
    """`[layers, B, H]`, one slot after the other replaced by ScatterND."""
    taken = [node("Gather", ["state", f"slot{layer}"], [f"h{layer}"], axis=0) for layer in range(2)]
    given = [node("ScatterND", ["state", "at0", "hn0"], ["state_half"]),
             node("ScatterND", ["state_half", "at1", "hn1"], ["state_out"])]  # fmt: skip
    extra = {f"slot{layer}": np.array([layer]) for layer in range(2)}
    extra |= {f"at{layer}": np.array([[layer]]) for layer in range(2)}
    return two_layers(path, "GRU", taken=taken, given=given, state=[2, "B", HIDDEN], extra=extra)


def cache_with_a_slot_of_its_own(path: Path) -> Path:
    """`[layers + 1, B, H]`, of which the last slot is handed on unchanged."""
    taken = [node("Gather", ["state", f"slot{layer}"], [f"h{layer}"], axis=0) for layer in range(2)]
    given = [node("Gather", ["state", "slot2"], ["rest"], axis=0),
             node("Concat", ["hn0", "hn1", "rest"], ["state_out"], axis=0)]  # fmt: skip
    extra = {f"slot{layer}": np.array([layer]) for layer in range(3)}
    return two_layers(path, "RNN", taken=taken, given=given, state=[3, "B", HIDDEN], extra=extra)


def batch_first(path: Path) -> Path:
    """`[B, layers, H]`, turned on the way in and out."""
    taken = [node("Transpose", ["state"], ["turned"], perm=[1, 0, 2]), node("Split", ["turned"], ["h0", "h1"], axis=0)]
    given = [
        node("Concat", ["hn0", "hn1"], ["both"], axis=0),
        node("Transpose", ["both"], ["state_out"], perm=[1, 0, 2]),
    ]
    return two_layers(path, "GRU", taken=taken, given=given, state=["B", 2, HIDDEN], extra={})


FORMS = [hidden_and_cell_stacked, side_by_side, cache_by_scatter, cache_with_a_slot_of_its_own, batch_first]


def calls(path: Path, state: np.ndarray, *, steps: int, batch: int) -> list[np.ndarray]:
    outputs = []
    for call in range(3):
        X = np.random.default_rng((steps, call)).standard_normal((steps, batch, 3)).astype(np.float32)
        results = run(path, {"X": X, "state": state})
        state = results["state_out"]
        outputs.append(results["Z"])
    return outputs


def states_of(path: Path) -> tuple[tuple[str, str], ...]:
    return find_state(normalise(ir.load(path)).model.graph)


@pytest.mark.parametrize("form", FORMS)
def test_a_packed_state_is_found_and_keeps_its_shape(form, tmp_path: Path) -> None:
    source = form(tmp_path / "m.onnx")
    result = toolchain.shrink(source, carried="auto")
    assert list(result.carried) == PAIR
    assert recurrent_shapes(result.output) == [(3, LEFT[0]), (LEFT[0], LEFT[1])], result.nodes
    for steps, batch in ((1, 1), (5, 2)):
        shape = [dim.dim_value or batch for dim in onnx.load(source).graph.input[1].type.tensor_type.shape.dim]
        state = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        for start in (np.zeros_like(state), state):
            pairs = zip(
                *(calls(path, start, steps=steps, batch=batch) for path in (source, result.output)), strict=True
            )
            for expected, actual in pairs:
                np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_packed_state_may_be_compacted(form, tmp_path: Path) -> None:
    source = form(tmp_path / "m.onnx")
    result = toolchain.shrink(source, carried="auto", compact_state=True)
    sizes = [hidden for _, hidden in recurrent_shapes(result.output)]
    assert all(LEFT[layer] <= size < HIDDEN for layer, size in enumerate(sizes)), sizes  # one tensor, so equal widths


def test_layers_that_trade_places_are_no_pair(tmp_path: Path) -> None:
    taken = [node("Split", ["state"], ["h0", "h1"], axis=0)]
    given = [node("Concat", ["hn1", "hn0"], ["state_out"], axis=0)]
    path = two_layers(tmp_path / "m.onnx", "GRU", taken=taken, given=given, state=[2, "B", HIDDEN], extra={})
    assert states_of(path) == ()


def test_hidden_and_cell_state_that_trade_places_are_no_pair(tmp_path: Path) -> None:
    taken = [node("Split", ["state"], ["h0", "c0", "h1", "c1"], axis=0)]
    given = [node("Concat", ["cn0", "hn0", "hn1", "cn1"], ["state_out"], axis=0)]
    path = two_layers(tmp_path / "m.onnx", "LSTM", taken=taken, given=given, state=[4, "B", HIDDEN], extra={})
    assert states_of(path) == ()


def test_a_state_that_is_changed_on_the_way_is_no_pair(tmp_path: Path) -> None:
    taken = [node("Split", ["state"], ["h0", "h1"], axis=0)]
    given = [node("Tanh", ["hn1"], ["t"]), node("Concat", ["hn0", "t"], ["state_out"], axis=0)]
    path = two_layers(tmp_path / "m.onnx", "GRU", taken=taken, given=given, state=[2, "B", HIDDEN], extra={})
    assert states_of(path) == ()


def test_one_layer_that_starts_from_the_state_and_does_not_continue_it_is_no_pair(tmp_path: Path) -> None:
    taken = [node("Split", ["state"], ["h0", "h1"], axis=0)]
    given = [node("Concat", ["hn0", "hn0"], ["state_out"], axis=0)]
    path = two_layers(tmp_path / "m.onnx", "GRU", taken=taken, given=given, state=[2, "B", HIDDEN], extra={})
    assert states_of(path) == ()
