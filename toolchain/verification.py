"""Prove that two models compute the same: both run in ONNX Runtime on the same random inputs.

Several lengths times several batch sizes; where state is carried, several calls in a row with the state fed back, from
zeros and from a random state. A state's own positions are not compared, because a removed unit has none: what counts is
every other output, over the calls.

Random inputs may never take a branch of an If, or enter a Loop. Branches and bodies in which something was cut are run
by force, in both models, with all that is around them; `runnable` says beforehand which of them the original runs at
all.

The models are opened one after the other, so memory holds one of them at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.comparison import ROUNDED, TOLERANCE, Arrays, Case, CaseResult, compare
from toolchain.errors import ModelFileError, ParityError
from toolchain.graph.branches import BranchPath, save_switched, switches
from toolchain.graph.unrounded import write_unrounded
from toolchain.interface import Feed, ModelInterface, plan_feeds, read_interface
from toolchain.runtime import RUNTIME_ERRORS, first_line, open_session, run

StatePair = tuple[str, str]

STEPS = (1, 3, 20)
BATCHES = (1, 2)
# Models of raw audio refuse so few samples: where none of STEPS runs, the first three of these that do.
FRAME_STEPS = tuple(range(32, 1601, 32))
NUM_FRAME_STEPS = 3
CHAINED_CALLS = 3
# With more, ONNX Runtime shares a batch out by width, and DynamicQuantizeLSTM takes a range per share: H = 384 and 256
# units that compute the same differ by 0.4 in two threads, by nothing in one.
THREADS = 1
# From here on weights are read where they lie: a copy of them would be most of what the proof needs in memory. Smaller
# models run as they do in use, with the copies that ONNX Runtime's kernels make.
MAPPED_BYTES = 1_000_000_000


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """On what terms two models are compared; `narrow` is the candidate's interface where its state is compact."""

    carried: Sequence[StatePair]
    seed: int
    narrow: ModelInterface | None
    tolerance: Mapping[str, float]
    without: Sequence[str] = ()


def prove(
    reference: ModelInterface,
    candidate: Path,
    *,
    carried: Sequence[StatePair] = (),
    compact_state: bool = False,
    forced: Sequence[BranchPath] = (),
) -> Parity:
    """Verify two models; where only roundings of a quantized graph are between them, verify them without these.

    The arguments are those of `verify`.

    Raises:
        ParityError: they differ, see `verify`.
        ModelFileError: ONNX Runtime refuses a model, or runs the reference at none of the shapes.
    """

    def verified(original: ModelInterface, other: Path, tolerance: Mapping[str, float] = TOLERANCE) -> Parity:
        return verify(original, other, carried=carried, compact_state=compact_state, forced=forced, tolerance=tolerance)

    try:
        return verified(reference, candidate)
    except ParityError:
        with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
            before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
            if not write_unrounded(reference.path, before) or not write_unrounded(candidate, after):
                raise
            parity = verified(read_interface(before), after)
        return replace(parity, rounded=verified(reference, candidate, ROUNDED).max_rel_diff)


def verify(
    reference: ModelInterface,
    candidate: Path,
    *,
    carried: Sequence[StatePair] = (),
    compact_state: bool = False,
    forced: Sequence[BranchPath] = (),
    without: Sequence[str] = (),
    seed: int = 0,
    tolerance: Mapping[str, float] = TOLERANCE,
) -> Parity:
    """Compare two models.

    Args:
        reference: the model that counts as right, as `read_interface` returns it.
        candidate: the model to prove equal to it.
        carried: state inputs with the outputs that are fed back into them.
        compact_state: the candidate's state has other shapes, so it always starts from zeros.
        forced: branches to run as well, whatever their conditions say; each must be `runnable`.
        without: graph optimisations that ONNX Runtime makes in neither model, see `open_session`.
        seed: of the random inputs.
        tolerance: by type; relative to the output's largest value, and absolute below one.

    Raises:
        ParityError: an output differs, in shape, type or value, or a forced branch runs in neither model; says which,
            at which input shape, and by how much.
        ModelFileError: ONNX Runtime refuses a model, or runs the reference at none of the shapes.
    """
    expected = _expected(reference, carried, compact_state, seed, without=without)
    narrow = read_interface(candidate) if compact_state else None
    terms = _Terms(carried=carried, seed=seed, narrow=narrow, tolerance=tolerance, without=without)
    results = _compared(reference, candidate, expected, terms)
    if forced:
        results += _forced_results(reference, candidate, forced, terms)
    return Parity(
        max_abs_diff=max(result.max_abs_diff for result in results),
        max_rel_diff=max(result.max_rel_diff for result in results),
        cases=tuple(results),
    )


