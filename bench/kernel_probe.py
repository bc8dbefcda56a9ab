"""Time single-node models in this process, pinned: the worker of `toolchain bench table`.

python -m toolchain.bench.kernel_probe < job.json      prints one line of JSON per kernel

Job: {"threads", "seed", "kernels": [{fields of Kernel, "shapes": [[batch, steps], …]}]}
Line: {"kernel": number, "seconds": [median per shape]}
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any

import numpy as np

from . import runner
from .kernels import Kernel, kernel_model

WARM_UP_S, ROUND_S = 0.01, 0.03  # the node's weights are hot after the first calls; the median of the rest is taken


def time_kernel(fields: dict[str, Any], *, threads: int, seed: int) -> list[float]:
    """Return the median seconds of a call at each shape."""
    shapes = fields.pop("shapes")
    session = runner.open_session(kernel_model(Kernel(**fields), seed=seed), threads)
    random = np.random.default_rng(seed)
    medians = []
    for batch, steps in shapes:
        feeds = {"X": random.standard_normal((steps, batch, fields["input_size"])).astype(np.float32)}
        call = runner.make_call(session, feeds, [])
        runner.time_round(call, time.perf_counter_ns, WARM_UP_S, runner.MAX_CALLS_PER_ROUND)
        samples = runner.time_round(call, time.perf_counter_ns, ROUND_S, 10 * runner.MAX_CALLS_PER_ROUND)
        medians.append(statistics.median(samples))
    return medians


def main() -> None:
    """Read the job from standard input and answer kernel by kernel."""
    job = json.load(sys.stdin)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, runner.allowed_cpus()[: job["threads"]])
    for number, fields in enumerate(job["kernels"]):
        seconds = time_kernel(fields, threads=job["threads"], seed=job["seed"])
        print(json.dumps({"kernel": number, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
