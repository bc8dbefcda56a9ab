from __future__ import annotations

import json

import bench_models
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from toolchain.bench import runner
from toolchain.bench.plan import Effort, plan_bench
from toolchain.bench.random_lm import write_language_model

from toolchain.axes import BATCH, TIME
from toolchain.errors import BenchError, ModelFileError
from toolchain.interface import plan_feeds, read_interface

F = TensorProto.FLOAT


def labels(path):
    return {model_input.name: model_input.labels for model_input in read_interface(path).inputs}


def run(path, *, steps, batch):
    """Run a model in ONNX Runtime on what was planned for it; the oracle is that it accepts it."""
    feeds = plan_feeds(read_interface(path), steps=steps, batch=batch)
    arrays = {feed.name: runner.make_feed(vars_of(feed), seed=0) for feed in feeds}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, arrays)


def vars_of(feed):
    return {name: getattr(feed, name) for name in ("name", "dtype", "shape", "kind", "value")}


def test_nameless_axes_of_a_recurrent_input_are_found_by_the_operator(tmp_path):
    path = bench_models.lstm(tmp_path / "m.onnx")
    assert labels(path) == {"X": (TIME, BATCH, 4)}
    assert run(path, steps=5, batch=3)[0].shape == (5, 1, 3, 8)


def test_a_transpose_turns_the_axes(tmp_path):
    path = bench_models.batch_first(tmp_path / "m.onnx")
    assert labels(path) == {"X": (BATCH, TIME, 4)}
    assert run(path, steps=5, batch=3)[0].shape == (5, 1, 3, 8)


def test_tokens_stay_within_the_embedding_table_and_reach_its_last_row(tmp_path):
    path = bench_models.tokens(tmp_path / "m.onnx", rows=11)
    assert labels(path) == {"ids": (TIME, BATCH)}
    (feed,) = plan_feeds(read_interface(path), steps=50, batch=3)
    ids = runner.make_feed(vars_of(feed), seed=0)
    assert (ids.dtype, ids.shape, ids.min(), ids.max()) == (np.int64, (50, 3), 0, 10)
    assert read_interface(path).reads_tokens


def test_static_axes_stay_and_are_what_the_case_says(tmp_path):
    model = read_interface(bench_models.static_gru(tmp_path / "m.onnx", steps=6))
    assert (model.fixed(TIME), model.fixed(BATCH)) == (6, 2)
    plan = plan_bench([model], device="cpu", steps=[1, 35], batches=[1, 4], threads=[1], effort=Effort())
    assert [(case.steps, case.batch) for case in plan.cases] == [(6, 2)]
    assert plan.cases[0].feeds[0][0].shape == (6, 2, 4)


def test_models_that_fix_different_steps_are_not_compared(tmp_path):
    models = [read_interface(bench_models.static_gru(tmp_path / f"{n}.onnx", steps=n)) for n in (6, 7)]
    with pytest.raises(BenchError, match=r"fix different numbers of steps \(.*6\.onnx 6, .*7\.onnx 7\)"):
        plan_bench(models, device="cpu", steps=[1], batches=[1], threads=[1], effort=Effort())


def test_a_dynamic_model_follows_the_steps_that_the_other_fixes(tmp_path):
    models = [
        read_interface(bench_models.lstm(tmp_path / "a.onnx")),
        read_interface(bench_models.static_gru(tmp_path / "b.onnx")),
    ]
    plan = plan_bench(models, device="cpu", steps=[1, 35], batches=[1], threads=[1], effort=Effort())
    assert [feeds[0].shape for feeds in plan.cases[0].feeds] == [(6, 2, 4), (6, 2, 4)]


def test_state_is_zeros_with_its_batch_axis_behind_a_gather(tmp_path):
    path = bench_models.streaming_gru(tmp_path / "m.onnx")
    assert labels(path)["state"] == (None, BATCH, 8)
    feeds = {feed.name: feed for feed in plan_feeds(read_interface(path), steps=1, batch=3)}
    assert (feeds["state"].shape, feeds["state"].kind, feeds["state"].value) == ((2, 3, 8), "fill", 0)
    assert read_interface(path).carried == (("state", "state_next"),)
    assert run(path, steps=5, batch=3)[0].shape == (5, 1, 3, 8)


def test_only_one_step_at_a_time_feeds_the_state_back(tmp_path):
    model = read_interface(bench_models.streaming_gru(tmp_path / "m.onnx"))
    plan = plan_bench([model], device="cpu", steps=[1, 35], batches=[1], threads=[1], effort=Effort())
    assert [plan.streams(case, model) for case in plan.cases] == [True, False]


def test_a_slice_of_all_layers_state_says_nothing_about_their_number(tmp_path):
    node, weights = bench_models.recurrent("GRU", "X", hidden=8, inputs=4, rest=["", "initial"])
    part = helper.make_node("Slice", ["state", "begin", "end", "begin"], ["initial"])  # the first of two
    initializers = [bench_models.indices("begin", [0]), bench_models.indices("end", [1]), *weights]
    inputs = [("X", F, ("a", "b", 4)), ("state", F, (2, "c", 8))]
    path = bench_models.save(tmp_path / "m.onnx", [part, node], initializers, inputs, ["Y"])
    assert labels(path)["state"] == (None, BATCH, None)
    assert run(path, steps=5, batch=3)[0].shape == (5, 1, 3, 8)


