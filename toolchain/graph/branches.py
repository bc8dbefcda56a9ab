"""The branches of If and the bodies of Loop: which of them a plan changes, and models that can be made to run them.

Random inputs may never take a branch or enter a loop, and a cut in what never ran is not proven. So both models get,
for each node in question, two more inputs, and

    If      condition' = (forced and taken) or (not forced and condition)
    Loop    condition' = forced or condition;   count' = 1 if forced and count < 1 else count

Nodes are told apart by the name of their first output, which the surgery does not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from toolchain.graph.loading import load_model
from toolchain.graph.normalise import with_own_names
from toolchain.graph.subgraphs import NUM_LOOP_INPUTS
from toolchain.graph.surgery import SurgeryPlan, touched

THEN, ELSE, BODY = "then_branch", "else_branch", "body"
_PARTS = {"If": (THEN, ELSE), "Loop": (BODY,)}
_WHERE_OPSET = 9  # what a Loop's switch is made of exists from here on


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A graph that its node may run or not: the name of the node's first output, and of the graph's attribute."""

    node: str
    part: str

    def __str__(self) -> str:
        """Return the branch as a user may find it in the graph."""
        return f"{self.part} of {self.node!r}"


BranchPath = tuple[Branch, ...]  # a branch after those that it lies inside of, the outermost first


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedBranch:
    """A branch in which a plan changes something; `graph` is its own."""

    path: BranchPath
    graph: ir.Graph


def changed_branches(plan: SurgeryPlan) -> tuple[ChangedBranch, ...]:
    """Return the branches that the plan changes: a node in them, or the shape that they return."""
    program, kept = plan.program, plan.layout.kept
    views = zip(program.nodes, program.transfers, strict=True)
    changed = {view.node for view, transfer in views if touched(program, view, transfer, kept)}
    return tuple(
        branch for branch in _branches(program.graph, ()) if any(node in changed for node in branch.graph.all_nodes())
    )


def _branches(graph: ir.Graph, path: BranchPath) -> Iterator[ChangedBranch]:
    for node in graph:
        for name, attribute in node.attributes.items():
            if name in _PARTS.get(node.op_type, ()):
                inside = (*path, Branch(node=str(node.outputs[0].name), part=name))
                yield ChangedBranch(path=inside, graph=attribute.as_graph())
                yield from _branches(attribute.as_graph(), inside)
            elif attribute.type == ir.AttributeType.GRAPH:
                yield from _branches(attribute.as_graph(), path)


def switches(names: Sequence[str], path: BranchPath) -> dict[str, bool]:
    """Return what the added inputs must hold for `path` to be taken; other conditions stay the model's own."""
    parts = {branch.node: branch.part for branch in path}
    forced = {f"{name}.forced": name in parts for name in names}
    return forced | {f"{name}.taken": parts.get(name) == THEN for name in names}


def save_switched(source: Path, target: Path, names: Sequence[str]) -> bool:
    """Write a model that can be made to take branches; tell whether it has all of those nodes.

    Its weights lie beside it.
    """
    model, _ = load_model(source)
    with_own_names(model)
    found = {str(node.outputs[0].name): node for node in model.graph.all_nodes() if node.op_type in _PARTS}
    old = model.graph.opset_imports.get("", 1) < _WHERE_OPSET
    if not set(names) <= set(found) or (old and any(found[name].op_type == "Loop" for name in names)):
        return False
    boolean = ir.TensorType(ir.DataType.BOOL)
    for name in names:
        parts = (f"{name}.forced", f"{name}.taken")
        forced, taken = (ir.Value(name=part, shape=ir.Shape([]), type=boolean) for part in parts)
        model.graph.inputs.extend([forced, taken])
        if found[name].op_type == "If":
            _switch_if(found[name], forced, taken)
        else:
            _switch_loop(found[name], forced)
    ir.save(model, target, external_data=f"{target.name}.weights")
    return True


def _switch_if(node: ir.Node, forced: ir.Value, taken: ir.Value) -> None:
    condition = node.inputs[0]
    assert condition is not None
    free = _before(node, "Not", forced)
    either = _before(node, "Or", _before(node, "And", forced, taken), _before(node, "And", free, condition))
    node.replace_input_with(0, either)


def _switch_loop(node: ir.Node, forced: ir.Value) -> None:
    count, condition = node.inputs[:NUM_LOOP_INPUTS]
    if count is not None:
        one = _before(node, "Constant", value_int=1)
        none = _before(node, "And", forced, _before(node, "Less", count, one))
        node.replace_input_with(0, _before(node, "Where", none, one, count))
    if condition is not None:
        node.replace_input_with(1, _before(node, "Or", forced, condition))


def _before(node: ir.Node, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
    """Insert an operator in front of a node, and return its output."""
    graph = node.graph
    assert graph is not None
    new = ir.node(op_type, inputs, attributes)
    new.outputs[0].name = f"{node.outputs[0].name}.switch{len(graph)}"
    graph.insert_before(node, [new])
    return new.outputs[0]
