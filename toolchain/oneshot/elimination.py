"""Which neurons can go at the least loss, when those that stay take over what the others said.

A matrix reads neurons x (row vectors, covariance C) and says x W. With the neurons S kept, the best that can be said is
x_S B with B = C_SS^-1 C_S: W, plus a constant for the means. Backward elimination starts with everything kept and
removes the cheapest neuron, again and again:

    P = C_SS^-1,  Q = B B'              at first P = C^-1, Q = W W'
    neuron j costs  Q_jj / P_jj         the rise of E|x W - x_S B|^2, exact
    a = P_:j / sqrt(P_jj),  b = Q_:j / sqrt(P_jj) - a Q_jj / (2 P_jj)
    P' = P - a a',  Q' = Q - a b' - b a'

One pass gives the order and the loss for every number of neurons. Updates wait until `BLOCK` of them are applied as one
matrix product, so that the cost is arithmetic and not memory traffic; P and Q shrink as neurons go.

Source: optimal brain surgeon (Hassibi and Stork 1993, NIPS 5) on a linear map; pending updates as in LAPACK.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]

BLOCK = 32  # pending updates per matrix product: 16 leave memory the bottleneck at 1,500 neurons, 64 gain nothing
OUTSIDE = -1  # the candidate of a row that is not up for removal


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearReader:
    """What one or several matrices read from the same neurons.

    Attributes:
        covariance: of the rows, positive definite, shape `[num_rows, num_rows]`.
        gram: `W W'` of what is said with them, shape `[num_rows, num_rows]`.
        candidate: which candidate each row belongs to, `OUTSIDE` for none, shape `[num_rows]`.
    """

    covariance: FloatArray
    gram: FloatArray
    candidate: IndexArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Elimination:
    """Candidates in the order in which they go, and the loss after each; both have shape `[num_removed]`."""

    order: IndexArray
    losses: FloatArray


def eliminate(readers: Sequence[LinearReader], sides: IndexArray, *, keep: int = 1) -> Elimination:
    """Order candidates by backward elimination.

    Args:
        readers: everything that reads them.
        sides: which vector each candidate is an entry of, shape `[num_candidates]`; candidates go so that all sides
            lose equally many, one after the other (the two directions of a node have one hidden size).
        keep: candidates that stay on each side.
    """
    left = np.bincount(sides)
    states = [_State(reader) for reader in readers]
    alive = np.ones(sides.size, dtype=np.bool_)
    order: list[int] = []
    losses: list[float] = []
    total = 0.0
    while left.max() > keep:
        costs = np.zeros(sides.size)
        for state in states:
            state.add_costs(costs)
        open_ = alive & (left[sides] == left.max())
        chosen = int(np.flatnonzero(open_)[np.argmin(costs[open_])])
        total += float(costs[chosen])
        for state in states:
            state.remove(chosen)
        alive[chosen] = False
        left[sides[chosen]] -= 1
        order.append(chosen)
        losses.append(total)
    return Elimination(order=np.array(order, dtype=np.intp), losses=np.array(losses))


def refit(covariance: FloatArray, weights: FloatArray, kept: IndexArray) -> FloatArray:
    """Return the rows of the least-squares weights, shape `[num_kept, num_out]`.

    C_SS^-1 C_S: W  =  W_S + C_SS^-1 C_SR W_R      with R the other rows: what is fitted is only what they said
    """
    others = np.setdiff1d(np.arange(len(weights)), kept)
    said = covariance[np.ix_(kept, others)] @ weights[others]
    return weights[kept] + np.asarray(np.linalg.solve(covariance[np.ix_(kept, kept)], said))


class _State:
    """P and Q of one reader, shrinking as its rows go; `A` and `B` hold the updates that wait."""

    def __init__(self, reader: LinearReader) -> None:
        self.P, self.Q = np.linalg.inv(reader.covariance), reader.gram.copy()
        self.candidate = reader.candidate.copy()
        self.least = 1 / np.diagonal(
            reader.covariance
        )  # P_jj = 1 / (variance of j given the others), whatever rounding
        self.p, self.q = np.diagonal(self.P).copy(), np.diagonal(self.Q).copy()
        self.A = np.zeros((len(self.P), BLOCK))  # [num_rows, BLOCK]
        self.B = np.zeros_like(self.A)
        self.waiting = 0

    def add_costs(self, costs: FloatArray) -> None:
        """Add what each candidate's rows cost; several rows of one candidate count one by one."""
        rows = np.flatnonzero(self.candidate != OUTSIDE)
        np.add.at(costs, self.candidate[rows], np.maximum(self.q[rows], 0) / np.maximum(self.p, self.least)[rows])

    def remove(self, candidate: int) -> None:
        """Remove the rows of a candidate."""
        for row in np.flatnonzero(self.candidate == candidate):
            self._remove_row(int(row))
            if self.waiting == BLOCK:
                self._apply()

    def _remove_row(self, j: int) -> None:
        A, B = self.A[:, : self.waiting], self.B[:, : self.waiting]
        p = self.P[:, j] - A @ A[j]
        q = self.Q[:, j] - A @ B[j] - B @ A[j]
        if p[j] > 0:
            a = p / np.sqrt(p[j])
            b = q / np.sqrt(p[j]) - a * (q[j] / (2 * p[j]))
        else:  # lost in rounding: the others say all that this one does
            a = b = np.zeros_like(p)
        self.A[:, self.waiting], self.B[:, self.waiting] = a, b
        self.waiting += 1
        self.p -= a * a
        self.q -= 2 * a * b
        self.candidate[j], self.p[j] = OUTSIDE, 0.0  # its row of P and Q is zero from here on

    def _apply(self) -> None:
        A, B = self.A, self.B
        self.P -= A @ A.T
        self.Q -= A @ B.T + B @ A.T
        left = np.flatnonzero(self.p != 0)  # exactly zero marks what is gone
        if left.size < 0.9 * self.p.size:  # copying costs about as much as one such product
            self.P, self.Q = self.P[np.ix_(left, left)], self.Q[np.ix_(left, left)]
            self.p, self.q, self.candidate = self.p[left], self.q[left], self.candidate[left]
            self.least = self.least[left]
            self.A, self.B = np.zeros((left.size, BLOCK)), np.zeros((left.size, BLOCK))
        self.waiting = 0
