"""One-shot selection on graphs where the right answer is known: half of the units are twins of the other half.

Twins see the same and read the same, so what one says the other can say for it, exactly: giving up half of the units
costs nothing when what they said is folded into the others, and much when it is not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import recurrent_weights, save, value
from onnx import helper, numpy_helper

from toolchain.errors import SelectionError
from toolchain.graph.loading import load_model
from toolchain.graph.normalise import normalise
from toolchain.graph.surgery import plan_surgery
from toolchain.oneshot.calibration import random_calibration
from toolchain.oneshot.selection import Analysis, Method, Target, analyse, choose, commit, error_of
from toolchain.oneshot.survey import survey

HIDDEN, INPUT = 12, 5
EXACT = 1e-3  # what the ridge of the fit leaves of an error that is zero; without folding errors are above 0.05


def twin_weights(op_type: str, *, input_size: int, directions: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Return weights whose units `u` and `u + HIDDEN/2` see and read the same; what is read of each differs."""
    weights = recurrent_weights(op_type, input_size=input_size, hidden_size=HIDDEN, directions=directions, seed=seed)
    half = HIDDEN // 2
    for name, array in weights.items():
        blocks = array.reshape(directions, -1, HIDDEN, *array.shape[2:])
        blocks[:, :, half:] = blocks[:, :, :half]
        weights[name] = blocks.reshape(array.shape)
    return weights


