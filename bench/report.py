"""From a measurement to rows, and from rows to files. A row is one model at one shape and thread count.

JSON: {"schema": 1, "machine": {…}, "rows": [{…}, …]}, with the raw samples of each process, so that every
statistic in it can be derived again. CSV: the same rows without the samples.
"""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolchain.errors import OutputError
from toolchain.interface import ModelInterface

from .measure import Measurement, Run
from .plan import Case
from .statistics import Speedup, compare, describe

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

SCHEMA = 1
Row = dict[str, Any]


def build_rows(measurement: Measurement) -> list[Row]:
    """Derive every statistic; within a case the baseline's row comes first."""
    plan = measurement.plan
    rows = []
    for number, case in enumerate(plan.cases):
        baseline_runs = measurement.of(number, 0)
        for member, model in enumerate(plan.models):
            runs = measurement.of(number, member)
            speedup = Speedup(ratio=1.0, low=1.0, high=1.0)  # of the baseline over itself, by definition
            if member > 0:
                speedup = compare(_rounds(baseline_runs), _rounds(runs), seed=plan.effort.seed)
            rows.append(
                {
                    "model": model.name,
                    "baseline": plan.models[0].name,
                    "is_baseline": member == 0,
                    "device": plan.device,
                    "method": "measured",
                    **_case_fields(case, streams=plan.streams(case, model)),
                    **_latency_fields(case, runs),
                    **_speedup_fields(speedup),
                    **_model_fields(model, runs),
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


def write_json(path: Path, machine: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write rows and machine as JSON; the file appears complete or not at all."""
    document = {"schema": SCHEMA, "machine": machine, "rows": list(rows)}
    _write(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows without their samples as CSV; the file appears complete or not at all."""
    table = frame(rows).drop(columns=["samples_s", "rounds"], errors="ignore")  # no samples of what was not measured
    _write(path, table.to_csv(index=False, quoting=csv.QUOTE_MINIMAL))


def _write(path: Path, text: str) -> None:
    check_writable(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())  # a temporary file is private; a result is not
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}). Free the space or choose another place."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _rounds(runs: Sequence[Run]) -> list[tuple[Any, ...]]:
    return [run.rounds for run in runs]


def _case_fields(case: Case, *, streams: bool) -> Row:
    return {"threads": case.threads, "steps": case.steps, "batch": case.batch, "state_fed_back": streams}


def _latency_fields(case: Case, runs: Sequence[Run]) -> Row:
    latency = describe(_rounds(runs))
    return {
        "p50_s": latency.p50_s,
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
