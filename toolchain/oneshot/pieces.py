"""A few calls cut into pieces, so that something can be held out where the user has one recording, or one batch.

sequences   of a call become streams of their own, where the model says the same to each alone: proven on the samples
time        a long call becomes calls that follow one another; state that is carried flows through. Without it they are
            inputs in their own right, to which the original is asked for its answers

A model that does not take pieces keeps its calls whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.axes import BATCH, TIME
from toolchain.errors import CalibrationError
from toolchain.interface import ModelInterface
from toolchain.oneshot.calibration import HELD_OUT, Arrays, Calibration, run_calls
from toolchain.runtime import open_session

ENOUGH = round(1 / HELD_OUT)  # calls: the share that is held out is one of them, or more
MOST_PIECES = 50  # of a call: five times the stretches that are held out
LEAST_STEPS = 25  # of a piece: a model that starts each at zero is there for a few steps only
SAME = 1e-4  # of the largest output: ten times what float32 kernels differ by with another batch


def in_pieces(calibration: Calibration, interface: ModelInterface, *, threads: int | None = None) -> Calibration:
    """Return the samples, cut where their calls are too few to hold any out and the model takes the pieces."""
    if calibration.num_calls >= ENOUGH:
        return calibration
    session = open_session(interface.path, threads=threads)
    streams = [part for stream in calibration.streams for part in _by_sequence(stream, calibration, interface, session)]
    apart = calibration if len(streams) == len(calibration.streams) else _of_pieces(calibration, streams)
    if apart.num_calls >= ENOUGH:
        return apart
    cut = _of_pieces(calibration, [_by_time(stream, interface) for stream in apart.streams])
    return cut if cut.num_calls > apart.num_calls and _outputs(session, cut) is not None else apart


def time_axes(call: Arrays, interface: ModelInterface) -> Mapping[str, int]:
    """Return along which axis of each input a call may be cut in time; empty where it may not.

    Every input along time must be as long, of free length, and none may state the length.
    """
    axes = {i.name: i.labels.index(TIME) for i in interface.inputs if TIME in i.labels}
    lengths = {call[name].shape[axis] for name, axis in axes.items()}
    stated = any(i.role == "lengths" for i in interface.inputs)
    return axes if len(lengths) == 1 and _are_free(axes, interface) and not stated else {}


def cut_at(call: Arrays, axes: Mapping[str, int], starts: Sequence[int]) -> tuple[Arrays, ...]:
    """Cut a call along axes into pieces that begin at `starts`, the first at 0; inputs without an axis go along."""
    if not axes:
        return (call,)
    length = max(call[name].shape[axis] for name, axis in axes.items())
    places = [np.arange(start, end) for start, end in zip(starts, [*starts[1:], length], strict=True)]
    return tuple(
        {name: array.take(place, axis=axes[name]) if name in axes else array for name, array in call.items()}
        for place in places
    )


def _are_free(axes: Mapping[str, int], interface: ModelInterface) -> bool:
    return all(not isinstance(i.shape[axes[i.name]], int) for i in interface.inputs if i.name in axes)


def _of_pieces(calibration: Calibration, streams: Iterable[tuple[Arrays, ...]]) -> Calibration:
    return replace(calibration, streams=tuple(streams), in_pieces=True)


def _by_time(stream: Sequence[Arrays], interface: ModelInterface) -> tuple[Arrays, ...]:
    pieces: list[Arrays] = []
    for call in stream:
        axes = time_axes(call, interface)
        length = max((call[name].shape[axis] for name, axis in axes.items()), default=1)
        number = max(1, min(MOST_PIECES, length // LEAST_STEPS))
        pieces += cut_at(call, axes, [length * part // number for part in range(number)])
    return tuple(pieces)


def _by_sequence(
    stream: tuple[Arrays, ...], calibration: Calibration, interface: ModelInterface, session: Any
) -> list[tuple[Arrays, ...]]:
    """Return a stream for each sequence of the batch, or the stream itself where they cannot be told apart."""
    axes = {i.name: i.labels.index(BATCH) for i in interface.inputs if BATCH in i.labels}
    sizes = {call[name].shape[axis] for call in stream for name, axis in axes.items()}
    if len(sizes) != 1 or sizes == {1} or not _are_free(axes, interface):
        return [stream]
    calls = [cut_at(call, axes, range(max(sizes))) for call in stream]
    apart = list(zip(*calls, strict=True))
    whole, *parts = (_outputs(session, replace(calibration, streams=(one,))) for one in (stream, *apart))
    return apart if whole is not None and _are_the_same(whole, parts) else [stream]


def _outputs(session: Any, calibration: Calibration) -> list[Arrays] | None:
    """Return what a model says to every call; None where it fails."""
    try:
        return list(run_calls(session, calibration, [output.name for output in session.get_outputs()]))
    except CalibrationError:
        return None


def _are_the_same(whole: Sequence[Arrays], parts: Sequence[list[Arrays] | None]) -> bool:
    """Tell whether outputs of sequences alone, put side by side, are those of the batch."""
    return all(
        _is_joined(wanted, [np.asarray(part[number][name]) for part in parts if part is not None], len(parts))
        for number, call in enumerate(whole)
        for name, wanted in call.items()
    )


def _is_joined(wanted: npt.NDArray[Any], parts: Sequence[npt.NDArray[Any]], number: int) -> bool:
    if len(parts) != number or any(part.ndim != wanted.ndim for part in parts):
        return False
    axes = [axis for axis in range(wanted.ndim) if wanted.shape[axis] != parts[0].shape[axis]]
    if len(axes) != 1 or any(part.shape != parts[0].shape for part in parts):
        return False
    joined = np.concatenate(parts, axes[0])
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    return joined.shape == wanted.shape and np.allclose(joined, wanted, rtol=0, atol=SAME * scale)
