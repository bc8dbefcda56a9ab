"""Measuring until a precision is reached, with measurements and a clock that are made up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_bench_report import measurement
from toolchain.bench.measure import Measurement
from toolchain.bench.repetition import measure_until_precise, precision_of
from toolchain.bench.statistics import compare, precision, processes_to_add


class Machine:
    """Measures plans in made-up time: 1 s per process and case, latencies spread by `noise`."""

    def __init__(self, noise):
        self.now, self.noise, self.plans = 0.0, noise, []
        self.random = np.random.default_rng(0)

    def __call__(self, plan, progress):
        self.plans.append(plan)
        self.now += plan.effort.processes * len(plan.cases)
        runs = []
        for case in range(len(plan.cases)):
            noise = self.noise[plan.cases[case].steps]
            for _ in range(plan.effort.processes):
                factors = np.exp(noise * self.random.standard_normal(len(plan.models)))
                runs += [
                    replace(TEMPLATE, case=case, member=member, rounds=(np.full(5, 1e-3 * factor),))
                    for member, factor in enumerate(factors)
                ]
        return Measurement(plan=plan, machine={}, runs=tuple(runs))


TEMPLATE = measurement({"a": 1e-3}).runs[0]


def plan_for(asked, *, limit_s=10_000.0, steps=(1, 35), models=("a", "b")):
    plan = measurement(dict.fromkeys(models, 1e-3), steps=steps).plan
    return replace(plan, effort=replace(plan.effort, precision=asked, limit_s=limit_s))


def go(plan, noise):
    machine = Machine(noise)
    return machine, measure_until_precise(plan, machine, lambda *_: None, clock=lambda: machine.now)


def test_a_quiet_machine_is_asked_once():
    machine, found = go(plan_for(0.02), {1: 0.001, 35: 0.001})
    assert len(machine.plans) == 1
    assert len(found.of(0, 0)) == 8


def test_only_the_noisy_case_is_measured_again_and_its_processes_join():
    machine, found = go(plan_for(0.02), {1: 0.001, 35: 0.03})
    assert len(machine.plans) > 1
    assert all([case.steps for case in plan.cases] == [35] for plan in machine.plans[1:])
    assert len(found.of(0, 0)) == 8
    assert len(found.of(1, 0)) == len(found.of(1, 1)) == sum(plan.effort.processes for plan in machine.plans)
    assert precision_of(found, 1) <= 0.02
    assert [plan.effort.repetition for plan in machine.plans] == list(range(len(machine.plans)))


def test_the_time_limit_ends_it_before_it_is_passed():
    machine, found = go(plan_for(0.001, limit_s=40.0), {1: 0.1, 35: 0.1})
    assert machine.now <= 40.0
    assert precision_of(found, 0) > 0.001


def test_without_a_precision_it_measures_once():
    machine, _ = go(plan_for(None), {1: 1.0, 35: 1.0})
    assert len(machine.plans) == 1


def test_a_model_alone_is_measured_until_its_own_median_is_known():
    machine, found = go(plan_for(0.02, models=("a",)), {1: 0.06, 35: 0.001})
    assert len(machine.plans) > 1
    assert precision_of(found, 0) <= 0.02


@pytest.mark.parametrize(
    ("found", "asked", "more"),
    [(0.02, 0.02, 0), (0.01, 0.02, 0), (0.021, 0.02, 2), (0.024, 0.02, 4), (0.04, 0.02, 8), (0.5, 0.02, 8)],
)
def test_more_processes_are_planned_by_the_square_of_what_is_missing_and_at_most_doubled(found, asked, more):
    assert processes_to_add(found, asked, 8) == more


def test_precision_is_half_the_interval_over_the_value():
    assert precision(1.9, 2.0, 2.1) == pytest.approx(0.05)


def test_results_of_different_times_keep_the_drift_that_pairs_would_cancel():
    drift = [1.0, 1.3, 0.8, 2.0, 1.1, 0.9, 1.7, 1.2]
    one, other = ([[np.full(5, base * factor)] * 4 for factor in drift] for base in (3e-3, 1e-3))
    paired, unpaired = compare(one, other, seed=0), compare(one, other, seed=0, paired=False)
    assert paired.high - paired.low < 1e-9
    assert unpaired.high - unpaired.low > 1.0
    assert paired.ratio == unpaired.ratio == pytest.approx(3.0)
