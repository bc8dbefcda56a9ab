"""The stage `select` as `shrink` calls it: a target and samples in, a model with zeros and a report out.

samples     those of the user, else random inputs of the right shapes
criterion   reconstruct with samples, magnitude without; without samples what the lost neurons said is folded into
            the others only where that helps on random inputs held out
target      reached by prediction; a largest error is also measured, and the cut made smaller until it holds
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from toolchain.errors import SelectionError
from toolchain.interface import ModelInterface
from toolchain.oneshot.allocation import Counts
from toolchain.oneshot.calibration import RANDOM, random_calibration, read_calibration
from toolchain.oneshot.selection import Analysis, Method, Target, analyse, choose, commit, error_of

Progress = Callable[[str], None]
StatePair = tuple[str, str]
ERROR_ROUNDS = 5  # each halves what prediction and measurement disagree by, or better; they differ by 10% at first
NEAR = 0.85  # of the error allowed: closer than this another round is not worth its time


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What the user asked for.

    Attributes:
        target: how much.
        calibration: an .npz file, a folder of them, or `path.py:function`; None for random inputs.
        criterion: one of `criteria.CRITERIA`; None for the best that the samples allow.
        compensate: False never folds; True folds, without samples only where it helps.
        seed: of `random` and of random inputs.
        threads: of ONNX Runtime.
    """

    target: Target
    calibration: str | None = None
    criterion: str | None = None
    compensate: bool = True
    seed: int = 0
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReport:
    """One group: `kept` of `size` neurons a side; `curve` holds (neurons removed a side, measured output error)."""

    nodes: tuple[str, ...]
    recurrent: bool
    size: int
    kept: int
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningReport:
    """What was given up; `error` is the relative output error on held-out samples (see `output_error`)."""

    groups: tuple[GroupReport, ...]
    criterion: str
    compensated: bool
    calibration: str
    held_out_calls: int
    error: float


def analyse_for(
    model: ir.Model,
    interface: ModelInterface,
    carried: Sequence[StatePair],
    pruning: Pruning,
    progress: Progress = lambda stage: None,
) -> Analysis:
    """Analyse a normalised model for the user's samples and target; its tables may be rotated.

    Raises:
        CalibrationError: the samples do not fit the model.
        SelectionError: no neuron can be given up.
    """
    random = pruning.calibration is None
    samples = (
        random_calibration(interface, carried, seed=pruning.seed)
        if pruning.calibration is None
        else read_calibration(pruning.calibration, interface, carried)
    )
    method = Method(
        criterion=pruning.criterion or ("magnitude" if random else "reconstruct"),
        compensate=pruning.compensate and not random,
        seed=pruning.seed,
        threads=pruning.threads,
    )
    return analyse(model, interface, samples, method, progress, tables=pruning.target.kind != "ratio")


def prune(
    model: ir.Model,
    analysis: Analysis,
    pruning: Pruning,
    seconds: Callable[[Counts], float] | None = None,
    progress: Progress = lambda stage: None,
) -> PruningReport:
    """Give up neurons in the model until the target is met: their readers' rows become zeros.

    Args:
        model: the normalised model that was analysed; changed.
        analysis: from `analyse_for`.
        pruning: what was asked for.
        seconds: predicts the latency at given counts, for a latency target.
        progress: called with the name of each step as it begins.

    Raises:
        SelectionError: the target cannot be met.
    """
    if pruning.compensate and analysis.fit.source == RANDOM:
        analysis = _folded_if_better(model, analysis, choose(analysis, pruning.target, seconds), progress)
    if pruning.target.kind == "error":
        counts = _within_error(model, analysis, pruning.target.value, progress)
    else:
        counts = choose(analysis, pruning.target, seconds)
    commit(model, analysis, counts, progress)
    return PruningReport(
        groups=tuple(
            GroupReport(
                nodes=group.nodes,
                recurrent=group.recurrent,
                size=group.size,
                kept=group.size - count // group.sides,
                curve=tuple((removed // group.sides, error) for removed, error in group.measured),
            )
            for group, count in zip(analysis.groups, counts, strict=True)
        ),
        criterion=analysis.method.criterion,
        compensated=analysis.method.compensate,
        calibration=analysis.fit.source,
        held_out_calls=analysis.held_out.calibration.num_calls,
        error=error_of(model, analysis.held_out, analysis.method.threads),
    )


def _measured(model: ir.Model, analysis: Analysis, counts: Counts, progress: Progress) -> float:
    """Return the held-out error at given counts, tried on a copy."""
    trial = model.clone()
    commit(trial, analysis, counts, progress)
    return error_of(trial, analysis.held_out, analysis.method.threads)


def _folded_if_better(model: ir.Model, analysis: Analysis, counts: Counts, progress: Progress) -> Analysis:
    folded = replace(analysis, method=replace(analysis.method, compensate=True))
    without, with_ = (_measured(model, each, counts, progress) for each in (analysis, folded))
    return folded if with_ < without else analysis


def _within_error(model: ir.Model, analysis: Analysis, limit: float, progress: Progress) -> Counts:
    """Return the largest counts found whose measured error is within the limit."""
    nothing = (0,) * len(analysis.groups)
    best, budget, smallest = nothing, limit, float("inf")
    for _ in range(ERROR_ROUNDS):
        counts = choose(analysis, Target(kind="error", value=budget))
        if counts in (best, nothing):
            break
        error = _measured(model, analysis, counts, progress)
        smallest = min(smallest, error)
        if error <= limit:
            best = counts
            if error >= NEAR * limit:
                break
        budget *= limit / max(error, limit / 4) * (1.0 if error <= limit else NEAR)
    if best == nothing:
        found = f"; the smallest cut tried errs by {smallest:.3g}" if smallest < float("inf") else ""
        raise SelectionError(
            f"target error {limit:g}: no neuron can be given up within it{found}; expected a larger one. Ask for more."
        )
    return best
