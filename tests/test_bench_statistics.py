from __future__ import annotations

import numpy as np
import pytest
from toolchain.bench import statistics
from toolchain.bench.statistics import compare, describe


def processes(factors, rounds=4, calls=5, base=1e-3):
    """Every call of a process takes `base` times the process's factor."""
    return [[np.full(calls, base * factor) for _ in range(rounds)] for factor in factors]


def noisy(seed, *, scale=1.0, count=8, drift_seed=0):
    """Processes differ by 2%, rounds by 1%, and both models see the same drift of 10%."""
    drift = np.exp(0.1 * np.random.default_rng(drift_seed).standard_normal((count, 5)))
    random = np.random.default_rng(seed)
    return [
        [
            scale * drift[p, r] * own * np.exp(0.01 * random.standard_normal() + 0.05 * random.random(20))
            for r in range(5)
        ]
        for p in range(count)
        for own in [np.exp(0.02 * random.standard_normal())]
    ]


def test_percentiles_and_mean_of_known_samples_are_exact():
    samples = np.arange(1.0, 102.0)  # 1 .. 101: p50 is 51, p90 is 91, p99 is 100
    latency = describe([[samples[:50], samples[50:70]], [samples[70:]]])
    assert (latency.p50_s, latency.p90_s, latency.p99_s, latency.mean_s) == (51.0, 91.0, 100.0, 51.0)
    assert latency.spread == 86.0 / 35.5 - 1  # medians of 1..70 and of 71..101
    assert latency.unstable


def test_processes_that_agree_are_stable():
    assert describe(processes([1.0, 1.05])).spread == pytest.approx(0.05)
    assert not describe(processes([1.0, 1.05])).unstable


def test_constant_samples_give_the_exact_ratio_and_no_width():
    speedup = compare(processes([4.0] * 8), processes([1.0] * 8), seed=0)
    assert (speedup.ratio, speedup.low, speedup.high) == (4.0, 4.0, 4.0)
    assert speedup.significant


def test_drift_that_both_models_see_cancels_in_the_interval():
    drift = [1.0, 1.3, 0.8, 2.0, 1.1, 0.9, 1.7, 1.2]
    speedup = compare(processes(drift, base=3e-3), processes(drift, base=1e-3), seed=0)
    assert (speedup.low, speedup.high) == (pytest.approx(3.0), pytest.approx(3.0))
    unpaired = compare(processes(drift, base=3e-3), processes(drift[::-1], base=1e-3), seed=0)
    assert unpaired.high - unpaired.low > 1.0


def test_one_deviant_process_keeps_a_difference_from_being_significant():
    """Single calls all say 1.1x; it is the processes that disagree, and only they count."""
    baseline = processes([1.1] * 8)
    model = processes([1.0, 1.4, 1.0, 1.4, 1.0, 1.4, 1.0, 1.0])
    assert not compare(baseline, model, seed=0).significant
    assert compare(baseline, processes([1.0] * 8), seed=0).significant


@pytest.mark.parametrize(("scale", "least", "most"), [(1.0, 0, 6), (1.25, 58, 60)])
def test_equal_models_are_rarely_called_different_and_unequal_ones_nearly_always(monkeypatch, scale, least, most):
    """60 comparisons: 95% intervals may err 3 times; more than 6 would happen once in 60 such tests."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    verdicts = [
        compare(noisy(2 * n, scale=scale, drift_seed=n), noisy(2 * n + 1, drift_seed=n), seed=n).significant
        for n in range(60)
    ]
    assert least <= sum(verdicts) <= most


def test_the_interval_holds_the_true_ratio():
    speedup = compare(noisy(1, scale=3.0), noisy(2), seed=0)
    assert speedup.low < 3.0 < speedup.high
    assert speedup.high - speedup.low < 0.5


def test_the_same_seed_gives_the_same_interval():
    assert compare(noisy(1), noisy(2), seed=5) == compare(noisy(1), noisy(2), seed=5)
    assert compare(noisy(1), noisy(2), seed=5) != compare(noisy(1), noisy(2), seed=6)


def test_a_weighted_median_is_the_median_of_the_repeated_samples():
    random = np.random.default_rng(0)
    ordered = np.sort(random.random(9))
    weights = random.integers(0, 4, (50, 9)).astype(np.int32) + np.eye(1, 9, dtype=np.int32)
    expected = [np.median(np.repeat(ordered, row)) for row in weights]
    np.testing.assert_array_equal(statistics._weighted_median(ordered, weights), expected)


@pytest.mark.parametrize(("count", "t"), [(5, 2.776), (11, 2.228), (31, 2.042)])
def test_the_tail_is_the_normal_tail_of_the_widened_t_quantile(count, t):
    """t quantiles of 4, 10 and 30 degrees of freedom from the printed tables."""
    from statistics import NormalDist

    expected = NormalDist().cdf(-t * (count / (count - 1)) ** 0.5)
    assert statistics._expanded_tail(count) == pytest.approx(expected, rel=0.02)
