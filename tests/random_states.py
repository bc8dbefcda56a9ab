"""Initial states of a random graph's layers, and what is handed back: apart, packed into one tensor, or in a cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from random_books import STATIC_BATCH, RandomGraph


@dataclass(frozen=True, kw_only=True)
class State:
    """How a layer starts: the values of its state inputs, and how the caller's tensors hold them if it is carried."""

    given: dict[str, str]
    packing: str | None = None
    inputs: tuple[str, ...] = ()


def start(graph: RandomGraph, op_type: str, directions: int, hidden: int) -> State:
    """Choose where the state starts."""
    names = ("initial_h", "initial_c")[: 2 if op_type == "LSTM" else 1]
    kind = graph.choose(["none", "none", "zero", "given", "shared", "carried", "carried", "constant"])
    shape = [directions, graph.batch(), hidden]
    if kind == "carried":
        return carried(graph, names, directions, hidden)
    if kind == "constant" and graph.static_batch:
        return State(given={name: graph.const(graph.weights(directions, STATIC_BATCH, hidden), name) for name in names})
    if kind == "zero":
        return State(given={name: zero_state(graph, directions, hidden) for name in names})
    if kind == "given":
        return State(given={name: graph.input(name, shape) for name in names})
    if kind == "shared":
        return State(given=dict.fromkeys(names, graph.input("state", shape)))
    return State(given={})


def zero_state(graph: RandomGraph, directions: int, hidden: int) -> str:
    """Zeros of the input's batch size, as exporters write them."""
    first = next(known.name for known in graph.inputs if known.name in ("X", "tokens"))
    batch = graph.op("Gather", [graph.op("Shape", [first]), graph.const(np.array([1]))])
    shape = graph.op("Concat", [graph.const([directions]), batch, graph.const([hidden])], axis=0)
    return graph.op("ConstantOfShape", [shape], value=graph.tensor(np.zeros(1)))


def carried(graph: RandomGraph, names: tuple[str, ...], directions: int, hidden: int) -> State:
    packings = ["apart", "stacked", *(["beside"] if directions == 1 else []), *(["cache"] if graph.opset >= 11 else [])]
    packing, batch, count = graph.choose(packings), graph.batch(), len(names)
    if packing == "apart":
        states = [graph.input(name, [directions, batch, hidden]) for name in names]
        return State(given=dict(zip(names, states, strict=True)), packing=packing, inputs=tuple(states))
    if packing == "beside":
        state = graph.input("state", [batch, count * hidden])
        flat = [graph.slice(state, place * hidden, (place + 1) * hidden, 1) for place in range(count)]
        states = [graph.with_axes("Unsqueeze", part, [0], 13) for part in flat]
    else:
        spare = packing == "cache"  # a slot that is handed on as it came
        state = graph.input("state", [count * directions + spare, batch, hidden])
        states = [graph.slice(state, place * directions, (place + 1) * directions, 0) for place in range(count)]
    return State(given=dict(zip(names, states, strict=True)), packing=packing, inputs=(state,))


def hand_back(graph: RandomGraph, Y: str, state: State, directions: int, hidden: int) -> None:
    """Return the state of a carried layer in the tensors in which it came."""
    finals, batch = [f"{Y}_{place + 1}" for place in range(len(state.given))], graph.batch()
    shape: list[int | str] = [directions * len(finals), batch, hidden]
    if state.packing == "apart":
        outputs, shape = finals, [directions, batch, hidden]
    elif state.packing == "beside":
        flat = [graph.with_axes("Squeeze", final, [0], 13) for final in finals]
        outputs, shape = [graph.op("Concat", flat, axis=1)], [batch, hidden * len(finals)]
    elif state.packing == "cache":
        cache = state.inputs[0]
        for place, final in enumerate(finals):
            slots = np.arange(place * directions, (place + 1) * directions)[:, None]
            cache = graph.op("ScatterND", [cache, graph.const(slots), final])
        outputs, shape = [cache], [directions * len(finals) + 1, batch, hidden]
    else:
        outputs = [graph.op("Concat", finals, axis=0)]
    graph.outputs += [graph.value(output, shape) for output in outputs]
    graph.carried += list(zip(state.inputs, outputs, strict=True))


def return_final_state(graph: RandomGraph, Y: str, directions: int, hidden: int) -> None:
    """Return the final state of a layer that is not carried: somebody may read all of it."""
    graph.outputs.append(graph.value(f"{Y}_1", [directions, graph.batch(), hidden]))
    graph.roots |= {unit for row in graph.recurrent[-1].units for unit in row}
    graph.blocked.setdefault(Y, set()).add(f"{Y}_1")
