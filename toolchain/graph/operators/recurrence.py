"""LSTM, GRU and RNN: demand is a least fixpoint over the units, and cutting one is slicing every gate block.

Unit `u` of direction `d` is needed when `Y`, `Y_h` or `Y_c` is read at it, or when a needed unit's row of `R`, in any
gate, has a non-zero weight in column `u`: units that only read one another die together. Input `j` is needed when a
needed unit's row of `W` reads it.

    W'[d] = W[d][rows(kept[d]), inputs]    R'[d] = R[d][rows(kept[d]), kept[d]]    B'[d], P'[d] likewise

A unit whose candidate is never moved (see `candidate_rows`), from a state of zero, is zero at every step: nobody needs
to read it. ONNX Runtime's DynamicQuantizeLSTM quantizes `X` and `H` by their least and largest numbers and zero, at run
time, so there every input and unit counts that is not zero for certain, read or not.

Source: https://onnx.ai/onnx/operators/onnx__LSTM.html
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from toolchain.errors import LayoutError
from toolchain.graph.cells import (
    BlockedError,
    Couple,
    Drive,
    Linear,
    Port,
    Space,
    Statement,
    Transfer,
    couple,
    pairs,
)
from toolchain.graph.dequantized import SHRINK_FIRST, Pick
from toolchain.graph.edits import Edits
from toolchain.graph.kept import Kept
from toolchain.graph.nodes import NodeView
from toolchain.recurrent import (
    GATES,
    NUM_PEEPHOLES,
    QUANTIZED_LSTM,
    candidate_rows,
    read_units,
    slot,
    take_columns,
    take_rows,
)

OPERATORS = tuple(op_type for op_type in GATES if op_type != QUANTIZED_LSTM)
ZERO_AT_ZERO = frozenset({"elu", "leakyrelu", "relu", "scaledtanh", "softsign", "tanh", "thresholdedrelu"})
RANGE = f"it quantizes by the range of all its units and inputs, zeros apart; {SHRINK_FIRST}"
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
    W, R = (_stacked(node, name) for name in ("W", "R"))
    for name in ("B", "P"):
        if node.has_input(slot(name)):
            node.weights(slot(name))
    units = node.neurons("units", W.shape[0], R.shape[2])
    inputs = node.neurons("inputs", W.shape[2])
    outputs = _outputs(node, units)
    features = _features(node, inputs)
    statements = (
        *outputs,
        *_weights(node, units, inputs, W, R),
        *_drives(node, units, inputs, W, R),
        *_states(node, units),
        *_shared_scales(node, units),
        *features,
    )
    quantized = node.node.op_type == QUANTIZED_LSTM
    return Transfer(
        statements=statements, neurons={"units": units, "inputs": inputs}, mixes=RANGE if quantized else None
    )


def _stacked(node: NodeView, name: str) -> np.ndarray:
    """Return `W` or `R` as `[num_directions, gates*hidden_size, columns]`, zero where it has no effect."""
    weights = node.weights(slot(name))
    if node.node.op_type != QUANTIZED_LSTM:
        return weights
    D, _, rows = weights.shape
    for part in (f"{name}_scale", f"{name}_zero_point"):
        if node.has_input(slot(part)) and node.weights(slot(part)).shape not in ((D,), (D, rows)):
            raise BlockedError(f"its {part} is neither one number per direction nor one per row")
    if node.has_input(slot(f"{name}_zero_point")):
        zero_point = node.weights(slot(f"{name}_zero_point")).astype(np.int32)
        weights = weights.astype(np.int32) - zero_point.reshape(D, 1, -1)
    return weights.transpose(0, 2, 1)


def _features(node: NodeView, inputs: Space) -> list[Statement]:
    X = node.input(slot("X"))
    if X.shape and not X.dynamic[-1] and X.shape[-1] != inputs.size:
        raise LayoutError(
            f"node {str(node.node.name or node.node.outputs[0].name)!r}: W is for {inputs.size} features, but X has "
            f"{X.shape[-1]}; expected as many. Export the model again."
        )
    return [pairs(inputs.cells, X.cells, keeps_zero=True), couple(X.cells, inputs.cells)]


def _outputs(node: NodeView, units: Space) -> list[Statement]:
    statements: list[Statement] = []
    if node.has_output(0):
        Y = node.output(0).cells  # [seq_length, num_directions, batch_size, hidden_size]
        unit = units.cells[None, :, None, :]
        statements += [pairs(Y, unit, keeps_zero=True), couple(Y, unit)]
    for index in (1, 2):
        if node.has_output(index):
            value, unit = np.broadcast_arrays(node.output(index).cells, units.cells[:, None, :])
            statements += [
                pairs(value, unit, keeps_zero=True),
                Port(value=value, unit=unit, index=index, is_output=True),
            ]
    return statements


def _weights(node: NodeView, units: Space, inputs: Space, W: np.ndarray, R: np.ndarray) -> list[Statement]:
    num_gates = len(GATES[node.node.op_type])
    recurrence, reads = read_units(R, num_gates), read_units(W, num_gates)
    if node.node.op_type == QUANTIZED_LSTM:
        recurrence, reads = np.ones_like(recurrence), np.ones_like(reads)
    return [
        *(Linear(reader=units.cells[d], read=units.cells[d], weights=recurrence[d]) for d in range(units.shape[0])),
        *(Linear(reader=units.cells[d], read=inputs.cells, weights=reads[d]) for d in range(units.shape[0])),
    ]


def _drives(node: NodeView, units: Space, inputs: Space, W: np.ndarray, R: np.ndarray) -> list[Statement]:
    """Say what can make a unit other than zero: its candidate's rows and biases, and functions not zero at zero."""
    op_type = node.node.op_type
    by_input, by_unit = (candidate_rows(weights, op_type) != 0 for weights in (W, R))
    B = node.constant(slot("B"))
    biases = [] if B is None else np.split(B, 2, axis=1)
    moved = np.zeros(units.shape, dtype=np.bool_)
    for bias in biases:
        moved |= candidate_rows(bias, op_type) != 0
    moved |= ~np.array(_zero_at_zero(node, units.shape[0]))[:, None]
    none = np.zeros(units.shape[1], dtype=np.bool_)
    return [
        statement
        for d in range(units.shape[0])
        for statement in (
            Drive(driven=units.cells[d], by=units.cells[d], weights=by_unit[d], moved=moved[d]),
            Drive(driven=units.cells[d], by=inputs.cells, weights=by_input[d], moved=none),
        )
    ]


