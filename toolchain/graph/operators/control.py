"""If, Loop and Scan: what enters and leaves a node is what enters and leaves the graphs inside it.

    If      out = then_out or else_out
    Loop    body_in = first, then body_out of the step before; out = the last body_out, or first after no step;
            collected[t] = what the body returned at step t
    Scan    states as in Loop; body_in at step t is the scanned input at position t of its axis

All sides of such an equation are one tensor of one layout. The nodes inside are nodes of the program like any other:
they are numbered with it, cut with it, and read captured values of the surrounding graphs as their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from toolchain.graph.cells import BlockedError, Space, Statement, Transfer, agree, couple, pairs
from toolchain.graph.nodes import NodeView
from toolchain.graph.subgraphs import NUM_LOOP_INPUTS

_SCAN_WITHOUT_BATCH_OPSET = 9  # before, Scan had a batch axis and lengths of its own
_LOOP_RESULTS = 1  # a Loop's body returns a condition before its states; it takes as many inputs as the Loop


def branches(node: NodeView) -> Transfer:
    """Describe If: an output is that of either branch."""
    bodies = [node.attribute(name) for name in ("then_branch", "else_branch")]
    statements = [
        statement
        for index in range(len(node.node.outputs))
        if node.has_output(index)
        for body in bodies
        for statement in _same(node.output(index), node.inner(body.outputs[index]))
    ]
    return Transfer(statements=tuple(statements))


def loop(node: NodeView) -> Transfer:
    """Describe Loop: states, and what every step adds to a collected output."""
    body: ir.Graph = node.attribute("body")
    num_states = len(body.inputs) - NUM_LOOP_INPUTS
    statements: list[Statement] = []
    for index, value in enumerate(body.outputs[_LOOP_RESULTS + num_states :], start=num_states):
        if node.has_output(index):
            statements += _steps(node.output(index), node.inner(value), axis=0, collected=True)
    return Transfer(statements=(*statements, *_states(node, body, num_states, NUM_LOOP_INPUTS, _LOOP_RESULTS)))


def scan(node: NodeView) -> Transfer:
    """Describe Scan: states, and inputs and outputs that are walked along one axis each."""
    if node.opset < _SCAN_WITHOUT_BATCH_OPSET:
        raise BlockedError(f"it is the Scan of opset {node.opset}, with a batch axis of its own")
    body: ir.Graph = node.attribute("body")
    num_states = len(body.inputs) - int(node.attribute("num_scan_inputs"))
    out_axes, in_axes = (node.attribute(name) for name in ("scan_output_axes", "scan_input_axes"))
    statements: list[Statement] = []
    for place, value in enumerate(body.outputs[num_states:]):
        if node.has_output(num_states + place):
            axis = _axis(out_axes, place)
            statements += _steps(node.output(num_states + place), node.inner(value), axis=axis, collected=True)
    statements += _states(node, body, num_states, 0, 0)
    for place, value in enumerate(body.inputs[num_states:]):
        axis = _axis(in_axes, place)
        statements += _steps(node.input(num_states + place), node.inner(value), axis=axis, collected=False)
    return Transfer(statements=tuple(statements))


def decided_by(node: ir.Node) -> tuple[ir.Value, ...]:
    """Return the values that decide what a node runs, and how often: they count however little is read of it."""
    if node.domain not in ("", "ai.onnx"):
        return ()
    if node.op_type == "If":
        values: Sequence[ir.Value | None] = node.inputs[:1]
    elif node.op_type == "Loop":
        values = (*node.inputs[:NUM_LOOP_INPUTS], node.attributes["body"].as_graph().outputs[0])
    else:
        return ()
    return tuple(value for value in values if value is not None and value.const_value is None)


def _states(node: NodeView, body: ir.Graph, count: int, inputs: int, results: int) -> list[Statement]:
    """Tie each state's four ends: where it starts, enters the body, leaves it, and is returned."""
    statements: list[Statement] = []
    for index in range(count):
        first = node.input(inputs + index)
        entering, leaving = node.inner(body.inputs[inputs + index]), node.inner(body.outputs[results + index])
        if node.has_output(index):
            result = node.output(index)
            statements += [*_same(result, leaving), *_same(result, first)]
        statements += [*_same(entering, leaving), *_same(entering, first)]
    return statements


def _same(out: Space, read: Space) -> tuple[Statement, ...]:
    """Return that `out` is `read`, cell by cell; a run-time length may meet a static one."""
    _check_agree(out, read)
    return pairs(out.cells, read.cells), couple(out.cells, read.cells)


def _steps(steps: Space, step: Space, *, axis: int, collected: bool) -> tuple[Statement, ...]:
    """Return that `step` is one position of `steps` along an axis: what a step returns, or else what it is given."""
    rank = len(steps.shape)
    if not -rank <= axis < rank:
        raise BlockedError(f"axis {axis} is none of a value of {rank} axes")
    others = [other for other in range(rank) if other != axis % rank]
    shape, dynamic = tuple(steps.shape[o] for o in others), tuple(steps.dynamic[o] for o in others)
    _check_agree(Space(first=steps.first, shape=shape, dynamic=dynamic), step)
    every = np.moveaxis(steps.cells, axis, 0)
    read = pairs(every, step.cells[None]) if collected else pairs(step.cells[None], every)
    return read, couple(every, step.cells[None])


def _check_agree(one: Space, other: Space) -> None:
    if not agree(one, other):
        shapes = f"{list(one.shape)} and {list(other.shape)}"
        raise BlockedError(f"the shapes {shapes} of one value in and around its graph differ")


def _axis(axes: Sequence[int] | None, place: int) -> int:
    return 0 if axes is None else int(axes[place])