def _forced_results(
    reference: ModelInterface, candidate: Path, paths: Sequence[BranchPath], terms: _Terms
) -> list[CaseResult]:
    """Compare copies of both models whose conditions can be set; every forced branch must run somewhere."""
    names = _names(paths)
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        original, cut = Path(folder) / "original.onnx", Path(folder) / "cut.onnx"
        if not (save_switched(reference.path, original, names) and save_switched(candidate, cut, names)):
            raise ParityError(_unproven(candidate, paths))
        switched = replace(reference, path=original)
        expected = _expected(
            switched, terms.carried, terms.narrow is not None, terms.seed, paths, without=terms.without
        )
        missing = set(paths) - {case.forced for case in expected}
        if missing:
            raise ParityError(_unproven(candidate, missing))
        return _compared(reference, cut, expected, terms, names)


def runnable(
    reference: ModelInterface, paths: Sequence[BranchPath], *, carried: Sequence[StatePair] = (), seed: int = 0
) -> frozenset[BranchPath]:
    """Return the branches that the model runs, when they are forced, at one of the input shapes at least."""
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        switched = Path(folder) / "switched.onnx"
        if not save_switched(reference.path, switched, _names(paths)):
            return frozenset()
        try:
            expected = _expected(replace(reference, path=switched), carried, False, seed, paths)
        except ModelFileError:  # ONNX Runtime does not take the model
            return frozenset()
    return frozenset(case.forced for case in expected)


def _names(paths: Collection[BranchPath]) -> list[str]:
    return sorted({branch.node for path in paths for branch in path})


def _unproven(candidate: Path, paths: Collection[BranchPath]) -> str:
    branches = ", ".join(sorted(str(path[-1]) for path in paths))
    return (
        f"{candidate.name}: what was cut in the {branches} could not be run; expected a run of each. Nothing was "
        "written; please report this model."
    )


def _compared(
    reference: ModelInterface,
    candidate: Path,
    expected: dict[Case, list[Arrays]],
    terms: _Terms,
    names: Sequence[str] = (),
) -> list[CaseResult]:
    """Run a candidate in every case that the reference ran in."""
    session = _open_candidate(candidate, mapped=reference.file_bytes >= MAPPED_BYTES, without=terms.without)
    results = []
    for case, calls in expected.items():
        feeds = _case_feeds(reference, case, terms.carried, terms.seed, names)
        if terms.narrow is not None:
            feeds = [_with_zero_state(feed, terms.narrow, case, terms.carried) for feed in feeds]
        try:
            actual = _run_case(session, feeds, terms.carried)
        except RUNTIME_ERRORS as error:
            raise ParityError(
                f"{candidate.name}: does not run at {case} where the original does "
                f"({first_line(error)}); expected equal outputs. Nothing was written; please report "
                "this model."
            ) from error
        results.append(compare(case, calls, actual, terms.tolerance))
    return results


def _open_candidate(candidate: Path, *, mapped: bool, without: Sequence[str]) -> Any:
    try:
        return open_session(candidate, threads=THREADS, mapped=mapped, without=without)
    except ModelFileError as error:
        raise ParityError(
            f"{candidate.name}: {str(error).partition(': ')[2]} Nothing was written; please report this model."
        ) from error


def _lengths(interface: ModelInterface) -> Iterator[tuple[int, ...]]:
    """Yield the lengths to try, and more in case none of them runs; one that the file fixes is the only one."""
    fixed = interface.fixed("time")
    yield (fixed,) if fixed else STEPS
    if not fixed:
        yield from ((length,) for length in FRAME_STEPS)


