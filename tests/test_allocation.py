"""Which layer gives up how much: the cheapest step first, and how even it stays where errors tell little."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from toolchain.oneshot.allocation import Counts, Curve, descend

SIZES = (101, 201, 41)


def path(curves: list[np.ndarray], evenness: float) -> list[Counts]:
    """Return all counts on the way down; every neuron costs the same."""
    groups = [Curve(errors=errors) for errors in curves]
    return list(descend(groups, [1] * len(curves), lambda counts: -float(sum(counts)), evenness=evenness))


def saturating() -> list[np.ndarray]:
    """Return errors that rise at once in one group and never again, as on inputs that say little."""
    flat = [np.minimum(np.arange(size) / 10, 1.0) * height for size, height in zip(SIZES, (1.0, 3.0, 2.0), strict=True)]
    return [curve - curve[0] for curve in flat]


@pytest.mark.parametrize("evenness", [0.5, 0.75])
def test_no_group_keeps_much_less_than_all_keep(evenness: float) -> None:
    found = path(saturating(), evenness)
    sizes = np.array(SIZES)
    for counts in found[:-12]:  # the last steps are those of the smallest group, a whole candidate at a time
        kept = 1 - np.array(counts) / sizes
        assert kept.min() >= evenness * (1 - sum(counts) / sizes.sum())
    assert found[-1] == tuple(size - 1 for size in SIZES)


def test_without_evenness_the_cheapest_group_goes_first() -> None:
    found = path(saturating(), 0.0)
    assert (100, 0, 0) in found
    assert found[-1] == tuple(size - 1 for size in SIZES)
    steps = [sum(after) - sum(before) for before, after in itertools.pairwise(found)]
    assert min(steps) > 0
