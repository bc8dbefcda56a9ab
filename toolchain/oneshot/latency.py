"""How long a model takes once so many neurons are given up: cut on a copy, then timed, by default on this CPU.

A latency target walks a path as every other target does and stops at the first model that is fast enough. What is
timed is the real graph, with 8-bit weights if that is what ships, so no table of kernels has to be believed. The path
is priced by what half of each group saves: a timing for each group and two more. The search needs about eight.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolchain.graph.loading import save_model
from toolchain.graph.normalise import Normalised
from toolchain.graph.surgery import apply_surgery, plan_surgery
from toolchain.oneshot.allocation import Counts
from toolchain.oneshot.compensation import give_up
from toolchain.oneshot.selection import Analysis
from toolchain.oneshot.survey import survey
from toolchain.quantiser import write_int8

# What a group saves is held within this factor of its share of the multiply-adds: a small difference of two times is
# mostly noise. At batch 1 and 35 steps, a multiply-add of an LSTM takes 4 times as long as one of the matrix
# behind it in int8, twice as long in float32.
FACTOR = 5.0


def timed(
    normalised: Normalised, source: Path, analysis: Analysis, call_s: Callable[[Path], float], *, int8: bool
) -> Callable[[Counts], float]:
    """Return a function that says how long one call takes at given counts.

    Args:
        normalised: the model; not changed.
        source: its file, for messages.
        analysis: of this model.
        call_s: times a model file.
        int8: give it the file that the quantizer makes of the cut model.
    """

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
            return call_s(write_int8(path, source) if int8 else path)

    return seconds


def measured_cost(analysis: Analysis, seconds: Callable[[Counts], float]) -> Callable[[Counts], float]:
    """Return a cost in seconds, linear in the counts: what half of each group saves while all others are whole.

    `seconds` is asked for the whole model first, which a `Stopwatch` compares all others with, and again at the end.
    """
    nothing = (0,) * len(analysis.groups)
    halves = [max(group.sides, group.curve.most // (2 * group.sides) * group.sides) for group in analysis.groups]
    cuts = [(*nothing[:number], half, *nothing[number + 1 :]) for number, half in enumerate(halves)]
    _, *times, whole = [seconds(counts) for counts in (nothing, *cuts, nothing)]
    shares = [1 - analysis.sizes.multiply_adds(cut) / analysis.sizes.multiply_adds(nothing) for cut in cuts]
    saved = [np.clip(whole - found, whole * share / FACTOR, whole * share * FACTOR)
             for found, share in zip(times, shares, strict=True)]  # fmt: skip
    rates = np.array(saved) / halves
    return lambda counts: whole - float(rates @ np.array(counts))


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
