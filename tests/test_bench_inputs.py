"""What is measured: real inputs, variants, other runtimes, a published protocol."""

from __future__ import annotations

import importlib.util
import json

import bench_models
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import recurrent_weights, save, value
from onnx import helper
from toolchain.bench import runner
from toolchain.bench.compare import plan_comparison
from toolchain.bench.measure import job_of
from toolchain.bench.output_check import largest_difference
from toolchain.bench.plan import Effort
from toolchain.bench.real_inputs import read_lengths
from toolchain.bench.runtimes import check_outputs, worker_of
from toolchain.bench.variants import make_variants, making

from toolchain.cli import cli
from toolchain.errors import BenchError
from toolchain.interface import read_interface

QUICK = ["--processes", "2", "--seconds", "0.1", "--roofline", "skip"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench(*arguments):
    return CliRunner().invoke(cli, ["bench", *map(str, arguments), *QUICK])


def rows(path="r.json"):
    with open(path) as file:
        return json.load(file)["rows"]


def test_inputs_from_a_file_decide_the_shape_and_reach_the_model(folder):
    path = bench_models.tokens(folder / "m.onnx", rows=11)
    ids = np.arange(6).reshape(3, 2)
    np.savez(folder / "x.npz", ids=ids)
    result = bench("m.onnx", "--inputs", "x.npz", "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert [(row["steps"], row["batch"], row["inputs"]) for row in rows()] == [(3, 2, "x.npz")]
    plan = plan_comparison([path], baseline=None, device="cpu", steps=[1], batches=[1], threads=[1], effort=Effort(),
                           inputs=folder / "x.npz")  # fmt: skip
    feeds = runner.make_feeds({**job_of(plan)["cases"][0]["members"][0], "seed": 0})
    np.testing.assert_array_equal(feeds["ids"], ids)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"words": np.zeros((3, 2), np.int64)}, "array 'words' is no input of m.onnx; expected one of: ids"),
        ({"ids": np.zeros((3, 2), np.int32)}, "array 'ids' is int32 [3, 2]; expected int64 [?, ?]"),
        ({"ids": np.zeros(3, np.int64)}, "array 'ids' is int64 [3]; expected int64 [?, ?]"),
        ({"ids": np.full((3, 2), 11)}, "array 'ids' holds ids from 11 to 11; expected 0 to 10"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(folder, arrays, text):
    bench_models.tokens(folder / "m.onnx", rows=11)
    np.savez(folder / "x.npz", **arrays)
    with pytest.raises(BenchError) as caught:
        read_lengths(folder / "x.npz", [read_interface(folder.joinpath("m.onnx"))])
    assert text in str(caught.value).replace(str(folder) + "/", "")


def two_sequences(path, second):
    """Write a model that reads `a [T, B, 5]` and `b [second, B, 5]` and returns the sum of their last states."""
    weights = recurrent_weights("LSTM", input_size=5, hidden_size=3, directions=1)
    nodes = [helper.make_node("LSTM", [name, "W", "R", "B"], ["", f"h_{name}"], hidden_size=3) for name in "ab"]
    nodes.append(helper.make_node("Add", ["h_a", "h_b"], ["h"]))
    inputs = [value("a", ["T", "B", 5]), value("b", [second, "B", 5])]
    return save(path, nodes, inputs, [value("h", [1, "B", 3])], weights)


def test_sequences_that_the_model_tells_apart_may_differ_in_length_and_the_longest_counts(folder):
    two_sequences(folder / "m.onnx", "J")
    np.savez(folder / "x.npz", a=np.zeros((4, 2, 5), np.float32), b=np.zeros((9, 2, 5), np.float32))
    result = bench("m.onnx", "--inputs", "x.npz", "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert [(row["steps"], row["batch"]) for row in rows()] == [(9, 2)]


def test_lengths_that_contradict_each_other_are_refused(folder):
    path = two_sequences(folder / "m.onnx", "T")
    np.savez(folder / "x.npz", a=np.zeros((4, 2, 5), np.float32), b=np.zeros((9, 2, 5), np.float32))
    with pytest.raises(BenchError, match=r"different numbers of steps \(a 4, b 9\); expected equal ones. Cut them."):
        read_lengths(folder / "x.npz", [read_interface(path)])


@pytest.mark.parametrize("content", [None, b"text"])
def test_a_file_that_is_no_npz_is_refused(folder, content):
    bench_models.tokens(folder / "m.onnx")
    if content is not None:
        (folder / "x.npz").write_bytes(content)
    result = bench("m.onnx", "--inputs", "x.npz")
    assert type(result.exception) is BenchError
    assert "x.npz: cannot be read as inputs (" in str(result.exception)


def test_the_protocol_of_a_paper_sets_the_shape(folder):
    bench_models.lstm(folder / "m.onnx")
    result = bench("m.onnx", "--protocol", "iss", "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert [(row["steps"], row["batch"], row["protocol"]) for row in rows()] == [(30, 10, "iss")]
    assert "unknown" not in result.output
    with pytest.raises(BenchError, match=r"protocol 'isz': is not known; expected one of: iss"):
        raise bench("m.onnx", "--protocol", "isz").exception


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--protocol", "iss", "--steps", "3"], "--protocol decides steps and sequences; it cannot go with --steps"),
        (["--inputs", "x.npz", "--protocol", "iss"], "--inputs decides steps and sequences; it cannot go with"),
        (["--variants", "dense", "--baseline", "b.onnx"], "--variants are made of one MODEL"),
        (["--precision", "0"], "is out of range; expected more than 0, such as 2%"),
        (["--fail-below", "fast"], "is not a number such as 10x"),
    ],
)
def test_contradictions_are_usage_errors(folder, arguments, text):
    result = bench("m.onnx", *arguments)
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())


