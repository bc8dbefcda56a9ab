"""Averaged weights: what is validated and exported in place of the weights of the last update.

With w the weights after an update, a their average and n how many were averaged so far:

    ema        a <- d * a + (1 - d) * w,  d = min(decay, (1 + n) / (10 + n))     the first weights are soon forgotten
    uniform    a <- a + (w - a) / (n + 1)                                       with plain SGD: averaged SGD

The averages lie in the optimizer's state, one beside each weight's moments. So they are cut like the weights where
closed neurons are cut, and a checkpoint holds them. When gates are frozen, they and what the removed neurons said are
folded into the weights: an average over weights from before would be that of another network, and starts again.

Training itself goes on from the last weights, until the end.

Source: Polyak and Juditsky 1992; Merity et al. 2017, arXiv 1708.02182, section 3 (the trigger of NT-ASGD);
https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage (the growing decay).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from toolchain.training.run_folder import Row
from toolchain.training.task import Metric
from toolchain.training.teaching_sections import AveragingSection

AVERAGE = "average"  # the key of an average in the optimizer's state of a weight


@dataclass(slots=True, kw_only=True)
class Averaging:
    """How far averaging is.

    Attributes:
        section: the recipe's.
        triggered: the validation figure has stopped to get better; unused without a patience.
        count: number of updates averaged so far, 0 while there is no average.
    """

    section: AveragingSection
    triggered: bool = False
    count: int = 0


def begin_averaging(section: AveragingSection) -> Averaging | None:
    """Return the averaging of a new run, None if there is none."""
    return None if section.kind == "none" else Averaging(section=section)


def average_weights(averaging: Averaging | None, optimizer: torch.optim.Optimizer, *, progress: float) -> None:
    """Take the weights of this update into their averages, if it is time.

    Args:
        averaging: None does nothing.
        optimizer: has just moved the weights, whose gradients are still there.
        progress: share of all updates done.
    """
    if averaging is None or progress < averaging.section.start_at:
        return
    if averaging.section.patience is not None and not averaging.triggered:
        return
    weights = [weight for weight in _weights(optimizer) if weight.grad is not None]
    if averaging.count == 0:
        for weight in weights:
            optimizer.state[weight][AVERAGE] = weight.detach().clone()
    else:
        averages = [optimizer.state[weight][AVERAGE] for weight in weights]
        current: list[Tensor] = [weight.detach() for weight in weights]
        if averaging.section.kind == "ema":
            decay = min(averaging.section.decay, (1 + averaging.count) / (10 + averaging.count))
            update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        else:
            update = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
        update(averages, current, averaging.count)
    averaging.count += 1


def note_validation(averaging: Averaging | None, rows: Sequence[Row], metric: Metric) -> None:
    """Look whether the validation figure has stopped to get better, and averaging should start.

    Args:
        averaging: None does nothing.
        rows: of `metrics.csv`, the last epoch's included. Only those of its phase count: a cut does harm.
        metric: which figure counts.
    """
    if averaging is None or averaging.section.patience is None or averaging.triggered:
        return
    phase = rows[-1]["phase"]
    sign = -1 if metric.higher_is_better else 1
    *before, last = [sign * float(row[metric.column] or 0) for row in rows if row["phase"] == phase]
    earlier = before[: -averaging.section.patience]
    averaging.triggered = bool(earlier) and last > min(earlier)


def restart_averaging(averaging: Averaging | None, optimizer: torch.optim.Optimizer) -> None:
    """Forget the averages, because what is trained now is another network."""
    if averaging is None:
        return
    averaging.triggered, averaging.count = False, 0
    for state in optimizer.state.values():
        state.pop(AVERAGE, None)


@contextlib.contextmanager
def averaged_weights(averaging: Averaging | None, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put the averages in the place of the weights for a while; nothing happens where there are none."""
    if averaging is None or averaging.count == 0:
        yield
        return
    _swap(optimizer)
    try:
        yield
    finally:
        _swap(optimizer)


def keep_average(averaging: Averaging | None, optimizer: torch.optim.Optimizer) -> None:
    """Copy the averages over the weights, at the end of training."""
    if averaging is not None and averaging.count:
        for weight in _weights(optimizer):
            if AVERAGE in optimizer.state[weight]:
                weight.data.copy_(optimizer.state[weight][AVERAGE])


def _swap(optimizer: torch.optim.Optimizer) -> None:
    for weight in _weights(optimizer):
        state = optimizer.state[weight]
        if AVERAGE in state:
            weight.data, state[AVERAGE] = state[AVERAGE], weight.data


def _weights(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]