def _zero_at_zero(node: NodeView, num_directions: int) -> list[bool]:
    """Tell of each direction whether the functions behind the candidate and the state are zero at zero."""
    names = [str(name).lower() for name in node.attribute("activations", ())]
    per_direction = len(names) // num_directions
    behind = {"GRU": slice(1, 2), "RNN": slice(1)}.get(node.node.op_type, slice(1, 3))  # f; f g; f g h
    return [
        all(name in ZERO_AT_ZERO for name in names[d * per_direction : (d + 1) * per_direction][behind])
        for d in range(num_directions)
    ]


def _shared_scales(node: NodeView, units: Space) -> list[Statement]:
    """Tie directions together where a quantized weight has a scale per unit that serves both."""
    places = (("W", (1,)), ("R", (1, 2)), ("B", (1,)), ("P", (1,)))
    shared = any(node.quantized_axis(slot(name)) in axes for name, axes in places)
    return [couple(units.cells[:1], units.cells)] if shared and units.shape[0] > 1 else []


def _states(node: NodeView, units: Space) -> list[Statement]:
    statements: list[Statement] = []
    for name in ("initial_h", "initial_c"):
        if node.has_input(slot(name)):
            value, unit = np.broadcast_arrays(node.input(slot(name)).cells, units.cells[:, None, :])
            statements += [
                pairs(unit, value, keeps_zero=True),
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
    present = slice(left[0], left[-1] + 1)  # a view: the weights may be larger than what is free in memory
    num_gates = len(GATES[node.node.op_type])

    def rows(stacked: np.ndarray, blocks: int = num_gates) -> np.ndarray:
        return take_rows(stacked[present], units, blocks=blocks)

    def scales(numbers: np.ndarray) -> np.ndarray:
        return numbers[present] if numbers.ndim == 1 else rows(numbers)

    picks: dict[str, Pick] = {
        "W": lambda W: rows(W)[:, :, inputs],
        "R": lambda R: take_columns(rows(R), units),
        "B": lambda B: rows(B, 2 * num_gates),
        "P": lambda P: rows(P, NUM_PEEPHOLES),
    }
    if node.node.op_type == QUANTIZED_LSTM:
        W, R = picks["W"], picks["R"]
        picks |= {"W": lambda x: _turned(W(_turned(x))), "R": lambda x: _turned(R(_turned(x)))}
        picks |= dict.fromkeys(("W_scale", "W_zero_point", "R_scale", "R_zero_point"), scales)
    for name, pick in picks.items():
        if node.has_input(slot(name)):
            edits.cut(node.node, slot(name), pick)
    node.node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", units.shape[1])
    if left.size < neurons["units"].shape[0]:
        _keep_direction(node, int(left[0]))


def _turned(weights: np.ndarray) -> np.ndarray:
    return weights.transpose(0, 2, 1)


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
