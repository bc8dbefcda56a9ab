"""Prove that two models compute the same: both run in ONNX Runtime on the same random inputs.

Several lengths times several batch sizes; where state is carried, several calls in a row with the state fed back, from
zeros and from a random state. A state's own positions are not compared, because a removed unit has none: what counts is
every other output, over the calls.

The models are opened one after the other, so memory holds one of them at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.errors import ModelFileError, ParityError
from toolchain.graph.unrounded import write_unrounded
from toolchain.interface import Feed, ModelInterface, plan_feeds, read_interface
from toolchain.runtime import RUNTIME_ERRORS, first_line, open_session, run

Arrays = dict[str, npt.NDArray[Any]]
StatePair = tuple[str, str]

STEPS = (1, 3, 20)
BATCHES = (1, 2)
CHAINED_CALLS = 3
# With more, ONNX Runtime shares a batch out by width, and DynamicQuantizeLSTM takes a range per share: H = 384 and 256
# units that compute the same differ by 0.4 in two threads, by nothing in one.
THREADS = 1
# Removing a term that is exactly zero changes only the order of a sum: 3e-7 was the worst seen in 30 random float32
# networks at 100 steps. Output scale 1; larger outputs are compared relative to their largest value.
TOLERANCE = {"float16": 5e-3, "float32": 1e-5, "float64": 1e-9}
# Where a quantized graph rounds, a last bit moves an output by a step of 255, and a few of them by a few steps. That
# nothing else differs is proven without the roundings, at `TOLERANCE`.
ROUNDED = {"float16": 5e-2, "float32": 5e-2, "float64": 5e-2}
_ABSENT_TOLERANCE = 0.0  # integers and booleans are equal or not


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One input shape and start: `calls` in a row, with carried state from zeros or from random numbers."""

    steps: int
    batch: int
    calls: int
    random_state: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """The largest differences of one case over all outputs and calls; `relative` to the output's largest value."""

    case: Case
    max_abs_diff: float
    max_rel_diff: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far two models are apart; made only when they are equal within `TOLERANCE`.

    `rounded` is how far they are apart with the roundings of a quantized graph, relative to the output's largest value,
    where that is more than `TOLERANCE`; the rest is then without roundings. None where it is not.
    """

    max_abs_diff: float
    max_rel_diff: float
    cases: tuple[CaseResult, ...]
    rounded: float | None = None


def prove(
    reference: ModelInterface, candidate: Path, *, carried: Sequence[StatePair] = (), compact_state: bool = False
) -> Parity:
    """Verify two models; where only roundings of a quantized graph are between them, verify them without these.

    Raises:
        ParityError: they differ, see `verify`.
        ModelFileError: ONNX Runtime refuses a model, or runs the reference at none of the shapes.
    """
    try:
        return verify(reference, candidate, carried=carried, compact_state=compact_state)
    except ParityError:
        with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
            before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
            if not write_unrounded(reference.path, before) or not write_unrounded(candidate, after):
                raise
            parity = verify(read_interface(before), after, carried=carried, compact_state=compact_state)
        rounded = verify(reference, candidate, carried=carried, compact_state=compact_state, tolerance=ROUNDED)
        return replace(parity, rounded=rounded.max_rel_diff)


def verify(
    reference: ModelInterface,
    candidate: Path,
    *,
    carried: Sequence[StatePair] = (),
    compact_state: bool = False,
    seed: int = 0,
    tolerance: Mapping[str, float] = TOLERANCE,
) -> Parity:
    """Compare two models.

    Args:
        reference: the model that counts as right, as `read_interface` returns it.
        candidate: the model to prove equal to it.
        carried: state inputs with the outputs that are fed back into them.
        compact_state: the candidate's state has other shapes, so it always starts from zeros.
        seed: of the random inputs.
        tolerance: by type; relative to the output's largest value, and absolute below one.

    Raises:
        ParityError: an output differs, in shape, type or value; says which, at which input shape, and by how much.
        ModelFileError: ONNX Runtime refuses a model, or runs the reference at none of the shapes.
    """
    cases = tuple(_cases(reference, carried, compact_state))
    expected = _expected(reference, cases, carried, seed)
    session = _open_candidate(candidate)
    results = []
    for case, calls in expected.items():
        feeds = _case_feeds(reference, case, carried, seed)
        if compact_state:
            narrow = read_interface(candidate)
            feeds = [_with_zero_state(feed, narrow, case, carried) for feed in feeds]
        try:
            actual = _run_case(session, feeds, carried)
        except RUNTIME_ERRORS as error:
            raise ParityError(
                f"{candidate.name}: does not run at {_where(case)} where the original does "
                f"({first_line(error)}); expected equal outputs. Nothing was written; please report "
                "this model."
            ) from error
        results.append(_compare(case, calls, actual, tolerance))
    return Parity(
        max_abs_diff=max(result.max_abs_diff for result in results),
        max_rel_diff=max(result.max_rel_diff for result in results),
        cases=tuple(results),
    )


def _open_candidate(candidate: Path) -> Any:
    try:
        return open_session(candidate, threads=THREADS)
    except ModelFileError as error:
        raise ParityError(
            f"{candidate.name}: {str(error).partition(': ')[2]} Nothing was written; please report this model."
        ) from error


def _cases(interface: ModelInterface, carried: Sequence[StatePair], compact_state: bool) -> Iterator[Case]:
    """Yield the shapes to try; a length that the file fixes is tried at that length only."""
    steps = (interface.fixed("time"),) if interface.fixed("time") else STEPS
    batches = (interface.fixed("batch"),) if interface.fixed("batch") else BATCHES
    for length in steps:
        for batch in batches:
            assert length is not None
            assert batch is not None
            yield Case(steps=length, batch=batch, calls=CHAINED_CALLS if carried else 1, random_state=False)
            if interface.has_state and not compact_state:
                yield Case(steps=length, batch=batch, calls=1, random_state=True)


def _expected(
    reference: ModelInterface, cases: Sequence[Case], carried: Sequence[StatePair], seed: int
) -> dict[Case, list[Arrays]]:
    """Run the reference at every shape it takes; its session is closed before this returns."""
    session = open_session(reference.path, threads=THREADS)
    state_outputs = {output for _, output in carried}
    expected: dict[Case, list[Arrays]] = {}
    refused = ""
    for case in cases:
        try:
            calls = _run_case(session, _case_feeds(reference, case, carried, seed), carried)
        except RUNTIME_ERRORS as error:  # a length that this model is not made for
            refused = f"{_where(case)}: {first_line(error)}"
            continue
        expected[case] = [{name: array for name, array in call.items() if name not in state_outputs} for call in calls]
    if not expected:
        raise ModelFileError(
            f"{reference.name}: runs at none of {len(cases)} input shapes tried ({refused}); expected a model "
            "that runs on random inputs. Check its inputs with `toolchain bench`."
        )
    finite = any(np.isfinite(array).any() for calls in expected.values() for call in calls for array in call.values()
                 if array.dtype.kind in "fiub")  # fmt: skip
    if not finite:
        raise ModelFileError(
            f"{reference.name}: returns no finite number on random inputs; expected outputs that can be "
            "compared. Check the model."
        )
    return expected


def _case_feeds(interface: ModelInterface, case: Case, carried: Sequence[StatePair], seed: int) -> list[Arrays]:
    """Build the inputs of every call of a case; the same case always gets the same numbers."""
    rng = np.random.default_rng((seed, case.steps, case.batch, case.random_state))
    states = {name for name, _ in carried}
    calls = []
    for _ in range(case.calls):
        feeds = plan_feeds(interface, steps=case.steps, batch=case.batch)
        calls.append({feed.name: _array(feed, rng, case.random_state and _is_state(interface, feed, states))
                      for feed in feeds})  # fmt: skip
    return calls


def _is_state(interface: ModelInterface, feed: Feed, states: set[str]) -> bool:
    return feed.name in states or any(i.name == feed.name and i.role == "state" for i in interface.inputs)


def _array(feed: Feed, rng: np.random.Generator, random_state: bool) -> npt.NDArray[Any]:
    if feed.kind == "ids":
        return rng.integers(0, feed.value, feed.shape).astype(feed.dtype)
    if feed.kind == "normal":
        return rng.standard_normal(feed.shape).astype(feed.dtype)
    if random_state:
        return (0.5 * rng.standard_normal(feed.shape)).astype(feed.dtype)  # a hidden state stays within (-1, 1)
    return np.full(feed.shape, feed.value, dtype=feed.dtype)


def _with_zero_state(feeds: Arrays, candidate: ModelInterface, case: Case, carried: Sequence[StatePair]) -> Arrays:
    """Replace the states by zeros of the candidate's own shapes."""
    states = {name for name, _ in carried}
    own = plan_feeds(candidate, steps=case.steps, batch=case.batch)
    return {**feeds, **{feed.name: np.zeros(feed.shape, feed.dtype) for feed in own if feed.name in states}}