def planted(path):
    """An LSTM and a matrix that reads 4 of its 8 units."""
    node, weights = bench_models.recurrent("LSTM", "X", hidden=8, inputs=4)
    for tensor in weights:
        if tensor.name == "R":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[..., 4:] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "R"))
    weight = np.zeros((8, 3), np.float32)
    weight[:4] = 1
    nodes = [
        node,
        onnx.helper.make_node("Squeeze", ["Y", "axis"], ["y"]),
        onnx.helper.make_node("MatMul", ["y", "weight"], ["scores"]),
    ]
    constants = [*weights, bench_models.indices("axis", [1]), onnx.numpy_helper.from_array(weight, "weight")]
    return bench_models.save(path, nodes, constants, [("X", onnx.TensorProto.FLOAT, ("s", "b", 4))], ["scores"])


def test_variants_are_made_measured_and_thrown_away(folder):
    planted(folder / "m.onnx")
    result = bench("m.onnx", "--variants", "dense,shrunk,int8,shrunk-int8", "--steps", 5, "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert [row["model"] for row in rows()] == ["m.onnx", "m.onnx (shrunk)", "m.onnx (int8)", "m.onnx (shrunk-int8)"]
    assert rows()[1]["multiply_adds"] == 5 * (4 * 4 * 4 + 4 * 4 * 4 + 4 * 3)
    assert "m.onnx (int8): its outputs differ from the float32 model's by up to " in result.output
    assert sorted(path.name for path in folder.iterdir()) == ["m.onnx", "r.json"]
    assert "Next: ship m.onnx (" not in result.output  # a file that is gone


@pytest.mark.parametrize(
    ("called", "command"),
    [
        ("big model.onnx (shrunk)", "toolchain shrink 'big model.onnx'"),
        ("m.onnx (shrunk-int8)", "toolchain shrink m.onnx --int8"),
        ("m.onnx (int8)", "toolchain shrink m.onnx --int8"),
        ("m (copy).onnx", None),
    ],
)
def test_a_variant_is_named_by_the_command_that_writes_it(called, command):
    assert making(called) == command


def test_a_gru_stays_float32_and_that_is_said(folder):
    node, weights = bench_models.recurrent("GRU", "X", hidden=8, inputs=4)
    nodes = [
        node,
        onnx.helper.make_node("Squeeze", ["Y", "axis"], ["y"]),
        onnx.helper.make_node("MatMul", ["y", "weight"], ["scores"]),
    ]
    constants = [*weights, bench_models.indices("axis", [1]), bench_models.constant("weight", (8, 3))]
    bench_models.save(folder / "m.onnx", nodes, constants, [("X", onnx.TensorProto.FLOAT, ("s", "b", 4))], ["scores"])
    (variant,) = make_variants(folder / "m.onnx", ["int8"], folder)
    assert variant.notes[0] == "m.onnx (int8): GRU recurrent stays in float: ONNX Runtime has no quantized GRU."


def test_a_variant_that_cannot_be_made_is_one_line(folder):
    bench_models.lstm(folder / "m.onnx")
    with pytest.raises(BenchError, match=r"m\.onnx: has nothing to remove, so there is no shrunk variant; expected"):
        raise bench("m.onnx", "--variants", "dense,shrunk").exception
    with pytest.raises(BenchError, match=r"variant 'fp8': is not known; expected one of: dense, shrunk, int8"):
        raise bench("m.onnx", "--variants", "fp8").exception


needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs OpenVINO")


def member(path, runtime, *, steps=5, batch=2, carried=()):
    from dataclasses import asdict

    from toolchain.interface import plan_feeds

    feeds = [asdict(feed) for feed in plan_feeds(read_interface(path), steps=steps, batch=batch)]
    return {"model": path.name, "path": str(path), "feeds": feeds, "carried": carried, "worker": worker_of(runtime)}


@needs_torch
@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_a_graph_rebuilt_in_pytorch_computes_what_onnx_runtime_does(op_type, direction):
    """Random weights and biases in every gate, an initial state: any block in the wrong place would show."""
    import onnxruntime
    import torch
    from toolchain.bench.torch_module import module_of

    D, H, gates = (2 if direction == "bidirectional" else 1), 5, {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type]
    random = np.random.default_rng(1)

    def tensor(name, *shape):
        return onnx.numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)

    states = ["h"] + (["c"] if op_type == "LSTM" else [])
    extra = {"linear_before_reset": 1} if op_type == "GRU" else {}
    outputs = ["Y", "Y_h"] + (["Y_c"] if op_type == "LSTM" else [])
    node = onnx.helper.make_node(op_type, ["X", "W", "R", "B", "", *states], outputs, hidden_size=H,
                                 direction=direction, **extra)  # fmt: skip
    weights = [tensor("W", D, gates * H, 3), tensor("R", D, gates * H, H), tensor("B", D, 2 * gates * H)]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [value("X", 1, ["t", "b", 3]), *(value(state, 1, [D, "b", H]) for state in states)],
        [value(name, 1, None) for name in outputs],
        weights,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"X": random.standard_normal((4, 2, 3)).astype(np.float32)}
    feeds |= {state: random.standard_normal((D, 2, H)).astype(np.float32) for state in states}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, feeds)
    with torch.inference_mode():
        actual = [each.numpy() for each in module_of(model)(*map(torch.from_numpy, feeds.values()))]
    assert largest_difference(expected, actual) < 1e-5  # a block in the wrong place gives about 1


