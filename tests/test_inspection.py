"""The inspection: what it finds in a model, and every ill in a model that has just that one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import OPSET, constant, layer_with_head, recurrent_weights, save, unrolled_rnn, value
from onnx import TensorProto, helper

from toolchain.errors import ModelFileError
from toolchain.graph.diagnosis import KINDS
from toolchain.inspection import Inspection, Port, inspect

H = 8


def kinds(path: Path) -> list[str]:
    return [ill.kind for ill in inspect(path).ills]


def lstm(
    path: Path,
    *,
    X: Sequence[int | str] = ("T", "B", 5),
    Z: Sequence[int | str] = ("T", 1, "B", H),
    W: str = "W",
    before: Sequence[onnx.NodeProto] = (),
    constants: dict[str, np.ndarray] | None = None,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    opset: int = OPSET,
    **attributes: int,
) -> Path:
    """Write one LSTM whose hidden sequence is the output `Z`; `constants` replace its weights."""
    weights = recurrent_weights("LSTM", input_size=5, hidden_size=H) | (constants or {})
    node = helper.make_node("LSTM", ["X", W, "R", "B"], ["Z"], name="layer", **{"hidden_size": H, **attributes})
    return save(path, [*before, node], [value("X", X), *inputs], [value("Z", Z)], weights, opset=opset)


def lost_projection(path: Path) -> Path:
    R = np.ones((1, 4 * H, 6), dtype=np.float32)
    return lstm(path, constants={"R": R})


def forgotten_projection(path: Path) -> Path:
    """What PyTorch's dynamo exporter writes for proj_size: tensors that agree, but of the projected size."""
    model = onnx.load(lstm(path))
    trace = model.graph.node[0].metadata_props.add()
    trace.key = "pkg.torch.onnx.fx_node"
    trace.value = "aten.lstm.input](args = (%x, [%zeros], [%p_r_weight_ih_l0, %p_r_weight_hh_l0, %p_r_weight_hr_l0]))"
    onnx.save(model, path)
    return path


def unfolded(path: Path) -> Path:
    turned = np.ones((1, 5, 4 * H), dtype=np.float32)
    before = [helper.make_node("Transpose", ["V"], ["U"], perm=[0, 2, 1])]
    return lstm(path, W="U", before=before, constants={"V": turned})


def computed(path: Path) -> Path:
    before = [helper.make_node("Mul", ["W", "scale"], ["U"])]
    return lstm(path, W="U", before=before, inputs=[value("scale", [1])])


def dequantized(path: Path) -> Path:
    blocks = {"Wq": np.ones((1, 4 * H, 5), dtype=np.int8), "by": np.full((1, 2 * H, 5), 0.1, dtype=np.float32)}
    before = [helper.make_node("DequantizeLinear", ["Wq", "by"], ["U"], axis=1, block_size=2)]
    return lstm(path, W="U", before=before, constants=blocks, opset=21)


def frozen_reshape(path: Path) -> Path:
    middle = [helper.make_node("Reshape", ["Y", "shape"], ["M"], name="baked")]
    return layer_with_head(path, middle=middle, extra={"shape": np.array([6, -1, H])})


def shared_zero_state(path: Path) -> Path:
    weights = recurrent_weights("GRU", input_size=H, hidden_size=H)
    nodes = [
        helper.make_node("GRU", ["X", "W", "R", "B", "", "zero"], ["Y"], name="one", hidden_size=H),
        helper.make_node("Squeeze", ["Y", "axis"], ["S"]),
        helper.make_node("GRU", ["S", "W", "R", "B", "", "zero"], ["Z"], name="two", hidden_size=H),
    ]
    constants = {**weights, "axis": np.array([1]), "zero": np.zeros((1, 2, H), dtype=np.float32)}
    return save(path, nodes, [value("X", ["T", "B", H])], [value("Z", ["T", 1, "B", H])], constants)


