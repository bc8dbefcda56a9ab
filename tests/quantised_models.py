"""Quantized recurrent models with planted dead units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

INPUT_SIZE = 5
ADVICE = "shrink the float model first, then quantize the result"


class Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self._feeds = iter([{"X": random_input(6, 2, seed)} for seed in range(5)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def random_input(steps: int, batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((steps, batch, INPUT_SIZE)).astype(np.float32)


def run(path: Path, X: np.ndarray) -> np.ndarray:
    """Run as written, in one thread: no fused operator rounds, no batch is shared out."""
    options = SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    return InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(["Z"], {"X": X})[0]


def assert_equal(source: Path, shrunk: Path, atol: float) -> None:
    for steps, batch in ((1, 1), (7, 3)):
        X = random_input(steps, batch, seed=steps)
        np.testing.assert_allclose(run(shrunk, X), run(source, X), atol=atol)


def calibrated(path: Path, op_type: str, *, per_channel: bool = False) -> Path:
    """Quantize statically, in QDQ form, the recurrent node's weights too."""
    target = path.with_name("q.onnx")
    quantize_static(path, target, Calibration(), op_types_to_quantize=[op_type, "MatMul"], per_channel=per_channel,
                    quant_format=QuantFormat.QDQ)  # fmt: skip
    return target


def dynamic(path: Path, **options: object) -> Path:
    target = path.with_name("q.onnx")
    quantize_dynamic(path, target, **options)
    return target
