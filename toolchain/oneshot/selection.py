"""The stage `select`: what every group of neurons could give up and at which error, then how many each does.

analyse   one run over the samples; for each group an order, a loss curve, and the output error at a few points
choose    counts for a target                                                        (pure; see `allocation`)
commit    group by group from the input on: watch again, order again, zero and fold  (changes the model)
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from toolchain.errors import SelectionError
from toolchain.graph.carried import find_state
from toolchain.graph.costs import multiply_adds, parameters
from toolchain.graph.loading import save_model
from toolchain.interface import ModelInterface
from toolchain.oneshot.allocation import Counts, Curve, FloatArray, descend, predicted_error, scaled_curve
from toolchain.oneshot.calibration import RANDOM, Arrays, Calibration, limited, run_calls, split
from toolchain.oneshot.compensation import give_up
from toolchain.oneshot.criteria import order_of
from toolchain.oneshot.elimination import Elimination
from toolchain.oneshot.matrices import Source
from toolchain.oneshot.moments import RIDGE, Moments, watch
from toolchain.oneshot.output_error import Kind, OutputStatistics, compare, output_kinds, output_statistics
from toolchain.oneshot.predictions import class_predictions
from toolchain.oneshot.rotation import rotate_tables
from toolchain.oneshot.sizes import SizeModel, size_model
from toolchain.oneshot.survey import Survey, survey
from toolchain.runtime import open_session

Progress = Callable[[str], None]
TargetKind = Literal["ratio", "parameters", "multiply_adds", "latency", "error"]
StatePair = tuple[str, str]
POINTS = (0.25, 0.6, 0.95)  # of a group's candidates: where the output error is measured; the loss curve fills in
SHOWN = 10_000  # parts of a share
ROUNDING = 1e-9  # of a share computed from whole units
# Of the calls, and at most: enough to rank groups; the error that is reported uses every call held out.
PROBE_SHARE, PROBE_CALLS = 0.25, 20
# Without samples no layer keeps less than this times the share that all keep: errors on random inputs say little of
# what real ones need. With 0, 0.5, 0.75 and 0.95 nsnet2 of half the units errs by 1.49 (one layer has 1 unit left),
# 1.96, 0.73 and 0.71 on speech, with a quarter removed by 0.18, 0.18, 0.17 and 0.21. A 2x200 language model of half the
# units has perplexity 234, 234, 226 and 208; with a quarter removed 116, 116, 116 and 118.
EVENNESS = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How much: a share for ratio, seconds, an error, or parameters and multiply-adds (below 1: a share of them)."""

    kind: TargetKind
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How to choose: a criterion, whether to fold, how cautiously (see `moments.RIDGE`), and the seed of `random`."""

    criterion: str = "reconstruct"
    compensate: bool = True
    ridge: float = RIDGE
    seed: int = 0
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Samples, what the original says to each call, how that is compared, and each output's spread over all samples."""

    calibration: Calibration
    expected: tuple[Arrays, ...]
    kinds: Mapping[str, Kind]
    spreads: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAnalysis:
    """What one group could give up: the order, and the output error measured after so many."""

    nodes: tuple[str, ...]
    recurrent: bool
    size: int
    held: int
    sides: int
    elimination: Elimination
    measured: tuple[tuple[int, float], ...]
    curve: Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """Every group of a model, its costs, and what both were measured on; `rows` are the steps that were watched.

    `predictions` are those of the original on average, by output (see `OutputStatistics`).
    """

    method: Method
    carried: tuple[StatePair, ...]
    fit: Calibration
    held_out: Probe
    groups: tuple[GroupAnalysis, ...]
    sizes: SizeModel
    columns: bool
    rows: int
    predictions: Mapping[str, FloatArray]

    @property
    def holds_out(self) -> bool:
        """Whether `held_out` are other calls than those that decide."""
        return self.held_out.calibration is not self.fit


