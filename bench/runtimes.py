"""Other runtimes that read ONNX files, for the same table: what they are called, need, and are run by.

Each has a worker file of its own, which serves the runner's protocol. Before anything is timed, a runtime's outputs are
compared with ONNX Runtime's on the same inputs, in a fresh process, so that this one imports none of them.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolchain.errors import BenchError, MissingExtraError

from .plan import ONNX_RUNTIME

TOLERANCE = 1e-4  # of the output's largest value; float32 over 35 steps in another order of summation gives 1e-6
CHECK_TIMEOUT_S = 600.0  # a compiler may take minutes for its first call
# Name -> worker file beside this one, package that must be installed.
WORKERS = {
    "torch": ("worker_torch.py", "torch"),
    "torch-compile": ("worker_torch_compile.py", "torch"),
    "openvino": ("worker_openvino.py", "openvino"),
}
RUNTIMES = (ONNX_RUNTIME, *WORKERS)


def worker_of(runtime: str) -> str | None:
    """Return the file that serves a runtime; None for ONNX Runtime, which the runner itself serves."""
    return None if runtime == ONNX_RUNTIME else str(Path(__file__).resolve().with_name(WORKERS[runtime][0]))


def check_runtimes(runtimes: Sequence[str]) -> None:
    """Raise a ToolchainError for a runtime that is not known or not installed."""
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise BenchError(f"runtime {runtime!r}: is not known; expected one of: {', '.join(RUNTIMES)}.")
        if runtime == ONNX_RUNTIME or importlib.util.find_spec(WORKERS[runtime][1]) is not None:
            continue
        if WORKERS[runtime][1] == "torch":
            raise MissingExtraError("torch", extra="train")
        raise BenchError(f"runtime {runtime!r}: is not installed. Install it with `pip install {WORKERS[runtime][1]}`.")


def check_outputs(member: dict[str, Any], *, threads: int, seed: int, runtime: str) -> float:
    """Compare a runtime's outputs with ONNX Runtime's; return the largest difference, relative to each output's size.

    Args:
        member: one of the runner's job, with its `worker`.
        threads: of either runtime.
        seed: of the inputs.
        runtime: its name, for messages.

    Raises:
        BenchError: the runtime does not take the model, or computes something else.
    """
    job = {**member, "threads": threads, "seed": seed}
    command = [sys.executable, "-P", "-m", "toolchain.bench.output_check"]
    try:
        done = subprocess.run(
            command, input=json.dumps(job), capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=True
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or f"exit code {error.returncode}").splitlines()[-1]
        last = re.sub(r"^[\w.]+Error: ", "", last)
        raise BenchError(
            f"{member['model']}: {runtime} does not take it ({last}); expected operators that it supports. "
            f"Leave {runtime} out of --runtimes."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(
            f"{member['model']}: {runtime} gave no answer for {CHECK_TIMEOUT_S:.0f} s; expected it to run. "
            f"Leave {runtime} out of --runtimes."
        ) from error
    difference = float(json.loads(done.stdout.splitlines()[-1])["difference"])
    if not difference <= TOLERANCE:  # NaN is a difference too
        raise BenchError(
            f"{member['model']}: {runtime} computes something else than ONNX Runtime (largest difference "
            f"{difference:.2g} of the output's size); expected at most {TOLERANCE:g}, because a ratio of different "
            f"work means nothing. Leave {runtime} out of --runtimes."
        )
    return difference
