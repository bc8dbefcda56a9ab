"""Train a network: one loop for dense and gated runs, on the CPU, one GPU or many processes.

A `neuron-selection` run goes through these phases:

    dense    until `gates.start_at`: all gates are held open
    gated    gates are sampled and pressed to close; neurons whose gates closed for good are cut as it goes
    frozen   at `gates.freeze_at` the kept neurons are fixed, and what the others said is folded into them
    narrow   the plain, smaller network learns on until the last epoch

and is then written at its original shapes, with exact zeros where neurons were. Each epoch ends with a
validation, a row of metrics and a checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from toolchain.errors import TrainingError
from toolchain.training.gated_phase import (
    GatedPhase,
    cut_closed_neurons,
    finished_model,
    freeze_gates,
    gate_rows,
    open_neurons,
    price_gates,
    share_kept,
    training_mode,
    update_gates,
)
from toolchain.training.processes import average_gradients, decided_by_main, mean_of
from toolchain.training.run_folder import GATES, METRICS, MODEL, Row, write_rows
from toolchain.training.task import Figures, TrainingResult
from toolchain.training.training_run import TrainingRun, build_network, save_run

REPORT_EVERY = 10  # updates between two looks at the loss; on a GPU each look waits for it


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a progress display shows.

    Attributes:
        update: number of updates done.
        updates: number of updates in the whole run.
        epoch: counted from 1.
        phase: `dense`, `gated` or `narrow`.
        loss: of the last update.
        figures: what that loss stands for, by column of `metrics.csv`.
        tokens_per_s: in this epoch so far, over all processes.
        seconds_left: estimated at that speed.
        kept: neurons kept per set of neurons, (site, number).
    """

    update: int
    updates: int
    epoch: int
    phase: str
    loss: float
    figures: Figures
    tokens_per_s: float
    seconds_left: float
    kept: tuple[tuple[str, int], ...]


class Reporter(Protocol):
    """Shows how training goes on; called in the main process only."""

    def step(self, report: StepReport) -> None:
        """Take note of some more updates."""

    def epoch(self, row: Row) -> None:
        """Take note of a row of `metrics.csv`."""

    def event(self, text: str) -> None:
        """Take note of something that happened once."""


def train(run: TrainingRun, *, report: Reporter, stop: Callable[[], bool] = lambda: False) -> bool:
    """Carry a run from where it is to its end.

    Args:
        run: begun or restored; changed as it goes.
        report: told of every step and epoch.
        stop: asked after each update; once it says True the run is saved and training ends.

    Returns:
        True at the end, False if it was stopped.

    Raises:
        TrainingError: the loss is no number any more.
        OutputError: a file cannot be written.
    """
    _set_mode(run)
    while run.update < run.schedule.updates:
        if run.update == run.schedule.start_at:
            _set_mode(run)
        if run.phase is not None and run.phase.learning:
            if run.update >= (run.schedule.freeze_at or 0):
                _freeze(run, run.phase, report)
            elif run.update and run.update % run.schedule.compact_every == 0:
                _cut(run, run.phase, report)
        started = time.perf_counter()
        loss, stopped = _update(run, stop=stop())
        run.seconds += time.perf_counter() - started
        in_epoch = run.update % run.schedule.updates_per_epoch
        if in_epoch == 0:
            _end_epoch(run, report)
        elif in_epoch % REPORT_EVERY == 0 and run.processes.is_main:
            report.step(_step_report(run, float(loss), in_epoch))
        if stopped:
            save_run(run)
            return False
    return True


def finish(run: TrainingRun, corpus: Any, *, threads: int | None = None) -> TrainingResult:
    """Write `model.onnx` at the original shapes and measure it on the test data; in the main process only.

    Args:
        run: after `train` returned True.
        corpus: what the run was begun with.
        threads: of ONNX Runtime.

    Raises:
        OutputError: the file cannot be written.
        ParityError: ONNX Runtime computes something else than PyTorch.
    """
    model = finished_model(run.model, run.phase, dense=build_network(run.recipe.model, len(corpus.vocabulary)))
    speeds = [float(row["tokens_per_s"] or 0) for row in run.metrics]
    return run.task.finish(
        model,
        corpus,
        run.folder / MODEL,
        share=share_kept(run.model, run.phase),
        speed_ratio=speeds[-1] / speeds[0],
        threads=threads,
    )


