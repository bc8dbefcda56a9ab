"""Models that nobody here wrote: planted dead units go, and ONNX Runtime finds no difference to the planted model.

`python tests/fetch_real_models.py` brings the models; without them these tests are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np
import onnx
import pytest
from fetch_real_models import RealModel, listed
from graphs import GATES, constant, run
from onnx import helper, numpy_helper
from toolchain.bench.oneshot_real import CASES, score_against
from toolchain.bench.real_samples import save_streams

import toolchain
from toolchain.errors import BenchError
from toolchain.oneshot.pruning import Pruning
from toolchain.oneshot.selection import Target

OUTPUTS = ("Y", "Y_h", "Y_c")
CALLS = 3
DEAD_SHARE = 0.4
HALF_OF_NSNET2 = 0.06  # of the variance; 0.020 to 0.039 over three seeds of the samples
MOVES = ("Identity", "Squeeze", "Unsqueeze", "Slice", "Concat")  # of the gates, along the rows; units stay columns


def constants_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return every constant, and under the same content the results of nodes that only move its axes."""
    found = {tensor.name: tensor for inner in graphs_in(graph) for tensor in inner.initializer}
    nodes = [node for inner in graphs_in(graph) for node in inner.node]
    found |= {node.output[0]: node.attribute[0].t for node in nodes if node.op_type == "Constant"}
    for node in nodes:
        if node.op_type in MOVES and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def graphs_in(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside its nodes, the outer ones first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs_in(attribute.g)


def masked_outputs(
    node: onnx.NodeProto, mask: np.ndarray, graph: onnx.GraphProto, masked: list[str]
) -> Iterator[onnx.NodeProto]:
    """Multiply outputs by zero at the dead units, so that nobody reads them; the state a caller sees too."""
    for output, name in zip(OUTPUTS, node.output, strict=False):
        if name and output in masked:
            index = OUTPUTS.index(output)
            graph.initializer.append(constant(f"{name}_mask", mask))
            node.output[index] = f"{name}_unmasked"
            yield helper.make_node("Mul", [f"{name}_unmasked", f"{name}_mask"], [name], name=f"{name}_masked")


def kill_units(tensor: onnx.TensorProto, rng: np.random.Generator) -> np.ndarray:
    """Zero the columns of `R` that read a share of the units; return 0 for those, shape [num_directions, 1, hidden]."""
    R = numpy_helper.to_array(tensor).copy()  # [num_directions, gates*hidden, hidden], perhaps without the first
    directions, hidden = (R.shape[0] if R.ndim == 3 else 1), R.shape[-1]
    mask = np.ones((directions, 1, hidden), R.dtype)
    for direction in range(directions):
        dead = rng.permutation(hidden)[: int(hidden * DEAD_SHARE)]
        (R[direction] if R.ndim == 3 else R)[:, dead] = 0
        mask[direction, 0, dead] = 0
    tensor.CopyFrom(numpy_helper.from_array(R, tensor.name))
    return mask


def plant(model: onnx.ModelProto, seed: int, masked: list[str]) -> list[tuple[int, int]]:
    """Kill a share of the units of every recurrent node; return (hidden_size, units that may stay).

    Nodes that share a weight lose the same units.
    """
    rng = np.random.default_rng(seed)
    constants, sizes = constants_of(model.graph), []
    planted: dict[bytes, np.ndarray] = {}
    for graph in reversed(list(graphs_in(model.graph))):  # the inner ones first: rebuilding a node list copies them
        nodes = []
        for node in graph.node:
            nodes.append(node)
            if node.op_type not in GATES:
                continue
            tensor = constants[node.input[2]]
            key = tensor.SerializeToString()
            if key not in planted:
                mask = kill_units(tensor, rng)
                key = tensor.SerializeToString()
                planted[key] = mask
            nodes += masked_outputs(node, planted[key], graph, masked)
            hidden = planted[key].shape[-1]
            sizes.append((hidden, hidden - int(hidden * DEAD_SHARE)))
        del graph.node[:]
        graph.node.extend(nodes)
    return sizes


def outputs_over_calls(
    path: Path, shapes: dict[str, list[int]], numbers: dict[str, int], carried: list[list[str]]
) -> list[dict[str, np.ndarray]]:
    """Run some calls in a row, the state fed back; a state's own dead positions are nobody's business."""
    results: list[dict[str, np.ndarray]] = []
    state: dict[str, np.ndarray] = {}
    for call in range(CALLS if carried else 1):
        rng = np.random.default_rng(call)
        feeds = {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
        feeds |= {name: np.array(number) for name, number in numbers.items()}
        outputs = run(path, feeds | state)
        state = {into: outputs[out] for into, out in carried}
        results.append({name: array for name, array in outputs.items() if name not in {out for _, out in carried}})
    return results


@pytest.mark.parametrize("model", listed(), ids=lambda model: f"{model.package.split('=')[0]}-{model.sha256[:6]}")
def test_planted_dead_units_go_from_models_in_the_wild(model: RealModel, tmp_path: Path) -> None:
    if not model.file.is_file():
        pytest.skip(f"{model.package} is not in the cache; run python tests/fetch_real_models.py")
    proto = onnx.load(model.file)
    sizes = plant(proto, seed=0, masked=model.masked)
    source = tmp_path / "m.onnx"
    onnx.save(proto, source)
    result = toolchain.shrink(source, carried=[(into, out) for into, out in model.carried])
    if model.expect != "cut":
        assert (result.status, sizes) == ("nothing_to_remove", [])
        return
    assert [(node.hidden_before, node.hidden_after) for node in result.nodes] == sizes
    assert result.after.parameters < result.before.parameters
    for shapes, numbers in zip_longest(model.inputs, model.numbers, fillvalue={}):
        wanted = outputs_over_calls(source, shapes, numbers, model.carried)
        found = outputs_over_calls(result.output, shapes, numbers, model.carried)
        for expected, actual in zip(wanted, found, strict=True):
            assert expected.keys() == actual.keys()
            for name, array in expected.items():
                assert actual[name].shape == array.shape
                np.testing.assert_allclose(actual[name], array, atol=1e-5 * max(1.0, float(np.abs(array).max())))


def test_half_of_nsnet2_says_what_the_whole_says(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "nsnet2")
    try:
        model = case.file
    except BenchError as error:
        pytest.skip(str(error))
    samples = str(save_streams(case.streams(24, 0), tmp_path))
    errors = {}
    for criterion in ("reconstruct", "magnitude"):
        pruning = Pruning(target=Target(kind="ratio", value=0.5), calibration=samples, criterion=criterion,
                          compensate=criterion == "reconstruct", threads=1)  # fmt: skip
        result = toolchain.shrink(model, tmp_path / f"{criterion}.onnx", pruning=pruning)
        assert sum(node.hidden_after for node in result.nodes) <= 400
        errors[criterion] = score_against(model, samples, case)(tmp_path / f"{criterion}.onnx")["output_nmse"]
        assert result.pruned is not None
        assert result.pruned.error == pytest.approx(errors[criterion], rel=1e-3)
    assert errors["reconstruct"] < HALF_OF_NSNET2
    assert errors["magnitude"] > 1
