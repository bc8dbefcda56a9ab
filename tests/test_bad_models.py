"""Bad input: one clear line that names the object and the way out, exit 1, nothing written, nothing overwritten."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import constant, initializer, layer_with_head, recurrent_shapes, run, save, value
from onnx import ModelProto, TensorProto, helper, numpy_helper

from toolchain.cli import cli
from toolchain.errors import ToolchainError
from toolchain.graph.loading import load_model

Change = Callable[[ModelProto], object]


def error_of(path: Path, *options: str) -> str:
    """Run `toolchain shrink`, check that it fails in one line and touches no file, and return that line."""
    folder = path.parent
    kept = folder / "m.shrunk.onnx"
    kept.write_bytes(b"an older result")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    done = CliRunner().invoke(cli, ["shrink", str(path), *options])
    assert isinstance(done.exception, ToolchainError), done.exception  # `main` prints it and exits 1
    assert done.stdout == ""
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    text = str(done.exception)
    assert "\n" not in text
    return text.replace(f"{folder}/", "")


def changed(tmp_path: Path, change: Change) -> Path:
    """Write a model with dead units and something wrong in it."""
    path = layer_with_head(tmp_path / "m.onnx")
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def tensor(model: ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def give(model: ModelProto, name: str, array: np.ndarray) -> None:
    tensor(model, name).CopyFrom(constant(name, array))


@pytest.mark.parametrize(
    "content",
    [b"hello world\n" * 50_000, b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, bytes([8, 0, 0, 0]) * 7 + b"{"],
    ids=["text", "png", "other"],
)
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert error_of(tmp_path / "m.onnx") == (
        "m.onnx: is not an ONNX file, or only a part of one; expected a complete model. Export or copy it again."
    )


@pytest.mark.parametrize("cut", [3, 1000])
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = layer_with_head(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:-cut])
    assert error_of(path).startswith("m.onnx: is not an ONNX file, or only a part of one; expected a complete model.")


def test_a_file_in_onnx_runtimes_own_format_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "m.ort").write_bytes(b"\x18\x00\x00\x00ORTM" + bytes(300))
    assert error_of(tmp_path / "m.ort") == (
        "m.ort: is in ONNX Runtime's own format (ORT); expected the ONNX file that it was made from. Give that one."
    )


def test_an_empty_file_and_an_empty_graph_hold_no_graph(tmp_path: Path) -> None:
    text = "m.onnx: holds no graph; expected an ONNX model with nodes. Export or copy it again."
    (tmp_path / "m.onnx").write_bytes(b"")
    assert error_of(tmp_path / "m.onnx") == text
    assert error_of(changed(tmp_path, lambda model: model.graph.ClearField("node"))) == text


def _typed(name: str, *, missing: int) -> Change:
    def change(model: ModelProto) -> None:
        held = tensor(model, name)
        numbers = numpy_helper.to_array(held).ravel()[: -missing or None].tolist()
        held.ClearField("raw_data")
        (held.float_data if held.data_type == TensorProto.FLOAT else held.int64_data).extend(numbers)

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: setattr(tensor(m, "W"), "raw_data", tensor(m, "W").raw_data[:-8]),
         "tensor 'W' holds 632 bytes; expected 640, as its shape [1, 32, 5] says"),
        (lambda m: setattr(tensor(m, "W"), "raw_data", tensor(m, "W").raw_data + b"12345678"),
         "tensor 'W' holds 648 bytes; expected 640, as its shape [1, 32, 5] says"),
        (lambda m: tensor(m, "head").dims.__setitem__(0, 9),
         "tensor 'head' holds 96 bytes; expected 108, as its shape [9, 3] says"),
        (_typed("head", missing=2), "tensor 'head' holds 22 entries; expected 24, as its shape [8, 3] says"),
        (_typed("side_by_side", missing=1),
         "tensor 'side_by_side' holds 2 entries; expected 3, as its shape [3] says"),
    ],
)  # fmt: skip
def test_a_shape_that_lies_about_its_bytes_is_refused(tmp_path: Path, change: Change, text: str) -> None:
    assert error_of(changed(tmp_path, change)) == f"m.onnx: {text}. Export or copy it again."


@pytest.mark.parametrize("element", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT4, TensorProto.BOOL,
                                     TensorProto.DOUBLE, TensorProto.UINT32, TensorProto.COMPLEX64,
                                     TensorProto.STRING])  # fmt: skip
@pytest.mark.parametrize("raw", [True, False])
def test_the_bytes_of_every_type_are_counted_as_onnx_stores_them(tmp_path: Path, element: int, raw: bool) -> None:
    def change(model: ModelProto) -> None:
        numbers: list[object] = [b"a", b"b", b"c"] if element == TensorProto.STRING else [1, 0, 1]
        stored = helper.make_tensor("other", element, [3], numbers)
        if raw and element != TensorProto.STRING:
            stored = numpy_helper.from_array(numpy_helper.to_array(stored), "other")
        model.graph.initializer.append(stored)

    model, _ = load_model(changed(tmp_path, change))
    assert model.graph.initializers["other"].shape == [3]


def test_text_among_the_constants_is_left_as_it_is(tmp_path: Path) -> None:
    def change(model: ModelProto) -> None:
        model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"one", b"two"]))
        model.graph.node.append(helper.make_node("Identity", ["words"], ["same"]))
        model.graph.output.append(value("same", [2], TensorProto.STRING))

    done = CliRunner().invoke(cli, ["shrink", str(changed(tmp_path, change))])
    assert done.exit_code == 0, done.exception
    assert run(tmp_path / "m.shrunk.onnx", {"X": np.zeros((1, 1, 5), np.float32)})["same"].tolist() == ["one", "two"]


@pytest.mark.parametrize(("element", "length"), [(0, 1), (77, 1), (1, -1)])
def test_a_type_or_length_that_onnx_does_not_have_is_refused(tmp_path: Path, element: int, length: int) -> None:
    def change(model: ModelProto) -> None:
        tensor(model, "W").data_type = element
        tensor(model, "W").dims[0] = length

    assert error_of(changed(tmp_path, change)) == (
        f"m.onnx: tensor 'W' has data type {element} and shape [{length}, 32, 5]; expected a type that ONNX defines "
        "and lengths of at least 0. Export it again."
    )


def external(tmp_path: Path, **entries: str) -> Path:
    """Write a model with its weights in `inside/w.data`; `entries` replace those of `W`."""
    folder = tmp_path / "inside"
    folder.mkdir()
    model = onnx.load(layer_with_head(tmp_path / "x.onnx"))
    (tmp_path / "x.onnx").unlink()
    path = folder / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=100)
    model = onnx.load(path, load_external_data=False)
    for entry in tensor(model, "W").external_data:
        entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())
    return path


_OUTSIDE = "outside the model's folder; expected a file beside the model. Move it there and export again."


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"location": "../w.data"}, f"lies in '../w.data', {_OUTSIDE}"),
        ({"location": "/dev/zero"}, f"lies in '/dev/zero', {_OUTSIDE}"),
        ({"location": ""}, "is external and names no file; expected a location. Export it again."),
        ({"offset": "-64"}, "has offset -64 in 'w.data'; expected a number of bytes. Export it again."),
        ({"offset": "abc"}, "has offset abc in 'w.data'; expected a number of bytes. Export it again."),
        ({"length": "40"},
         "has length 40 in 'w.data'; expected 640, as its shape [1, 32, 5] says. Export it again."),
    ],
)  # fmt: skip
def test_external_data_that_cannot_be_what_it_says_is_refused(
    tmp_path: Path, entries: dict[str, str], text: str
) -> None:
    assert error_of(external(tmp_path, **entries)) == f"m.onnx: tensor 'W' {text}"


def test_external_data_behind_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    shutil.move(path.parent / "w.data", tmp_path / "w.data")
    (path.parent / "w.data").symlink_to(tmp_path / "w.data")
    assert error_of(path) == f"m.onnx: tensor 'W' lies in 'w.data', {_OUTSIDE}"


def test_external_data_that_is_missing_or_too_short_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    data = path.parent / "w.data"
    data.write_bytes(data.read_bytes()[:200])
    rest = "expected at least 640 bytes for tensor 'W'. Copy it there again."
    assert error_of(path) == f"m.onnx: its weights file 'w.data' has 200 bytes; {rest}"
    data.unlink()
    assert error_of(path) == f"m.onnx: its weights file 'w.data' is missing; {rest}"


def _hidden(size: int) -> Change:
    def change(model: ModelProto) -> None:
        next(a for a in model.graph.node[0].attribute if a.name == "hidden_size").i = size

    return change


def _peephole(model: ModelProto) -> None:
    model.graph.node[0].input.extend(["", "", "", "P"])
    model.graph.initializer.append(constant("P", np.zeros((1, 20), np.float32)))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: give(m, "W", np.zeros((1, 30, 5), np.float32)),
         "W has shape (1, 30, 5); expected (1, 32, 5) for an LSTM with 8 hidden units"),
        (lambda m: give(m, "W", np.zeros((1, 32, 6), np.float32)),
         "W is for 6 features, but X has 5; expected as many"),
        (lambda m: give(m, "W", np.zeros((32, 5), np.float32)),
         "W has shape (32, 5) and R (1, 32, 8); expected three axes each"),
        (lambda m: give(m, "R", np.zeros((1, 32, 7), np.float32)),
         "hidden_size is 8 but R has shape (1, 32, 7); expected R's last axis to be hidden_size"),
        (lambda m: give(m, "B", np.zeros((1, 60), np.float32)),
         "B has shape (1, 60); expected (1, 64) for an LSTM with 8 hidden units"),
        (_peephole, "P has shape (1, 20); expected (1, 24) for an LSTM with 8 hidden units"),
        (_hidden(9), "hidden_size is 9 but R has shape (1, 32, 8); expected R's last axis to be hidden_size"),
        (lambda m: m.graph.node[0].input.__setitem__(1, ""),
         "has no weights W and R; expected X, W and R as the first inputs of an LSTM"),
        (lambda m: m.graph.node[0].input.__delitem__(slice(1, 4)),
         "has no weights W and R; expected X, W and R as the first inputs of an LSTM"),
    ],
)  # fmt: skip
def test_recurrent_weights_that_disagree_are_refused(tmp_path: Path, change: Change, text: str) -> None:
    assert error_of(changed(tmp_path, change)) == f"node 'layer': {text}. Export the model again."


def test_a_recurrent_node_without_units_is_refused(tmp_path: Path) -> None:
    path = layer_with_head(tmp_path / "m.onnx", hidden_size=0, dead=[()])
    text = "node 'layer': R has shape (1, 0, 0); expected at least one hidden unit. Export the model again."
    assert error_of(path) == text


def _without_head_but_sparse(model: ModelProto) -> None:
    dense = tensor(model, "head")
    places = np.flatnonzero(numpy_helper.to_array(dense))
    numbers = constant("head", numpy_helper.to_array(dense).ravel()[places])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(numbers, constant("", places), list(dense.dims)))
    model.graph.initializer.remove(dense)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.graph.node[1].input.__setitem__(0, "M"),
         "its nodes wait for one another in a cycle ('Yt' <- 'M'); expected a graph without. Export it again."),
        (lambda m: m.graph.node.append(helper.make_node("Relu", ["X"], ["M"], name="again")),
         "the name 'M' is made twice, by node 'M' and by node 'again'; expected one of each. Export it again."),
        (lambda m: m.graph.initializer.append(constant("M", np.zeros(1))),
         "the name 'M' is made twice, by the constants and by node 'M'; expected one of each. Export it again."),
        (lambda m: m.graph.initializer.append(tensor(m, "W")),
         "the name 'W' is made twice, by the constants and by the constants; expected one of each. Export it again."),
        (lambda m: m.graph.node[1].input.__setitem__(0, "nowhere"),
         "node 'Yt' reads 'nowhere', which nothing in the graph makes; expected the name of an input, a constant or "
         "a node's output. Export it again."),
        (lambda m: setattr(m.graph.output[0], "name", "nowhere"),
         "the graph returns 'nowhere', which nothing in it makes; expected a node's output. Export it again."),
        (lambda m: m.graph.ClearField("output"),
         "returns nothing; expected a graph with outputs. Export it again."),
        (lambda m: m.ClearField("opset_import"),
         "names no opset; expected a model that says which it needs. Export it again."),
        (_without_head_but_sparse,
         "constant 'head' is a sparse tensor; expected dense ones. Export it dense."),
        (lambda m: m.training_info.add(),
         "holds training information, which a smaller model would lose; expected a model for inference. Export it "
         "for inference."),
    ],
)  # fmt: skip
def test_a_graph_that_does_not_hold_together_is_refused(tmp_path: Path, change: Change, text: str) -> None:
    assert error_of(changed(tmp_path, change)) == f"m.onnx: {text}"


def test_versions_from_the_future_are_refused(tmp_path: Path) -> None:
    known = onnx.defs.onnx_opset_version()
    newest = f"the newest that onnx {onnx.__version__} knows"
    assert error_of(changed(tmp_path, lambda model: setattr(model.opset_import[0], "version", 99))) == (
        f"m.onnx: needs opset 99; expected at most {known}, {newest}. Export it for a lower opset, or update onnx."
    )
    assert error_of(changed(tmp_path, lambda model: setattr(model, "ir_version", 99))) == (
        f"m.onnx: has IR version 99; expected at most {onnx.IR_VERSION}, {newest}. Update onnx, or export for an "
        "older version."
    )


@pytest.mark.parametrize("dead", [True, False])
def test_a_model_that_the_runtime_refuses_is_refused_in_its_words_without_its_source_files(
    tmp_path: Path, dead: bool
) -> None:
    """Whether anything could be removed or not."""

    def foreign(model: ModelProto) -> None:
        if not dead:
            give(model, "head", np.ones_like(numpy_helper.to_array(tensor(model, "head"))))
        model.opset_import.append(helper.make_opsetid("my.company", 1))
        model.graph.node.append(helper.make_node("Smooth", ["Z"], ["smooth"], domain="my.company", name="smoother"))
        model.graph.output[0].name = "smooth"

    text = error_of(changed(tmp_path, foreign))
    assert text.startswith("m.onnx: ONNX Runtime ")
    assert "does not take it (Fatal error: my.company:Smooth(-1) is not a registered function/op)" in text
    assert text.endswith(
        "expected a model that runs there. Correct it, export it for a lower opset, or update onnxruntime."
    )


def test_nan_times_zero_is_nan_so_a_model_of_nan_proves_nothing(tmp_path: Path) -> None:
    """A dead unit's row of the head is zero; the NaN in another row reaches every output all the same."""

    def poison(model: ModelProto) -> None:
        head = numpy_helper.to_array(tensor(model, "head")).copy()
        head[0] = np.nan
        give(model, "head", head)

    assert error_of(changed(tmp_path, poison)) == (
        "m.onnx: returns no finite number on random inputs; expected outputs that can be compared. Check the model."
    )


