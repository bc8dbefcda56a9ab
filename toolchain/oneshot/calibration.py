"""Calibration samples: inputs of the kind that the model will see, in the order in which it sees them.

    an .npz file      one array per graph input, leading axis = samples; each sample is one call
    a folder          of such files, each one a stream of its own
    path.py:function  a generator of calls: {input name: array}

State that the model carries is fed back from call to call within a stream; inputs that hold state may be left out and
start at zero.

A part of the calls is held out: the last fifth of every tenth of them, so that both parts see the whole recording.
"""

from __future__ import annotations

import runpy
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.axes import BATCH, TIME
from toolchain.errors import CalibrationError
from toolchain.interface import ModelInput, ModelInterface, plan_feeds
from toolchain.parity_runs import feed_array
from toolchain.runtime import RUNTIME_ERRORS, first_line

Arrays = dict[str, npt.NDArray[Any]]
StatePair = tuple[str, str]
HELD_OUT = 0.2  # of the calls: what no decision has seen, for the error that is reported
# Stretches that are held out, at most: a recording that ends in silence has them elsewhere too, and few have a
# neighbour on the other side, which is much like them.
PARTS = 10
RANDOM = "random inputs"
RANDOM_CALLS, RANDOM_STEPS, RANDOM_BATCH = 20, 35, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Calls by stream; `carried` pairs are fed back within one. `source` is what the user named.

    `counted` says of each call whether it counts; one that does not is there for the state that it leaves to the next.
    None counts all. `in_pieces` tells whether calls are pieces of those that the user gave.
    """

    source: str
    streams: tuple[tuple[Arrays, ...], ...]
    carried: tuple[StatePair, ...]
    counted: tuple[tuple[bool, ...], ...] | None = None
    in_pieces: bool = False

    @property
    def marks(self) -> tuple[tuple[bool, ...], ...]:
        """Whether each call of each stream counts."""
        return self.counted or tuple((True,) * len(stream) for stream in self.streams)

    @property
    def num_calls(self) -> int:
        """Calls that count, over all streams."""
        return sum(map(sum, self.marks))


def split(calibration: Calibration) -> tuple[Calibration, Calibration]:
    """Return what decisions are made on, and what their error is measured on; where state is carried it flows through.

    With a single call there is nothing to hold out: both parts are that call.
    """
    total = calibration.num_calls
    if total < 2:
        return calibration, calibration
    number = max(1, round(HELD_OUT * total))
    parts = min(PARTS, number)
    held = np.zeros(total, dtype=np.bool_)
    for part in range(parts):
        end = total * (part + 1) // parts
        held[end - number * (part + 1) // parts + number * part // parts : end] = True
    return _only(calibration, ~held), _only(calibration, held)


def _only(calibration: Calibration, chosen: npt.NDArray[np.bool_]) -> Calibration:
    """Return the chosen calls, of all that there are in their order, with those whose state they need."""
    streams, counted = [], []
    ends = np.cumsum([len(stream) for stream in calibration.streams])
    for stream, marks in zip(calibration.streams, np.split(chosen, ends[:-1]), strict=True):
        places = np.flatnonzero(marks)
        if places.size:
            needed = np.arange(places[-1] + 1) if calibration.carried else places
            streams.append(tuple(stream[place] for place in needed))
            counted.append(tuple(marks[needed].tolist()))
    return replace(calibration, streams=tuple(streams), counted=tuple(counted))


def stretches(stream: Sequence[Arrays], marks: Sequence[bool]) -> Iterator[tuple[bool, tuple[Arrays, ...]]]:
    """Yield consecutive calls of a stream that all count, or all do not, and which it is."""
    for counts, group in groupby(zip(marks, stream, strict=True), key=lambda pair: pair[0]):
        yield counts, tuple(call for _, call in group)


def limited(calibration: Calibration, calls: int) -> Calibration:
    """Return about so many calls, evenly over their order; where state is carried, consecutive ones from its start."""
    if calibration.num_calls <= calls:
        return calibration
    found = [group for stream, marks in zip(calibration.streams, calibration.marks, strict=True)
             for counts, group in stretches(stream, marks) if counts]  # fmt: skip
    if not calibration.carried:
        found = [(call,) for group in found for call in group]
    chosen = np.linspace(0, len(found) - 1, min(calls, len(found))).round().astype(int)
    streams = [found[index] for index in chosen]
    share = calls / sum(map(len, streams))
    streams = [stream[: max(1, round(share * len(stream)))] for stream in streams]
    return replace(calibration, streams=tuple(streams), counted=None)


def run_calls(session: Any, calibration: Calibration, names: Sequence[str]) -> Iterator[Arrays]:
    """Run every call, state fed back within a stream; yield the named inputs and outputs of each that counts.

    Raises:
        CalibrationError: the model fails on a sample.
    """
    states = {out for _, out in calibration.carried}
    fetched = [value.name for value in session.get_outputs() if value.name in {*names, *states}]
    for stream, marks in zip(calibration.streams, calibration.marks, strict=True):
        state: Arrays = {}
        for number, (call, counts) in enumerate(zip(stream, marks, strict=True)):
            feeds = {**call, **state}
            try:
                values = dict(zip(fetched, session.run(fetched, feeds), strict=True))
            except RUNTIME_ERRORS as error:
                raise CalibrationError(
                    f"{calibration.source}: the model fails on call {number} ({first_line(error)}); expected samples "
                    "that it accepts. Check their shapes and contents."
                ) from error
            state = {into: values[out] for into, out in calibration.carried}
            if counts:
                yield {name: values[name] if name in values else feeds[name] for name in names}


def random_calibration(interface: ModelInterface, carried: Sequence[StatePair], *, seed: int = 0) -> Calibration:
    """Return random inputs of the right shapes, for want of samples: one stream."""
    rng = np.random.default_rng(seed)
    feeds = plan_feeds(interface, steps=RANDOM_STEPS, batch=RANDOM_BATCH)
    calls = tuple({feed.name: feed_array(feed, rng) for feed in feeds} for _ in range(RANDOM_CALLS))
    return Calibration(source=RANDOM, streams=(calls,), carried=tuple(carried))


def read_calibration(source: str, interface: ModelInterface, carried: Sequence[StatePair]) -> Calibration:
    """Read samples for a model.

    Args:
        source: an .npz file, a folder of them, or `path.py:function`.
        interface: of the model that will be fed.
        carried: state pairs that are fed back from call to call.

    Raises:
        CalibrationError: nothing is there, or a name, shape, number type or value does not fit the model.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if not files:
            raise CalibrationError(f"{source}: holds no .npz file; expected one per stream. Write some there.")
        streams = [_read_file(file, interface) for file in files]
    elif path.suffix == ".npz":
        streams = [_read_file(path, interface)]
    elif ".py:" in source:
        streams = [tuple(_generated(source))]
    else:
        raise CalibrationError(
            f"{source}: is no calibration; expected an .npz file, a folder of them, or path.py:function. "
            "Check the path."
        )
    full = tuple(tuple(_call(call, interface, source, number) for number, call in enumerate(stream))
                 for stream in streams)  # fmt: skip
    if not any(full):
        raise CalibrationError(f"{source}: holds no sample; expected at least one. Add samples.")
    return Calibration(source=source, streams=full, carried=tuple(carried))


