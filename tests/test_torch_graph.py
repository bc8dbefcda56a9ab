"""Every operator of the interpreter on the onnx package's own cases; whole recurrent graphs against ONNX Runtime."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test.case.node as node_cases
import onnx_ir as ir
import pytest
import torch
from fetch_real_models import RealModel, listed
from graphs import layer_with_head, recurrent_weights, run, save, value
from onnx import TensorProto, helper
from onnx.backend.test.case.test_case import TestCase

from toolchain.errors import DistillationError
from toolchain.graph.loading import load_model
from toolchain.graph.normalise import normalise
from toolchain.torch_graph.interpreter import OPERATORS, TorchGraph

NUMBERS = (np.float32, np.float64, np.int64, np.int32, np.bool_, np.uint8, np.int8, np.int16)
# What the table leaves out on purpose, as it is refused: the words of the refusal.
REFUSED = {
    "layout=1": ("batchwise",),
    "peepholes": ("with_peepholes",),
    "auto_pad and output_shape": ("convtranspose_autopad", "convtranspose_output_shape", "convtranspose_kernel_shape"),
    "ceil_mode and indices": ("maxpool_2d_ceil", "maxpool_with_argmax", "maxpool_3d_dilations_use_ref_impl_large"),
    "without overflow": ("maxpool_2d_uint8",),
    "the output 'output_mean' of BatchNormalization": ("batchnorm_example_training", "batchnorm_epsilon_training"),
    "training_mode": ("training_dropout",),
    "select_last_index": ("select_last_index",),
    "non-zero size": ("reduce_max_empty", "reduce_min_empty"),
}


def operator_cases() -> Iterator[TestCase]:
    """Yield the specification's cases of one plain node with plain numbers that the table covers."""
    for module in pkgutil.iter_modules(node_cases.__path__):
        importlib.import_module(f"{node_cases.__name__}.{module.name}")
    for case in node_cases._NodeTestCases:
        nodes = case.model.graph.node
        arrays = [array for sets in case.data_sets for part in sets for array in part]
        plain = all(isinstance(array, np.ndarray | np.generic) and array.dtype in NUMBERS for array in arrays)
        if len(nodes) == 1 and nodes[0].op_type in OPERATORS and not nodes[0].domain and plain:
            yield case


CASES = {case.name.removeprefix("test_"): case for case in operator_cases()}