def analyse(
    model: ir.Model,
    interface: ModelInterface,
    calibration: Calibration,
    method: Method,
    progress: Progress = lambda stage: None,
    *,
    columns: bool = True,
) -> Analysis:
    """Analyse a normalised model.

    With `columns`, those of tables and matrices may go too, and embedding tables are rotated first (see `rotation`),
    which changes the model by rounding only; nothing else is changed.

    Raises:
        SelectionError: no neuron can be given up.
        CalibrationError: the model fails on a sample.
    """
    fit, held_out = split(calibration)
    surveyed = survey(model, calibration.carried, columns=columns)
    if not any(group.recurrent for group in surveyed.groups):
        raise SelectionError(
            f"the model: no hidden unit can be given up; expected one that only matrices read. {_remedy(model, fit)}"
        )
    if columns:
        rotate_tables(surveyed, fit, threads=method.threads)
    progress("watching the neurons on the samples")
    readers = {id(m): m for group in surveyed.groups for m in surveyed.readers(group)}
    moments = watch(model, tuple(readers.values()), fit, threads=method.threads, ridge=method.ridge)
    kinds = output_kinds(model.graph, interface, calibration.carried)
    parts = limited(fit, _probe_calls(fit)), held_out
    statistics, (probe, unseen) = _probes(model, calibration, parts, kinds, method.threads)
    predictions = class_predictions(surveyed, statistics.predictions)
    groups = []
    for number, group in enumerate(surveyed.groups):
        progress(f"measuring what {', '.join(group.nodes)} can give up")
        elimination = order_of(group, surveyed.readers(group), surveyed.labels, moments, criterion=method.criterion,
                               seed=method.seed, predictions=predictions)  # fmt: skip
        measured = _measured(surveyed, number, elimination, moments, probe, method, columns)
        groups.append(
            GroupAnalysis(nodes=group.nodes, recurrent=group.recurrent, size=group.size, sides=group.directions,
                          held=group.size - group.candidates.size // group.directions,
                          elimination=elimination, measured=measured,
                          curve=scaled_curve(elimination.losses, measured))
        )  # fmt: skip
    sizes = size_model(surveyed.program, surveyed.matrices, surveyed.labels, surveyed.groups,
                       multiply_adds=multiply_adds(model.graph), parameters=parameters(model.graph))  # fmt: skip
    rows = min(seen.count for source, seen in moments.items() if source.direction is not None)
    return Analysis(method=method, carried=calibration.carried, fit=fit, held_out=unseen, groups=tuple(groups),
                    sizes=sizes, columns=columns, rows=rows, predictions=statistics.predictions)  # fmt: skip


def _remedy(model: ir.Model, calibration: Calibration) -> str:
    """Return what to do where nothing can be given up."""
    undeclared = [pair for pair in find_state(model.graph) if pair not in calibration.carried]
    if not undeclared:
        return "See what holds them with `toolchain shrink MODEL --dry-run --explain`."
    pairs = " ".join(f"--carried {into}={out}" for into, out in undeclared)
    return f"If the caller feeds the state back, say `--carried auto` ({pairs})."


def _probes(
    model: ir.Model,
    calibration: Calibration,
    parts: Sequence[Calibration],
    kinds: Mapping[str, Kind],
    threads: int | None,
) -> tuple[OutputStatistics, list[Probe]]:
    """Ask the original for its outputs on parts of the samples; the statistics are those over all of them."""
    names = list(kinds)
    with opened(model, threads) as session:
        statistics = output_statistics(run_calls(session, calibration, names), kinds)
        probes = [Probe(calibration=part, expected=tuple(run_calls(session, part, names)), kinds=kinds,
                        spreads=statistics.spreads) for part in parts]  # fmt: skip
    return statistics, probes


def _probe_calls(fit: Calibration) -> int:
    return min(PROBE_CALLS, max(3, round(PROBE_SHARE * fit.num_calls)))


def _measured(
    surveyed: Survey,
    number: int,
    elimination: Elimination,
    moments: Mapping[Source, Moments],
    probe: Probe,
    method: Method,
    columns: bool,
) -> tuple[tuple[int, float], ...]:
    """Return the output error at `POINTS`, everything else whole."""
    counts = sorted({round(point * elimination.order.size) for point in POINTS} - {0})
    found = []
    for count in counts:
        trial = survey(surveyed.model.clone(), probe.calibration.carried, columns=columns)
        group = trial.groups[number]
        removed = group.candidates[elimination.order[:count]]
        give_up(trial.model.graph, trial.readers(group), trial.labels, removed, moments, compensate=method.compensate)
        found.append((count, error_of(trial.model, probe, method.threads)))
    return tuple(found)


