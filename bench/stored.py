"""Two stored results, row by row: what `toolchain bench compare A.json B.json` says.

Rows belong together when model, steps, batch, threads, device and method are equal. Both were measured at different
times, so nothing cancels, and the interval comes from resampling each on its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.errors import BenchError

from .report import SCHEMA, Row
from .statistics import Process, Speedup, compare

KEY = ("model", "steps", "batch", "threads", "device", "method")
# What must be equal for a ratio of times to say something about the models. Versions may differ: often they are the
# question.
MACHINE_FACTS = ("cpu_model", "cpus", "machine", "emulated", "governor")
VERSIONS = ("onnxruntime", "numpy", "python", "torch", "openvino")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResult:
    """A result as `--json` wrote it."""

    path: Path
    machine: dict[str, Any]
    rows: tuple[Row, ...]
    content: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Rows that both results have, what only one has, and which versions changed.

    `rows` have the fields of `KEY`, `before_s` and `after_s` (medians), and the speedup of the second result.
    """

    rows: tuple[Row, ...]
    only_one: tuple[str, ...]
    changed_versions: tuple[str, ...]


def read_result_file(path: Path) -> StoredResult:
    """Read what `toolchain bench --json` wrote.

    Raises:
        BenchError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror}); expected a result. Check the path.") from error
    except ValueError as error:
        raise BenchError(f"{path}: is not JSON ({error}); expected a result of `toolchain bench --json`.") from error
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list) or "machine" not in content:
        raise BenchError(f"{path}: has no rows; expected a result of `toolchain bench --json`. Measure again.")
    if content.get("schema") != SCHEMA:
        raise BenchError(
            f"{path}: has schema {content.get('schema')!r}; expected {SCHEMA}. Measure again with this version."
        )
    rows = tuple(content["rows"])
    missing = [key for key in KEY if any(key not in row for row in rows)]
    if missing or not rows:
        lacking = f"rows without {missing[0]!r}" if missing else "no rows"
        raise BenchError(f"{path}: holds {lacking}; expected a result of `toolchain bench --json`. Measure again.")
    return StoredResult(path=path, machine=content["machine"], rows=rows, content=content)


def compare_stored(before: StoredResult, after: StoredResult, *, seed: int = 0) -> Comparison:
    """Compare the rows that two results have in common.

    Raises:
        BenchError: one was not measured, they come from different machines, or have no row in common.
    """
    _check_measured(before, after)
    _check_machines(before, after)
    known = {_key(row): row for row in reversed(before.rows) if row.get("samples_s")}
    others = {_key(row): row for row in reversed(after.rows) if row.get("samples_s")}
    common = [key for key in map(_key, after.rows) if key in known and key in others]
    if not common:
        raise BenchError(
            f"{after.path}: has no row in common with {before.path}; expected equal model, steps, batch, threads, "
            "device and method, with samples. Measure the same models at the same shapes."
        )
    return Comparison(
        rows=tuple(_row(known[key], others[key], seed) for key in dict.fromkeys(common)),
        only_one=tuple(
            f"{_describe(key)} is in {result.path} only"
            for result, mine, theirs in ((before, known, others), (after, others, known))
            for key in dict.fromkeys(map(_key, result.rows))
            if key in mine and key not in theirs
        ),
        changed_versions=tuple(_changed_versions(before.machine, after.machine)),
    )


def rounds_of(row: Row) -> list[Process]:
    """Return a stored row's samples, cut into rounds again: seconds, one array per round, per process."""
    return [
        np.split(np.asarray(samples, dtype=np.float64), np.cumsum(lengths)[:-1])
        for samples, lengths in zip(row["samples_s"], row["rounds"], strict=True)
    ]


def _check_measured(before: StoredResult, after: StoredResult) -> None:
    for result in (before, after):
        if not any(row.get("samples_s") for row in result.rows):
            raise BenchError(
                f"{result.path}: its rows are {result.rows[0]['method']} and hold no samples; expected measured ones, "
                "because a ratio of anything else is no speedup. Measure with --device cpu or ssh://user@host."
            )


def _check_machines(before: StoredResult, after: StoredResult) -> None:
    facts = {
        fact: (before.machine.get(fact), after.machine.get(fact))
        for fact in MACHINE_FACTS
        if before.machine.get(fact) != after.machine.get(fact)
    }
    allowed = [len(result.machine.get("cpus_allowed") or ()) for result in (before, after)]
    if allowed[0] != allowed[1]:
        facts["cpus_allowed"] = (allowed[0], allowed[1])
    if facts:
        listed = ", ".join(f"{fact} {one!r} and {other!r}" for fact, (one, other) in facts.items())
        raise BenchError(
            f"{after.path}: was measured on another machine than {before.path} ({listed}); expected the same, because "
            "a ratio across machines compares the machines. Measure both models on one of them."
        )


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in KEY)


def _row(before: Row, after: Row, seed: int) -> Row:
    speedup: Speedup = compare(rounds_of(before), rounds_of(after), seed=seed, paired=False)
    return {
        **{key: after[key] for key in KEY},
        "before_s": before["p50_s"],
        "after_s": after["p50_s"],
        "speedup": speedup.ratio,
        "speedup_low": speedup.low,
        "speedup_high": speedup.high,
        "significant": speedup.significant,
    }


def _describe(key: Sequence[Any]) -> str:
    model, steps, batch, threads, device, method = key
    return f"{model} at {steps} steps x {batch}, {threads} threads, {device}, {method}"


def _changed_versions(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for name in VERSIONS:
        if before.get(name) != after.get(name):
            yield f"{name} {before.get(name) or 'none'} -> {after.get(name) or 'none'}"