def _cases(
    interface: ModelInterface,
    lengths: Sequence[int],
    carried: Sequence[StatePair],
    compact_state: bool,
    forced: BranchPath,
) -> Iterator[Case]:
    """Yield the shapes to try; a batch size that the file fixes is tried at that size only."""
    fixed = interface.fixed("batch")
    calls = CHAINED_CALLS if carried else 1
    for steps in lengths:
        for batch in (fixed,) if fixed else BATCHES:
            yield Case(steps=steps, batch=batch, calls=calls, random_state=False, forced=forced)
            if interface.has_state and not compact_state:
                yield Case(steps=steps, batch=batch, calls=1, random_state=True, forced=forced)


def _expected(
    reference: ModelInterface,
    carried: Sequence[StatePair],
    compact_state: bool,
    seed: int,
    paths: Sequence[BranchPath] = (),
    *,
    without: Sequence[str] = (),
) -> dict[Case, list[Arrays]]:
    """Run the reference at every shape it takes, on every path; its session is closed before this returns.

    Without paths it must run at one shape at least, and return numbers; a path may run at none.
    """
    session = open_session(
        reference.path, threads=THREADS, mapped=reference.file_bytes >= MAPPED_BYTES, without=without
    )
    names = _names(paths)
    expected: dict[Case, list[Arrays]] = {}
    refused: list[str] = []
    for path in paths or [()]:
        ran: set[int] = set()
        for lengths in _lengths(reference):
            for case in _cases(reference, lengths, carried, compact_state, path):
                try:
                    calls = _run_case(session, _case_feeds(reference, case, carried, seed, names), carried)
                except RUNTIME_ERRORS as error:  # a length that this model is not made for
                    refused.append(f"{case}: {first_line(error)}")
                    continue
                ran.add(case.steps)
                expected[case] = [_without_state(call, carried) for call in calls]
            if len(ran) >= (1 if len(lengths) > 1 else NUM_FRAME_STEPS):
                break
    if not paths:
        _check_comparable(reference, expected, refused)
    return expected


def _without_state(outputs: Arrays, carried: Sequence[StatePair]) -> Arrays:
    states = {output for _, output in carried}
    return {name: array for name, array in outputs.items() if name not in states}


def _check_comparable(reference: ModelInterface, expected: dict[Case, list[Arrays]], refused: Sequence[str]) -> None:
    if not expected:
        raise ModelFileError(
            f"{reference.name}: runs at none of {len(refused)} input shapes tried ({refused[-1]}); expected a model "
            "that runs on random inputs. Check its inputs with `toolchain bench`."
        )
    finite = any(np.isfinite(array).any() for calls in expected.values() for call in calls for array in call.values()
                 if array.dtype.kind in "fiub")  # fmt: skip
    if not finite:
        raise ModelFileError(
            f"{reference.name}: returns no finite number on random inputs; expected outputs that can be "
            "compared. Check the model."
        )


def _case_feeds(
    interface: ModelInterface, case: Case, carried: Sequence[StatePair], seed: int, names: Sequence[str] = ()
) -> list[Arrays]:
    """Build the inputs of every call of a case; the same case always gets the same numbers.

    `names` are the If nodes of a model that `save_switched` wrote.
    """
    rng = np.random.default_rng((seed, case.steps, case.batch, case.random_state))
    states = {name for name, _ in carried}
    forced = {name: np.array(on) for name, on in switches(names, case.forced).items()}
    calls = []
    for _ in range(case.calls):
        feeds = plan_feeds(interface, steps=case.steps, batch=case.batch)
        random = {feed.name for feed in feeds if case.random_state and _is_state(interface, feed, states)}
        arrays = {feed.name: feed_array(feed, rng, random_state=feed.name in random) for feed in feeds}
        calls.append(arrays | forced)
    return calls


def _is_state(interface: ModelInterface, feed: Feed, states: set[str]) -> bool:
    return feed.name in states or any(i.name == feed.name and i.role == "state" for i in interface.inputs)


def feed_array(feed: Feed, rng: np.random.Generator, *, random_state: bool = False) -> npt.NDArray[Any]:
    """Return random contents for one input; states are zero unless asked otherwise."""
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