def _run_case(session: Any, calls: Sequence[Arrays], carried: Sequence[StatePair]) -> list[Arrays]:
    """Run calls in a row, each fed the state of the one before."""
    results: list[Arrays] = []
    for feeds in calls:
        state = {into: results[-1][out] for into, out in carried} if results else {}
        results.append(run(session, {**feeds, **state}))
    return results


def _compare(
    case: Case, expected: Sequence[Arrays], actual: Sequence[Arrays], tolerance: Mapping[str, float]
) -> CaseResult:
    """Compare shape, then type, then values of every output of every call."""
    worst_abs = worst_rel = 0.0
    for call, (wanted, got) in enumerate(zip(expected, actual, strict=True)):
        where = _where(case) + (f", call {call + 1}" if case.calls > 1 else "")
        for name, reference in wanted.items():
            array = got.get(name)
            if array is None or array.shape != reference.shape or array.dtype != reference.dtype:
                found = "missing" if array is None else f"{array.dtype}{list(array.shape)}"
                raise ParityError(
                    f"output {name!r}: is {found} at {where}; expected {reference.dtype}"
                    f"{list(reference.shape)}. Nothing was written; please report this model."
                )
            absolute, relative = _difference(name, reference, array, where, tolerance)
            worst_abs, worst_rel = max(worst_abs, absolute), max(worst_rel, relative)
    return CaseResult(case=case, max_abs_diff=worst_abs, max_rel_diff=worst_rel)


