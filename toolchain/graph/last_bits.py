"""A model whose weights are all moved by their last bit: what it computes shows how far the network carries a rounding.

A weight is a constant with at least two axes that are longer than one; others may be exponents, limits or thresholds,
where a last bit is more than a rounding. Zeros stay zeros, so dead units stay dead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.graph.loading import load_model, save_model
from toolchain.graph.subgraphs import hoist_constants

_FLOATS = {ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE}


def write_moved(source: Path, target: Path, *, seed: int) -> None:
    """Write a model with every weight `w` replaced by `w (1 +- eps)`, the signs random.

    Args:
        source: an ONNX file.
        target: file to write; large weights go beside it.
        seed: of the signs.
    """
    model, _ = load_model(source)
    hoist_constants(model)
    rng = np.random.default_rng(seed)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in _FLOATS and sum(size > 1 for size in tensor.shape.numpy()) > 1:
            value.const_value = ir.tensor(_moved(tensor.numpy(), rng), name=tensor.name)
    save_model(model, target, weights_name=f"{target.name}.weights")


def _moved(array: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
    eps = np.finfo(array.dtype).eps
    moved: npt.NDArray[Any] = (array * (1 + eps * rng.choice([-1, 1], size=array.shape))).astype(array.dtype)
    return moved