def _update(run: TrainingRun, *, stop: bool) -> tuple[Tensor, bool]:
    """Do one update; return its loss and whether any process wants to stop."""
    schedule, model = run.schedule, run.model
    with _precision(run):
        loss, run.state = run.task.loss(model, run.update, run.state)
    run.loss_sum += loss.detach()
    if run.phase is not None:
        price = price_gates(model, run.phase, schedule.selection_progress(run.update))
        run.phase.optimizer.zero_grad(set_to_none=True)
    total = loss if run.phase is None or price is None else loss + price
    run.optimizer.zero_grad(set_to_none=True)
    (total * schedule.steps if run.recipe.optim.loss == "sequence" else total).backward()  # type: ignore[no-untyped-call]
    stopped = average_gradients(model.parameters(), float(stop), processes=run.processes) > 0
    _apply(run)
    return loss.detach(), stopped


def _apply(run: TrainingRun) -> None:
    """Move the weights and the gates along their gradients."""
    weights = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(weights, run.recipe.optim.clip_norm)
    for group in run.optimizer.param_groups:
        group["lr"] = run.schedule.learning_rate(run.update)
    run.optimizer.step()
    if run.phase is not None:
        update_gates(run.model, run.phase, run.schedule.selection_progress(run.update))
    run.update += 1


def _precision(run: TrainingRun) -> contextlib.AbstractContextManager[Any]:
    if run.recipe.run.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(run.processes.device.type, dtype=torch.bfloat16)


def _freeze(run: TrainingRun, phase: GatedPhase, report: Reporter) -> None:
    recent = functools.partial(run.task.read_recent, update=run.update)
    freeze_gates(run.model, phase, run.optimizer, read_recent=recent, processes=run.processes)
    _set_mode(run)
    run.state = None  # the old one has the old width
    if run.processes.is_main:
        share = share_kept(run.model, phase)
        report.event(f"gates frozen: {_described(run.model)}; {share:.1%} of the recurrent multiply-adds")


def _cut(run: TrainingRun, phase: GatedPhase, report: Reporter) -> None:
    if cut_closed_neurons(run.model, phase, run.optimizer):
        run.state = None
        if run.processes.is_main:
            report.event(f"closed neurons cut: {_described(run.model)}")


def _set_mode(run: TrainingRun) -> None:
    training_mode(run.model, run.phase, run.schedule.selection_progress(run.update))


def _end_epoch(run: TrainingRun, report: Reporter) -> None:
    """Validate, write the epoch's rows and a checkpoint."""
    schedule, epoch = run.schedule, run.update // run.schedule.updates_per_epoch
    loss = mean_of(float(run.loss_sum), processes=run.processes) / schedule.updates_per_epoch
    if not math.isfinite(loss):
        raise TrainingError(
            f"epoch {epoch}: the training loss is {loss}; expected a number. "
            "Lower optim.learning_rate or optim.clip_norm."
        )
    valid = run.task.validate(run.model) if run.processes.is_main else {}
    row: Row = {
        "epoch": epoch,
        "update": run.update,
        "phase": phase_of(run),
        "learning_rate": schedule.learning_rate(run.update - 1),
        **run.task.training_figures(loss),
        **decided_by_main(valid, processes=run.processes),
        "multiply_adds_share": share_kept(run.model, run.phase),
        "tokens_per_s": run.task.tokens_per_epoch / run.seconds,
        "seconds": run.seconds,
    }
    run.metrics.append(row)
    run.gates += gate_rows(run.model, epoch=epoch)
    run.state, run.seconds = None, 0.0
    run.loss_sum.zero_()
    save_run(run)
    if run.processes.is_main:
        write_rows(run.folder / METRICS, run.metrics)
        write_rows(run.folder / GATES, run.gates)
        report.epoch(row)


def phase_of(run: TrainingRun) -> str:
    """Return `dense`, `gated` or `narrow`."""
    if run.phase is None:
        return "dense"
    if run.phase.learning:
        return "gated" if run.update > run.schedule.start_at else "dense"
    return "narrow"


def _step_report(run: TrainingRun, loss: float, in_epoch: int) -> StepReport:
    schedule = run.schedule
    update_s = run.seconds / in_epoch
    return StepReport(
        update=run.update,
        updates=schedule.updates,
        epoch=run.update // schedule.updates_per_epoch + 1,
        phase=phase_of(run),
        loss=loss,
        figures=run.task.training_figures(min(loss, 20.0)),  # the first losses may overflow a readable number
        tokens_per_s=run.task.tokens_per_epoch / schedule.updates_per_epoch / update_s,
        seconds_left=(schedule.updates - run.update) * update_s,
        kept=open_neurons(run.model),
    )


def _described(model: nn.Module) -> str:
    return ", ".join(f"{site} {number}" for site, number in open_neurons(model))
