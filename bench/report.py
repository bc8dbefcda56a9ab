"""From a measurement to rows, and from rows to files. A row is one model at one shape and thread count.

JSON: {"schema": 1, "machine": {…}, "rows": [{…}, …], "models": {…}, "rooflines": […]}, with
the raw samples of each process, so that every statistic in it can be derived again. CSV: the same rows without the
samples.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolchain.errors import OutputError
from toolchain.files import write_text
from toolchain.interface import ModelInterface

from .costs import ModelCosts
from .measure import Measurement, Run
from .plan import BenchPlan, Case
from .roofline import Roofline, limit_s
from .statistics import FloatArray, Process, Speedup, bootstrap_medians, describe, interval, precision, speedup_of

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

SCHEMA = 1
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What rows say besides times.

    Attributes:
        method: how the times came about.
        costs: of a model in a case, by both numbers.
        rooflines: by number of threads.
        differences: of a model's outputs from ONNX Runtime's, where another runtime runs it.
    """

    method: str = "measured"
    costs: Mapping[tuple[int, int], ModelCosts] = field(default_factory=dict)
    rooflines: Mapping[int, Roofline] = field(default_factory=dict)
    differences: Mapping[int, float] = field(default_factory=dict)


def build_rows(measurement: Measurement, context: Context | None = None) -> list[Row]:
    """Derive every statistic; within a case the baseline's row comes first."""
    plan, context = measurement.plan, context or Context()
    rows = []
    for number, case in enumerate(plan.cases):
        rounds = [_rounds(measurement.of(number, member)) for member in range(len(plan.models))]
        medians = [bootstrap_medians(each, seed=plan.effort.seed) for each in rounds]
        for member, model in enumerate(plan.models):
            runs = measurement.of(number, member)
            speedup = Speedup(ratio=1.0, low=1.0, high=1.0)  # of the baseline over itself, by definition
            if member > 0:
                speedup = speedup_of(rounds[0], rounds[member], medians[0], medians[member])
            latency = _latency_fields(case, runs, medians[member])
            rows.append(
                {
                    "model": model.name,
                    "baseline": plan.models[0].name,
                    "is_baseline": member == 0,
                    "device": plan.device,
                    "method": context.method,
                    **_case_fields(case, streams=plan.streams(case, model)),
                    **latency,
                    **_speedup_fields(speedup),
                    **_precision_fields(plan, speedup, latency, alone=len(plan.models) == 1),
                    **_model_fields(model, runs),
                    **_cost_fields(
                        context.costs.get((number, member)), context.rooflines.get(case.threads), latency["p50_s"]
                    ),
                    "runtime": plan.runtime(member),
                    "outputs_differ_by": context.differences.get(member),
                    "inputs": None if plan.inputs is None else plan.inputs.name,
                    "protocol": plan.protocol,
                    "seed": plan.effort.seed,
                }
            )
    return rows


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the rows as a data frame, one column per field."""
    import pandas as pd

    return pd.DataFrame(list(rows))


def check_writable(path: Path) -> None:
    """Raise OutputError now rather than after the measurement."""
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; expected a file name. Name a file inside it.")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: its folder {path.parent} does not exist. Create it first.")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: its folder {path.parent} is not writable. Choose another place.")


def write_json(
    path: Path,
    machine: dict[str, Any],
    rows: Sequence[Row],
    *,
    layers: Mapping[str, ModelCosts] | None = None,
    rooflines: Sequence[Roofline] = (),
) -> None:
    """Write rows and machine as JSON; the file appears complete or not at all.

    Args:
        path: the file.
        machine: what the runner says about where it ran.
        rows: what was measured.
        layers: of each model, at the longest shape.
        rooflines: that rows were held against.
    """
    write_text(
        path, json.dumps(document(machine, rows, layers=layers, rooflines=rooflines), indent=1, allow_nan=False) + "\n"
    )


def document(
    machine: dict[str, Any],
    rows: Sequence[Row],
    *,
    layers: Mapping[str, ModelCosts] | None = None,
    rooflines: Sequence[Roofline] = (),
) -> dict[str, Any]:
    """Return what `write_json` writes, as plain data."""
    content: dict[str, Any] = {"schema": SCHEMA, "machine": machine, "rows": list(rows)}
    if layers:
        content["models"] = {
            name: {"layers": [asdict(layer) for layer in costs.layers], "not_counted": list(costs.not_counted)}
            for name, costs in layers.items()
        }
    if rooflines:
        content["rooflines"] = [roofline.to_json() for roofline in rooflines]
    return content


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows without their samples as CSV; the file appears complete or not at all."""
    table = frame(rows).drop(columns=["samples_s", "rounds"], errors="ignore")  # no samples of what was not measured
    write_text(path, table.to_csv(index=False, quoting=csv.QUOTE_MINIMAL))