# Each ill, a model that has it and no other, and a part of its message.
CASES: list[tuple[str, Callable[[Path], Path], str]] = [
    ("lost_projection", lost_projection, "R has shape [1, 32, 6], whose last axis is not hidden_size 8"),
    ("lost_projection", forgotten_projection, "exporter dropped the projection (proj_size)"),
    ("shapes", lambda path: lstm(path, constants={"B": np.ones((1, 63), dtype=np.float32)}), "B has shape (1, 63)"),
    ("layout", lambda path: lstm(path, X=["B", "T", 5], Z=["B", "T", 1, H], layout=1), "layout=1"),
    ("unrolled", lambda path: unrolled_rnn(path, steps=3), "(written 3 times)"),
    ("quantized", dequantized, "its weights are quantized in blocks"),
    ("computed_weights", computed, "its weights depend on scale"),
    ("frozen_reshape", frozen_reshape, "[6, -1, 8] holds a length of the exporter's example"),
    ("stale_output_shape", lambda path: lstm(path, Z=[9, 1, "B", H]), "[9, 1, B, 8], but the graph makes it [T, 1"),
    ("frozen_time", lambda path: lstm(path, X=[7, "B", 5], Z=[7, 1, "B", H]), "the time axis is fixed at 7"),
    ("frozen_batch", lambda path: lstm(path, X=["T", 3, 5], Z=["T", 1, 3, H]), "the batch axis is fixed at 3"),
    ("one_step", lambda path: lstm(path, X=[1, "B", 5], Z=[1, 1, "B", H]), "the time axis is fixed at 1"),
    ("one_sequence", lambda path: lstm(path, X=["T", 1, 5], Z=["T", 1, 1, H]), "the batch axis is fixed at 1"),
    ("unfolded", unfolded, "its weights are computed from constants (Transpose)"),
    ("shared_zero_state", shared_zero_state, "one zero state starts 2 nodes (one, two)"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "build", "message"), CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)])
def test_an_ill_is_found_alone_with_its_remedy(
    tmp_path: Path, kind: str, build: Callable[[Path], Path], message: str
) -> None:
    (ill,) = inspect(build(tmp_path / "m.onnx")).ills
    assert (ill.kind, (ill.severity, ill.remedy)) == (kind, KINDS[kind])
    assert message in ill.problem
    assert str(ill) == f"{ill.subject}: {ill.problem}. {ill.remedy}."


def test_every_kind_of_ill_has_a_case_and_a_line_in_the_documentation() -> None:
    assert {kind for kind, _, _ in CASES} == set(KINDS)
    text = (Path(__file__).parents[1] / "docs" / "inspect.md").read_text()
    for kind, (severity, _) in KINDS.items():
        assert f"| `{kind}` | {severity} |" in text


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("directions", [1, 2])
def test_a_model_without_an_ill_has_none(tmp_path: Path, op_type: str, directions: int) -> None:
    found = inspect(layer_with_head(tmp_path / "m.onnx", op_type=op_type, directions=directions, dead=[()]))
    assert found.ills == ()
    (node,) = found.recurrent
    assert (node.op_type, node.direction) == (op_type, "bidirectional" if directions == 2 else "forward")
    assert (node.input_size, node.hidden_size, node.inside) == (5, 8, ())


def test_the_costs_are_counted_by_hand(tmp_path: Path) -> None:
    found = inspect(layer_with_head(tmp_path / "m.onnx"))
    (node,) = found.recurrent
    assert node.multiply_adds == 4 * 8 * 5 + 4 * 8 * 8
    assert node.parameters == node.multiply_adds + 2 * 4 * 8
    assert found.parameters == node.parameters + 8 * 3
    assert found.multiply_adds == node.multiply_adds + 8 * 3
    assert (found.nodes, found.opsets) == (4, (("", 17), ("com.microsoft", 1)))


def test_weights_that_are_computed_cost_as_much_as_folded_ones(tmp_path: Path) -> None:
    found = inspect(unfolded(tmp_path / "m.onnx"))
    (node,) = found.recurrent
    assert node.multiply_adds == found.multiply_adds == 4 * 8 * 5 + 4 * 8 * 8
    assert node.parameters == node.multiply_adds + 2 * 4 * 8


def test_one_zero_for_both_states_of_one_node_is_no_ill(tmp_path: Path) -> None:
    weights = recurrent_weights("LSTM", input_size=5, hidden_size=8) | {"zero": np.zeros((1, 2, 8), dtype=np.float32)}
    node = helper.make_node("LSTM", ["X", "W", "R", "B", "", "zero", "zero"], ["Z"], hidden_size=8)
    path = tmp_path / "m.onnx"
    assert kinds(save(path, [node], [value("X", ["T", "B", 5])], [value("Z", ["T", 1, "B", 8])], weights)) == []


