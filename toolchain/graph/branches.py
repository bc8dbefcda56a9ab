"""The branches of If nodes: which of them a plan changes, and models whose conditions a caller can set.

Random inputs may never take a branch, and a cut in a branch that never ran is not proven. So both models get, for each
If in question, two more inputs, and its condition becomes

    condition' = (forced and taken) or (not forced and condition)

Nodes are told apart by the name of their first output, which the surgery does not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from toolchain.graph.loading import load_model
from toolchain.graph.normalise import with_own_names
from toolchain.graph.surgery import SurgeryPlan, touched

_TAKEN = {"then_branch": True, "else_branch": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One side of an If: the name of its first output, and the condition under which it runs."""

    node: str
    taken: bool

    def __str__(self) -> str:
        """Return the branch as a user may find it in the graph."""
        return f"{'then' if self.taken else 'else'}_branch of {self.node!r}"


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
            if node.op_type == "If" and name in _TAKEN:
                inside = (*path, Branch(node=str(node.outputs[0].name), taken=_TAKEN[name]))
                yield ChangedBranch(path=inside, graph=attribute.as_graph())
                yield from _branches(attribute.as_graph(), inside)
            elif attribute.type == ir.AttributeType.GRAPH:
                yield from _branches(attribute.as_graph(), path)


def switches(names: Sequence[str], path: BranchPath) -> dict[str, bool]:
    """Return what the added inputs must hold for `path` to be taken; other conditions stay the model's own."""
    taken = {branch.node: branch.taken for branch in path}
    return {
        f"{name}.{part}": on
        for name in names
        for part, on in (("forced", name in taken), ("taken", taken.get(name, False)))
    }


def save_switched(source: Path, target: Path, names: Sequence[str]) -> bool:
    """Write a model whose conditions can be set from outside; tell whether it has all of those If nodes.

    Its weights lie beside it.
    """
    model, _ = load_model(source)
    with_own_names(model)
    found = {str(node.outputs[0].name): node for node in model.graph.all_nodes() if node.op_type == "If"}
    if not set(names) <= set(found):
        return False
    for name in names:
        _add_switch(model.graph, found[name], name)
    ir.save(model, target, external_data=f"{target.name}.weights")
    return True


def _add_switch(graph: ir.Graph, node: ir.Node, name: str) -> None:
    boolean = ir.TensorType(ir.DataType.BOOL)
    forced, taken = (ir.Value(name=f"{name}.{part}", shape=ir.Shape([]), type=boolean) for part in ("forced", "taken"))
    graph.inputs.extend([forced, taken])
    condition = node.inputs[0]
    assert condition is not None
    set_by_caller = ir.node("And", [forced, taken])
    free = ir.node("Not", [forced])
    own = ir.node("And", [free.outputs[0], condition])
    either = ir.node("Or", [set_by_caller.outputs[0], own.outputs[0]])
    for number, new in enumerate((set_by_caller, free, own, either)):
        new.outputs[0].name = f"{name}.switch{number}"
    assert node.graph is not None
    node.graph.insert_before(node, [set_by_caller, free, own, either])
    node.replace_input_with(0, either.outputs[0])