def _rounds(runs: Sequence[Run]) -> list[Process]:
    return [run.rounds for run in runs]


def _case_fields(case: Case, *, streams: bool) -> Row:
    return {"threads": case.threads, "steps": case.steps, "batch": case.batch, "state_fed_back": streams}


def _latency_fields(case: Case, runs: Sequence[Run], medians: FloatArray) -> Row:
    latency = describe(_rounds(runs))
    low, high = interval(medians, processes=len(runs))
    return {
        "p50_s": latency.p50_s,
        "p50_low_s": low,
        "p50_high_s": high,
        "p90_s": latency.p90_s,
        "p99_s": latency.p99_s,
        "mean_s": latency.mean_s,
        "tokens_per_s": case.steps * case.batch / latency.mean_s,
        "spread": latency.spread,
        "unstable": latency.unstable,
        "warm": all(run.warm for run in runs),
        "samples_s": [np.concatenate(run.rounds).tolist() for run in runs],  # one list per process
        "rounds": [[len(samples) for samples in run.rounds] for run in runs],  # where each list is to be cut
    }


def _speedup_fields(speedup: Speedup) -> Row:
    return {
        "speedup": speedup.ratio,
        "speedup_low": speedup.low,
        "speedup_high": speedup.high,
        "significant": speedup.significant,
    }


def _precision_fields(plan: BenchPlan, speedup: Speedup, latency: Row, *, alone: bool) -> Row:
    """Return half the interval's width over its value: of the speedup, and of the median of a model that is alone."""
    found = precision(speedup.low, speedup.ratio, speedup.high)
    if alone:
        found = precision(latency["p50_low_s"], latency["p50_s"], latency["p50_high_s"])
    return {"precision": found, "precision_asked": plan.effort.precision}


def _cost_fields(costs: ModelCosts | None, roofline: Roofline | None, p50_s: float) -> Row:
    """Return what one inference moves and multiplies; None for what is not known."""
    moved, multiply_adds = (None, None) if costs is None else (costs.bytes_moved, costs.multiply_adds)
    limit = None if costs is None or roofline is None else limit_s(roofline, costs)
    return {
        "multiply_adds": multiply_adds,
        "bytes_moved": moved,
        "bytes_per_s": None if moved is None else moved / p50_s,
        "flops_per_s": None if multiply_adds is None else 2 * multiply_adds / p50_s,
        "limit_s": limit,
        "limit_share": None if limit is None else limit / p50_s,
    }


def _model_fields(model: ModelInterface, runs: Sequence[Run]) -> Row:
    """Return what depends on the file and on a fresh process; of several processes the median."""
    return {
        "file_bytes": model.file_bytes,
        "parameters": model.parameters,
        "reads_tokens": model.reads_tokens,
        "peak_rss_bytes": int(np.median([run.peak_rss_bytes for run in runs])),
        "idle_rss_bytes": int(np.median([run.idle_rss_bytes for run in runs])),
        "load_s": float(np.median([run.load_s for run in runs])),
        "first_s": float(np.median([run.first_s for run in runs])),
    }