def _difference(
    name: str, reference: npt.NDArray[Any], array: npt.NDArray[Any], where: str, tolerance: Mapping[str, float]
) -> tuple[float, float]:
    if reference.dtype.kind not in "f":
        if not np.array_equal(reference, array):
            raise ParityError(
                f"output {name!r}: differs at {where}; expected equal {reference.dtype} values. Nothing was "
                "written; please report this model."
            )
        return 0.0, 0.0
    finite = np.isfinite(reference)
    if not np.array_equal(reference[~finite], array[~finite], equal_nan=True) or not np.isfinite(array[finite]).all():
        raise ParityError(
            f"output {name!r}: has infinities or NaN at {where} where the original has none, or the other "
            "way round; expected equal values. Nothing was written; please report this model."
        )
    difference = np.abs(reference[finite].astype(np.float64) - array[finite].astype(np.float64))
    worst = float(difference.max(initial=0.0))
    scale = float(np.abs(reference[finite]).max(initial=0.0))
    allowed = tolerance.get(str(reference.dtype), _ABSENT_TOLERANCE) * max(1.0, scale)
    if worst > allowed:
        raise ParityError(
            f"output {name!r}: differs by {worst:.3g} at {where}; expected at most {allowed:.3g}. Nothing "
            "was written; please report this model."
        )
    return worst, worst / scale if scale else 0.0


def _where(case: Case) -> str:
    return f"{case.steps} steps x batch {case.batch}" + (" from a random state" if case.random_state else "")