def interpreted(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a model in the interpreter."""
    names = [output.name for output in model.graph.output]
    tensors = {name: torch.tensor(array) for name, array in feeds.items()}
    values = TorchGraph(ir.from_proto(model)).run(tensors, names)
    return {name: tensor.numpy() for name, tensor in values.items()}


def test_every_operator_of_the_table_has_a_case() -> None:
    missing = set(OPERATORS) - {case.model.graph.node[0].op_type for case in CASES.values()}
    assert missing == {"Cast"}, "the package's cases of Cast are between types that numpy does not have"


@pytest.mark.parametrize("name", CASES)
def test_the_cases_of_the_specification(name: str) -> None:
    case = CASES[name]
    (inputs, outputs), *_ = case.data_sets
    feeds = {known.name: array for known, array in zip(case.model.graph.input, inputs, strict=True)}
    words = next((words for words, names in REFUSED.items() if any(part in name for part in names)), None)
    if words is not None:
        with pytest.raises(DistillationError, match=words):
            interpreted(case.model, feeds)
        return
    values = interpreted(case.model, feeds)
    for known, expected in zip(case.model.graph.output, outputs, strict=True):
        actual = values[known.name]
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("element", [TensorProto.INT64, TensorProto.DOUBLE, TensorProto.BOOL])
def test_a_cast_is_what_onnx_runtime_makes_of_it(element: int, tmp_path: Path) -> None:
    node = helper.make_node("Cast", ["X"], ["Z"], to=element)
    path = save(tmp_path / "m.onnx", [node], [value("X", [4])], [value("Z", [4], element)], {})
    feeds = {"X": np.array([-1.7, 0.0, 0.4, 2.6], np.float32)}
    actual, expected = interpreted(onnx.load(path), feeds)["Z"], run(path, feeds)["Z"]
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "GRU reset after", "RNN", "RNN relu"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_recurrent_node_is_what_onnx_runtime_makes_of_it(
    op_type: str, direction: str, ragged: bool, tmp_path: Path
) -> None:
    kind, _, variant = op_type.partition(" ")
    directions = 2 if direction == "bidirectional" else 1
    extra = {"reset after": {"linear_before_reset": 1}, "relu": {"activations": ["Relu"] * directions}}.get(variant, {})
    weights = recurrent_weights(kind, input_size=5, hidden_size=6, directions=directions)
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    outputs = ["Y", "Y_h", "Y_c"][: 1 + len(states)]
    node = helper.make_node(kind, ["X", "W", "R", "B", "lens" if ragged else "", *states], outputs, hidden_size=6,
                            direction=direction, **extra)  # fmt: skip
    inputs = [value("X", ["T", "B", 5]), *(value(name, [directions, "B", 6]) for name in states)]
    if ragged:
        inputs.append(value("lens", ["B"], TensorProto.INT32))
    path = save(tmp_path / "m.onnx", [node], inputs, [value(name, None) for name in outputs], weights)
    rng = np.random.default_rng(3)
    feeds = {"X": rng.standard_normal((7, 3, 5)).astype(np.float32)}
    feeds |= {name: rng.standard_normal((directions, 3, 6)).astype(np.float32) for name in states}
    if ragged:
        feeds["lens"] = np.array([4, 7, 2], np.int32)
    expected, actual = run(path, feeds), interpreted(onnx.load(path), feeds)
    for name in outputs:
        assert actual[name].shape == expected[name].shape
        np.testing.assert_allclose(actual[name], expected[name], atol=1e-6)


def test_gradients_reach_weights_in_their_own_layout(tmp_path: Path) -> None:
    path = layer_with_head(tmp_path / "m.onnx", op_type="GRU")
    X = np.random.default_rng(0).standard_normal((4, 2, 5)).astype(np.float32)
    graph = TorchGraph(ir.load(path), ["W", "R"])
    graph.run({"X": torch.tensor(X)}, ["Z"])["Z"].square().sum().backward()
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "R")
    for index in ((0, 3, 2), (0, 9, 0), (0, 20, 6)):  # one weight of z, r and h each
        sums = []
        for step in (1e-2, -1e-2):
            R = onnx.numpy_helper.to_array(tensor).copy()
            R[index] += step
            changed = onnx.ModelProto()
            changed.CopyFrom(model)
            next(t for t in changed.graph.initializer if t.name == "R").CopyFrom(onnx.numpy_helper.from_array(R, "R"))
            onnx.save(changed, tmp_path / "changed.onnx")
            sums.append(np.square(run(tmp_path / "changed.onnx", {"X": X})["Z"].astype(np.float64)).sum())
        slope = (sums[0] - sums[1]) / 2e-2
        assert float(graph.trained["R"].grad[index]) == pytest.approx(slope, rel=0.02, abs=1e-3)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("NonZero", ["X"], ["Z"], name="n"), "node 'n': NonZero is not among the"),
        (helper.make_node("FusedMatMul", ["X", "X"], ["Z"], name="n", domain="com.microsoft"),
         "node 'n': com.microsoft.FusedMatMul is not among the"),
        (helper.make_node("LSTM", ["X", "W", "R"], ["Z"], name="n", hidden_size=2, clip=1.0),
         "node 'n': LSTM with clip or input_forget is not among the"),
        (helper.make_node("RNN", ["X", "W", "R"], ["Z"], name="n", hidden_size=2, activations=["Sigmoid"]),
         "node 'n': RNN with activations Sigmoid is not among the"),
    ],
)  # fmt: skip
def test_a_missing_operator_is_named(node: onnx.NodeProto, message: str, tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx", [node], [value("X", [2, 2])], [value("Z", None)], {"W": np.zeros(1), "R": np.zeros(1)}
    )
    with pytest.raises(DistillationError) as caught:
        TorchGraph(ir.load(path))
    text = str(caught.value)
    assert text.startswith(message)
    assert text.endswith(
        "operators that can be differentiated here; expected only such operators. Leave --distill or --from out."
    )
    assert "\n" not in text


def test_operands_that_pytorch_refuses_are_named(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["X", "M"], ["Z"], name="head")
    path = save(
        tmp_path / "m.onnx", [node], [value("X", [2, "n"])], [value("Z", None)], {"M": np.ones((3, 1), np.float32)}
    )
    with pytest.raises(DistillationError, match=r"^node 'head' \(MatMul\): cannot be computed in PyTorch \("):
        TorchGraph(ir.load(path)).run({"X": torch.ones(2, 2)}, ["Z"])


@pytest.mark.parametrize("model", listed(), ids=lambda model: f"{model.package.split('=')[0]}-{model.sha256[:6]}")
def test_models_in_the_wild_are_what_onnx_runtime_makes_of_them(model: RealModel) -> None:
    if not model.file.is_file():
        pytest.skip(f"{model.package} is not in the cache; run python tests/fetch_real_models.py")
    normal = normalise(load_model(model.file)[0]).model
    has_bodies = any(node.op_type in ("If", "Loop", "Scan") for node in normal.graph)
    if model.expect != "cut" or has_bodies:
        with pytest.raises(DistillationError, match="is not among the"):
            TorchGraph(normal)
        return
    graph, rng = TorchGraph(normal), np.random.default_rng(0)
    for shapes in model.inputs:
        feeds = {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
        expected = run(model.file, feeds)
        with torch.no_grad():
            actual = graph.run({name: torch.tensor(array) for name, array in feeds.items()}, list(expected))
        for name, array in expected.items():
            assert actual[name].shape == array.shape
            np.testing.assert_allclose(actual[name].numpy(), array, atol=1e-5 * max(1.0, float(np.abs(array).max())))
