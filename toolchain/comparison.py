"""When the outputs of two models count as equal: shape, then type, then values, of every output of every call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.errors import ParityError
from toolchain.graph.branches import BranchPath

Arrays = dict[str, npt.NDArray[Any]]

# Removing a term that is exactly zero changes only the order of a sum: 3e-7 was the worst seen in 30 random float32
# networks at 100 steps. Output scale 1; larger outputs are compared relative to their largest value.
TOLERANCE = {"float16": 5e-3, "float32": 1e-5, "float64": 1e-9}
# Where a quantized graph rounds, a last bit moves an output by a step of 255, and a few of them by a few steps. That
# nothing else differs is proven without the roundings, at `TOLERANCE`.
ROUNDED = {"float16": 5e-2, "float32": 5e-2, "float64": 5e-2}
# For a model that is meant to differ, as a quantized one: shapes and types are compared, and where numbers are finite.
ANY_VALUE = dict.fromkeys(("float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool"), float("inf"))
_ABSENT_TOLERANCE = 0.0  # integers and booleans are equal or not


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
    """The largest differences of one case over all outputs and calls; `relative` to the output's largest value."""

    case: Case
    max_abs_diff: float
    max_rel_diff: float


def compare(
    case: Case, expected: Sequence[Arrays], actual: Sequence[Arrays], tolerance: Mapping[str, float]
) -> CaseResult:
    """Compare the outputs of every call of a case.

    Args:
        case: what both models were run with.
        expected: outputs by name for each call; only these are compared.
        actual: the other model's.
        tolerance: by type; relative to the output's largest value, and absolute below one.

    Raises:
        ParityError: an output differs; says which, where, and by how much.
    """
    worst_abs = worst_rel = 0.0
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
            absolute, relative = _difference(name, reference, array, where, tolerance)
            worst_abs, worst_rel = max(worst_abs, absolute), max(worst_rel, relative)
    return CaseResult(case=case, max_abs_diff=worst_abs, max_rel_diff=worst_rel)


def _difference(
    name: str, reference: npt.NDArray[Any], array: npt.NDArray[Any], where: str, tolerance: Mapping[str, float]
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
