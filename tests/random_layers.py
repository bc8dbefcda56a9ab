"""Recurrent layers of a random graph: any inputs and attributes, states, directions, shared weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from graphs import GATES, value
from onnx import TensorProto
from random_books import Features, RandomGraph, Recurrent
from random_states import hand_back, return_final_state, start
from random_steps import joined, paired


def layer(graph: RandomGraph, x: Features) -> Features:
    """A recurrent node with any of its inputs and attributes, and its directions brought side by side or summed."""
    op_type = graph.choose(["LSTM", "GRU", "RNN"])
    direction = graph.choose(["forward", "reverse", "bidirectional", "bidirectional"])
    directions, hidden = (2 if direction == "bidirectional" else 1), graph.choose([2, 3, 5, 6])
    dead = [graph.some(hidden, hidden - 1) for _ in range(directions)]
    attributes = {"hidden_size": hidden, "direction": direction, **cell_attributes(graph, op_type, directions)}
    given = cell_weights(graph, op_type, x, directions, hidden, dead)
    units = add_units(graph, x, directions, hidden, dead)
    given["sequence_lens"] = lengths(graph) if graph.chance(0.15) else ""
    state = start(graph, op_type, directions, hidden)
    given |= state.given
    names = ["X", "W", "R", "B", "sequence_lens", "initial_h", *(["initial_c", "P"] if op_type == "LSTM" else [])]
    slots = [x.name, *(given.get(name, "") for name in names[1:])]
    while not slots[-1]:
        slots.pop()
    Y = graph.op(op_type, slots, outputs=3 if op_type == "LSTM" else 2, **attributes)
    graph.recurrent.append(Recurrent(name=Y, units=units, inputs=x))
    if state.packing is not None:
        hand_back(graph, Y, state, directions, hidden)
    elif graph.chance(0.06):
        return_final_state(graph, Y, directions, hidden)
    out = side_by_side(graph, Y, units, dead, directions, hidden)
    if graph.chance(0.2) and len(graph.recurrent) < 4 and not any(graph.carried):
        return twin(graph, out, x, slots, op_type, attributes, directions, hidden, units, dead)
    return out


def cell_attributes(graph: RandomGraph, op_type: str, directions: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    if op_type == "GRU" and graph.chance():
        attributes["linear_before_reset"] = 1
    if graph.chance(0.2):
        attributes["clip"] = 0.7
    if op_type == "LSTM" and graph.chance(0.1):
        attributes["input_forget"] = 1
    if graph.chance(0.25):
        several = [["HardSigmoid", "Tanh", "Softsign"], ["Sigmoid", "LeakyRelu", "Tanh"]]
        each = {"LSTM": several, "GRU": [["Sigmoid", "Relu"], ["Sigmoid", "LeakyRelu"]], "RNN": [["Relu"], ["Elu"]]}
        one = [graph.choose(each[op_type]) for _ in range(directions)]
        attributes["activations"] = [name for names in one for name in names]
        slopes = [0.1 + 0.1 * place for place, names in enumerate(one) if {"LeakyRelu", "Elu"} & set(names)]
        if slopes and not any("HardSigmoid" in names for names in one):
            attributes["activation_alpha"] = slopes  # one for each function that takes one
    return attributes


def cell_weights(
    graph: RandomGraph, op_type: str, x: Features, directions: int, hidden: int, dead: list[list[int]]
) -> dict[str, str]:
    rows = GATES[op_type] * hidden
    W, R = graph.weights(directions, rows, len(x)), graph.weights(directions, rows, hidden)
    W[:, :, np.array(x.dead, dtype=bool)] = 0
    for direction, units in enumerate(dead):
        R[direction][:, units] = 0
    given = {"W": alias(graph, graph.const(W, "W")), "R": alias(graph, graph.const(R, "R"))}
    if graph.chance(0.8):
        given["B"] = graph.const(graph.weights(directions, 2 * rows), "B")
    if op_type == "LSTM" and graph.chance(0.2):
        given["P"] = graph.const(graph.weights(directions, 3 * hidden), "P")
    return given


def alias(graph: RandomGraph, name: str) -> str:
    """Now and then give a weight a second name, as exporters do with tied ones."""
    return graph.op("Identity", [name]) if graph.chance(0.15) else name


def add_units(
    graph: RandomGraph, x: Features, directions: int, hidden: int, dead: list[list[int]]
) -> tuple[tuple[int, ...], ...]:
    """Number the units; each needs what the layer reads and the living units of its direction."""
    units = tuple(tuple(graph.element() for _ in range(hidden)) for _ in range(directions))
    for row, gone in zip(units, dead, strict=True):
        living = frozenset(unit for place, unit in enumerate(row) if place not in gone)
        for unit in row:
            graph.needs[unit] = living | x.read()
    return units


def lengths(graph: RandomGraph) -> str:
    if not any(known.name == "lengths" for known in graph.inputs):
        graph.inputs.append(value("lengths", [graph.batch()], TensorProto.INT32))
    return "lengths"


def side_by_side(
    graph: RandomGraph, Y: str, units: tuple[tuple[int, ...], ...], dead: list[list[int]], directions: int, hidden: int
) -> Features:
    """Bring Y `[T, D, B, H]` to `[T, B, D*H]`, or add the two directions to `[T, B, H]`."""
    books = Features(
        name=Y,
        elements=tuple(unit for row in units for unit in row),
        reads=tuple(frozenset({unit}) for row in units for unit in row),
        dead=tuple(place in gone for gone in dead for place in range(hidden)),
        zero=(False,) * (directions * hidden),
    )
    if directions == 2 and graph.chance(0.3):
        halves = [graph.with_axes("Squeeze", graph.slice(Y, d, d + 1, 1), [1], 13) for d in range(2)]
        first, second = (books.take(half, range(d * hidden, (d + 1) * hidden)) for d, half in enumerate(halves))
        return paired(graph, "Add", first, second)
    if directions == 1 and graph.chance(0.7):
        return replace(books, name=graph.with_axes("Squeeze", Y, [1], 13))
    turned = graph.op("Transpose", [Y], perm=[0, 2, 1, 3])
    width = graph.choose([-1, directions * hidden, "computed"])
    shape = shape_read_from(graph, Y) if width == "computed" else graph.const([0, 0, width])
    return replace(books, name=graph.op("Reshape", [turned, shape]))


def shape_read_from(graph: RandomGraph, Y: str) -> str:
    """Compute `[T, B, D*H]` from the shape of Y, as a traced program does."""
    shape = graph.op("Shape", [Y])
    width = graph.op("Mul", [graph.op("Gather", [shape, graph.const(np.array(axis))]) for axis in (1, 3)])
    pieces = [graph.slice(shape, 0, 1, 0), graph.slice(shape, 2, 3, 0), graph.with_axes("Unsqueeze", width, [0], 13)]
    return graph.op("Concat", pieces, axis=0)


def twin(
    graph: RandomGraph, first: Features, x: Features, slots: list[str], op_type: str, attributes: dict[str, Any],
    directions: int, hidden: int, units: tuple[tuple[int, ...], ...], dead: list[list[int]],
) -> Features:  # fmt: skip
    """A second node with the same weights on the same input turned around in sign; one joint decision."""
    other = replace(x, name=graph.op("Neg", [x.name]))
    again = add_units(graph, x, directions, hidden, dead)
    graph.twins.append((sum(units, ()), sum(again, ())))
    slots = [other.name, alias(graph, slots[1]), *slots[2:]]
    Y = graph.op(op_type, slots, outputs=3 if op_type == "LSTM" else 2, **attributes)
    graph.recurrent.append(Recurrent(name=Y, units=again, inputs=other))
    second = side_by_side(graph, Y, again, dead, directions, hidden)
    return joined(graph, [first, second])
