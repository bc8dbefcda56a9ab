"""Every constant matrix of a graph: what it reads, its content, and how new content gets back into the node.

    out = x @ weights + bias      x [.., num_rows]   weights [num_rows, num_out]

A recurrent node holds several: `W` (both directions side by side), and per direction `R`, which reads the node's own
`Y` one step earlier. A GRU with `linear_before_reset=0` applies the candidate's part of `R` to `r * h` instead of `h`,
which is linear in another vector of the same units: a matrix of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.graph.cells import CellArray, Transfer
from toolchain.graph.edits import Edits
from toolchain.graph.nodes import NodeView
from toolchain.graph.program import Program
from toolchain.oneshot.plain_matrices import find_matrix, matrix_content, replace_matrix
from toolchain.recurrent import GATES, slot

FloatArray = npt.NDArray[np.floating]
Part = Literal["W", "R", "R zr", "R h", "matrix"]
RESET_GATES = 2  # z and r: the blocks of a GRU's R that read h itself when linear_before_reset=0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a matrix finds its rows: along `axis` of a value; of a `Y`, in one direction.

    `reset` marks the vector `r * h` of a GRU, which is computed from the node's X and Y.
    """

    value: str
    axis: int
    direction: int | None = None
    reset: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matrix:
    """One constant matrix; `rows` are the cells of what it reads, shape `[num_rows]`."""

    node: NodeView
    part: Part
    direction: int
    rows: CellArray

    @property
    def name(self) -> str:
        """The node, and which of its matrices."""
        name = self.node.node.name or str(self.node.node.outputs[0].name)
        return name if self.part == "matrix" else f"{name}.{self.part}"

    @property
    def source(self) -> Source:
        """Where its rows come from in the graph as it is now."""
        if self.part == "matrix":
            plain = find_matrix(self.node)
            assert plain is not None, "a matrix stays one"
            return Source(value=str(self.node.value(plain.data).name), axis=plain.axis)
        if self.part == "W":
            return Source(value=str(self.node.value(slot("X")).name), axis=2)
        own = str(self.node.node.outputs[0].name)
        return Source(value=own, axis=3, direction=self.direction, reset=self.part == "R h")

    def weights(self) -> FloatArray:
        """Return the content, shape `[num_rows, num_out]`; not to be written to."""
        if self.part == "matrix":
            return matrix_content(self.node)
        array = self.node.weights(slot(self.part[0]))
        if self.part == "W":
            return array.reshape(-1, array.shape[2]).T  # [input_size, num_directions*num_gates*hidden_size]
        return array[self.direction, self._gates(array)].T  # [hidden_size, num_gates*hidden_size]

    def replace(self, weights: FloatArray, shift: FloatArray, edits: Edits) -> None:
        """Give the node new content, and add `shift`, shape `[num_out]`, to its bias; none is made for zeros."""
        if self.part == "matrix":
            replace_matrix(self.node, weights, shift, edits)
            return
        index = slot(self.part[0])
        array = self.node.weights(index).copy()
        hidden = self.node.weights(slot("R")).shape[2]
        num_gates = len(GATES[self.node.node.op_type])
        bias = self.node.constant(slot("B"))
        B = np.zeros((array.shape[0], 2 * num_gates * hidden), array.dtype) if bias is None else bias.copy()
        if self.part == "W":
            array[:] = weights.T.reshape(array.shape)
            B[:, : num_gates * hidden] += shift.reshape(array.shape[0], -1)
        else:
            rows = self._gates(array)
            array[self.direction, rows] = weights.T
            B[self.direction, num_gates * hidden :][rows] += shift
        edits.put(self.node.node, index, array)
        if shift.any():
            edits.put(self.node.node, slot("B"), B)

    def _gates(self, R: FloatArray) -> slice:
        """Return which rows of R belong to this matrix."""
        hidden = R.shape[2]
        return {"R": slice(None), "R zr": slice(RESET_GATES * hidden), "R h": slice(RESET_GATES * hidden, None)}[
            self.part
        ]


def find_matrices(program: Program) -> tuple[Matrix, ...]:
    """Return every matrix of the main graph whose input can be watched and whose content can be replaced."""
    found: list[Matrix] = []
    for node, transfer in zip(program.nodes, program.transfers, strict=True):
        if transfer.blocked is None and node.node.graph is program.graph:
            if "units" in transfer.neurons:
                found += _recurrent(node, transfer)
            elif "rows" in transfer.neurons and find_matrix(node) is not None:
                rows = transfer.neurons["rows"].cells
                found.append(Matrix(node=node, part="matrix", direction=0, rows=rows))
    return tuple(found)


def _recurrent(node: NodeView, transfer: Transfer) -> Iterator[Matrix]:
    stored = [node.node.inputs[slot(name)] for name in ("W", "R")]
    if not all(value is not None and _is_float(value) for value in stored):
        return  # a weight that is computed, or stored as integers, is not replaced
    units, inputs = transfer.neurons["units"], transfer.neurons["inputs"]
    yield Matrix(node=node, part="W", direction=0, rows=inputs.cells)
    reset = node.node.op_type == "GRU" and not int(node.attribute("linear_before_reset", 0))
    parts: tuple[Part, ...] = ("R zr", "R h") if reset else ("R",)
    for d in range(units.shape[0]):
        for part in parts:
            yield Matrix(node=node, part=part, direction=d, rows=units.cells[d])


def _is_float(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.dtype.is_floating_point()
