"""The stage `select` as `shrink` calls it: a target and samples in, a model with zeros and a report out.

samples     those of the user, else random inputs of the right shapes
criterion   reconstruct with samples, magnitude without; without samples what the lost neurons said is folded into
            the others only where that helps on random inputs held out
target      reached by prediction; a largest error is also measured, and the cut made smaller until it holds
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from toolchain.errors import SelectionError
from toolchain.graph.normalise import Normalised
from toolchain.graph.quantisable import plan_quantisation
from toolchain.interface import ModelInterface
from toolchain.oneshot.allocation import Counts, predicted_error
from toolchain.oneshot.calibration import RANDOM, Calibration, random_calibration, read_calibration
from toolchain.oneshot.latency import first_within, measured_cost, timed
from toolchain.oneshot.moments import RIDGE
from toolchain.oneshot.pieces import in_pieces
from toolchain.oneshot.selection import Analysis, Method, Target, analyse, choose, commit, error_of, path_of
from toolchain.oneshot.stopwatch import Stopwatch
from toolchain.runtime import open_session

Progress = Callable[[str], None]
StatePair = tuple[str, str]
# Perplexity of half of a 2x384 language model after folding by 2,240 random words: 61,470 at 1e-4, 191 at 1e-3, 116 at
# this, 113 at 0.1; the error on random words is 0.08 each time and does not tell.
RANDOM_RIDGE = 1e-2
ERROR_ROUNDS = 5  # each halves what prediction and measurement disagree by, or better; they differ by 10% at first
FRONT = (0.1, 0.25, 0.5, 0.75, 0.9)
ADVISED_ROWS = 20  # steps for each unit of the widest layer: a covariance of so many more rows than columns is sound
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
        steps: of the call that a latency target is about.
        call_s: times one call of a model file on the device that a latency target is about; None times it here.
        int8: a latency target is about the model with 8-bit weights.
        distill: gradient steps after the cut; 0 takes none.
    """

    target: Target
    calibration: str | None = None
    criterion: str | None = None
    compensate: bool = True
    seed: int = 0
    threads: int | None = None
    steps: int = 35
    call_s: Callable[[Path], float] | None = None
    int8: bool = False
    distill: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReport:
    """One group: `kept` of `size` neurons a side, `held` of which something other than a matrix reads.

    `curve` holds (neurons removed a side, output error measured with everything else whole).
    """

    nodes: tuple[str, ...]
    recurrent: bool
    size: int
    kept: int
    held: int
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """A model on the way from whole to smallest: units gone and multiply-adds left, as shares; error as predicted."""

    units_removed: float
    multiply_adds: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningReport:
    """What was given up.

    `error` is the relative output error on held-out samples (see `output_error`). A few calls are cut `in_pieces` to
    have some; where that cannot be, `held_out_calls` is 0 and the error is that on the call that decided. `rows` steps
    decided, `advised_rows` is how many should have; `resting` are state inputs that the samples leave at zero in every
    call, and that nothing is fed back to; neither is said of random inputs. `seconds` is the time of one call where a
    latency was asked for, of the model with 8-bit weights if `timed_as_int8`.
    """

    groups: tuple[GroupReport, ...]
    front: tuple[FrontPoint, ...]
    criterion: str
    compensated: bool
    calibration: str
    held_out_calls: int
    in_pieces: bool
    rows: int
    advised_rows: int
    resting: tuple[str, ...]
    error: float
    seconds: float | None
    timed_as_int8: bool


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
        else in_pieces(read_calibration(pruning.calibration, interface, carried), interface, threads=pruning.threads)
    )
    method = Method(
        criterion=pruning.criterion or ("magnitude" if random else "reconstruct"),
        compensate=pruning.compensate and not random,
        ridge=RANDOM_RIDGE if random else RIDGE,
        seed=pruning.seed,
        threads=pruning.threads,
    )
    return analyse(model, interface, samples, method, progress, columns=pruning.target.kind != "ratio")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationReport:
    """Gradient steps after the cut: the error before and after; the better of both models is `kept`.

    Without `held_out` the errors are on what was learnt from.
    """

    steps: int
    error_before: float
    error_after: float
    kept: bool
    held_out: bool


