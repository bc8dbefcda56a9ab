"""Graphs inside nodes: the branches of If, the bodies of Loop and Scan, brought into one form.

names      no two values share a name, whichever graphs they lie in
outputs    every output of a body is computed by a node of that body, and no two outputs are one value
constants  lie in the main graph, and are captured by whoever reads them; only what one body dequantizes lies in it

so that a constant has one place, and what a body returns can be cut like what any node returns.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import common

from toolchain.graph.dequantized import is_dequantize

NUM_LOOP_INPUTS = 2  # a Loop's count and condition, given or not, stand before its states


def bodies_of(node: ir.Node) -> tuple[ir.Graph, ...]:
    """Return the graphs directly inside a node."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return tuple(found)


def owners(graph: ir.Graph) -> dict[ir.Graph | None, ir.Node]:
    """Return the node that each graph inside `graph`, at any depth, belongs to."""
    return {body: node for node in graph.all_nodes() for body in bodies_of(node)}


def graphs_in(graph: ir.Graph) -> tuple[ir.Graph, ...]:
    """Return a graph and those inside its nodes, at any depth; outer ones first."""
    return (graph, *(inner for node in graph for body in bodies_of(node) for inner in graphs_in(body)))


def in_order(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield every node at any depth, the nodes of a body before the node that it belongs to."""
    for node in graph:
        for body in bodies_of(node):
            yield from in_order(body)
        yield node


def values_of(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield what one graph defines: inputs, initializers, and its own nodes' outputs."""
    yield from graph.inputs
    yield from (value for value in graph.initializers.values() if not value.is_graph_input())
    yield from (value for node in graph for value in node.outputs)


def give_unique_names(model: ir.Model) -> None:
    """Rename values of bodies whose name an earlier value has; the main graph's names stay.

    Branches may use one name twice, until a constant of one of them moves to where the other can see it. The same model
    always gets the same names.
    """
    taken: set[str | None] = {""}
    for graph in graphs_in(model.graph):
        for value in list(values_of(graph)):
            if value.name in taken and value.name and graph is not model.graph:
                value.name = fresh_name(value.name, taken)
            taken.add(value.name)


def fresh_name(stem: str, taken: set[str | None]) -> str:
    """Return a name like `stem` that is not taken."""
    number = 1
    while f"{stem}_{number}" in taken:
        number += 1
    return f"{stem}_{number}"


def remove_unused(model: ir.Model) -> None:
    """Remove nodes and constants that nobody reads."""
    common.RemoveUnusedNodesPass()(model)
    for body in graphs_in(model.graph)[1:]:  # the pass looks at the main graph's constants only
        for name, value in list(body.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del body.initializers[name]
    for node in model.graph.all_nodes():
        if node.op_type == "Loop" and len(node.inputs) < NUM_LOOP_INPUTS:  # the pass drops what is absent at the end
            node.resize_inputs(NUM_LOOP_INPUTS)


def hoist_constants(model: ir.Model) -> None:
    """Make every Constant node an initializer of the main graph, and give each body's outputs nodes of their own."""
    inner = graphs_in(model.graph)[1:]
    for body in inner:
        _end_in_nodes(body)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if not inner:
        return
    give_unique_names(model)
    for body in inner:
        for name, value in list(body.initializers.items()):
            if not value.is_graph_input():
                del body.initializers[name]
                model.graph.register_initializer(value)


def lower_quantized(model: ir.Model) -> None:
    """Move each constant that only the DequantizeLinear nodes of one body read into that body.

    ONNX Runtime's fusions look for it nowhere else, and then do not take the model.
    """
    for name, value in list(model.graph.initializers.items()):
        readers = [reader for reader, _ in value.uses()]
        places = {reader.graph for reader in readers}
        if len(places) == 1 and not value.is_graph_output() and all(map(is_dequantize, readers)):
            (body,) = places
            if isinstance(body, ir.Graph) and body is not model.graph:
                del model.graph.initializers[name]
                body.register_initializer(value)


def _end_in_nodes(body: ir.Graph) -> None:
    """Put an Identity behind outputs that are constants, inputs, captured, or listed before."""
    seen: set[ir.Value] = set()
    for index, value in enumerate(list(body.outputs)):
        producer = value.producer()
        if producer is None or producer.graph is not body or producer.op_type == "Constant" or value in seen:
            returned = ir.Value(name=f"{value.name}_returned", shape=value.shape, type=value.type)
            body.append(ir.node("Identity", [value], outputs=[returned]))
            body.outputs[index] = returned
        seen.add(value)