def test_inputs_outputs_and_the_states_that_only_the_graph_shows(tmp_path: Path) -> None:
    weights = recurrent_weights("LSTM", input_size=5, hidden_size=8)
    node = helper.make_node("LSTM", ["X", "W", "R", "B", "", "h0", "c0"], ["Y", "hn", "cn"], hidden_size=8)
    inputs = [value("X", ["T", "B", 5]), value("h0", [1, "B", 8]), value("c0", [1, "B", 8])]
    outputs = [value("Y", ["T", 1, "B", 8]), value("hn", [1, "B", 8]), value("cn", [1, None, 8])]
    found = inspect(save(tmp_path / "m.onnx", [node], inputs, outputs, weights))
    assert found.inputs[0] == Port(name="X", dtype="float", shape=("T", "B", 5))
    assert found.outputs[2] == Port(name="cn", dtype="float", shape=(1, None, 8))
    assert (found.declared_state, found.visible_state) == ((), (("h0", "hn"), ("c0", "cn")))
    model = onnx.load(tmp_path / "m.onnx")
    helper.set_model_props(model, {"toolchain.carried_state": '[["h0", "hn"]]'})
    onnx.save(model, tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx")
    assert (found.declared_state, found.visible_state) == ((("h0", "hn"),), (("c0", "cn"),))


def in_a_branch(path: Path) -> Path:
    """Write an If with a GRU in each branch; `R` lies inside, `W` and `B` outside."""
    weights = recurrent_weights("GRU", input_size=5, hidden_size=8)
    R = weights.pop("R")
    one, two = (
        helper.make_graph(
            [helper.make_node("GRU", ["X", "W", f"R_{name}", "B"], ["", name], name=name, hidden_size=8)],
            name, [], [value(name, None)], [constant(f"R_{name}", R)],
        )
        for name in ("yes", "no")
    )  # fmt: skip
    nodes = [helper.make_node("If", ["flag"], ["Z"], name="choose", then_branch=one, else_branch=two)]
    inputs = [value("X", ["T", "B", 5]), value("flag", [], TensorProto.BOOL)]
    return save(path, nodes, inputs, [value("Z", [1, "B", 8])], weights)


def in_a_function(path: Path) -> Path:
    weights = recurrent_weights("GRU", input_size=5, hidden_size=8)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    body = [helper.make_node("GRU", ["x", "w", "r"], ["y"], name="inner", hidden_size=8)]
    function = helper.make_function("local", "Layer", ["x", "w", "r"], ["y"], body, opsets[:1])
    nodes = [helper.make_node("Layer", ["X", "W", "R"], ["Z"], domain="local", name="call")]
    save(path, nodes, [value("X", ["T", "B", 5])], [value("Z", ["T", 1, "B", 8])], weights)
    model = onnx.load(path)
    model.functions.append(function)
    model.opset_import.extend(opsets[1:])
    onnx.save(model, path)
    return path


def test_recurrent_nodes_inside_subgraphs_are_found_with_their_place(tmp_path: Path) -> None:
    found = inspect(in_a_branch(tmp_path / "m.onnx"))
    places = {node.name: node.inside for node in found.recurrent}
    assert places == {"yes": ("choose.then_branch",), "no": ("choose.else_branch",)}
    assert {(node.input_size, node.hidden_size) for node in found.recurrent} == {(5, 8)}
    assert found.parameters == 24 * 5 + 2 * 24 * 8 + 48  # W and B once, R twice
    assert found.multiply_adds == 2 * (24 * 5 + 24 * 8)


def test_recurrent_nodes_inside_functions_are_found(tmp_path: Path) -> None:
    (node,) = inspect(in_a_function(tmp_path / "m.onnx")).recurrent
    assert (node.op_type, node.input_size, node.hidden_size) == ("GRU", 5, 8)


def test_a_quantized_lstm_has_its_sizes_from_its_own_layout(tmp_path: Path) -> None:
    constants = {
        "W": np.ones((1, 5, 32), dtype=np.int8),
        "R": np.ones((1, 8, 32), dtype=np.int8),
        "by": np.array([0.1], dtype=np.float32),
        "zero": np.array([0], dtype=np.int8),
    }
    inputs = ["X", "W", "R", "", "", "", "", "", "by", "zero", "by", "zero"]
    node = helper.make_node("DynamicQuantizeLSTM", inputs, ["Z"], domain="com.microsoft", name="q", hidden_size=8)
    found = inspect(
        save(tmp_path / "m.onnx", [node], [value("X", ["T", "B", 5])], [value("Z", ["T", 1, "B", 8])], constants)
    )
    assert [ill.kind for ill in found.ills] == ["quantized"]
    (lstm_node,) = found.recurrent
    assert (lstm_node.input_size, lstm_node.hidden_size) == (5, 8)
    assert lstm_node.multiply_adds == found.multiply_adds == 32 * (5 + 8)


def test_the_model_file_is_not_changed(tmp_path: Path) -> None:
    path = frozen_reshape(tmp_path / "m.onnx")
    before = path.read_bytes()
    inspect(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ModelFileError, match="is not an ONNX file"):
        inspect(tmp_path / "m.onnx")


# Recurrence without a recurrent operator.


@pytest.mark.parametrize("shape", [[0, -1, 10], [-1, 1, 10], [0, 0, 5], [-1, 2, 5]])
def test_frames_put_side_by_side_or_told_apart_are_no_frozen_length(tmp_path: Path, shape: list[int]) -> None:
    before = [helper.make_node("Reshape", ["X", "shape"], ["S"])]
    weights = recurrent_weights("GRU", input_size=shape[-1], hidden_size=8) | {"shape": np.array(shape)}
    nodes = [*before, helper.make_node("GRU", ["S", "W", "R", "B"], ["Z"], hidden_size=8)]
    X = ["T", "B", 5] if shape[1] != 2 else ["T", 2, 5]
    path = save(tmp_path / "m.onnx", nodes, [value("X", X)], [value("Z", [None, 1, None, 8])], weights)
    assert "frozen_reshape" not in kinds(path)


def test_a_model_without_recurrence_may_group_an_axis(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["z"])]
    outputs = [value("z", [None, 4, 8])]
    path = save(tmp_path / "m.onnx", nodes, [value("x", ["T", 8])], outputs, {"shape": np.array([-1, 4, 8])})
    assert kinds(path) == []