def stacked(
    path: Path, op_type: str, *, directions: int = 1, layers: int = 2, reader: str = "MatMul", reset_first: int = 0
) -> Path:
    """Write `X [T, B, 5] -> layers of twins -> Relu -> a matrix -> Z`."""
    nodes, constants, x, input_size = [], {"side_by_side": np.array([0, 0, -1])}, "X", INPUT
    attributes = {"linear_before_reset": reset_first} if op_type == "GRU" else {}
    for layer in range(layers):
        weights = twin_weights(op_type, input_size=input_size, directions=directions, seed=layer)
        constants |= {f"{name}{layer}": array for name, array in weights.items()}
        direction = "bidirectional" if directions == 2 else "forward"
        nodes += [
            helper.make_node(op_type, [x, f"W{layer}", f"R{layer}", f"B{layer}"], [f"Y{layer}"], name=f"layer{layer}",
                             hidden_size=HIDDEN, direction=direction, **attributes),
            helper.make_node("Transpose", [f"Y{layer}"], [f"Yt{layer}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"Yt{layer}", "side_by_side"], [f"y{layer}"]),
        ]  # fmt: skip
        x, input_size = f"y{layer}", directions * HIDDEN
    head = np.random.default_rng(9).standard_normal((input_size, 3)).astype(np.float32)
    nodes.append(helper.make_node("Relu", [x], ["a"]))
    if reader == "MatMul":
        constants["head"] = head
        nodes.append(helper.make_node("MatMul", ["a", "head"], ["Z"], name="head"))
    elif reader == "Gemm":
        constants |= {"head": head.T.copy(), "bias": np.ones(3, np.float32), "flat": np.array([-1, input_size])}
        nodes += [helper.make_node("Reshape", ["a", "flat"], ["rows"]),
                  helper.make_node("Gemm", ["rows", "head", "bias"], ["Z"], name="head", transB=1, alpha=2.0,
                                   beta=0.5)]  # fmt: skip
    elif reader == "Conv":
        constants["head"] = head.T[:, :, None].copy()
        nodes += [helper.make_node("Transpose", ["a"], ["channels"], perm=[1, 2, 0]),
                  helper.make_node("Conv", ["channels", "head"], ["Z"], name="head")]  # fmt: skip
    elif reader == "left MatMul":
        constants["head"] = head.T.copy()
        nodes += [helper.make_node("Transpose", ["a"], ["columns"], perm=[1, 2, 0]),
                  helper.make_node("MatMul", ["head", "columns"], ["Z"], name="head")]  # fmt: skip
    rank = 2 if reader == "Gemm" else 3
    return save(path, nodes, [value("X", ["T", "B", INPUT])], [value("Z", [None] * rank)], constants)


def pruned(path: Path, *, target: Target, **method: object) -> tuple[Analysis, list[tuple[int, int]], float]:
    """Prune with random samples; return the analysis, the sizes after surgery, and the held-out error."""
    model, interface = load_model(path)
    graph_model = normalise(model).model
    calibration = random_calibration(interface, interface.carried)
    analysis = analyse(graph_model, interface, calibration, Method(threads=1, **method),  # type: ignore[arg-type]
                       columns=target.kind != "ratio")  # fmt: skip
    commit(graph_model, analysis, choose(analysis, target))
    plan = plan_surgery(graph_model.graph, carried=interface.carried, compact_state=False)
    sizes = [(change.input_after, change.hidden_after) for change in plan.changes]
    return analysis, sizes, error_of(graph_model, analysis.held_out, 1)


HALF = Target(kind="ratio", value=0.5)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("op_type", "reset_first"), [("LSTM", 0), ("GRU", 0), ("GRU", 1), ("RNN", 0)])
def test_twins_say_what_the_lost_units_said(tmp_path: Path, op_type: str, reset_first: int, directions: int) -> None:
    path = stacked(tmp_path / "m.onnx", op_type, directions=directions, reset_first=reset_first)
    _, sizes, error = pruned(path, target=HALF)
    assert sizes == [(INPUT, HIDDEN // 2), (directions * HIDDEN // 2, HIDDEN // 2)]
    assert error < EXACT


@pytest.mark.parametrize("reader", ["Gemm", "Conv", "left MatMul"])
def test_every_kind_of_matrix_is_refitted(tmp_path: Path, reader: str) -> None:
    _, sizes, error = pruned(stacked(tmp_path / "m.onnx", "LSTM", reader=reader), target=HALF)
    assert [hidden for _, hidden in sizes] == [HIDDEN // 2] * 2
    assert error < EXACT


@pytest.mark.parametrize("criterion", ["reconstruct", "magnitude", "activation", "random"])
def test_without_folding_the_same_cut_errs(tmp_path: Path, criterion: str) -> None:
    path = stacked(tmp_path / "m.onnx", "LSTM")
    _, sizes, error = pruned(path, target=HALF, criterion=criterion, compensate=False)
    assert sum(hidden for _, hidden in sizes) == HIDDEN
    assert error > 50 * EXACT


def test_units_that_a_softmax_reads_are_not_given_up(tmp_path: Path) -> None:
    weights = twin_weights("LSTM", input_size=INPUT)
    nodes = [
        helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], name="layer", hidden_size=HIDDEN),
        helper.make_node("Softmax", ["Y"], ["Z"], name="softmax", axis=-1),
    ]
    path = save(tmp_path / "m.onnx", nodes, [value("X", ["T", "B", INPUT])], [value("Z", [None] * 4)], weights)
    with pytest.raises(SelectionError, match="no hidden unit can be given up; expected one that only matrices read"):
        pruned(path, target=HALF)


@pytest.mark.parametrize("tables", [("table", "table"), ("table", "other")])
def test_the_columns_of_a_table_that_is_used_twice_are_not_candidates(tmp_path: Path, tables: tuple[str, str]) -> None:
    weights = recurrent_weights("LSTM", input_size=INPUT, hidden_size=HIDDEN)
    table = np.random.default_rng(0).standard_normal((7, INPUT)).astype(np.float32)
    constants = {"table": table, "other": table + 1}
    nodes = []
    for number, name in enumerate(tables):
        nodes += [
            helper.make_node("Gather", [name, f"words{number}"], [f"x{number}"], name=f"embedding{number}"),
            helper.make_node("LSTM", [f"x{number}", f"W{number}", f"R{number}", f"B{number}"], [f"Y{number}"],
                             name=f"layer{number}", hidden_size=HIDDEN),
        ]  # fmt: skip
        constants |= {f"{name}{number}": array + number for name, array in weights.items()}
    inputs = [value(f"words{number}", ["T", "B"], onnx.TensorProto.INT64) for number in range(2)]
    path = save(tmp_path / "m.onnx", nodes, inputs, [value(f"Y{n}", [None] * 4) for n in range(2)], constants)
    surveyed = survey(normalise(load_model(path)[0]).model, (), columns=True)
    columns = [group.nodes for group in surveyed.groups if not group.recurrent]
    assert columns == ([] if tables[0] == tables[1] else [("embedding0",), ("embedding1",)])


def test_a_ratio_that_leaves_no_unit_names_the_most(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"target ratio 0\.99: cannot be met.*expected at most 0\.916"):
        pruned(stacked(tmp_path / "m.onnx", "LSTM"), target=Target(kind="ratio", value=0.99))


def test_without_samples_no_layer_is_emptied(tmp_path: Path) -> None:
    path = stacked(tmp_path / "m.onnx", "LSTM")
    model = onnx.load(path)
    for tensor in model.graph.initializer:  # what the second layer reads hardly matters
        if tensor.name == "W1":
            tensor.CopyFrom(numpy_helper.from_array(1e-4 * numpy_helper.to_array(tensor), "W1"))
    onnx.save(model, path)
    loaded, interface = load_model(path)
    random = random_calibration(interface, ())
    for source, first in (("random inputs", range(5, 8)), ("samples", range(1, 3))):
        calibration = replace(random, source=source)
        method = Method(criterion="magnitude", compensate=False, threads=1)
        graph_model = normalise(loaded.clone()).model
        counts = choose(analyse(graph_model, interface, calibration, method, columns=False), HALF)
        assert sum(counts) == HIDDEN
        assert HIDDEN - counts[0] in first


def test_a_table_is_narrowed_to_the_rank_of_what_it_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    table = (rng.standard_normal((50, 4)) @ rng.standard_normal((4, 16))).astype(np.float32)  # rank 4
    weights = recurrent_weights("LSTM", input_size=16, hidden_size=6)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["X"], name="embedding"),
        helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], name="layer", hidden_size=6),
        helper.make_node("Squeeze", ["Y", "one"], ["M"]),
        helper.make_node("MatMul", ["M", "head"], ["Z"], name="head"),
    ]
    constants = {
        **weights,
        "table": table,
        "one": np.array([1]),
        "head": rng.standard_normal((6, 3)).astype(np.float32),
    }
    path = save(tmp_path / "m.onnx", nodes, [value("ids", ["T", "B"], 7)], [value("Z", [None] * 3)], constants)
    analysis, sizes, error = pruned(path, target=Target(kind="error", value=1e-3))
    assert [group.nodes for group in analysis.groups] == [("embedding",), ("layer",)]
    assert sizes[0][0] == 4
    assert error < 1e-3


