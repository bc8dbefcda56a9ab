"""The whole stage: planted dead units go, nothing else changes, nothing is written that was not proven."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import (
    GATES,
    constant,
    kill,
    layer_with_head,
    recurrent_shapes,
    recurrent_weights,
    run,
    save,
    value,
)
from onnx import TensorProto, helper
from shrinking_models import streaming_model

import toolchain
from toolchain.errors import LayoutError, ModelFileError, OutputError, ParityError


def random_input(steps: int = 6, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((steps, batch, 5)).astype(np.float32)


def assert_equal_outputs(one: Path, other: Path, feeds: dict[str, np.ndarray]) -> None:
    before, after = run(one, feeds), run(other, feeds)
    assert before.keys() == after.keys()
    for name, expected in before.items():
        assert after[name].shape == expected.shape
        assert after[name].dtype == expected.dtype
        np.testing.assert_allclose(after[name], expected, atol=1e-6)


@pytest.mark.parametrize("op_type", list(GATES))
@pytest.mark.parametrize("directions", [1, 2])
def test_planted_dead_units_go_and_outputs_stay(tmp_path: Path, op_type: str, directions: int) -> None:
    dead = [(1, 4, 5), (0, 2, 7)][:directions]
    source = layer_with_head(tmp_path / "m.onnx", op_type=op_type, directions=directions, dead=dead)
    result = toolchain.shrink(source)
    assert result.output == tmp_path / "m.shrunk.onnx"
    assert recurrent_shapes(result.output) == [(5, 5)]
    for steps, batch in ((1, 1), (6, 2), (40, 3)):
        assert_equal_outputs(source, result.output, {"X": random_input(steps, batch)})


def test_directions_with_unequal_dead_counts_keep_equal_counts(tmp_path: Path) -> None:
    source = layer_with_head(tmp_path / "m.onnx", directions=2, dead=[(1, 4, 5, 6), (0,)])
    result = toolchain.shrink(source)
    assert recurrent_shapes(result.output) == [(5, 7)]
    assert_equal_outputs(source, result.output, {"X": random_input()})


def test_units_that_only_read_one_another_die_together(tmp_path: Path) -> None:
    weights = recurrent_weights("LSTM", input_size=5, hidden_size=8)
    R = weights["R"].reshape(4, 8, 8)
    clique, others = [2, 3, 6], [0, 1, 4, 5, 7]
    R[:, np.ix_(others, clique)[0], np.ix_(others, clique)[1]] = 0  # nobody outside reads the clique
    head = np.random.default_rng(1).standard_normal((8, 3)).astype(np.float32)
    kill(head, clique, axis=0)
    nodes = [
        helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], hidden_size=8),
        helper.make_node("Squeeze", ["Y", "one"], ["M"]),
        helper.make_node("MatMul", ["M", "head"], ["Z"]),
    ]
    constants = {**weights, "R": R.reshape(1, 32, 8), "head": head, "one": np.array([1])}
    source = save(tmp_path / "m.onnx", nodes, [value("X", ["T", "B", 5])], [value("Z", [None] * 3)], constants)
    result = toolchain.shrink(source)
    assert recurrent_shapes(result.output) == [(5, 5)]
    assert_equal_outputs(source, result.output, {"X": random_input()})


def test_a_model_with_nothing_to_remove_is_left_alone(tmp_path: Path) -> None:
    source = layer_with_head(tmp_path / "m.onnx", dead=[()])
    result = toolchain.shrink(source)
    assert result.status == "nothing_to_remove"
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_shrinking_twice_equals_shrinking_once(tmp_path: Path) -> None:
    first = toolchain.shrink(layer_with_head(tmp_path / "m.onnx"))
    assert toolchain.shrink(first.output).status == "nothing_to_remove"


def test_the_input_is_not_changed_and_the_result_passes_the_checker(tmp_path: Path) -> None:
    source = layer_with_head(tmp_path / "m.onnx")
    before = hashlib.sha256(source.read_bytes()).digest()
    result = toolchain.shrink(source)
    assert hashlib.sha256(source.read_bytes()).digest() == before
    onnx.checker.check_model(onnx.load(result.output), full_check=True)


def test_the_files_own_metadata_stay_and_no_other_is_added(tmp_path: Path) -> None:
    source = layer_with_head(tmp_path / "m.onnx", dead=[(1, 4)])
    model = onnx.load(source)
    helper.set_model_props(model, {"task": "words"})
    onnx.save(model, source)
    toolchain.shrink(source)
    found = onnx.load(tmp_path / "m.shrunk.onnx").metadata_props
    assert {entry.key: entry.value for entry in found} == {"task": "words"}


def test_a_dead_unit_with_no_unit_left_keeps_one(tmp_path: Path) -> None:
    source = layer_with_head(tmp_path / "m.onnx", dead=[tuple(range(8))])
    result = toolchain.shrink(source)
    assert recurrent_shapes(result.output) == [(1, 1)] or recurrent_shapes(result.output) == [(5, 1)]
    assert_equal_outputs(source, result.output, {"X": random_input()})


def test_an_unknown_operator_keeps_its_units_and_is_named(tmp_path: Path) -> None:
    middle = [
        helper.make_node("Squeeze", ["Y", "one"], ["S"]),
        helper.make_node("SampleOp", ["S"], ["M"], name="odd_one", domain="com.microsoft"),
    ]
    source = layer_with_head(tmp_path / "m.onnx", middle=middle, extra={"one": np.array([1])})
    result = toolchain.shrink(source)
    assert result.status == "nothing_to_remove"
    (node,) = result.nodes
    (blocker,) = node.blocked_by
    assert (blocker.node, blocker.op_type) == ("odd_one", "SampleOp")
    assert "no transfer function" in blocker.reason


def test_a_hidden_sequence_that_is_a_graph_output_keeps_its_shape(tmp_path: Path) -> None:
    source = layer_with_head(tmp_path / "m.onnx")
    model = onnx.load(source)
    model.graph.output.append(value("Y", ["T", 1, "B", 8]))
    onnx.save(model, source)
    result = toolchain.shrink(source)
    assert result.status == "nothing_to_remove"
    assert [(b.node, b.op_type) for b in result.nodes[0].blocked_by] == [("Y", "graph output")]


def test_one_layer_feeding_another_loses_units_and_inputs(tmp_path: Path) -> None:
    first = recurrent_weights("LSTM", input_size=5, hidden_size=8, seed=1)
    second = recurrent_weights("GRU", input_size=8, hidden_size=6, seed=2)
    kill(first["R"], [0, 3])
    kill(second["W"], [0, 3])
    kill(first["W"], [4])  # an input neuron, whose producer is the embedding
    kill(second["R"], [5])
    head = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)
    kill(head, [5], axis=0)
    table = np.random.default_rng(2).standard_normal((11, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["X"]),
        helper.make_node("LSTM", ["X", "W1", "R1", "B1"], ["Y1"], hidden_size=8),
        helper.make_node("Squeeze", ["Y1", "one"], ["X2"]),
        helper.make_node("GRU", ["X2", "W2", "R2", "B2"], ["", "H2"], hidden_size=6, linear_before_reset=1),
        helper.make_node("Squeeze", ["H2", "zero"], ["last"]),
        helper.make_node("Gemm", ["last", "head", "bias"], ["Z"]),
    ]
    constants = {
        **{f"{k}1": v for k, v in first.items()},
        **{f"{k}2": v for k, v in second.items()},
        "table": table,
        "head": head,
        "bias": np.ones(3, np.float32),
        "one": np.array([1]),
        "zero": np.array([0]),
    }
    source = save(tmp_path / "m.onnx", nodes, [value("tokens", ["T", "B"], TensorProto.INT64)],
                  [value("Z", ["B", 3])], constants)  # fmt: skip
    result = toolchain.shrink(source)
    assert recurrent_shapes(result.output) == [(4, 6), (6, 5)]
    tokens = np.random.default_rng(0).integers(0, 11, (7, 3))
    assert_equal_outputs(source, result.output, {"tokens": tokens})


def test_two_nodes_that_share_weights_go_on_sharing_them(tmp_path: Path) -> None:
    weights = recurrent_weights("LSTM", input_size=5, hidden_size=8)
    kill(weights["R"], [2, 3])
    left, right = (np.random.default_rng(seed).standard_normal((8, 3)).astype(np.float32) for seed in (1, 2))
    kill(left, [2, 3, 4], axis=0)
    kill(right, [2, 3], axis=0)
    nodes = [
        node
        for side in ("a", "b")
        for node in (
            helper.make_node("LSTM", [f"X{side}", "W", "R", "B"], [f"Y{side}"], hidden_size=8),
            helper.make_node("Squeeze", [f"Y{side}", "one"], [f"S{side}"]),
            helper.make_node("MatMul", [f"S{side}", f"head{side}"], [f"Z{side}"]),
        )
    ]
    constants = {**weights, "heada": left, "headb": right, "one": np.array([1])}
    source = save(tmp_path / "m.onnx", nodes, [value("Xa", ["T", "B", 5]), value("Xb", ["T", "B", 5])],
                  [value("Za", [None] * 3), value("Zb", [None] * 3)], constants)  # fmt: skip
    result = toolchain.shrink(source)
    assert recurrent_shapes(result.output) == [(5, 6), (5, 6)]
    nodes_after = [node for node in onnx.load(result.output).graph.node if node.op_type == "LSTM"]
    assert nodes_after[0].input[2] == nodes_after[1].input[2]
    assert_equal_outputs(source, result.output, {"Xa": random_input(), "Xb": random_input()[:, ::-1].copy()})


def test_a_model_in_memory_is_shrunk_to_the_file_that_is_named(tmp_path: Path) -> None:
    proto = onnx.load(layer_with_head(tmp_path / "m.onnx"))
    for model in (proto, ir.from_proto(proto)):
        before = (ir.to_proto(model) if isinstance(model, ir.Model) else model).SerializeToString()
        result = toolchain.shrink(model, tmp_path / "out.onnx")
        assert (ir.to_proto(model) if isinstance(model, ir.Model) else model).SerializeToString() == before
        assert recurrent_shapes(tmp_path / "out.onnx") == [(5, 5)]
        assert result.status == "written"
    with pytest.raises(OutputError, match="output: missing"):
        toolchain.shrink(proto)


def test_external_weights_are_read_and_left_untouched(tmp_path: Path) -> None:
    inside = layer_with_head(tmp_path / "inside.onnx")
    folder = tmp_path / "model"
    folder.mkdir()
    source = folder / "m.onnx"
    onnx.save(onnx.load(inside), source, save_as_external_data=True, location="m.weights", size_threshold=100)
    weights = (folder / "m.weights").read_bytes()
    result = toolchain.shrink(source)
    assert recurrent_shapes(result.output) == [(5, 5)]
    assert (folder / "m.weights").read_bytes() == weights
    assert_equal_outputs(source, result.output, {"X": random_input()})


def test_masked_is_the_model_just_before_the_cut(tmp_path: Path) -> None:
    source = layer_with_head(tmp_path / "m.onnx")
    toolchain.shrink(source, masked=tmp_path / "masked.onnx")
    assert recurrent_shapes(tmp_path / "masked.onnx") == recurrent_shapes(source)
    assert_equal_outputs(source, tmp_path / "masked.onnx", {"X": random_input()})


def test_a_failed_proof_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolchain import shrinking

    real = shrinking.apply_surgery

    def wrong(plan: object, normalised: object) -> ir.Model:
        model = real(plan, normalised)  # type: ignore[arg-type]
        head = next(v for name, v in model.graph.initializers.items() if name.startswith("head"))
        head.const_value = ir.tensor(head.const_value.numpy() * np.float32(1.01))
        return model

    monkeypatch.setattr(shrinking, "apply_surgery", wrong)
    with pytest.raises(ParityError, match=r"output 'Z': differs by .* at 1 steps x batch 1; expected at most"):
        toolchain.shrink(layer_with_head(tmp_path / "m.onnx"), masked=tmp_path / "masked.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no graph"),
        (b"<html>not found</html>", "not an ONNX file"),
        (None, "no such file"),
        ("folder", "is a folder"),
        ("truncated", "only a part of one"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "m.onnx"
    if content == "folder":
        path.mkdir()
    elif content == "truncated":
        whole = layer_with_head(path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        toolchain.shrink(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_recurrence_of_the_wrong_shape_is_refused_by_name(tmp_path: Path) -> None:
    source = layer_with_head(tmp_path / "m.onnx")
    model = onnx.load(source)
    place = [tensor.name for tensor in model.graph.initializer].index("R")
    model.graph.initializer[place].CopyFrom(constant("R", np.zeros((1, 32, 7), np.float32)))
    onnx.save(model, source)
    with pytest.raises(LayoutError, match=r"node 'layer': hidden_size is 8 but R has shape \(1, 32, 7\)"):
        toolchain.shrink(source)


def test_the_output_must_not_be_the_input(tmp_path: Path) -> None:
    source = layer_with_head(tmp_path / "m.onnx")
    with pytest.raises(OutputError, match="is the model to shrink"):
        toolchain.shrink(source, source)


def test_a_place_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    source = layer_with_head(tmp_path / "m.onnx")
    with pytest.raises(OutputError, match="cannot be written"):
        toolchain.shrink(source, tmp_path / "missing" / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_the_last_state_of_several_layers_does_not_tie_the_other_layers_widths(tmp_path: Path) -> None:
    """PyTorch stacks the layers' final states and then takes one: Concat, Gather."""
    dead = {1: [1, 4], 2: [0, 2, 5], 3: [3]}  # each of 6 units stays in two of the three layers
    constants = {"zero": np.array([0]), "one": np.array([1]), "last": np.array(-1)}
    nodes = []
    for layer, units in dead.items():
        weights = recurrent_weights("GRU", input_size=5 if layer == 1 else 6, hidden_size=6, seed=layer)
        kill(weights["R"], units)
        if layer > 1:
            kill(weights["W"], dead[layer - 1])
        constants |= {f"{name}{layer}": array for name, array in weights.items()}
        nodes += [
            helper.make_node("GRU", [f"X{layer}", *(f"{name}{layer}" for name in "WRB")], [f"Y{layer}", f"h{layer}"],
                             hidden_size=6),
            helper.make_node("Squeeze", [f"Y{layer}", "one"], [f"X{layer + 1}"]),
        ]  # fmt: skip
    head = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)
    kill(head, dead[3], axis=0)
    nodes += [
        helper.make_node("Concat", ["h1", "h2", "h3"], ["h"], axis=0),
        helper.make_node("Gather", ["h", "last"], ["read"], axis=0),
        helper.make_node("MatMul", ["read", "head"], ["Z"]),
    ]
    inputs, outputs = [value("X1", ["T", "B", 5])], [value("Z", ["B", 3])]
    source = save(tmp_path / "m.onnx", nodes, inputs, outputs, {**constants, "head": head})
    result = toolchain.shrink(source)
    assert recurrent_shapes(result.output) == [(5, 4), (4, 3), (3, 5)]
    assert_equal_outputs(source, result.output, {"X1": random_input()})


def test_an_operator_without_known_shapes_below_a_layer_costs_only_the_layers_input(tmp_path: Path) -> None:
    source = streaming_model(tmp_path / "m.onnx")
    model = onnx.load(source)
    model.graph.node[0].input[0] = "G"
    model.graph.node.insert(0, helper.make_node("SampleOp", ["X"], ["G"], name="odd_one", domain="com.microsoft"))
    onnx.save(model, source)
    result = toolchain.shrink(source)
    assert result.status == "written"
    assert (result.nodes[0].input_before, result.nodes[0].input_after) == (5, 5)
    assert all(node.hidden_after < node.hidden_before for node in result.nodes)
