"""Turn the columns of an embedding table so that as few as possible say as much as possible.

A table that only matrices read, with nothing but moves in between, may be given in any basis: `x W = z (A W)` with
`x = z A`. With the covariance C = L L' of what is looked up (token frequencies weigh it) and G = sum W W' over all that
reads it, the eigenvectors U of L' G L give coordinates

    z = x L^-T U        uncorrelated, of variance one
    W' = U' L' W        dropping coordinate j errs by its eigenvalue, and no choice of as many directions errs less

so that narrowing the table to any rank is dropping its last columns.

Source: Eckart and Young 1936, weighted by C on one side and by the readers on the other.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from toolchain.graph.edits import Edits
from toolchain.graph.nodes import NodeView
from toolchain.oneshot.calibration import Calibration
from toolchain.oneshot.matrices import Matrix
from toolchain.oneshot.moments import watch
from toolchain.oneshot.survey import Survey

_MOVES = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def rotate_tables(surveyed: Survey, calibration: Calibration, *, threads: int | None = None) -> tuple[str, ...]:
    """Rotate every table of the model that can be; return their nodes' names. Outputs change by rounding only."""
    tables = [(node, readers) for node in surveyed.program.nodes if (readers := _readers(surveyed, node))]
    if not tables:
        return ()
    moments = watch(surveyed.model, [readers[0] for _, readers in tables], calibration, threads=threads)
    edits = Edits(surveyed.program.graph)
    for node, readers in tables:
        places = [_places(surveyed, node, reader) for reader in readers]  # [num_columns], the row of each column
        order = places[0]
        covariance = moments[readers[0].source].regularised()[np.ix_(order, order)]
        contents = [reader.weights().astype(np.float64)[rows] for reader, rows in zip(readers, places, strict=True)]
        L = np.linalg.cholesky(covariance)
        _, U = np.linalg.eigh(L.T @ sum(W @ W.T for W in contents) @ L)
        U = U[:, ::-1]  # the largest eigenvalue first
        table = node.weights(0)
        edits.put(node.node, 0, (table @ np.linalg.solve(L.T, U)).astype(table.dtype))
        for reader, rows, W in zip(readers, places, contents, strict=True):
            turned = np.empty_like(W)
            turned[rows] = U.T @ L.T @ W
            weights = reader.weights()
            reader.replace(turned.astype(weights.dtype), np.zeros(weights.shape[1], weights.dtype), edits)
    return tuple(node.node.name or str(node.node.outputs[0].name) for node, _ in tables)


def _readers(surveyed: Survey, node: NodeView) -> tuple[Matrix, ...]:
    """Return the matrices that read a table and are all that does; empty when it cannot be rotated."""
    transfer = surveyed.program.transfers[surveyed.program.nodes.index(node)]
    if node.node.op_type != "Gather" or set(transfer.neurons) != {"columns"} or node.weights(0).dtype.kind != "f":
        return ()
    labels = surveyed.labels[transfer.neurons["columns"].cells]
    group = next((group for group in surveyed.groups if np.isin(labels, group.candidates).all()), None)
    if group is None or group.candidates.size != labels.size:
        return ()
    readers = surveyed.readers(group)
    whole = all(sorted(surveyed.labels[reader.rows]) == sorted(labels) for reader in readers)
    return readers if whole and _reaches_only(node.node, {id(reader.node.node) for reader in readers}) else ()


def _places(surveyed: Survey, node: NodeView, reader: Matrix) -> np.ndarray:
    """Return which row of a reader each column of the table is, shape `[num_columns]`."""
    transfer = surveyed.program.transfers[surveyed.program.nodes.index(node)]
    columns = surveyed.labels[transfer.neurons["columns"].cells]
    rows = surveyed.labels[reader.rows]
    return np.argsort(rows)[np.argsort(np.argsort(columns))]


def _reaches_only(node: ir.Node, allowed: set[int]) -> bool:
    """Tell whether a node's output reaches the allowed nodes by moves, and nothing else."""
    return all(
        not value.is_graph_output()
        and all(
            id(reader) in allowed or (reader.op_type in _MOVES and _reaches_only(reader, allowed))
            for reader, _ in value.uses()
        )
        for value in node.outputs
    )
