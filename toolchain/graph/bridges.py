"""Gathers and scatters where carried state keeps its full width while the units behind it were cut.

    in    initial_h' = Gather(initial_h, kept)          the dead positions of the caller's state are not read
    out   Y_h = Gather(Pad(Y_h', one zero), where)      dead positions are handed back as zeros

so a streaming loop written for the full model runs unchanged. Each direction of a node keeps its own units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from toolchain.graph.cells import CellArray, Port, Space
from toolchain.graph.edits import Edits
from toolchain.graph.nodes import NodeView

_PAD_TAKES_INPUTS_OPSET = 11


def bridge(node: NodeView, port: Port, units: Space, kept: CellArray, edits: Edits) -> None:
    """Put a gather or scatter at one state port.

    Args:
        node: the recurrent node, already rewritten.
        port: the port whose value keeps its width.
        units: the node's units before the cut, shape `[num_directions, hidden_size]`.
        kept: units that stay, counted within their direction, shape `[num_directions, num_kept]`.
        edits: where new nodes go.
    """
    if port.is_output:
        _scatter(node, port.index, units.shape[1], kept, edits)
    else:
        state = node.value(port.index)
        parts = [
            _pick(node.node, direction, columns, edits)
            for direction, columns in zip(_directions(node.node, state, kept, edits), kept, strict=True)
        ]
        node.node.replace_input_with(port.index, _joined(node.node, parts, edits))


def _scatter(node: NodeView, index: int, hidden_size: int, kept: CellArray, edits: Edits) -> None:
    """Widen a state output; the node's own output gets a new name, the wide one takes over the old."""
    narrow = node.node.outputs[index]
    wide = ir.Value(name=narrow.name, shape=narrow.shape, type=narrow.type)
    narrow.replace_all_uses_with(wide, replace_graph_outputs=True)
    narrow.name = edits.fresh(f"{wide.name}_kept")
    if wide.shape is not None:
        narrow.shape = ir.Shape([*wide.shape[:2], kept.shape[1]])
    graph = node.node.graph
    assert graph is not None
    anchor = ir.node("Identity", [narrow], outputs=[wide], name=edits.fresh(f"{wide.name}_scattered"))
    graph.insert_after(node.node, [anchor])
    parts = []
    for state, columns in zip(_directions(anchor, narrow, kept, edits), kept, strict=True):
        where = np.full(hidden_size, columns.size)  # the padded zero
        where[columns] = np.arange(columns.size)
        parts.append(_pick(anchor, _padded(node, anchor, state, edits), where, edits))
    anchor.replace_input_with(0, _joined(anchor, parts, edits))


def _directions(place: ir.Node, state: ir.Value, kept: CellArray, edits: Edits) -> list[ir.Value]:
    """Split a state of shape `[num_directions, batch, width]` by direction, unless one choice serves all."""
    if len(kept) == 1:
        return [state]
    return [
        edits.before(place, "Gather", [state, edits.constant(np.array([d]), stem=f"direction{d}")], {"axis": 0})[0]
        for d in range(len(kept))
    ]


def _joined(place: ir.Node, parts: Sequence[ir.Value], edits: Edits) -> ir.Value:
    return parts[0] if len(parts) == 1 else edits.before(place, "Concat", parts, {"axis": 0})[0]


def _pick(place: ir.Node, state: ir.Value, columns: CellArray, edits: Edits) -> ir.Value:
    indices = edits.constant(columns.astype(np.int64), stem=f"{state.name}_units")
    return edits.before(place, "Gather", [state, indices], {"axis": -1})[0]


def _padded(node: NodeView, place: ir.Node, state: ir.Value, edits: Edits) -> ir.Value:
    """Append one zero to the last of three axes."""
    pads = [0, 0, 0, 0, 0, 1]
    if node.opset < _PAD_TAKES_INPUTS_OPSET:
        return edits.before(place, "Pad", [state], {"pads": pads})[0]
    return edits.before(place, "Pad", [state, edits.constant(np.array(pads), stem="one_zero_more")], {})[0]
