"""Measure one machine's memory bandwidth by working-set size, and its peak of single-precision arithmetic.

    python roofline_probe.py THREADS > peaks.json          needs Python 3.9 and numpy

Reading is a dot product of two halves of the working set, and counts every byte once. Copying counts bytes read and
bytes written, as STREAM does, on one thread. Arithmetic is one large matrix product. What a call costs without any
work, about 0.5 microseconds, is measured and taken off, or the first-level cache would look slow.

Each figure is the best of short repetitions: a peak is what the machine can do when nothing disturbs it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

SMALLEST_BYTES, LARGEST_BYTES = 32 << 10, 256 << 20  # within a first-level cache; beyond the last level of most CPUs
BUDGET_S = 0.04  # per figure: 28 figures take 1.5 s, and each is the best of about 40 repetitions
MATRIX = 768  # 1.8 MB per operand: large enough for the best rate, 10 to 40 ms a product on small devices


def best_s(call: Callable[[], Any], budget_s: float = BUDGET_S) -> float:
    """Return the shortest time of one call, seen in repetitions of about a millisecond each."""
    clock = time.perf_counter
    start = clock()
    call()
    repeat = max(1, min(2000, int(1e-3 / max(clock() - start, 1e-7))))
    best, end = float("inf"), clock() + budget_s
    while True:
        start = clock()
        for _ in range(repeat):
            call()
        now = clock()
        best = min(best, (now - start) / repeat)
        if now >= end:
            return best


def bandwidths(largest_bytes: int) -> list[dict[str, float]]:
    """Return bytes per second read and copied, for working sets that double in size."""
    import numpy as np

    tiny = np.ones(2, np.float32)
    other = np.ones(2, np.float32)
    empty_dot_s, empty_copy_s = best_s(partial(np.dot, tiny, other)), best_s(partial(np.copyto, tiny, other))
    points = []
    size = SMALLEST_BYTES
    while size <= largest_bytes:
        one, two = np.ones(size // 8, np.float32), np.ones(size // 8, np.float32)
        read_s = best_s(partial(np.dot, one, two)) - empty_dot_s
        copy_s = best_s(partial(np.copyto, one, two)) - empty_copy_s
        points.append({"size_bytes": size, "read_bytes_per_s": size / read_s, "copy_bytes_per_s": size / copy_s})
        size *= 2
    return points


def peak_flops() -> float:
    """Return floating-point operations per second of a single-precision matrix product."""
    import numpy as np

    left, right = np.ones((MATRIX, MATRIX), np.float32), np.ones((MATRIX, MATRIX), np.float32)
    result = np.empty_like(left)
    return 2 * MATRIX**3 / best_s(lambda: np.matmul(left, right, out=result), 5 * BUDGET_S)


def main(threads: int) -> None:
    """Pin this process to as many CPUs as there are threads, measure, and print JSON."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)  # before numpy is imported
    import numpy

    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    points = bandwidths(min(LARGEST_BYTES, free_bytes // 8))
    json.dump({"bandwidths": points, "flops_per_s": peak_flops(), "numpy": numpy.__version__}, sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]))