def test_two_tied_matrices_are_no_recurrence_and_three_are(tmp_path: Path) -> None:
    assert kinds(unrolled_rnn(tmp_path / "m.onnx", steps=2)) == []
    assert kinds(unrolled_rnn(tmp_path / "m.onnx", steps=3)) == ["unrolled"]


def test_untied_layers_and_tied_layers_with_a_softmax_between_are_no_recurrence(tmp_path: Path) -> None:
    assert kinds(unrolled_rnn(tmp_path / "m.onnx", steps=5, tied=False)) == []
    assert kinds(unrolled_rnn(tmp_path / "m.onnx", steps=5, between="Softmax")) == []
    assert kinds(unrolled_rnn(tmp_path / "m.onnx", steps=5, between="Identity")) == ["unrolled"]


def test_a_matrix_that_is_shared_side_by_side_is_no_recurrence(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", [f"x{i}", "R"], [f"z{i}"]) for i in range(4)]
    inputs, outputs = ([value(f"{name}{i}", ["B", 8]) for i in range(4)] for name in "xz")
    path = save(tmp_path / "m.onnx", nodes, inputs, outputs, {"R": np.ones((8, 8), dtype=np.float32)})
    assert kinds(path) == []


def loop(path: Path, *, step: Sequence[onnx.NodeProto]) -> Path:
    """Write a Loop whose state `h` becomes `n`."""
    body = helper.make_graph(
        [*step, helper.make_node("Identity", ["go"], ["go_on"])],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("h", ["B", 8])],
        [value("go_on", [], TensorProto.BOOL), value("n", ["B", 8])],
    )
    nodes = [helper.make_node("Loop", ["times", "", "h0"], ["Z"], name="loop", body=body)]
    matrix = {"R": np.ones((8, 8), dtype=np.float32), "times": np.array(3)}
    return save(path, nodes, [value("h0", ["B", 8])], [value("Z", ["B", 8])], matrix)


def test_a_loop_with_its_state_in_a_matrix_is_a_recurrence(tmp_path: Path) -> None:
    step = [helper.make_node("MatMul", ["h", "R"], ["z"]), helper.make_node("Tanh", ["z"], ["n"])]
    (ill,) = inspect(loop(tmp_path / "m.onnx", step=step)).ills
    assert (ill.kind, ill.subject) == ("unrolled", "node 'loop'")
    assert "a Loop with its state in plain matrices" in ill.problem


def test_a_loop_without_a_matrix_is_no_recurrence(tmp_path: Path) -> None:
    assert kinds(loop(tmp_path / "m.onnx", step=[helper.make_node("Tanh", ["h"], ["n"])])) == []


@pytest.mark.parametrize(
    ("cell", "what"),
    [("LSTMCell", "an LSTM cell"), ("GRUCell", "a GRU cell"), ("RNNCell", "one matrix applied to its own result")],
)
def test_a_loop_of_pytorch_cells_is_named(tmp_path: Path, cell: str, what: str) -> None:
    torch = pytest.importorskip("torch")

    class Cells(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.cell = getattr(torch.nn, cell)(4, 8)

        def forward(self, x, h):
            state = (h, h) if cell == "LSTMCell" else h
            for t in range(5):
                state = self.cell(x[t], state)
            return state[0] if cell == "LSTMCell" else state

    path = tmp_path / "m.onnx"
    torch.onnx.export(Cells().eval(), (torch.ones(5, 1, 4), torch.ones(1, 8)), str(path), dynamo=False)
    found: Inspection = inspect(path)
    (ill,) = (ill for ill in found.ills if ill.kind == "unrolled")
    assert what in ill.problem
    assert "(written 5 times)" in ill.problem
    assert found.recurrent == ()
