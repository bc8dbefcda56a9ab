"""Models that nobody here wrote: planted dead units go, and ONNX Runtime finds no difference to the planted model.

`python tests/fetch_real_models.py` brings the models; without them these tests are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from fetch_real_models import RealModel, listed
from graphs import GATES, constant, run
from onnx import helper, numpy_helper

import toolchain

READ_OUTPUTS = ("Y", "Y_h")
CALLS = 3
DEAD_SHARE = 0.4
MOVES = ("Identity", "Squeeze", "Unsqueeze", "Slice", "Concat")  # of the gates, along the rows; units stay columns


def constants_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return every constant, and under the same content the results of nodes that only move its axes."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    found |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        if node.op_type in MOVES and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def masked_outputs(node: onnx.NodeProto, mask: np.ndarray, graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Multiply `Y` and `Y_h` by zero at the dead units, so that nobody reads them; the state a caller sees too."""
    for index, name in enumerate(node.output[: len(READ_OUTPUTS)]):
        if name:
            graph.initializer.append(constant(f"{name}_mask", mask))
            node.output[index] = f"{name}_unmasked"
            yield helper.make_node("Mul", [f"{name}_unmasked", f"{name}_mask"], [name], name=f"{name}_masked")


def plant(model: onnx.ModelProto, seed: int) -> list[tuple[int, int]]:
    """Kill a share of the units of every recurrent node; return (hidden_size, units that may stay)."""
    rng = np.random.default_rng(seed)
    graph, constants = model.graph, constants_of(model.graph)
    nodes, sizes = [], []
    for node in graph.node:
        nodes.append(node)
        if node.op_type not in GATES:
            continue
        tensor = constants[node.input[2]]
        R = numpy_helper.to_array(tensor).copy()  # [num_directions, gates*hidden, hidden], perhaps without the first
        directions, hidden = (R.shape[0] if R.ndim == 3 else 1), R.shape[-1]
        mask = np.ones((directions, 1, hidden), R.dtype)
        for direction in range(directions):
            dead = rng.permutation(hidden)[: int(hidden * DEAD_SHARE)]
            (R[direction] if R.ndim == 3 else R)[:, dead] = 0
            mask[direction, 0, dead] = 0
        tensor.CopyFrom(numpy_helper.from_array(R, tensor.name))
        nodes += masked_outputs(node, mask, graph)
        sizes.append((hidden, hidden - int(hidden * DEAD_SHARE)))
    del graph.node[:]
    graph.node.extend(nodes)
    return sizes


def outputs_over_calls(
    path: Path, shapes: dict[str, list[int]], carried: list[list[str]]
) -> list[dict[str, np.ndarray]]:
    """Run some calls in a row, the state fed back; a state's own dead positions are nobody's business."""
    results: list[dict[str, np.ndarray]] = []
    state: dict[str, np.ndarray] = {}
    for call in range(CALLS if carried else 1):
        rng = np.random.default_rng(call)
        feeds = {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
        outputs = run(path, feeds | state)
        state = {into: outputs[out] for into, out in carried}
        results.append({name: array for name, array in outputs.items() if name not in {out for _, out in carried}})
    return results


@pytest.mark.parametrize("model", listed(), ids=lambda model: f"{model.package.split('=')[0]}-{model.sha256[:6]}")
def test_planted_dead_units_go_from_models_in_the_wild(model: RealModel, tmp_path: Path) -> None:
    if not model.file.is_file():
        pytest.skip(f"{model.package} is not in the cache; run python tests/fetch_real_models.py")
    proto = onnx.load(model.file)
    sizes = plant(proto, seed=0)
    source = tmp_path / "m.onnx"
    onnx.save(proto, source)
    result = toolchain.shrink(source, carried=[(into, out) for into, out in model.carried])
    if model.expect != "cut":
        assert (result.status, sizes) == ("nothing_to_remove", [])
        return
    assert [(node.hidden_before, node.hidden_after) for node in result.nodes] == sizes
    assert result.after.parameters < result.before.parameters
    for shapes in model.inputs:
        wanted = outputs_over_calls(source, shapes, model.carried)
        for expected, actual in zip(wanted, outputs_over_calls(result.output, shapes, model.carried), strict=True):
            assert expected.keys() == actual.keys()
            for name, array in expected.items():
                assert actual[name].shape == array.shape
                np.testing.assert_allclose(actual[name], array, atol=1e-5 * max(1.0, float(np.abs(array).max())))
