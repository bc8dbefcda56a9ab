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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.comparison import ROUNDED, TOLERANCE, Arrays, Case, CaseResult, compare, largest_difference
from toolchain.errors import ModelFileError, ParityError, ToleranceError
from toolchain.graph.branches import BranchPath, save_switched
from toolchain.graph.last_bits import write_moved
from toolchain.graph.program import StatePair
from toolchain.graph.unrounded import write_unrounded
from toolchain.interface import ModelInterface, read_interface
from toolchain.parity_runs import (
    NUM_FRAME_STEPS,
    case_feeds,
    cases_to_try,
    lengths_to_try,
    run_case,
    with_zero_state,
    without_state,
)
from toolchain.runtime import RUNTIME_ERRORS, first_line, open_session

# With more, ONNX Runtime shares a batch out by width, and DynamicQuantizeLSTM takes a range per share: H = 384 and 256
# units that compute the same differ by 0.4 in two threads, by nothing in one.
THREADS = 1
# From here on weights are read where they lie: a copy of them would be most of what the proof needs in memory. Smaller
# models run as they do in use, with the copies that ONNX Runtime's kernels make.
MAPPED_BYTES = 1_000_000_000
NOISE_DRAWS = 3  # of the signs with which last bits are moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far two models are apart; made only when they are equal within `TOLERANCE`.

    `rounded` is how far they are apart with the roundings of a quantized graph, relative to the output's largest value,
    where that is more than `TOLERANCE`; the rest is then without roundings. None where it is not.

    `amplified` is how far the reference's own outputs move, relative to their largest value, when every weight moves by
    its last bit, where the models are apart by more than `TOLERANCE` because the network amplifies rounding.
    """

    max_abs_diff: float
    max_rel_diff: float
    cases: tuple[CaseResult, ...]
    rounded: float | None = None
    amplified: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """On what terms two models are compared; `narrow` is the candidate's interface where its state is compact."""

    carried: Sequence[StatePair]
    seed: int
    narrow: ModelInterface | None
    tolerance: Mapping[str, float]
    without: Sequence[str] = ()
    amplifies: bool = False


