"""Backward elimination against its definition: every cost is a least-squares problem solved from scratch."""

from __future__ import annotations

import numpy as np
import pytest

from toolchain.oneshot.elimination import OUTSIDE, LinearReader, eliminate, refit


def random_reader(size: int, *, outputs: int, seed: int) -> tuple[LinearReader, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((size, size)) / np.sqrt(size)
    weights = rng.standard_normal((size, outputs))
    covariance = mix @ mix.T + 0.01 * np.eye(size)
    return LinearReader(covariance=covariance, gram=weights @ weights.T, candidate=np.arange(size)), weights


def loss(reader: LinearReader, weights: np.ndarray, kept: np.ndarray) -> float:
    """Return E|x W - x_S B|^2 of the best B."""
    B = np.zeros_like(weights)
    B[kept] = refit(reader.covariance, weights, kept)
    return float(np.trace((weights - B).T @ reader.covariance @ (weights - B)))


@pytest.mark.parametrize("size", [5, 40, 90])
def test_losses_are_those_of_the_best_weights_for_what_is_kept(size: int) -> None:
    reader, weights = random_reader(size, outputs=7, seed=size)
    result = eliminate([reader], np.zeros(size, dtype=np.intp))
    assert sorted(result.order) != list(range(size)), "one stays"
    for number in (1, size // 2, size - 1):
        kept = np.setdiff1d(np.arange(size), result.order[:number])
        np.testing.assert_allclose(result.losses[number - 1], loss(reader, weights, kept), rtol=1e-6)


def test_every_removal_is_the_cheapest_at_its_time() -> None:
    reader, weights = random_reader(12, outputs=4, seed=1)
    order = eliminate([reader], np.zeros(12, dtype=np.intp)).order
    for number in range(len(order)):
        alive = np.setdiff1d(np.arange(12), order[:number])
        losses = {j: loss(reader, weights, np.setdiff1d(alive, [j])) for j in alive}
        assert min(losses, key=losses.__getitem__) == order[number]


def test_readers_with_rows_of_their_own_are_added_and_those_rows_stay() -> None:
    one, one_weights = random_reader(6, outputs=3, seed=2)
    other, other_weights = random_reader(9, outputs=3, seed=3)
    candidate = np.array([OUTSIDE, 5, 4, 3, OUTSIDE, 2, 1, 0, OUTSIDE])
    other = LinearReader(covariance=other.covariance, gram=other.gram, candidate=candidate)
    result = eliminate([one, other], np.zeros(6, dtype=np.intp), keep=2)
    kept = np.setdiff1d(np.arange(6), result.order)
    rows = np.flatnonzero((candidate == OUTSIDE) | np.isin(candidate, kept))
    expected = loss(one, one_weights, kept) + loss(other, other_weights, rows)
    np.testing.assert_allclose(result.losses[-1], expected, rtol=1e-6)


def test_sides_lose_equally_many() -> None:
    reader, _ = random_reader(20, outputs=5, seed=4)
    sides = np.repeat([0, 1], 10)
    order = eliminate([reader], sides).order
    removed = np.cumsum(sides[order] == 0) - np.cumsum(sides[order] == 1)
    assert np.abs(removed).max() <= 1
    assert len(order) == 18


def test_refit_returns_the_weights_themselves_when_everything_is_kept() -> None:
    reader, weights = random_reader(8, outputs=3, seed=5)
    np.testing.assert_allclose(refit(reader.covariance, weights, np.arange(8)), weights, atol=1e-9)
