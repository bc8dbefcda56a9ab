"""LSTM, GRU and RNN: demand is a least fixpoint over the units, and cutting one is slicing every gate block.

Unit `u` of direction `d` is needed when `Y`, `Y_h` or `Y_c` is read at it, or when a needed unit's row of `R`, in any
gate, has a non-zero weight in column `u`: units that only read one another die together. Input `j` is needed when a
needed unit's row of `W` reads it.

    W'[d] = W[d][rows(kept[d]), inputs]    R'[d] = R[d][rows(kept[d]), kept[d]]    B'[d], P'[d] likewise

Source: https://onnx.ai/onnx/operators/onnx__LSTM.html
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from toolchain.graph.cells import (
    BlockedError,
    Couple,
    Linear,
    Port,
    Read,
    Space,
    Statement,
    Transfer,
    couple,
    pairs,
)
from toolchain.graph.edits import Edits
from toolchain.graph.kept import Kept
from toolchain.graph.nodes import NodeView
from toolchain.recurrent import GATES, NUM_PEEPHOLES, read_units, slot, take_columns, take_rows

OPERATORS = tuple(GATES)
# Activation functions that take a parameter of their own, in lower case.
# Source: https://onnx.ai/onnx/operators/onnx__RNN.html, "activation_alpha" and "activation_beta".
_TAKERS = {
    "activation_alpha": frozenset({"affine", "elu", "hardsigmoid", "leakyrelu", "scaledtanh", "thresholdedrelu"}),
    "activation_beta": frozenset({"affine", "hardsigmoid", "scaledtanh"}),
}


def transfer(node: NodeView) -> Transfer:
    """Describe a recurrent node: units, input neurons, and its state ports."""
    if int(node.attribute("layout", 0)) != 0:
        raise BlockedError("it has layout=1, which ONNX Runtime does not run on a CPU; export with layout=0")
    W, R = node.weights(slot("W")), node.weights(slot("R"))
    for name in ("B", "P"):
        if node.has_input(slot(name)):
            node.weights(slot(name))
    num_gates = len(GATES[node.node.op_type])
    units = node.neurons("units", W.shape[0], R.shape[2])
    inputs = node.neurons("inputs", W.shape[2])
    statements = [*_outputs(node, units), *_weights(units, inputs, W, R, num_gates), *_states(node, units)]
    X = node.input(slot("X"))
    statements += [pairs(inputs.cells, X.cells, keeps_zero=True), couple(X.cells, inputs.cells)]
    return Transfer(statements=tuple(statements), neurons={"units": units, "inputs": inputs})


def _outputs(node: NodeView, units: Space) -> list[Statement]:
    statements: list[Statement] = []
    if node.has_output(0):
        Y = node.output(0).cells  # [seq_length, num_directions, batch_size, hidden_size]
        unit = units.cells[None, :, None, :]
        statements += [pairs(Y, unit), couple(Y, unit)]
    for index in (1, 2):
        if node.has_output(index):
            value, unit = np.broadcast_arrays(node.output(index).cells, units.cells[:, None, :])
            statements += [
                Read(reader=value.ravel(), read=unit.ravel()),
                Port(value=value, unit=unit, index=index, is_output=True),
            ]
    return statements


def _weights(units: Space, inputs: Space, W: np.ndarray, R: np.ndarray, num_gates: int) -> list[Statement]:
    recurrence, reads = read_units(R, num_gates), read_units(W, num_gates)
    return [
        *(Linear(reader=units.cells[d], read=units.cells[d], weights=recurrence[d]) for d in range(units.shape[0])),
        *(Linear(reader=units.cells[d], read=inputs.cells, weights=reads[d]) for d in range(units.shape[0])),
    ]


def _states(node: NodeView, units: Space) -> list[Statement]:
    statements: list[Statement] = []
    for name in ("initial_h", "initial_c"):
        if node.has_input(slot(name)):
            value, unit = np.broadcast_arrays(node.input(slot(name)).cells, units.cells[:, None, :])
            statements += [
                Read(reader=unit.ravel(), read=value.ravel()),
                Port(value=value, unit=unit, index=slot(name), is_output=False),
            ]
    return statements


def shared_weights(first: Transfer, other: Transfer) -> list[Couple]:
    """Return what makes two nodes that share one weight be cut alike, so that they go on sharing it."""
    return [couple(first.neurons[name].cells, other.neurons[name].cells) for name in ("units", "inputs")]


def rewrite(node: NodeView, neurons: dict[str, Space], kept: Kept, edits: Edits) -> None:
    """Slice the weights to the kept units and inputs; a direction without units goes altogether."""
    table, inputs = kept.table(neurons["units"]), kept.table(neurons["inputs"])
    directions, units = np.divmod(table, neurons["units"].shape[1])  # [num_directions, num_kept]
    left = directions[:, 0]
    num_gates = len(GATES[node.node.op_type])
    W, R = node.weights(slot("W"))[left], node.weights(slot("R"))[left]
    edits.put(node.node, slot("W"), take_rows(W[:, :, inputs], units, blocks=num_gates))
    edits.put(node.node, slot("R"), take_columns(take_rows(R, units, blocks=num_gates), units))
    for name, blocks in (("B", 2 * num_gates), ("P", NUM_PEEPHOLES)):
        stacked = node.constant(slot(name))
        if stacked is not None:
            edits.put(node.node, slot(name), take_rows(stacked[left], units, blocks=blocks))
    node.node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", units.shape[1])
    if left.size < neurons["units"].shape[0]:
        _keep_direction(node, int(left[0]))


def _keep_direction(node: NodeView, direction: int) -> None:
    """Turn a bidirectional node into one direction; its activations are listed direction by direction.

    Their parameters are listed in the same order, but only for those that take one, and perhaps not for the last ones.
    """
    attributes = node.node.attributes
    attributes["direction"] = ir.AttrString("direction", ("forward", "reverse")[direction])
    if "activations" not in attributes:
        return
    names = attributes["activations"].as_strings()
    half = len(names) // 2
    attributes["activations"] = ir.AttrStrings("activations", names[direction * half : (direction + 1) * half])
    for name, takers in _TAKERS.items():
        if name in attributes:
            first, both = (sum(taker.lower() in takers for taker in some) for some in (names[:half], names))
            values = attributes[name].as_floats()
            attributes[name] = ir.AttrFloat32s(name, values[first:both] if direction else values[:first])