def prove(
    reference: ModelInterface,
    candidate: Path,
    *,
    carried: Sequence[StatePair] = (),
    compact_state: bool = False,
    forced: Sequence[BranchPath] = (),
) -> Parity:
    """Verify two models; where only roundings can be between them, find out what roundings do.

    Those of a quantized graph are taken out of both models. Those of a network that amplifies the last bits of its
    numbers are measured on the reference, see `verify`. The arguments are those of `verify`.

    Raises:
        ParityError: they differ, see `verify`.
        ModelFileError: ONNX Runtime refuses a model, or runs the reference at none of the shapes.
    """

    def verified(original: ModelInterface, other: Path, **terms: Any) -> Parity:
        return verify(original, other, carried=carried, compact_state=compact_state, forced=forced, **terms)

    def verified_or_amplified(original: ModelInterface, other: Path) -> Parity:
        try:
            return verified(original, other)
        except ToleranceError:
            return verified(original, other, amplifies=True)

    try:
        return verified(reference, candidate)
    except ParityError:
        with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
            before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
            if not write_unrounded(reference.path, before) or not write_unrounded(candidate, after):
                return verified_or_amplified(reference, candidate)
            parity = verified_or_amplified(read_interface(before), after)
        return replace(parity, rounded=verified(reference, candidate, tolerance=ROUNDED).max_rel_diff)


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
    amplifies: bool = False,
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
        amplifies: an output may also differ by `NOISE_FACTOR` times what it differs by when the last bits of the
            reference's weights are moved, up to `NOISE_LIMIT`.

    Raises:
        ParityError: an output differs, in shape, type or value, or a forced branch runs in neither model; says which,
            at which input shape, and by how much. A `ToleranceError` where only numbers differ.
        ModelFileError: ONNX Runtime refuses a model, or runs the reference at none of the shapes.
    """
    expected = _expected(reference, carried, compact_state, seed, without=without)
    narrow = read_interface(candidate) if compact_state else None
    terms = _Terms(carried=carried, seed=seed, narrow=narrow, tolerance=tolerance, without=without, amplifies=amplifies)
    results = _compared(reference, candidate, expected, terms)
    if forced:
        results += _forced_results(reference, candidate, forced, terms)
    return Parity(
        max_abs_diff=max(result.max_abs_diff for result in results),
        max_rel_diff=max(result.max_rel_diff for result in results),
        cases=tuple(results),
        amplified=max(result.noise or 0.0 for result in results) if amplifies else None,
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
    noise = _noise(reference, expected, terms, names) if terms.amplifies else {}
    session = _open_candidate(candidate, mapped=reference.file_bytes >= MAPPED_BYTES, without=terms.without)
    results = []
    for case, calls in expected.items():
        feeds = case_feeds(reference, case, terms.carried, terms.seed, names)
        if terms.narrow is not None:
            feeds = [with_zero_state(feed, terms.narrow, case, terms.carried) for feed in feeds]
        try:
            actual = run_case(session, feeds, terms.carried)
        except RUNTIME_ERRORS as error:
            raise ParityError(
                f"{candidate.name}: does not run at {case} where the original does "
                f"({first_line(error)}); expected equal outputs. Nothing was written; please report "
                "this model."
            ) from error
        results.append(compare(case, calls, actual, terms.tolerance, noise.get(case)))
    return results


def _noise(
    reference: ModelInterface, expected: Mapping[Case, Sequence[Arrays]], terms: _Terms, names: Sequence[str]
) -> dict[Case, list[dict[str, float]]]:
    """Return by how much each output of each call moves, at most, when last bits of the weights are moved."""
    noise: dict[Case, list[dict[str, float]]] = {case: [{} for _ in calls] for case, calls in expected.items()}
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        for draw in range(NOISE_DRAWS):
            moved = Path(folder) / f"moved-{draw}.onnx"
            write_moved(reference.path, moved, seed=draw)
            session = open_session(moved, threads=THREADS, without=terms.without)
            for case, calls in expected.items():
                feeds = case_feeds(reference, case, terms.carried, terms.seed, names)
                for call, outputs in enumerate(run_case(session, feeds, terms.carried)):
                    for name, before in calls[call].items():
                        if outputs[name].shape != before.shape:  # it depends on values: last bits excuse nothing
                            continue
                        found = largest_difference(before, outputs[name])
                        noise[case][call][name] = max(found, noise[case][call].get(name, 0.0))
    return noise


def _open_candidate(candidate: Path, *, mapped: bool, without: Sequence[str]) -> Any:
    try:
        return open_session(candidate, threads=THREADS, mapped=mapped, without=without)
    except ModelFileError as error:
        raise ParityError(
            f"{candidate.name}: {str(error).partition(': ')[2]} Nothing was written; please report this model."
        ) from error


def check_runs(model: ModelInterface) -> None:
    """Check that ONNX Runtime takes a model.

    Raises:
        ModelFileError: it does not.
    """
    open_session(model.path, threads=THREADS, mapped=model.file_bytes >= MAPPED_BYTES)


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
        for lengths in lengths_to_try(reference):
            for case in cases_to_try(reference, lengths, carried, compact_state, path):
                try:
                    calls = run_case(session, case_feeds(reference, case, carried, seed, names), carried)
                except RUNTIME_ERRORS as error:  # a length that this model is not made for
                    refused.append(f"{case}: {first_line(error)}")
                    continue
                ran.add(case.steps)
                expected[case] = [without_state(call, carried) for call in calls]
            if len(ran) >= (1 if len(lengths) > 1 else NUM_FRAME_STEPS):
                break
    if not paths:
        _check_comparable(reference, expected, refused)
    return expected


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
