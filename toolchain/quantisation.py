"""The step `--int8`: 8-bit weights by ONNX Runtime's dynamic quantization, and how far the outputs then are.

    LSTM            -> DynamicQuantizeLSTM                 weights int8, a scale for every row of every gate
    MatMul, Gemm    -> MatMulInteger                       weights int8, a scale for every column
    Gather (table)  -> Gather of uint8, DequantizeLinear   one scale for the table

Activations are quantized as they come. The options were measured on a dense and a halved 2x384 language model and on
nsnet2 (error of the outputs, see `output_error`): a scale per tensor errs 4 to 5 times more than one per channel, 7-bit
weights (`reduce_range`) 2 to 3 times more; the embedding table adds 30% to the error and halves the file.

Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.comparison import ANY_VALUE
from toolchain.errors import CalibrationError, OutputError
from toolchain.graph.loading import load_model, written_model
from toolchain.graph.normalise import normalise
from toolchain.graph.program import StatePair
from toolchain.graph.quantisable import NodeKept, NodeQuantised, plan_quantisation
from toolchain.interface import ModelInterface, read_interface
from toolchain.oneshot.calibration import RANDOM, Calibration, random_calibration, run_calls
from toolchain.oneshot.output_error import Kind, output_kinds, output_statistics
from toolchain.oneshot.output_error import OutputError as ErrorSum
from toolchain.quantiser import int8_name, prepare, quantised
from toolchain.runtime import open_session
from toolchain.verification import verify


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationResult:
    """What `quantise` did.

    Attributes:
        source: the model that was read; never changed.
        output: the model that was written; None when no node could be quantized.
        bytes_before: of the files of `source`.
        bytes_after: of the files of `output`; those of `source` when nothing was written.
        quantised: nodes with 8-bit weights now.
        kept: recurrent nodes, matrices and embedding tables that stay in floating point.
        error: of the outputs against those of `source`, as `output_error` defines it; None when it was not measured.
        measured_on: the samples of that error, or why there is none.
        calls: number of samples that the error was measured on.
        held_out: whether those were held out of a decision.
    """

    source: Path
    output: Path | None
    bytes_before: int
    bytes_after: int
    quantised: tuple[NodeQuantised, ...]
    kept: tuple[NodeKept, ...]
    error: float | None
    measured_on: str
    calls: int
    held_out: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data, by the schema in docs/shrink.md."""
        return {**asdict(self), "source": str(self.source), "output": None if self.output is None else str(self.output)}


def quantise(
    path: Path,
    output: Path | None = None,
    *,
    calibration: Calibration | None = None,
    held_out: Calibration | None = None,
    carried: Sequence[StatePair] | None = None,
    threads: int | None = None,
) -> QuantisationResult:
    """Write a copy of a model with 8-bit weights.

    Args:
        path: the model, usually one that was shrunk; never changed.
        output: the file to write, whole or not at all; by default `NAME.int8.onnx` beside the model.
        calibration: samples to measure the error on; None takes random inputs, and the result says so. States of
            another width, as the model had before they were compacted, start at zero.
        held_out: measure on this part of the samples alone; what differences are held against is the spread over all.
        carried: state inputs with the outputs that are fed back into them; None takes the samples' pairs, or what the
            model's metadata declares.
        threads: of ONNX Runtime while the error is measured.

    Returns:
        What was done; without a node to quantize no file is written, and `output` is None.

    Raises:
        ModelFileError: the file is no valid model, or ONNX Runtime's quantizer does not take it.
        CalibrationError: the model fails on a sample.
        ParityError: the result does not run at a shape where the model does, or returns infinities or other shapes.
        OutputError: the result cannot be written.
    """
    target = int8_name(path) if output is None else output
    if target.resolve() == path.resolve():
        raise OutputError(
            f"{target}: is the model to quantize; expected another file, because the input is never changed. Choose "
            "another name with -o."
        )
    model, interface = load_model(path)
    declared = interface.carried if calibration is None else calibration.carried
    pairs = tuple(declared if carried is None else carried)
    samples = random_calibration(interface, pairs) if calibration is None else _fitting(interface, calibration, pairs)
    judged = samples if held_out is None else _fitting(interface, held_out, pairs)
    model = prepare(path, normalise(model).model)
    kinds = output_kinds(model.graph, interface, samples.carried)
    plan = plan_quantisation(model.graph)
    if not plan.wanted:
        return QuantisationResult(source=path, output=None, bytes_before=interface.file_bytes,
                                  bytes_after=interface.file_bytes, quantised=(), kept=plan.kept, error=None,
                                  measured_on="nothing was quantized", calls=0)  # fmt: skip
    with quantised(path, model, plan) as (smaller, plan), written_model(smaller, target) as unfinished:
        verify(interface, unfinished, carried=samples.carried, tolerance=ANY_VALUE)
        error, measured_on = _error(path, unfinished, kinds, samples, judged, threads)
        written = read_interface(unfinished).file_bytes
    return QuantisationResult(source=path, output=target, bytes_before=interface.file_bytes, bytes_after=written,
                              quantised=plan.wanted, kept=plan.kept, error=error, measured_on=measured_on,
                              calls=0 if error is None else judged.num_calls,
                              held_out=held_out is not None)  # fmt: skip


def _fitting(interface: ModelInterface, calibration: Calibration, carried: tuple[StatePair, ...]) -> Calibration:
    """Return samples with states of the model's own width, which start at zero."""
    widths = {model_input.name: model_input.shape[-1] for model_input in interface.inputs if model_input.shape}
    states = {state_in for state_in, _ in carried}

    def fit(name: str, array: Any) -> Any:
        width = widths.get(name)
        if name not in states or not isinstance(width, int) or array.shape[-1] == width:
            return array
        return np.zeros((*array.shape[:-1], width), array.dtype)

    streams = tuple(tuple({name: fit(name, array) for name, array in call.items()} for call in stream)
                    for stream in calibration.streams)  # fmt: skip
    return replace(calibration, streams=streams, carried=carried)


def _error(
    path: Path, smaller: Path, kinds: dict[str, Kind], samples: Calibration, judged: Calibration, threads: int | None
) -> tuple[float | None, str]:
    """Return the error of the outputs, and what it was measured on or why not; both models run side by side."""
    names = list(kinds)
    sessions = [open_session(model, threads=threads) for model in (path, smaller)]
    try:
        spreads = output_statistics(run_calls(sessions[0], samples, names), kinds).spreads
        total = ErrorSum(kinds, spreads)
        for wanted, got in zip(*(run_calls(session, judged, names) for session in sessions), strict=True):
            total.add(wanted, got)
    except CalibrationError as error:
        if samples.source != RANDOM:
            raise
        return None, f"not measured: {error}"
    return total.value(), samples.source
