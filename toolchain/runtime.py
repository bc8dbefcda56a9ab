"""ONNX Runtime on this machine's CPU: sessions with clear errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from toolchain.errors import ModelFileError

# Every class that ONNX Runtime raises for a model or an input that it does not take; they share no base of their own.
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.EPFail, ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph, ort_errors.InvalidProtobuf,
    ort_errors.ModelLoaded, ort_errors.NoModel, ort_errors.NoSuchFile, ort_errors.NotImplemented,
    ort_errors.RuntimeException, RuntimeError,  # the last one for outputs that numpy has no type for, as bfloat16
)  # fmt: skip
# `FAIL : /path/graph.cc:42 void ns::Function(const T&, int) ` and `file.cc:42 Function ` before what a user can read.
_SOURCE_PLACE = re.compile(r"(?:FAIL : )?\S+\.(?:cc|h):\d+ (?:[^()]*\([^()]*\) |\w+ )?|^FAIL : ")
_FATAL = 4  # log level: everything below is raised as an exception anyway, or is advice for another place


def open_session(
    path: Path, *, threads: int | None = None, mapped: bool = False, without: Sequence[str] = ()
) -> ort.InferenceSession:
    """Load a model for the CPU.

    Args:
        path: an ONNX file, or one in ONNX Runtime's own format, known by its ending .ort.
        threads: for one operator; None lets ONNX Runtime choose.
        mapped: read external weights where they lie in the file; otherwise kernels that want them in another order
            make a copy, as large as the weights.
        without: graph optimisations that are not made, by ONNX Runtime's names for them.

    Raises:
        ModelFileError: there is no such file, or ONNX Runtime refuses it.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; expected an ONNX model. Check the path.")
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without)
        )
    except RUNTIME_ERRORS as error:
        raise ModelFileError(
            f"{path}: ONNX Runtime {ort.__version__} does not take it ({first_line(error)}); expected a "
            "model that runs there. Correct it, export it for a lower opset, or update onnxruntime."
        ) from error


def run(session: ort.InferenceSession, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Run once and return every tensor output by name."""
    names = [output.name for output in session.get_outputs()]
    return {name: np.asarray(value) for name, value in zip(names, session.run(names, feeds), strict=True)}


def first_line(error: Exception) -> str:
    """Return an error's text as one line without ONNX Runtime's own prefixes and the file's path."""
    text = " ".join(str(error).split()).split(" : ", 2)[-1].rpartition(" failed:")[2]
    return _SOURCE_PLACE.sub("", text)[:300]