def test_costs_of_counts_are_those_of_the_cut_model(tmp_path: Path) -> None:
    from toolchain.graph.costs import multiply_adds, parameters
    from toolchain.graph.surgery import apply_surgery

    model, interface = load_model(stacked(tmp_path / "m.onnx", "GRU", directions=2))
    normalised = normalise(model)
    analysis = analyse(normalised.model, interface, random_calibration(interface, ()), Method(threads=1), columns=False)
    counts = choose(analysis, HALF)
    commit(normalised.model, analysis, counts)
    plan = plan_surgery(normalised.model.graph, carried=(), compact_state=False)
    cut = apply_surgery(plan, normalised)
    assert analysis.sizes.multiply_adds(counts) == multiply_adds(cut.graph)
    added = 3  # the head's fold: an Add of one constant for each of its columns
    assert analysis.sizes.parameters(counts) + added == parameters(cut.graph)


def test_a_bias_is_only_made_where_something_is_added(tmp_path: Path) -> None:
    path = stacked(tmp_path / "m.onnx", "LSTM")
    model, interface = load_model(path)
    normalised = normalise(model)
    nodes = [node.op_type for node in normalised.model.graph]
    analysis = analyse(
        normalised.model, interface, random_calibration(interface, ()), Method(compensate=False), columns=False
    )
    commit(normalised.model, analysis, choose(analysis, HALF))
    assert [node.op_type for node in normalised.model.graph] == nodes
