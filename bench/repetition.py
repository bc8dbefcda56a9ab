"""Measure again, with more fresh processes, until every speedup is known as precisely as was asked for.

Only the cases that are not precise enough yet are measured again, and their samples join those of before. Whoever looks
at an interval to decide whether to stop sees slightly too narrow ones: a look per doubling keeps that small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from .measure import Measurement, Progress, Run
from .plan import BenchPlan
from .statistics import Process, bootstrap_medians, describe, interval, precision, processes_to_add, speedup_of

RESAMPLES = 1000  # enough to plan by: the width of an interval is known to 5%, and the report draws its own
Measure = Callable[[BenchPlan, Progress], Measurement]


def measure_until_precise(
    plan: BenchPlan, measure: Measure, progress: Progress, *, clock: Callable[[], float] = time.monotonic
) -> Measurement:
    """Measure a plan, then again what is not precise enough, until it is or the time limit would be passed.

    Args:
        plan: with `effort.precision` and `effort.limit_s`.
        measure: runs a plan on its device, once.
        progress: passed on to `measure`.
        clock: seconds.
    """
    asked = plan.effort.precision
    begin = clock()
    found = measure(plan, progress)
    if asked is None:
        return found
    per_process_s = (clock() - begin) / (plan.effort.processes * len(plan.cases))  # of one case
    for repetition in range(1, 1000):
        missing = {
            case: processes_to_add(precision_of(found, case), asked, len(found.of(case, 0)))
            for case in range(len(plan.cases))
        }
        cases = [case for case, more in missing.items() if more]
        more = max(missing.values())
        if not cases or clock() - begin + more * len(cases) * per_process_s > plan.effort.limit_s:
            return found
        effort = replace(plan.effort, processes=more, repetition=repetition, seconds=_same_rounds(plan, more))
        again = replace(plan, cases=tuple(plan.cases[case] for case in cases), effort=effort)
        found = _joined(found, measure(again, progress), cases)
    return found


def precision_of(measurement: Measurement, case: int) -> float:
    """Return the worst precision of a case's speedups; of the median itself where one model is alone."""
    seed = measurement.plan.effort.seed
    processes = [_rounds(measurement.of(case, member)) for member in range(len(measurement.plan.models))]
    medians = [bootstrap_medians(each, seed=seed, resamples=RESAMPLES) for each in processes]
    if len(processes) == 1:
        low, high = interval(medians[0], processes=len(processes[0]))
        return precision(low, describe(processes[0]).p50_s, high)
    speedups = [
        speedup_of(processes[0], other, medians[0], drawn)
        for other, drawn in zip(processes[1:], medians[1:], strict=True)
    ]
    return max(precision(speedup.low, speedup.ratio, speedup.high) for speedup in speedups)


def _same_rounds(plan: BenchPlan, processes: int) -> float:
    """Return the seconds that give other numbers of processes as many rounds each."""
    return plan.effort.seconds * processes / plan.effort.processes


def _joined(found: Measurement, more: Measurement, cases: Sequence[int]) -> Measurement:
    """Append the runs of `more`, whose case `n` is `cases[n]` of the whole plan."""
    return replace(found, runs=(*found.runs, *(replace(run, case=cases[run.case]) for run in more.runs)))


def _rounds(runs: Sequence[Run]) -> list[Process]:
    return [run.rounds for run in runs]
