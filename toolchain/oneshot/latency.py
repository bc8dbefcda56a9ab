"""How long a model takes once so many neurons are given up: cut on a copy, then timed, by default on this CPU.

A latency target walks the same path as every other target and stops at the first model that is fast enough. What is
timed is the real graph, so no table of kernels has to be believed; a search over the path needs about eight of them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolchain.graph.loading import save_model
from toolchain.graph.normalise import Normalised
from toolchain.graph.surgery import apply_surgery, plan_surgery
from toolchain.interface import ModelInterface, plan_feeds
from toolchain.oneshot.allocation import Counts
from toolchain.oneshot.compensation import give_up
from toolchain.oneshot.selection import Analysis
from toolchain.oneshot.survey import survey
from toolchain.parity_runs import feed_array
from toolchain.runtime import open_session

WARM_UP_S, TIMED_S, LEAST_CALLS = 0.05, 0.25, 5


def timed(normalised: Normalised, analysis: Analysis, call_s: Callable[[Path], float]) -> Callable[[Counts], float]:
    """Return a function that says how long one call takes at given counts; `call_s` times a model file."""

    def seconds(counts: Counts) -> float:
        trial = replace(normalised, model=normalised.model.clone())
        surveyed = survey(trial.model, analysis.carried, columns=analysis.columns)
        for number, (group, count) in enumerate(zip(surveyed.groups, counts, strict=True)):
            removed = group.candidates[analysis.groups[number].elimination.order[:count]]
            give_up(trial.model.graph, surveyed.readers(group), surveyed.labels, removed, {}, compensate=False)
        plan = plan_surgery(trial.model.graph, carried=analysis.carried, compact_state=False)
        with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
            path = Path(folder) / "model.onnx"
            save_model(apply_surgery(plan, trial), path)
            return call_s(path)

    return seconds


def median_call_s(path: Path, interface: ModelInterface, *, steps: int) -> float:
    """Return the median time of a call in ONNX Runtime: one thread, one sequence of so many steps, random inputs."""
    session = open_session(path, threads=1)
    rng = np.random.default_rng(0)
    feeds = {feed.name: feed_array(feed, rng) for feed in plan_feeds(interface, steps=steps, batch=1)}
    _calls(lambda: session.run(None, feeds), WARM_UP_S)
    return float(np.median(_calls(lambda: session.run(None, feeds), TIMED_S)))


def _calls(call: Callable[[], object], budget_s: float) -> list[float]:
    samples: list[float] = []
    end = time.perf_counter() + budget_s
    while len(samples) < LEAST_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return samples


def first_within(path: Sequence[Counts], seconds: Callable[[Counts], float], limit_s: float) -> tuple[Counts, float]:
    """Return the first counts on a path whose time is within a limit, and that time; the last ones when none is.

    A binary search: time falls along the path, but for noise.
    """
    low, high = 0, len(path) - 1
    best = path[high], seconds(path[high])
    while low < high and best[1] <= limit_s:
        middle = (low + high) // 2
        found = seconds(path[middle])
        if found <= limit_s:
            high, best = middle, (path[middle], found)
        else:
            low = middle + 1
    return best
