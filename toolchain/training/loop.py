"""Train a network: one loop for every method, on the CPU, one GPU or many processes.

A run that prunes goes through these phases (`toolchain.training.methods` says what each method does in them):

    dense    until `gates.start_at`: nothing is pruned
    gated    the method chooses, here by gates, and what is gone for good is cut as it goes
    frozen   at `gates.freeze_at` what stays is fixed
    narrow   the smaller network learns on until the last epoch

and is then written at its original shapes, with exact zeros where neurons were. Each epoch ends with a
validation, a row of metrics and a checkpoint. With averaging, what is validated and written are the averaged weights.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from toolchain.errors import TrainingError
from toolchain.evaluation import evaluation_mode
from toolchain.training.activation_penalty import penalised, watched_last_layer
from toolchain.training.averaging import (
    average_weights,
    averaged_weights,
    keep_average,
    note_validation,
    restart_averaging,
)
from toolchain.training.processes import average_gradients, decided_by_main, mean_of
from toolchain.training.run_folder import GATES, METRICS, MODEL, Row, write_rows
from toolchain.training.task import Figures, TrainingResult
from toolchain.training.teacher import attended, taught
from toolchain.training.training_run import TrainingRun, build_network, save_run

REPORT_EVERY = 10  # updates between two looks at the loss; on a GPU each look waits for it


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a progress display shows.

    Attributes:
        update: number of updates done.
        updates: number of updates in the whole run.
        epoch: counted from 1.
        phase: `dense`, or one of the method's `phases`.
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
        _prune(run, report)
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
    if run.method.learning:  # to the very end: nothing fine-tunes what stays
        _prune(run, report)
        save_run(run)
    keep_average(run.averaging, run.optimizer)
    return True


def end_early(run: TrainingRun, *, report: Reporter) -> None:
    """Make of a run in memory what it would be if its last update were the one it is at; nothing is saved.

    A method that still chooses fixes what stays now.

    Raises:
        TrainingError: no epoch is over yet.
    """
    if not run.metrics:
        raise TrainingError(f"{run.folder}: no epoch is over yet; expected one before a model is written. Resume it.")
    if run.method.learning:
        _freeze(run, report)
    keep_average(run.averaging, run.optimizer)


def finish(run: TrainingRun, corpus: Any, *, path: Path | None = None, threads: int | None = None) -> TrainingResult:
    """Write the model at the original shapes and measure it on the test data; in the main process only.

    Args:
        run: after `train` returned True, or `end_early`.
        corpus: what the run was begun with.
        path: of the model; None is `model.onnx` in the run's folder.
        threads: of ONNX Runtime.

    Raises:
        OutputError: the file cannot be written.
        ParityError: ONNX Runtime computes something else than PyTorch.
    """
    dense = build_network(run.recipe.model, len(corpus.vocabulary), folder=run.folder)
    model = run.method.finished(run.model, dense=dense)
    speeds = [float(row["tokens_per_s"] or 0) for row in run.metrics]
    return run.task.finish(
        model,
        corpus,
        path or run.folder / MODEL,
        share=run.method.share_kept(run.model),
        speed_ratio=speeds[-1] / speeds[0],
        threads=threads,
    )


def _update(run: TrainingRun, *, stop: bool) -> tuple[Tensor, bool]:
    """Do one update; return its loss and whether any process wants to stop."""
    schedule, model, optim = run.schedule, run.model, run.recipe.optim
    at_top = run.update % schedule.updates_per_epoch == 0
    with _precision(run), watched_last_layer(model, optim) as last, attended(model, run.teacher, at_top) as lesson:
        loss, run.state = run.task.loss(model, run.update, run.state)
    run.loss_sum += loss.detach()
    price = run.method.price(model, schedule.selection_progress(run.update))
    aim = penalised(taught(loss, lesson), last, optim)
    total = aim if price is None else aim + price
    run.optimizer.zero_grad(set_to_none=True)
    (total * schedule.steps if optim.loss == "sequence" else total).backward()  # type: ignore[no-untyped-call]
    stopped = average_gradients(model.parameters(), float(stop), processes=run.processes) > 0
    _apply(run)
    return loss.detach(), stopped


def _apply(run: TrainingRun) -> None:
    """Move the weights along their gradients, and the method after them."""
    weights = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(weights, run.recipe.optim.clip_norm)
    rate, progress = run.schedule.learning_rate(run.update), run.schedule.selection_progress(run.update)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    run.method.after_update(run.model, progress=progress, learning_rate=rate)
    average_weights(run.averaging, run.optimizer, progress=run.update / run.schedule.updates)
    run.update += 1


def _precision(run: TrainingRun) -> contextlib.AbstractContextManager[Any]:
    if run.recipe.run.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(run.processes.device.type, dtype=torch.bfloat16)


def _prune(run: TrainingRun, report: Reporter) -> None:
    """Begin, cut or freeze, where the schedule says so; nothing once the method has ended."""
    if run.update == run.schedule.start_at:
        _set_mode(run)
    if not run.method.learning:
        return
    if run.update >= (run.schedule.freeze_at or 0):
        _freeze(run, report)
    elif run.update and run.update % run.schedule.compact_every == 0 and run.method.cut(run.model, run.optimizer):
        _report_sizes(run, report, "cut")


def _freeze(run: TrainingRun, report: Reporter) -> None:
    """Fix what stays."""
    run.method.freeze(run.model, run.optimizer, replay=lambda: _replay(run), processes=run.processes)
    restart_averaging(run.averaging, run.optimizer)
    _set_mode(run)
    _report_sizes(run, report, "frozen")


def _report_sizes(run: TrainingRun, report: Reporter, what: str) -> None:
    """Tell of a new width, and start the carried state anew: the old one has the old width."""
    run.state = None
    if run.processes.is_main:
        sizes = ", ".join(f"{site} {number}" for site, number in run.method.sizes(run.model))
        share = run.method.share_kept(run.model)
        report.event(f"{what}: {sizes}; {share:.1%} of the recurrent multiply-adds")


def _set_mode(run: TrainingRun) -> None:
    """Switch the model to training, in the phase that the run is in."""
    run.model.train()
    run.method.set_mode(run.model, run.schedule.selection_progress(run.update))
    dropout = run.recipe.gates.dropout
    if run.schedule.freeze_at is not None and not run.method.learning and dropout is not None:
        for module in run.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout


@torch.no_grad()
def _replay(run: TrainingRun) -> None:
    """Run the model over the data just read, as it would be evaluated."""
    with evaluation_mode(run.model):
        run.task.read_recent(run.model, run.update)


def _end_epoch(run: TrainingRun, report: Reporter) -> None:
    """Validate, write the epoch's rows and a checkpoint."""
    schedule, epoch = run.schedule, run.update // run.schedule.updates_per_epoch
    loss = mean_of(float(run.loss_sum), processes=run.processes) / schedule.updates_per_epoch
    if not math.isfinite(loss):
        raise TrainingError(
            f"epoch {epoch}: the training loss is {loss}; expected a number. "
            "Lower optim.learning_rate or optim.clip_norm."
        )
    with averaged_weights(run.averaging, run.optimizer):
        valid = run.task.validate(run.model) if run.processes.is_main else {}
    row: Row = {
        "epoch": epoch,
        "update": run.update,
        "phase": phase_of(run),
        "learning_rate": schedule.learning_rate(run.update - 1),
        **run.task.training_figures(loss),
        **decided_by_main(valid, processes=run.processes),
        "multiply_adds_share": run.method.share_kept(run.model),
        "tokens_per_s": run.task.tokens_per_epoch / run.seconds,
        "seconds": run.seconds,
    }
    run.metrics.append(row)
    note_validation(run.averaging, run.metrics, run.task.metric)
    run.gates += run.method.rows(run.model, epoch=epoch)
    run.state, run.seconds = None, 0.0
    run.loss_sum.zero_()
    save_run(run)
    if run.processes.is_main:
        write_rows(run.folder / METRICS, run.metrics)
        write_rows(run.folder / GATES, run.gates)
        report.epoch(row)


def phase_of(run: TrainingRun) -> str:
    """Return what the phase that the last update belonged to is called."""
    while_learning, afterwards = run.method.phases
    if run.method.learning:
        return while_learning if run.update > run.schedule.start_at else "dense"
    return afterwards


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
        kept=run.method.sizes(run.model),
    )
