"""Measure one machine's memory bandwidth by working-set size, and its peak of single-precision arithmetic.

    python roofline_probe.py THREADS > peaks.json          needs numpy, onnx and onnxruntime

Reading is a dot product of two halves of the working set, and counts every byte once. Copying counts bytes read and
bytes written, as STREAM does, on one thread. What a call costs without any work, about 0.5 microseconds, is measured
and taken off, or the first-level cache would look slow. Arithmetic is a large matrix product, by ONNX Runtime and by
numpy, whichever is faster: the library that numpy brings may not use all that the processor has.

Each figure is the best of short repetitions: a peak is what the machine can do when nothing disturbs it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

SMALLEST_BYTES, LARGEST_BYTES = 32 << 10, 256 << 20  # within a first-level cache; beyond the last level of most CPUs
BUDGET_S = 0.04  # per figure: 28 figures take 1.7 s, and each is the best of about 40 repetitions
REPETITION_S = 0.5e-3  # at the least, and twice that at the most, where a call is shorter
OPSET, IR_VERSION = 17, 8  # as old as any ONNX Runtime that is measured
MATRIX = 768  # 1.8 MB per operand: large enough for the best rate, 10 to 40 ms a product on small devices


def best_s(call: Callable[[], Any], budget_s: float = BUDGET_S) -> float:
    """Return the shortest time of one call, seen in repetitions of about a millisecond each.

    How many calls make a millisecond is found by doubling: one first call would say too few when it is disturbed, and
    every call would then be timed with a look at the clock.
    """
    clock = time.perf_counter
    best, repeat, end = float("inf"), 1, clock() + budget_s
    while True:
        start = clock()
        for _ in range(repeat):
            call()
        now = clock()
        best = min(best, (now - start) / repeat)
        if now >= end:
            return best
        if now - start < REPETITION_S:
            repeat *= 2


def bandwidths(largest_bytes: int) -> list[dict[str, float]]:
    """Return bytes per second read and copied, for working sets that double in size."""
    import numpy as np

    tiny, other = np.ones(2, np.float32), np.ones(2, np.float32)
    empty_dot_s = empty_copy_s = float("inf")
    timed = []
    size = SMALLEST_BYTES
    while size <= largest_bytes:
        one, two = np.ones(size // 8, np.float32), np.ones(size // 8, np.float32)
        # An empty call is timed again beside each size: it is most of what the smallest takes, so a slow moment of it
        # would make the first-level cache look several times as fast as it is.
        empty_dot_s = min(empty_dot_s, best_s(partial(np.dot, tiny, other), BUDGET_S / 4))
        empty_copy_s = min(empty_copy_s, best_s(partial(np.copyto, tiny, other), BUDGET_S / 4))
        timed.append((size, best_s(partial(np.dot, one, two)), best_s(partial(np.copyto, one, two))))
        size *= 2
    return [{"size_bytes": size, "read_bytes_per_s": size / (read_s - empty_dot_s),
             "copy_bytes_per_s": size / (copy_s - empty_copy_s)} for size, read_s, copy_s in timed]  # fmt: skip


def peak_flops(threads: int) -> float:
    """Return floating-point operations per second of the faster of two single-precision matrix products."""
    import numpy as np

    left, right = np.ones((MATRIX, MATRIX), np.float32), np.ones((MATRIX, MATRIX), np.float32)
    result = np.empty_like(left)
    product = onnx_runtime_product(right, threads)
    calls = (lambda: np.matmul(left, right, out=result), lambda: product(left))
    return 2 * MATRIX**3 / min(best_s(call, 5 * BUDGET_S) for call in calls)


def onnx_runtime_product(right: npt.NDArray[Any], threads: int) -> Callable[[npt.NDArray[Any]], Any]:
    """Return a function that multiplies a matrix with a constant one in ONNX Runtime."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, right.shape) for name in ("left", "product")]
    node = helper.make_node("MatMul", ["left", "right"], ["product"])
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [numpy_helper.from_array(right, "right")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda left: session.run(None, {"left": left})


def main(threads: int) -> None:
    """Pin this process to as many CPUs as there are threads, measure, and print JSON."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)  # before numpy is imported
    import numpy

    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    points = bandwidths(min(LARGEST_BYTES, free_bytes // 8))
    json.dump({"bandwidths": points, "flops_per_s": peak_flops(threads), "numpy": numpy.__version__}, sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]))
