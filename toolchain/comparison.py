"""When the outputs of two models count as equal: shape, then type, then values, of every output of every call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.errors import ParityError, ToleranceError
from toolchain.graph.branches import BranchPath

Arrays = dict[str, npt.NDArray[Any]]
Noise = Mapping[str, float]  # by output: the largest absolute difference that last bits of the weights make

# Removing a term that is exactly zero changes only the order of a sum: 3e-7 was the worst seen in 30 random float32
# networks at 100 steps. Output scale 1; larger outputs are compared relative to their largest value.
TOLERANCE = {"float16": 5e-3, "float32": 1e-5, "float64": 1e-9}
# Where a quantized graph rounds, a last bit moves an output by a step of 255, and a few of them by a few steps. That
# nothing else differs is proven without the roundings, at `TOLERANCE`.
ROUNDED = {"float16": 5e-2, "float32": 5e-2, "float64": 5e-2}
# For a model that is meant to differ, as a quantized one: shapes and types are compared, and where numbers are finite.
ANY_VALUE = dict.fromkeys(("float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool"), float("inf"))
_ABSENT_TOLERANCE = 0.0  # integers and booleans are equal or not
# A network that amplifies rounding moves its outputs by more than the tolerance when every weight moves by its last
# bit. Cutting reorders sums, which rounds otherwise by about as much. An output may then differ by so many times what
# the last bits did to it, but never by more than the second figure, relative to its largest value: beyond that the
# network's numbers say nothing, and nothing is proven.
NOISE_FACTOR = 4.0
NOISE_LIMIT = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One input shape and start: `calls` in a row, with carried state from zeros or from random numbers.

    `forced` are the branches taken whatever their conditions say, the outermost first.
    """

    steps: int
    batch: int
    calls: int
    random_state: bool
    forced: BranchPath = ()

    def __str__(self) -> str:
        """Return the case as messages name it."""
        start = " from a random state" if self.random_state else ""
        where = f" in the {self.forced[-1]}" if self.forced else ""
        return f"{self.steps} steps x batch {self.batch}{start}{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """The largest differences of one case over all outputs and calls; `rel` to the output's largest value.

    `noise` is what moving the last bits of the weights does to the reference, also relative; None if not measured.
    """

    case: Case
    max_abs_diff: float
    max_rel_diff: float
    noise: float | None = None


def compare(
    case: Case,
    expected: Sequence[Arrays],
    actual: Sequence[Arrays],
    tolerance: Mapping[str, float],
    noise: Sequence[Noise] | None = None,
) -> CaseResult:
    """Compare the outputs of every call of a case.

    Args:
        case: what both models were run with.
        expected: outputs by name for each call; only these are compared.
        actual: the other model's.
        tolerance: by type; relative to the output's largest value, and absolute below one.
        noise: of each call, where the network is known to amplify rounding.

    Raises:
        ParityError: an output differs; says which, where, and by how much. A `ToleranceError` where only numbers do.
    """
    worst_abs = worst_rel = worst_noise = 0.0
    for call, (wanted, got) in enumerate(zip(expected, actual, strict=True)):
        where = f"{case}, call {call + 1}" if case.calls > 1 else str(case)
        for name, reference in wanted.items():
            array = got.get(name)
            if array is None or array.shape != reference.shape or array.dtype != reference.dtype:
                found = "missing" if array is None else f"{array.dtype}{list(array.shape)}"
                raise ParityError(
                    f"output {name!r}: is {found} at {where}; expected {reference.dtype}"
                    f"{list(reference.shape)}. Nothing was written; please report this model."
                )
            amplified = noise[call].get(name, 0.0) if noise is not None else 0.0
            absolute, relative = _difference(name, reference, array, where, tolerance, amplified)
            worst_abs, worst_rel = max(worst_abs, absolute), max(worst_rel, relative)
            worst_noise = max(worst_noise, amplified / (_scale(reference) or 1.0))
    return CaseResult(
        case=case,
        max_abs_diff=worst_abs,
        max_rel_diff=worst_rel,
        noise=None if noise is None else worst_noise,
    )


def largest_difference(array: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Return the largest absolute difference of two arrays of one shape where both are finite; 0 for integers."""
    if array.dtype.kind != "f":
        return 0.0
    finite = np.isfinite(array) & np.isfinite(other)
    return float(np.abs(array[finite].astype(np.float64) - other[finite].astype(np.float64)).max(initial=0.0))


def _scale(array: npt.NDArray[Any]) -> float:
    """Return the largest finite absolute value."""
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) if array.dtype.kind == "f" else 0.0


def _difference(
    name: str,
    reference: npt.NDArray[Any],
    array: npt.NDArray[Any],
    where: str,
    tolerance: Mapping[str, float],
    noise: float,
) -> tuple[float, float]:
    if reference.dtype.kind not in "f":
        if not np.array_equal(reference, array) and not tolerance.get(str(reference.dtype), _ABSENT_TOLERANCE):
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
    worst, scale = largest_difference(reference, array), _scale(reference)
    allowed = tolerance.get(str(reference.dtype), _ABSENT_TOLERANCE) * max(1.0, scale)
    allowed = max(allowed, min(NOISE_FACTOR * noise, NOISE_LIMIT * scale))
    if worst > allowed:
        raise ToleranceError(
            f"output {name!r}: differs by {worst:.3g} at {where}; expected at most {allowed:.3g}. Nothing "
            "was written; please report this model."
        )
    return worst, worst / scale if scale else 0.0
