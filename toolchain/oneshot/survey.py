"""A graph as one-shot pruning sees it: matrices, classes, groups; and the same of a copy to try things on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from toolchain.graph.cells import CellArray
from toolchain.graph.program import Program, StatePair, describe
from toolchain.oneshot.matrices import Matrix, find_matrices
from toolchain.oneshot.neurons import NeuronGroup, classes, find_groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A described model; cells, classes and groups of a copy have the same numbers."""

    model: ir.Model
    program: Program
    matrices: tuple[Matrix, ...]
    labels: CellArray
    groups: tuple[NeuronGroup, ...]

    def readers(self, group: NeuronGroup) -> tuple[Matrix, ...]:
        """Return the matrices that read any candidate of a group."""
        members = np.zeros(self.labels.size, dtype=np.bool_)
        members[group.candidates] = True
        return tuple(matrix for matrix in self.matrices if members[self.labels[matrix.rows]].any())


def survey(model: ir.Model, carried: Sequence[StatePair], *, columns: bool) -> Survey:
    """Survey a normalised model; without `columns` only hidden units may go, not the columns of tables and matrices.

    Every recurrent node's `Y` gets a name, since what `R` reads is watched there; one that nobody reads is free.
    """
    for number, node in enumerate(model.graph):
        if node.op_type in ("LSTM", "GRU", "RNN") and not node.outputs[0].name:
            node.outputs[0].name = f"{node.name or number}_Y"
    program = describe(model.graph, carried=carried, compact_state=False)
    matrices, labels = find_matrices(program), classes(program)
    groups = find_groups(program, matrices, labels)
    return Survey(model=model, program=program, matrices=matrices, labels=labels,
                  groups=tuple(group for group in groups if columns or group.recurrent))  # fmt: skip
