"""Times models on this CPU while other programs come and go: in turns with the first model it was given.

A busy moment slows both alike, so the ratio of two medians stays. It is given back as a time by the first model's own
median in the quietest moment so far:

    seconds(model) = median(model) / median(first) * best median(first)

Without it one busy second decided a search: a model that was to take 1.0 ms was cut to a sixth of its multiply-adds
instead of three quarters.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.interface import ModelInterface, plan_feeds
from toolchain.parity_runs import feed_array
from toolchain.runtime import open_session

TURNS, TURN_S, LEAST_CALLS = 12, 0.02, 3  # a turn is long enough for a model to have its weights in cache again

Call = Callable[[], object]


class Stopwatch:
    """Times one call of a model file: one thread, one sequence of `steps` steps, random inputs."""

    def __init__(self, interface: ModelInterface, *, steps: int) -> None:
        """Choose the inputs; `interface` is that of every model to come."""
        rng = np.random.default_rng(0)
        self._feeds = {feed.name: feed_array(feed, rng) for feed in plan_feeds(interface, steps=steps, batch=1)}
        self._first: Call | None = None
        self._best_s = float("inf")

    def seconds(self, path: Path) -> float:
        """Return the median time of a call, in the quietest moment so far; about half a second goes by."""
        call = self._call_of(open_session(path, threads=1))
        if self._first is None:
            self._first = call
        ours, firsts = [], []
        for _ in range(TURNS):
            ours += _turn(call)
            firsts += _turn(self._first)
        first_s = float(np.median(firsts))
        self._best_s = min(self._best_s, first_s)
        return float(np.median(ours)) / first_s * self._best_s

    def _call_of(self, session: Any) -> Call:
        return lambda: session.run(None, self._feeds)


def _turn(call: Call) -> list[float]:
    """Return the times of a few calls; the first call brings the weights back and does not count."""
    call()
    samples: list[float] = []
    end = time.perf_counter() + TURN_S
    while len(samples) < LEAST_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return samples