def prune(
    normalised: Normalised,
    interface: ModelInterface,
    analysis: Analysis,
    pruning: Pruning,
    progress: Progress = lambda stage: None,
) -> PruningReport:
    """Give up neurons in the model until the target is met: their readers' rows become zeros.

    Args:
        normalised: the model that was analysed; changed.
        interface: of the file.
        analysis: from `analyse_for`.
        pruning: what was asked for.
        progress: called with the name of each step as it begins.

    Raises:
        SelectionError: the target cannot be met.
    """
    model, seconds, cost = normalised.model, None, analysis.sizes.cost(pruning.target.kind)
    if pruning.target.kind == "latency":
        counts, seconds, cost = _within_latency(normalised, interface, analysis, pruning, progress)
    elif pruning.target.kind == "error":
        analysis = _folded_if_better(model, analysis, choose(analysis, pruning.target), pruning, progress)
        counts = _within_error(model, analysis, pruning.target.value, progress)
    else:
        counts = choose(analysis, pruning.target)
    analysis = _folded_if_better(model, analysis, counts, pruning, progress)
    commit(model, analysis, counts, progress)
    random = analysis.fit.source == RANDOM
    return PruningReport(
        groups=tuple(
            GroupReport(
                nodes=group.nodes,
                recurrent=group.recurrent,
                size=group.size,
                kept=group.size - count // group.sides,
                held=group.held,
                curve=tuple((removed // group.sides, error) for removed, error in group.measured),
            )
            for group, count in zip(analysis.groups, counts, strict=True)
        ),
        front=_front(analysis, cost),
        criterion=analysis.method.criterion,
        compensated=analysis.method.compensate,
        calibration=analysis.fit.source,
        held_out_calls=analysis.held_out.calibration.num_calls if analysis.holds_out else 0,
        in_pieces=analysis.fit.in_pieces,
        rows=analysis.rows,
        advised_rows=0 if random else ADVISED_ROWS * max(g.size for g in analysis.groups if g.recurrent),
        resting=() if random else _resting(analysis.fit, interface),
        error=error_of(model, analysis.held_out, analysis.method.threads),
        seconds=seconds,
        timed_as_int8=seconds is not None and pruning.int8 and bool(plan_quantisation(model.graph).wanted),
    )


def _resting(calibration: Calibration, interface: ModelInterface) -> tuple[str, ...]:
    """Return the state inputs that are zero in every call, and carried by none."""
    carried = {into for into, _ in calibration.carried}
    states = [i.name for i in interface.inputs if i.role == "state" and i.name not in carried]
    return tuple(name for name in states if not any(call[name].any() for stream in calibration.streams
                                                    for call in stream))  # fmt: skip


def distil_cut(
    model: ir.Model,
    interface: ModelInterface,
    analysis: Analysis,
    pruning: Pruning,
    progress: Progress = lambda stage: None,
) -> tuple[ir.Model, DistillationReport]:
    """Bring the cut model's outputs closer to the original's on the samples; return the better of both.

    Raises:
        MissingExtraError: PyTorch is not installed.
        DistillationError: an operator cannot be differentiated.
    """
    from toolchain.oneshot.distillation import distil

    def on_step(number: int, loss: float) -> None:
        progress(f"distilling: step {number} of {pruning.distill}, error {loss:.3g}")

    original = open_session(interface.path, threads=pruning.threads)
    result = distil(model, original, interface=interface, fit=analysis.fit, held_out=analysis.held_out,
                    steps=pruning.distill, seed=pruning.seed, threads=pruning.threads, progress=progress,
                    on_step=on_step)  # fmt: skip
    report = DistillationReport(steps=result.steps, error_before=result.error_before, error_after=result.error_after,
                                kept=result.kept, held_out=analysis.holds_out)  # fmt: skip
    return result.model, report


def _front(analysis: Analysis, cost: Callable[[Counts], float]) -> tuple[FrontPoint, ...]:
    """Return the models nearest to `FRONT` shares of the units removed."""
    path, sizes = list(path_of(analysis, cost)), analysis.sizes
    removed = np.array([1 - sizes.share_kept(counts) for counts in path])
    nearest = dict.fromkeys(int(np.argmin(np.abs(removed - share))) for share in FRONT)
    curves = [group.curve for group in analysis.groups]
    whole = sizes.multiply_adds(path[0])
    return tuple(
        FrontPoint(units_removed=float(removed[index]), multiply_adds=sizes.multiply_adds(path[index]) / whole,
                   error=predicted_error(curves, path[index]))
        for index in nearest
    )  # fmt: skip


def _measured(model: ir.Model, analysis: Analysis, counts: Counts, progress: Progress) -> float:
    """Return the held-out error at given counts, tried on a copy."""
    trial = model.clone()
    commit(trial, analysis, counts, progress)
    return error_of(trial, analysis.held_out, analysis.method.threads)


def _folded_if_better(
    model: ir.Model, analysis: Analysis, counts: Counts, pruning: Pruning, progress: Progress
) -> Analysis:
    """Decide on folding where all there is are random inputs; with samples it is decided already."""
    if not pruning.compensate or analysis.fit.source != RANDOM:
        return analysis
    folded = replace(analysis, method=replace(analysis.method, compensate=True))
    without, with_ = (_measured(model, each, counts, progress) for each in (analysis, folded))
    return folded if with_ < without else analysis


def _within_latency(
    normalised: Normalised, interface: ModelInterface, analysis: Analysis, pruning: Pruning, progress: Progress
) -> tuple[Counts, float, Callable[[Counts], float]]:
    """Return the counts, their time, and the cost that priced the path to them."""
    progress("timing smaller models")
    call_s = pruning.call_s or Stopwatch(interface, steps=pruning.steps).seconds
    seconds = timed(normalised, interface.path, analysis, call_s, int8=pruning.int8)
    cost = measured_cost(analysis, seconds)
    counts, found = first_within(list(path_of(analysis, cost)), seconds, pruning.target.value)
    if found > pruning.target.value:
        raise SelectionError(
            f"target latency {1e3 * pruning.target.value:g} ms: cannot be met; with one unit left in each layer a call "
            f"of {pruning.steps} steps takes {1e3 * found:.3g} ms there. Ask for that, or for fewer --steps."
        )
    return counts, found, cost


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