def test_sequence_lengths_get_the_number_of_steps(tmp_path):
    node, weights = bench_models.recurrent("LSTM", "X", hidden=8, inputs=4, rest=["lens"])
    inputs = [("X", F, ("a", "b", 4)), ("lens", TensorProto.INT32, ("c",))]
    path = bench_models.save(tmp_path / "m.onnx", [node], weights, inputs, ["Y"])
    feeds = {feed.name: feed for feed in plan_feeds(read_interface(path), steps=7, batch=3)}
    assert (feeds["lens"].shape, feeds["lens"].kind, feeds["lens"].value) == ((3,), "fill", 7)
    assert run(path, steps=7, batch=3)[0].shape == (7, 1, 3, 8)


def test_an_input_size_that_is_dynamic_is_read_from_the_weights(tmp_path):
    path = bench_models.lstm(tmp_path / "m.onnx", shape=("a", "b", "c"))
    assert run(path, steps=5, batch=3)[0].shape == (5, 1, 3, 8)
    node, weights = bench_models.recurrent("LSTM", "projected", hidden=8, inputs=4)
    matmul = helper.make_node("MatMul", ["X", "projection"], ["projected"])
    initializers = [bench_models.constant("projection", (9, 4)), *weights]
    path = bench_models.save(tmp_path / "p.onnx", [matmul, node], initializers, [("X", F, ("a", "b", "c"))], ["Y"])
    assert labels(path) == {"X": (TIME, BATCH, 9)}


def test_labels_pass_through_a_convolution_over_time(tmp_path):
    node, weights = bench_models.recurrent("LSTM", "frames", hidden=8, inputs=4)
    conv = helper.make_node("Conv", ["X", "kernel"], ["convolved"], pads=[1, 1])  # [batch, channels, time]
    transpose = helper.make_node("Transpose", ["convolved"], ["frames"], perm=[2, 0, 1])
    initializers = [bench_models.constant("kernel", (4, 6, 3)), *weights]
    inputs = [("X", F, ("a", "b", "c"))]
    path = bench_models.save(tmp_path / "m.onnx", [conv, transpose, node], initializers, inputs, ["Y"])
    assert labels(path) == {"X": (BATCH, 6, TIME)}
    assert run(path, steps=5, batch=3)[0].shape == (5, 1, 3, 8)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("batch_size", "sequence_length", 4), (BATCH, TIME, 4)),
        (("N", "numFrames", 4), (BATCH, TIME, 4)),
        (("p", "q", 4), (TIME, BATCH, 4)),  # nothing is known: time first
        (("p", 10, 4), (BATCH, None, 4)),
        (("p", 1, 4), (TIME, None, 4)),
        ((1, "p", 4), (None, TIME, 4)),
    ],
)
def test_names_then_positions_decide_where_the_trace_ends(tmp_path, shape, expected):
    """A Reshape to constants mixes the axes, so nothing structural reaches the input."""
    reshape = helper.make_node("Reshape", ["X", "mixed"], ["X_mixed"])
    node, weights = bench_models.recurrent("RNN", "X_mixed", hidden=8, inputs=4)
    initializers = [bench_models.indices("mixed", [-1, 1, 4]), *weights]
    path = bench_models.save(tmp_path / "m.onnx", [reshape, node], initializers, [("X", F, shape)], ["Y"])
    found = labels(path)["X"]
    assert tuple(label for label in found[:2]) == expected[:2]


def test_a_recurrent_node_inside_a_branch_labels_the_outer_input(tmp_path):
    node, weights = bench_models.recurrent("GRU", "X_time_first", hidden=8, inputs=4)
    transpose = helper.make_node("Transpose", ["X"], ["X_time_first"], perm=[1, 0, 2])
    output = helper.make_tensor_value_info("Y", F, None)
    branches = [helper.make_graph([transpose, node], name, [], [output], weights) for name in ("then", "else")]
    choose = helper.make_node("If", ["flag"], ["out"], then_branch=branches[0], else_branch=branches[1])
    inputs = [("X", F, ("s0", "s1", 4)), ("flag", TensorProto.BOOL, ())]
    path = bench_models.save(tmp_path / "m.onnx", [choose], [], inputs, ["out"])
    assert labels(path)["X"] == (BATCH, TIME, 4)
    assert run(path, steps=5, batch=3)[0].shape == (5, 1, 3, 8)


def test_parameters_are_weights_and_not_shape_constants(tmp_path):
    model = read_interface(bench_models.streaming_gru(tmp_path / "m.onnx"))
    assert model.parameters == 3 * 8 * 4 + 3 * 8 * 8 + 6 * 8  # W, R, B; neither the index nor the axis


