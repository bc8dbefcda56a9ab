"""Calibration samples as windows: pieces short enough to take gradients through, and what a model says to them.

State carried from call to call makes a window of several calls; without it each call is a window. A call much longer
than a window is cut in time: its pieces are inputs in their own right, to which the original is asked for its answers.
Calls that are held out are windows that nothing is learnt from; state flows through them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from toolchain.axes import BATCH, TIME
from toolchain.interface import ModelInterface
from toolchain.oneshot.calibration import Arrays, Calibration, StatePair, run_calls, stretches
from toolchain.oneshot.pieces import cut_at, time_axes
from toolchain.runtime import RUNTIME_ERRORS

WINDOW_STEPS = 100  # what was tried, 16 of them a step, and does well on text and on speech
LONG_CALL = 4  # windows: calls up to so long stay whole, as an encoder or a reader of lines wants them
# Answers kept in memory; others are asked for again. 20,000 words of 8,000 scores are 640 MB.
ANSWER_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Consecutive calls of one stream; `follows` is the window that leaves its state to this one.

    `counts` tells whether it may be learnt from.
    """

    calls: tuple[Arrays, ...]
    follows: int | None
    steps: int
    counts: bool = True


def cut_windows(calibration: Calibration, interface: ModelInterface) -> tuple[Window, ...]:
    """Return the windows of all streams in their order; carried state flows from each to the next of its stream."""
    windows: list[Window] = []
    for stream, marks in zip(calibration.streams, calibration.marks, strict=True):
        first = len(windows)
        for counts, stretch in stretches(stream, marks):
            pieces = [piece for call in stretch for piece in _pieces(call, interface)]
            for calls in _grouped(pieces, interface) if calibration.carried else [(piece,) for piece in pieces]:
                follows = len(windows) - 1 if calibration.carried and len(windows) > first else None
                steps = sum(_steps(call, interface) * _length(call, interface, BATCH) for call in calls)
                windows.append(Window(calls=calls, follows=follows, steps=steps, counts=counts))
    return tuple(windows)


def _grouped(calls: Sequence[Arrays], interface: ModelInterface) -> list[tuple[Arrays, ...]]:
    """Put calls together until a window is full."""
    groups: list[tuple[Arrays, ...]] = []
    group: tuple[Arrays, ...] = ()
    for call in calls:
        group = (*group, call)
        if sum(_steps(one, interface) for one in group) >= WINDOW_STEPS:
            groups.append(group)
            group = ()
    return [*groups, group] if group else groups


def _pieces(call: Arrays, interface: ModelInterface) -> tuple[Arrays, ...]:
    """Cut a long call in time, the rest in the last piece."""
    axes, length = time_axes(call, interface), _steps(call, interface)
    if not axes or length <= LONG_CALL * WINDOW_STEPS:
        return (call,)
    return cut_at(call, axes, [number * WINDOW_STEPS for number in range(length // WINDOW_STEPS)])


def _steps(call: Arrays, interface: ModelInterface) -> int:
    return _length(call, interface, TIME)


def _length(call: Arrays, interface: ModelInterface, label: str) -> int:
    found = [call[i.name].shape[i.labels.index(label)] for i in interface.inputs if label in i.labels]
    return max(found, default=1)


class Answers:
    """What a model says to each window, from the state that its own run has reached there."""

    def __init__(
        self, session: Any, windows: Sequence[Window], names: Sequence[str], carried: Sequence[StatePair],
        *, kept_bytes: int = ANSWER_BYTES,
    ) -> None:  # fmt: skip
        """Run all windows in their order, and keep as many answers as there is room for.

        Raises:
            CalibrationError: the model fails on a sample.
        """
        self._session, self._windows, self._names = session, windows, tuple(names)
        self._carried, self._room = tuple(carried), kept_bytes
        self._kept: dict[int, list[Arrays]] = {}
        self.starts: list[Arrays] = []
        ends: list[Arrays] = []
        for index, window in enumerate(windows):
            first = {into: window.calls[0][into] for into, _ in carried}
            self.starts.append(first if window.follows is None else ends[window.follows])
            answers, end = self._run(index)
            ends.append(end)
            if not window.counts:
                continue
            self._room -= sum(array.nbytes for call in answers for array in call.values())
            if self._room >= 0:
                self._kept[index] = answers

    def of(self, index: int) -> list[Arrays]:
        """Return the named outputs of every call of a window."""
        return self._kept[index] if index in self._kept else self._run(index)[0]

    def _run(self, index: int) -> tuple[list[Arrays], Arrays]:
        first, *rest = self._windows[index].calls
        stream = ({**first, **self.starts[index]}, *rest)
        calls = Calibration(source="calibration", streams=(stream,), carried=self._carried)
        states = [out for _, out in self._carried]
        found = list(run_calls(self._session, calls, [*self._names, *states]))
        end = {into: found[-1][out] for into, out in self._carried}
        return [{name: call[name] for name in self._names} for call in found], end


def with_own_state(calibration: Calibration, model: ir.Model) -> Calibration:
    """Return samples whose carried state starts at zero in the model's own shapes, where those are others."""
    shapes = {str(value.name): value.shape for value in model.graph.inputs}
    states = {into for into, _ in calibration.carried}

    def adapted(call: Arrays) -> Arrays:
        return {name: _in_shape(array, shapes.get(name)) if name in states else array for name, array in call.items()}

    return replace(calibration, streams=tuple(tuple(map(adapted, stream)) for stream in calibration.streams))


def _in_shape(array: np.ndarray, shape: ir.Shape | None) -> np.ndarray:
    if shape is None:
        return array
    wanted = tuple(own if isinstance(own, int) else length for own, length in zip(shape, array.shape, strict=True))
    return array if wanted == array.shape else np.zeros(wanted, array.dtype)


def batch_axes(
    session: Any, window: Window, interface: ModelInterface, kinds: Sequence[str], carried: Sequence[StatePair]
) -> Mapping[str, int] | None:
    """Return along which axis of inputs, outputs and states windows may be put side by side; None when they may not.

    Proven on one call: twice the same sequences give twice the same outputs, along one axis of each.
    """
    axes = {i.name: i.labels.index(BATCH) for i in interface.inputs if BATCH in i.labels}
    axes |= {into: axes[into] for into, _ in carried if into in axes}
    call = window.calls[0]
    if not axes or any(isinstance(i.shape[axes[i.name]], int) for i in interface.inputs if i.name in axes):
        return None
    names = [*kinds, *(out for _, out in carried)]
    twice = {
        name: np.concatenate([array, array], axes[name]) if name in axes else array for name, array in call.items()
    }
    try:
        single, double = (dict(zip(names, session.run(names, feeds), strict=True)) for feeds in (call, twice))
    except RUNTIME_ERRORS:
        return None
    for name in names:
        grown = [axis for axis, (one, two) in enumerate(zip(single[name].shape, double[name].shape, strict=True))
                 if two != one]  # fmt: skip
        if len(grown) != 1:
            return None
        halves = np.split(double[name], 2, axis=grown[0])
        if any(half.shape != single[name].shape or not np.allclose(half, single[name], atol=1e-4) for half in halves):
            return None
        axes[name] = grown[0]
    return axes