@needs_torch
def test_pytorch_is_checked_and_measured_in_the_same_table(folder):
    planted(folder / "m.onnx")
    result = bench("m.onnx", "--runtimes", "onnxruntime,torch", "--steps", 5, "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert [(row["model"], row["runtime"]) for row in rows()] == [
        ("m.onnx", "onnxruntime"), ("m.onnx (torch)", "torch")
    ]  # fmt: skip
    assert 0 <= rows()[1]["outputs_differ_by"] < 1e-5
    with open("r.json") as file:
        assert {"torch", "onnxruntime"} <= set(json.load(file)["machine"])


@needs_torch
def test_an_operator_without_a_fair_counterpart_is_refused_before_anything_is_timed(folder):
    path = bench_models.batch_first(folder / "m.onnx")  # its GRU resets before the product; PyTorch's after
    with pytest.raises(BenchError, match=r"m\.onnx: torch does not take it \(GRU recurrent: resets before its product"):
        check_outputs(member(path, "torch"), threads=1, seed=0, runtime="torch")


@needs_torch
def test_a_runtime_that_computes_something_else_is_refused(folder, tmp_path):
    """A worker that runs another model than it is asked to."""
    path, other = bench_models.lstm(folder / "m.onnx"), bench_models.lstm(folder / "other.onnx")
    model = onnx.load(other)
    values = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    values[0, 0, 0] += 1
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, "W"))
    onnx.save(model, other)
    worker = tmp_path / "worker_wrong.py"
    worker.write_text(
        "from toolchain.bench import runner\n"
        f"ENGINE = runner.Engine((), lambda path, threads: runner.open_session({str(other)!r}, threads))\n"
    )
    with pytest.raises(BenchError, match=r"computes something else than ONNX Runtime \(largest difference 0\.\d+ of"):
        check_outputs({**member(path, "torch"), "worker": str(worker)}, threads=1, seed=0, runtime="torch")


@needs_openvino
def test_openvino_computes_what_onnx_runtime_does(folder):
    path = planted(folder / "m.onnx")
    assert check_outputs(member(path, "openvino"), threads=1, seed=0, runtime="openvino") < 1e-5


def test_a_runtime_that_is_not_there_says_what_to_install(folder, monkeypatch):
    bench_models.lstm(folder / "m.onnx")
    with pytest.raises(BenchError, match=r"runtime 'tvm': is not known; expected one of: onnxruntime, torch"):
        raise bench("m.onnx", "--runtimes", "tvm").exception
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"runtime 'openvino': is not installed. Install it with `pip install"):
        raise bench("m.onnx", "--runtimes", "openvino").exception


def test_differences_are_relative_to_the_outputs_size_and_shapes_must_agree():
    one = [np.array([0.0, 100.0])]
    assert largest_difference(one, [np.array([1.0, 100.0])]) == 0.01
    assert largest_difference(one, [np.array([0.0])]) == float("inf")
    assert np.isnan(largest_difference(one, [np.array([np.nan, 100.0])]))
    assert np.isnan(largest_difference([*one, *one], [np.array([np.nan, 100.0]), *one]))