def test_axes_that_lie_in_an_external_file_are_read_from_there(tmp_path):
    model = onnx.load(bench_models.batch_first(tmp_path / "m.onnx"))
    x = model.graph.input[0]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "axes"))
    model.graph.node.insert(0, helper.make_node("Squeeze", ["wide", "axes"], [x.name]))
    dims = [dim.dim_param or dim.dim_value or None for dim in x.type.tensor_type.shape.dim]
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("wide", F, [*dims[:2], 1, *dims[2:]]))
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert labels(tmp_path / "e.onnx") == {"wide": (BATCH, TIME, 1, 4)}
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"its weights file 'w\.bin' has 0 bytes; expected at least \d+ bytes"):
        read_interface(tmp_path / "e.onnx")


def test_external_weights_count_as_part_of_the_file(tmp_path):
    write_language_model(tmp_path / "m.onnx", vocabulary=200, embedding=8, hidden=[8])
    model = onnx.load(tmp_path / "m.onnx")
    inside = read_interface(tmp_path / "m.onnx")
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    outside = read_interface(tmp_path / "e.onnx")
    assert outside.parameters == inside.parameters
    assert outside.inputs == inside.inputs
    assert outside.file_bytes == sum((tmp_path / name).stat().st_size for name in ("e.onnx", "w.bin"))
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelFileError, match=r"its weights file 'w\.bin' is missing; expected at least \d+ bytes"):
        read_interface(tmp_path / "e.onnx")


def test_unreadable_files_are_one_line_errors(tmp_path):
    write_language_model(tmp_path / "m.onnx", vocabulary=20, embedding=8, hidden=[8])
    whole = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "part.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.onnx").write_text("hello, this is text")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name, reason in [
        ("part.onnx", "is not an ONNX file, or only a part of one"),
        ("text.onnx", "is not an ONNX file, or only a part of one"),
        ("empty.onnx", "holds no graph"),
        (".", "is a folder"),
        ("none.onnx", "no such file"),
    ]:
        with pytest.raises(ModelFileError, match=reason) as caught:
            read_interface(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("declared", ["nonsense", '[["state"]]', '[["state", "nowhere"]]', '[["X2", "Y"]]'])
def test_wrongly_declared_state_is_an_error(tmp_path, declared):
    path = bench_models.streaming_gru(tmp_path / "m.onnx")
    model = onnx.load(path)
    helper.set_model_props(model, {"toolchain.carried_state": declared})
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match=r"metadata toolchain\.carried_state"):
        read_interface(path)


def test_an_input_of_text_is_refused_by_name(tmp_path):
    node = helper.make_node("Identity", ["words"], ["out"])
    path = bench_models.save(tmp_path / "m.onnx", [node], [], [("words", TensorProto.STRING, (1,))], ["out"])
    with pytest.raises(ModelFileError, match=r"input 'words' is not a tensor of plain numbers"):
        read_interface(path)


def test_a_random_language_model_runs_and_declares_its_state(tmp_path):
    path = tmp_path / "m.onnx"
    write_language_model(path, vocabulary=50, embedding=6, hidden=[8, 7])
    onnx.checker.check_model(path, full_check=True)
    logits, *states = run(path, steps=5, batch=3)
    assert logits.shape == (5, 3, 50)
    assert [state.shape for state in states] == [(1, 3, 8), (1, 3, 8), (1, 3, 7), (1, 3, 7)]
    assert [list(pair) for pair in read_interface(path).carried] == [
        ["h_0", "h_0_next"], ["c_0", "c_0_next"], ["h_1", "h_1_next"], ["c_1", "c_1_next"]
    ]  # fmt: skip


def test_dead_neurons_are_read_by_nobody(tmp_path):
    """Independent check: scrambling what dead neurons compute changes no logit."""
    path = tmp_path / "m.onnx"
    write_language_model(path, vocabulary=50, embedding=10, hidden=[20, 10], dead=0.5, seed=1)
    before = run(path, steps=5, batch=3)[0]
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    arrays = {name: onnx.numpy_helper.to_array(tensor).copy() for name, tensor in tensors.items()}
    assert np.count_nonzero(~arrays["W_0"][0].any(axis=0)) == 5  # embedding columns that nobody reads
    for layer, (width, reader) in enumerate([(20, arrays["W_1"][0]), (10, arrays["output_weight"].T)]):
        unread = np.flatnonzero(~arrays[f"R_{layer}"][0].any(axis=0) & ~reader.any(axis=0))
        assert len(unread) == width // 2
        for gate in range(4):
            arrays[f"W_{layer}"][0, gate * width + unread] = 3.0
        tensors[f"W_{layer}"].CopyFrom(onnx.numpy_helper.from_array(arrays[f"W_{layer}"], f"W_{layer}"))
    onnx.save(model, path)
    after = run(path, steps=5, batch=3)[0]
    np.testing.assert_array_equal(before, after)


def test_equal_arguments_write_equal_bytes(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_language_model(tmp_path / name, vocabulary=20, embedding=4, hidden=[4], dead=0.5, seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert json.loads(onnx.load(tmp_path / "a").metadata_props[0].value)[0] == ["h_0", "h_0_next"]
