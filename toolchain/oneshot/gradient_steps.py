"""Gradient steps that bring a small network's outputs back to those of the original, in PyTorch.

    loss = sum over outputs of  difference(original, small) / spread(original)         as `output_error` defines them

Windows are drawn in random order. A window starts from the state that the *small* network left there, because that is
where it will start from when it is used; the state is as old as the last step on the window before, and no gradient
goes through it. The original's answers come from the original's own run.

Adam, a short rise of the rate, then linear decay. What the closed form gave is easily destroyed: every few steps the
error on windows that no step sees is measured, the best weights are kept, and where it has grown the steps go on from
the best weights at a third of the rate.

Weights that are structurally zero, a whole row or column of a matrix, stay zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from toolchain.oneshot.calibration import Arrays, StatePair
from toolchain.oneshot.output_error import TINY, Kind
from toolchain.oneshot.windows import Answers, Window
from toolchain.torch_graph.interpreter import TorchGraph

Weights = dict[str, npt.NDArray[np.floating]]
OnStep = Callable[[int, float], None]
MatrixAxes = tuple[int, int]
BATCH_STEPS = 1600  # 16 windows of 100
UNSEEN = 0.1  # of the windows: for the choice of weights and of the rate
UNSEEN_STEPS = 2 * BATCH_STEPS  # enough to tell better from worse at the cost of one step
CHECKS = 20
WARM_UP = 10  # steps: Adam's first ones are the rate's full size in every weight, whatever the gradient
GROWN, LOWER, LOWEST = 1.1, 1 / 3, 0.01  # error against the best; what becomes of the rate; where steps end
CLIP = 1.0  # of the gradient's norm; Adam does not see a constant factor, so this only holds outliers


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a network is taught: windows in its own state shapes, and the original's answers with their spreads.

    `axes` are the batch axes of inputs, outputs and states, None where windows cannot be put side by side.
    """

    windows: tuple[Window, ...]
    starts: tuple[Arrays, ...]
    answers: Answers
    kinds: Mapping[str, Kind]
    spreads: Mapping[str, float]
    carried: tuple[StatePair, ...]
    axes: Mapping[str, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The best weights, the error on unseen windows before and after, and the rate's height in the end."""

    weights: Weights
    error_before: float
    error_after: float
    steps: int
    learning_rate: float


def train(
    graph: TorchGraph,
    lesson: Lesson,
    axes: Mapping[str, MatrixAxes | None],
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    on_step: OnStep,
) -> Trained:
    """Take gradient steps; the graph's weights are the best ones after. `axes` as `trained_weights` returns them."""
    classroom = _Classroom(graph, lesson)
    seen, unseen = divided(lesson.windows)
    batches = _batches(seen, lesson.windows, np.random.default_rng(seed))
    masks = {name: structural_mask(tensor.detach(), axes[name]) for name, tensor in graph.trained.items()}
    optimiser = torch.optim.Adam(graph.trained.values())
    before = best = classroom.error(unseen)
    weights, states = _copied(graph), classroom.states()
    height, number = learning_rate, 0
    for number in range(1, steps + 1):
        rate = height * min(1.0, number / WARM_UP) * (1 - (number - 1) / steps)
        loss = _step(classroom, optimiser, next(batches), masks, rate)
        on_step(number, loss)
        if number % max(1, steps // CHECKS) and number < steps:
            continue
        error = classroom.error(unseen)
        if error < best:
            best, weights, states = error, _copied(graph), classroom.states()
        elif not error < GROWN * best:  # NaN too
            _restore(graph, weights)
            classroom.restore(states)
            optimiser = torch.optim.Adam(graph.trained.values())
            height *= LOWER
            if height < LOWEST * learning_rate:
                break
    _restore(graph, weights)
    return Trained(weights=weights, error_before=before, error_after=best, steps=number, learning_rate=height)


def structural_mask(weights: Tensor, axes: MatrixAxes | None) -> Tensor | None:
    """Return where a matrix may change: not in rows or columns of zeros alone; None when it may everywhere.

    Args:
        weights: a matrix, or for each direction of a recurrent node one, or one with a kernel behind.
        axes: of the rows and columns; None for what is no matrix.
    """
    if axes is None:
        return None
    row, column = (axis % weights.ndim for axis in axes)
    kernel = tuple(axis for axis in range(max(row, column) + 1, weights.ndim))
    alive = weights != 0
    lines = alive.any(dim=(column, *kernel), keepdim=True) & alive.any(dim=(row, *kernel), keepdim=True)
    return None if bool(lines.all()) else lines.expand_as(weights)


def _step(
    classroom: _Classroom,
    optimiser: torch.optim.Optimizer,
    batch: Sequence[int],
    masks: Mapping[str, Tensor | None],
    rate: float,
) -> float:
    trained = classroom.graph.trained
    optimiser.zero_grad()
    loss = classroom.learn(batch)
    for name, mask in masks.items():
        gradient = trained[name].grad
        if mask is not None and gradient is not None:
            gradient.mul_(mask)
    torch.nn.utils.clip_grad_norm_(trained.values(), CLIP)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    return loss


def divided(windows: Sequence[Window]) -> tuple[list[int], list[int]]:
    """Return which windows are learnt from, and by which weights are chosen, evenly over all; with one it is both."""
    indices = [index for index, window in enumerate(windows) if window.counts]
    if len(indices) < 2:
        return indices, indices
    count = max(1, round(UNSEEN * len(indices)))
    mean = sum(windows[index].steps for index in indices) / len(indices)
    count = min(count, max(1, round(UNSEEN_STEPS / mean)))
    unseen = [indices[(part + 1) * len(indices) // count - 1] for part in range(count)]
    return [index for index in indices if index not in unseen], unseen


def _batches(seen: Sequence[int], windows: Sequence[Window], rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield windows in random order, each once an epoch, about `BATCH_STEPS` steps at a time."""
    mean = sum(windows[index].steps for index in seen) / len(seen)
    size = min(len(seen), max(1, round(BATCH_STEPS / mean)))
    waiting: list[int] = []
    while True:
        if len(waiting) < size:
            waiting += [int(index) for index in rng.permutation(seen)]
        yield waiting[:size]
        waiting = waiting[size:]


def _copied(graph: TorchGraph) -> Weights:
    return {name: tensor.detach().numpy().copy() for name, tensor in graph.trained.items()}


def _restore(graph: TorchGraph, weights: Weights) -> None:
    with torch.no_grad():
        for name, tensor in graph.trained.items():
            tensor.copy_(torch.from_numpy(weights[name]))


class _Classroom:
    """Runs windows through the network, and remembers the state that each leaves to the next."""

    def __init__(self, graph: TorchGraph, lesson: Lesson) -> None:
        self.graph, self._lesson = graph, lesson
        self._starts = [{name: torch.tensor(array) for name, array in start.items()} for start in lesson.starts]
        self._next = {window.follows: index for index, window in enumerate(lesson.windows)}
        self._alike = [self._likeness(window) for window in lesson.windows]

    def states(self) -> list[dict[str, Tensor]]:
        """Return the state at the start of each window."""
        return [dict(start) for start in self._starts]

    def restore(self, states: list[dict[str, Tensor]]) -> None:
        """Go back to states that better weights have left."""
        self._starts = [dict(start) for start in states]

    def learn(self, batch: Sequence[int]) -> float:
        """Add the gradients of a batch's relative error to the weights; return the error."""
        return sum(self._losses(batch, gradients=True))

    def error(self, batch: Sequence[int]) -> float:
        """Return the relative error on windows."""
        size = max(1, round(BATCH_STEPS / max(1, self._lesson.windows[batch[0]].steps)))
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        with torch.no_grad():
            return sum(sum(self._losses(part, gradients=False)) * len(part) for part in parts) / len(batch)

    def _losses(self, batch: Sequence[int], *, gradients: bool) -> Iterator[float]:
        answers = {index: self._lesson.answers.of(index) for index in batch}
        counts = self._counts(answers)
        for group in self._groups(batch):
            loss = self._loss(group, answers, counts)
            if gradients:
                loss.backward()  # type: ignore[no-untyped-call]
            yield float(loss.detach())

    def _counts(self, answers: Mapping[int, list[Arrays]]) -> dict[str, float]:
        """Return by what each output's differences are divided: how many there are, times the spread."""
        lesson = self._lesson
        return {
            name: spread * sum(_size(lesson.kinds[name], call[name]) for calls in answers.values() for call in calls)
            for name, spread in lesson.spreads.items()
            if spread > TINY  # an output that never changes has nothing to teach
        }

    def _groups(self, batch: Sequence[int]) -> list[list[int]]:
        """Return the batch's windows in groups that can be put side by side."""
        groups: dict[object, list[int]] = {}
        for index in batch:
            groups.setdefault(index if self._lesson.axes is None else self._alike[index], []).append(index)
        return list(groups.values())

    def _likeness(self, window: Window) -> object:
        """Return what two windows must have in common: shapes beside the batch, and inputs that have no batch axis."""
        axes = self._lesson.axes or {}
        states = {into for into, _ in self._lesson.carried}
        return tuple(
            tuple(
                (name, array.tobytes()) if name not in axes else (name, np.delete(array.shape, axes[name]).tobytes())
                for name, array in call.items()
                if name not in states
            )
            for call in window.calls
        )

    def _loss(self, group: list[int], answers: Mapping[int, list[Arrays]], counts: Mapping[str, float]) -> Tensor:
        lesson = self._lesson
        windows = [lesson.windows[index] for index in group]
        state = {into: self._beside([self._starts[index][into] for index in group], into) for into, _ in lesson.carried}
        names = [*lesson.kinds, *(out for _, out in lesson.carried)]
        loss = torch.zeros(())
        for number, call in enumerate(windows[0].calls):
            feeds = {name: self._beside([torch.tensor(window.calls[number][name]) for window in windows], name)
                     for name in call if name not in state}  # fmt: skip
            values = self.graph.run({**feeds, **state}, names)
            for name, count in counts.items():
                wanted = self._beside([torch.from_numpy(answers[index][number][name]) for index in group], name)
                loss = loss + _difference(lesson.kinds[name], wanted, values[name]) / count
            state = {into: values[out] for into, out in lesson.carried}
        self._leave(group, {into: tensor.detach() for into, tensor in state.items()})
        return loss

    def _beside(self, tensors: list[Tensor], name: str) -> Tensor:
        axis = (self._lesson.axes or {}).get(name)
        return tensors[0] if axis is None or len(tensors) == 1 else torch.cat(tensors, axis)

    def _leave(self, group: list[int], state: Mapping[str, Tensor]) -> None:
        """Leave each window's last state to the window that follows it."""
        for into, tensor in state.items():
            axis = (self._lesson.axes or {}).get(into)
            sizes = [self._starts[index][into].shape[axis or 0] for index in group]
            parts = [tensor] if axis is None or len(group) == 1 else torch.split(tensor, sizes, axis)
            for index, part in zip(group, parts, strict=True):
                if index in self._next:
                    self._starts[self._next[index]][into] = part.clone()


def _size(kind: Kind, array: npt.NDArray[np.generic]) -> int:
    return array.size if kind == "squares" else array.size // array.shape[-1]


def _difference(kind: Kind, wanted: Tensor, got: Tensor) -> Tensor:
    """Return the summed difference of one call: squares, or divergence of the predictions."""
    if kind == "squares":
        return (got - wanted).square().sum()
    log_p, log_q = (
        functional.log_softmax(torch.log(tensor.clamp(min=TINY)) if kind == "probabilities" else tensor, dim=-1)
        for tensor in (wanted, got)
    )
    return functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
