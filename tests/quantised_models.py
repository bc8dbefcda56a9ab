"""Quantized recurrent models with planted dead units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from graphs import GATES, recurrent_weights, save, value
from onnx import helper
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

INPUT_SIZE = 5
CANDIDATE = {"LSTM": 3, "GRU": 2, "RNN": 0}  # the gate block, in the order of the operator's specification
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


STEP = 2.0**-6


def rounded_steps(path: Path, shift: float) -> Path:
    """Round odd multiples of half a step: `shift` decides to which side they fall."""
    nodes = [
        helper.make_node("Round", ["X"], ["whole"]),
        helper.make_node("Mul", ["whole", "step_and_a_half"], ["tie"]),
        helper.make_node("Add", ["tie", "shift"], ["shifted"]),
        helper.make_node("QuantizeLinear", ["shifted", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["Z"]),
    ]
    numbers = {"step_and_a_half": 1.5 * STEP, "shift": shift, "step": STEP}
    constants: dict[str, np.ndarray] = {name: np.array(number, np.float32) for name, number in numbers.items()}
    shape = ["T", "B", INPUT_SIZE]
    return save(path, nodes, [value("X", shape)], [value("Z", shape)], constants | {"zero": np.array(0, np.int8)})


def zero_units(path: Path, *, op_type: str = "LSTM", hidden_size: int = 8, zero: Sequence[Sequence[int]] = ((1, 4),),
               bias: float = 0.0, **attributes: object) -> Path:  # fmt: skip
    """Write a layer some of whose units are zero at every step, though everybody reads them."""
    directions = len(zero)
    weights = recurrent_weights(op_type, input_size=INPUT_SIZE, hidden_size=hidden_size, directions=directions)
    for direction, units in enumerate(zero):
        rows = [CANDIDATE[op_type] * hidden_size + unit for unit in units]
        weights["W"][direction, rows] = weights["R"][direction, rows] = 0
        weights["B"][direction, rows] = bias
        weights["B"][direction, [GATES[op_type] * hidden_size + row for row in rows]] = 0
    head = np.random.default_rng(1).standard_normal((directions * hidden_size, 3)).astype(np.float32)
    attributes = {"hidden_size": hidden_size, "direction": "bidirectional" if directions == 2 else "forward",
                  **attributes}  # fmt: skip
    nodes = [
        helper.make_node(op_type, ["X", "W", "R", "B"], ["Y"], name="layer", **attributes),
        helper.make_node("Transpose", ["Y"], ["Yt"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["Yt", "flat"], ["M"]),
        helper.make_node("MatMul", ["M", "head"], ["Z"], name="head"),
    ]
    constants = {**weights, "head": head, "flat": np.array([0, 0, -1])}
    return save(path, nodes, [value("X", ["T", "B", INPUT_SIZE])], [value("Z", ["T", "B", 3])], constants)
