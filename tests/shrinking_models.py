"""What the tests of shrink share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from graphs import kill, recurrent_weights, save, value
from onnx import helper


def streaming_model(path: Path, *, directions: int = 1, declare: bool = True) -> Path:
    """Write a layer with carried state whose units 1, 4, 5 (and 0, 2, 3 backwards) are dead."""
    weights = recurrent_weights("LSTM", input_size=5, hidden_size=8, directions=directions)
    head = np.random.default_rng(1).standard_normal((8 * directions, 3)).astype(np.float32)
    for direction, dead in enumerate([(1, 4, 5), (0, 2, 3)][:directions]):
        kill(weights["R"][direction], dead)
        kill(head, [8 * direction + unit for unit in dead], axis=0)
    nodes = [
        helper.make_node("LSTM", ["X", "W", "R", "B", "", "h", "c"], ["Y", "h_out", "c_out"], hidden_size=8,
                         direction="bidirectional" if directions == 2 else "forward"),
        helper.make_node("Transpose", ["Y"], ["Yt"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["Yt", "side_by_side"], ["M"]),
        helper.make_node("MatMul", ["M", "head"], ["Z"]),
    ]  # fmt: skip
    state = [directions, "B", 8]
    save(path, nodes, [value("X", ["T", "B", 5]), value("h", state), value("c", state)],
         [value("Z", ["T", "B", 3]), value("h_out", state), value("c_out", state)],
         {**weights, "head": head, "side_by_side": np.array([0, 0, -1])})  # fmt: skip
    if declare:
        model = onnx.load(path)
        helper.set_model_props(model, {"toolchain.carried_state": json.dumps([["h", "h_out"], ["c", "c_out"]])})
        onnx.save(model, path)
    return path