def test_nan_in_a_weight_that_reads_a_unit_counts_as_a_read(tmp_path: Path) -> None:
    """The unit's row of the head is NaN in one column and zero in the others: it stays, and so does the NaN."""

    def poison(model: ModelProto) -> None:
        head = numpy_helper.to_array(tensor(model, "head")).copy()
        head[4, 0] = np.nan
        give(model, "head", head)

    path = changed(tmp_path, poison)
    done = CliRunner().invoke(cli, ["shrink", str(path)])
    assert done.exit_code == 0, done.exception
    assert recurrent_shapes(tmp_path / "m.shrunk.onnx") == [(5, 6)]
    assert np.isnan(initializer(tmp_path / "m.shrunk.onnx", "head_kept")).sum() == 1


def test_nodes_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    def shuffle(model: ModelProto) -> None:
        nodes = list(model.graph.node)[::-1]
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    done = CliRunner().invoke(cli, ["shrink", str(changed(tmp_path, shuffle))])
    assert done.exit_code == 0, done.exception
    onnx.checker.check_model(tmp_path / "m.shrunk.onnx", full_check=True)


def test_names_inside_a_subgraph_may_come_from_around_it_and_are_checked_too(tmp_path: Path) -> None:
    def branch(read: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node("Cast", [read], [f"{read}_out"], name="inner", to=1)], "branch", [],
                                 [value(f"{read}_out", None)])  # fmt: skip

    def model(read: str) -> Path:
        chosen = helper.make_node("If", ["yes"], ["Z"], then_branch=branch("X"), else_branch=branch(read))
        return save(tmp_path / "m.onnx", [chosen], [value("X", [2])], [value("Z", [2])],
                    {"yes": np.array(True)})  # fmt: skip

    assert CliRunner().invoke(cli, ["shrink", str(model("yes"))]).exit_code == 3
    assert error_of(model("nowhere")).startswith("m.onnx: node 'inner' reads 'nowhere', which nothing in the graph")