def choose(analysis: Analysis, target: Target) -> Counts:
    """Return how many candidates each group gives up.

    Args:
        analysis: of the model.
        target: what to reach, any but a latency; only hidden units are given up for a ratio. An error is the predicted
            one.

    Raises:
        SelectionError: the target cannot be met; names the best that can be.
    """
    cost = analysis.sizes.cost(target.kind)
    curves = [group.curve for group in analysis.groups]
    limit = _limit(target, cost((0,) * len(curves)))
    counts: Counts = ()
    for after in path_of(analysis, cost):
        if target.kind == "error" and counts and predicted_error(curves, after) > target.value:
            return counts
        counts = after
        if target.kind != "error" and cost(counts) <= limit:
            return counts
    if target.kind == "error":
        return counts
    raise SelectionError(
        f"target {target.kind} {target.value:g}: cannot be met, because a unit of each layer stays and what is not "
        f"understood is left whole; expected {_best(target, cost(counts), cost((0,) * len(curves)))}. Ask for that."
    )


def _best(target: Target, least: float, whole: float) -> str:
    """Return how far one can go, rounded to what can be asked for."""
    if target.kind == "ratio":
        return f"at most {math.floor(SHOWN * (1 - least + ROUNDING)) / SHOWN:g}"
    return f"at least {math.ceil(SHOWN * least / whole) / SHOWN:g} of them, or {math.ceil(least):,} of {whole:,.0f}"


def path_of(analysis: Analysis, cost: Callable[[Counts], float]) -> Iterator[Counts]:
    """Yield the counts from the whole model to the smallest, each step the least error for the cost it saves."""
    curves = [group.curve for group in analysis.groups]
    evenness = EVENNESS if analysis.fit.source == RANDOM else 0.0
    return descend(curves, [group.sides for group in analysis.groups], cost, evenness=evenness,
                   layers=[group.recurrent for group in analysis.groups])  # fmt: skip


def _limit(target: Target, now: float) -> float:
    """Return what the cost may be at most."""
    if target.kind == "ratio":
        return 1 - target.value + ROUNDING
    return target.value * now if target.kind in ("parameters", "multiply_adds") and target.value < 1 else target.value


def commit(model: ir.Model, analysis: Analysis, counts: Counts, progress: Progress = lambda stage: None) -> None:
    """Give neurons up in the model itself, from the input on, watching again what lower layers have changed."""
    method = analysis.method
    surveyed = survey(model, analysis.carried, columns=analysis.columns)
    predictions = class_predictions(surveyed, analysis.predictions)
    for number, (group, count) in enumerate(zip(surveyed.groups, counts, strict=True)):
        if not count:
            continue
        progress(f"giving up {count} of {', '.join(group.nodes)}")
        readers = surveyed.readers(group)
        moments: Mapping[Source, Moments] = {}
        order = analysis.groups[number].elimination.order
        if method.compensate or method.criterion == "reconstruct":
            moments = watch(model, readers, analysis.fit, threads=method.threads, ridge=method.ridge)
        if method.criterion == "reconstruct":
            order = order_of(group, readers, surveyed.labels, moments, criterion=method.criterion,
                             seed=method.seed, predictions=predictions).order  # fmt: skip
        give_up(model.graph, readers, surveyed.labels, group.candidates[order[:count]], moments,
                compensate=method.compensate)  # fmt: skip


def error_of(model: ir.Model, probe: Probe, threads: int | None) -> float:
    """Return the relative error of a model's outputs on samples."""
    with opened(model, threads) as session:
        return compare(probe.expected, session, probe.calibration, probe.kinds, probe.spreads)


@contextmanager
def opened(model: ir.Model, threads: int | None) -> Iterator[Any]:
    """Open a model in memory in ONNX Runtime, by way of a file."""
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        yield open_session(path, threads=threads)
