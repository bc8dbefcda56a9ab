"""Run one model on ONNX Runtime and on another runtime, on the same inputs, and print how far they are apart.

python -m toolchain.bench.output_check < member.json          the runner's member, with `worker`, `threads`, `seed`
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import runner

CALLS = 3  # with the state fed back, so that its names and order are compared as well


def largest_difference(expected: Sequence[npt.NDArray[Any]], actual: Sequence[npt.NDArray[Any]]) -> float:
    """Return the largest difference of any output, relative to its largest value.

    Infinite where shapes differ; NaN where either holds one.
    """
    worst = [0.0]
    for one, other in zip(expected, actual, strict=True):
        if one.shape != np.shape(other):
            return float("inf")
        if one.size:
            exact = one.astype(np.float64)
            scale = max(float(np.abs(exact).max()), float(np.finfo(np.float32).tiny))
            worst.append(float(np.abs(exact - np.asarray(other, np.float64)).max()) / scale)
    return float(np.max(worst))  # unlike Python's max, it does not lose a NaN


def chained_outputs(engine: runner.Engine, job: Mapping[str, Any]) -> list[npt.NDArray[Any]]:
    """Run a model on a runtime and return all outputs of all calls."""
    session = engine.open_session(job["path"], job["threads"])
    names = [output.name for output in session.get_outputs()]
    feeds = runner.make_feeds(dict(job))
    outputs: list[npt.NDArray[Any]] = []
    for _ in range(CALLS if job["carried"] else 1):
        values = [np.array(value) for value in session.run(names, feeds)]
        outputs += values
        feeds |= {state_in: values[names.index(state_out)] for state_in, state_out in job["carried"]}
    return outputs


def load_engine(path: str) -> runner.Engine:
    """Import a worker file and return its `ENGINE`."""
    spec = importlib.util.spec_from_file_location("worker", path)
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = worker  # dataclasses look their module up
    spec.loader.exec_module(worker)
    engine: runner.Engine = worker.ENGINE
    return engine


def main() -> None:
    """Read a member from standard input and print the difference as JSON."""
    job = json.load(sys.stdin)
    expected = chained_outputs(runner.ONNX_RUNTIME, job)
    actual = chained_outputs(load_engine(job["worker"]), job)
    print(json.dumps({"difference": largest_difference(expected, actual)}))


if __name__ == "__main__":
    main()