def _read_file(path: Path, interface: ModelInterface) -> tuple[Mapping[str, Any], ...]:
    """Cut the arrays of a file into calls."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise CalibrationError(f"{path}: no such file; expected an .npz of samples. Check the path.") from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CalibrationError(
            f"{path}: cannot be read as .npz ({error}); expected one array per input. Write it with numpy.savez."
        ) from error
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        found = ", ".join(f"{name} {count}" for name, count in counts.items()) or "no array"
        raise CalibrationError(
            f"{path}: the arrays hold different numbers of samples, or none ({found}); expected the same number on "
            "each leading axis. Write one row per sample."
        )
    inputs = {model_input.name: model_input for model_input in interface.inputs}
    (count,) = set(counts.values())
    return tuple(
        {name: _sample(array, index, inputs.get(name)) for name, array in arrays.items()} for index in range(count)
    )


def _sample(array: npt.NDArray[Any], index: int, model_input: ModelInput | None) -> npt.NDArray[Any]:
    """Return one sample; an array with as many axes as the input has is a batch of samples, cut into batches of one."""
    batched = model_input is not None and array.ndim == len(model_input.shape) and array.ndim > 0
    return array[index : index + 1] if batched else array[index]


def _generated(source: str) -> Iterator[Mapping[str, Any]]:
    """Yield the calls of a user's generator.

    Raises:
        CalibrationError: the file or function is missing, or raises.
    """
    file, _, function = source.rpartition(":")
    try:
        made = runpy.run_path(file)[function]()
        for call in made:
            if not isinstance(call, Mapping):
                raise TypeError(f"yielded a {type(call).__name__}, not a dict of arrays")
            yield call
    except Exception as error:
        raise CalibrationError(
            f"{source}: {type(error).__name__}: {error}; expected a function that yields {{input name: array}}. "
            "Run it on its own to find the fault."
        ) from error


def _call(call: Mapping[str, Any], interface: ModelInterface, source: str, number: int) -> Arrays:
    """Check one call against the model and complete it with zero states."""
    inputs = {model_input.name: model_input for model_input in interface.inputs}
    unknown = sorted(set(call) - set(inputs))
    if unknown:
        raise CalibrationError(
            f"{source}: names {unknown[0]!r}, which is no input of the model; expected {', '.join(inputs)}. Rename it."
        )
    arrays = {name: _checked(np.asarray(array), inputs[name], source, number) for name, array in call.items()}
    lengths = {label: array.shape[axis] for name, array in arrays.items()
               for axis, label in enumerate(inputs[name].labels) if label in (TIME, BATCH)}  # fmt: skip
    feeds = plan_feeds(interface, steps=lengths.get(TIME, 1), batch=lengths.get(BATCH, 1))
    for feed in feeds:
        if feed.name not in arrays:
            if inputs[feed.name].role != "state":
                raise CalibrationError(
                    f"{source}: has nothing for input {feed.name!r}; expected an array for each input that is no "
                    "state. Add it."
                )
            arrays[feed.name] = np.zeros(feed.shape, feed.dtype)
    return arrays


def _checked(array: npt.NDArray[Any], model_input: ModelInput, source: str, number: int) -> npt.NDArray[Any]:
    """Return an array in the input's number type."""
    shape = model_input.shape
    fits = array.ndim == len(shape) and all(
        length == want for length, want in zip(array.shape, shape, strict=True) if isinstance(want, int)
    )
    where = f"{source}: sample {number} of {model_input.name!r}"
    if not fits or not array.size:
        wanted = ", ".join(str(length or "?") for length in shape)
        raise CalibrationError(f"{where} has shape {array.shape}; expected [{wanted}]. Correct the samples.")
    if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and np.dtype(model_input.dtype).kind != "f"):
        raise CalibrationError(f"{where} is {array.dtype}; expected {model_input.dtype}. Convert the samples.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CalibrationError(f"{where} holds NaN or infinity; expected finite numbers. Clean the samples.")
    if model_input.rows is not None and not (int(array.min()) >= 0 and int(array.max()) < model_input.rows):
        raise CalibrationError(
            f"{where} holds ids from {array.min()} to {array.max()}; expected 0 to {model_input.rows - 1}. "
            "Check the vocabulary."
        )
    return array.astype(model_input.dtype, copy=False)
