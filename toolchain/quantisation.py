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

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx_ir.passes import common

from toolchain.comparison import ANY_VALUE
from toolchain.errors import CalibrationError, ModelFileError, OutputError
from toolchain.graph.loading import MAX_EMBEDDED_BYTES, load_model, save_model, written_model
from toolchain.graph.normalise import normalise
from toolchain.graph.program import StatePair
from toolchain.graph.quantisable import NodeKept, NodeQuantised, QuantisationPlan, plan_quantisation
from toolchain.interface import ModelInterface, read_interface
from toolchain.oneshot.calibration import RANDOM, Calibration, random_calibration, run_calls
from toolchain.oneshot.output_error import Kind, output_kinds, output_statistics
from toolchain.oneshot.output_error import OutputError as ErrorSum
from toolchain.recurrent import slot
from toolchain.runtime import first_line, open_session
from toolchain.verification import verify

LOWEST_OPSET = 11  # the first with DynamicQuantizeLinear, which everything but the LSTM needs
QUANTISED_OPS = ("LSTM", "MatMul", "Gather")
MADE_SUFFIX = {"LSTM": "_quant", "MatMul": "_quant", "Gemm": "_MatMul_quant", "Gather": ""}  # how it names its nodes
# What the quantizer raises for a graph that it does not expect; it has no error class of its own.
QUANTISER_ERRORS = (AssertionError, AttributeError, EncodeError, IndexError, KeyError, NotImplementedError,
                    RuntimeError, TypeError, ValueError, onnx.checker.ValidationError,
                    onnx.shape_inference.InferenceError)  # fmt: skip
PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")  # or it warns on stderr that nothing prepared the model


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
    target = default_output(path) if output is None else output
    if target.resolve() == path.resolve():
        raise OutputError(
            f"{target}: is the model to quantize; expected another file, because the input is never changed. Choose "
            "another name with -o."
        )
    model, interface = load_model(path)
    metadata = dict(model.metadata_props)
    declared = interface.carried if calibration is None else calibration.carried
    pairs = tuple(declared if carried is None else carried)
    samples = random_calibration(interface, pairs) if calibration is None else _fitting(interface, calibration, pairs)
    judged = samples if held_out is None else _fitting(interface, held_out, pairs)
    model = _prepared(path, normalise(model).model)
    kinds = output_kinds(model.graph, interface, samples.carried)
    plan = plan_quantisation(model.graph)
    if not plan.wanted:
        return QuantisationResult(source=path, output=None, bytes_before=interface.file_bytes,
                                  bytes_after=interface.file_bytes, quantised=(), kept=plan.kept, error=None,
                                  measured_on="nothing was quantized", calls=0)  # fmt: skip
    with _quantised(path, model, plan) as smaller:
        plan = _confirmed(path, plan, smaller.graph)
        smaller.metadata_props.clear()
        smaller.metadata_props.update(metadata)
        with written_model(smaller, target) as unfinished:
            verify(interface, unfinished, carried=samples.carried, tolerance=ANY_VALUE)
            error, measured_on = _error(path, unfinished, kinds, samples, judged, threads)
            written = read_interface(unfinished).file_bytes
    return QuantisationResult(source=path, output=target, bytes_before=interface.file_bytes, bytes_after=written,
                              quantised=plan.wanted, kept=plan.kept, error=error, measured_on=measured_on,
                              calls=0 if error is None else judged.num_calls,
                              held_out=held_out is not None)  # fmt: skip


def default_output(source: Path) -> Path:
    """Return the name beside the input: `model.shrunk.onnx` becomes `model.shrunk.int8.onnx`."""
    return source.with_name(f"{source.name.removesuffix('.onnx')}.int8.onnx")


def _prepared(path: Path, model: ir.Model) -> ir.Model:
    """Bring a normalised model into the form that the quantizer expects; the argument is used up."""
    if (model.opset_imports.get("") or 1) < LOWEST_OPSET:
        model = _raised(path, model)
    names = {node.name for node in model.graph.all_nodes()}
    for number, node in enumerate(model.graph.all_nodes()):
        if not node.name:  # the quantizer names what it makes after the node
            name = f"{node.op_type}_{number}"
            node.name = name if name not in names else f"{name}_unnamed"
    for node in model.graph:
        if node.op_type == "LSTM" and not node.domain:
            _own(model.graph, node, slot("W"))
            _own(model.graph, node, slot("R"))
    return model


def _own(graph: ir.Graph, node: ir.Node, index: int) -> None:
    """Give a node its own copy of a weight that others read too: the quantizer reshapes it in place."""
    shared = node.inputs[index]
    if shared is None or shared.const_value is None or len(list(shared.uses())) == 1:
        return
    own = ir.Value(name=f"{shared.name}_of_{node.name}", shape=shared.shape, type=shared.type,
                   const_value=ir.tensor(shared.const_value.numpy()))  # fmt: skip
    graph.register_initializer(own)
    node.replace_input_with(index, own)


def _raised(path: Path, model: ir.Model) -> ir.Model:
    """Convert an old model to the lowest opset that can be quantized, proven equal."""
    try:
        raised = onnx.version_converter.convert_version(ir.to_proto(model), LOWEST_OPSET)
    except (RuntimeError, ValueError, TypeError, EncodeError) as error:
        raise ModelFileError(
            f"{path}: opset {model.opset_imports.get('')} cannot be converted to {LOWEST_OPSET} "
            f"({' '.join(str(error).split())[:200]}); expected opset {LOWEST_OPSET} or later. Export it for one."
        ) from error
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        converted = Path(folder) / path.name
        onnx.save(raised, converted)
        interface = read_interface(path)
        verify(interface, converted, carried=interface.carried)
    return normalise(ir.from_proto(raised)).model


@contextmanager
def _quantised(path: Path, model: ir.Model, plan: QuantisationPlan) -> Iterator[ir.Model]:
    """Run ONNX Runtime's quantizer on a prepared model; yield what it made, equal constants stored once."""
    from onnxruntime.quantization import quantize_dynamic

    model.metadata_props[PREPARED[0]] = PREPARED[1]
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        save_model(model, source)
        # A Gemm becomes a MatMul under this name before the quantizer asks which nodes are wanted.
        names = [f"{node.name}_MatMul" if node.op_type == "Gemm" else node.name for node in plan.wanted]
        try:
            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=list(QUANTISED_OPS),
                nodes_to_quantize=names,
                per_channel=True,
                use_external_data_format=sum(file.stat().st_size for file in Path(folder).iterdir())
                > MAX_EMBEDDED_BYTES,
                # Where types cannot be inferred, behind another vendor's operator: the weights are float32 for certain.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
            quantised, _ = load_model(target)
        except QUANTISER_ERRORS as error:
            raise ModelFileError(
                f"{path}: ONNX Runtime's quantizer does not take it ({type(error).__name__}: {first_line(error)}); "
                "expected a graph that it can quantize. Leave out --int8, and please report this model."
            ) from error
        common.DeduplicateHashedInitializersPass()(quantised)
        yield quantised


def _confirmed(path: Path, plan: QuantisationPlan, graph: ir.Graph) -> QuantisationPlan:
    """Move what the quantizer left after all from the wanted to the kept."""
    made = {str(node.name) for node in graph if node.op_type in ("DynamicQuantizeLSTM", "MatMulInteger")}
    made |= {str(node.name) for node in graph if node.op_type == "Gather" and _is_8_bit(node.inputs[0])}
    done = tuple(node for node in plan.wanted if f"{node.name}{MADE_SUFFIX[node.op_type]}" in made)
    if not done:
        raise ModelFileError(
            f"{path}: ONNX Runtime's quantizer left every node as it was, {plan.wanted[0].name!r} the first; expected "
            "8-bit weights. Leave out --int8, and please report this model."
        )
    left = [NodeKept(name=node.name, op_type=node.op_type, reason="ONNX Runtime's quantizer left it")
            for node in plan.wanted if node not in done]  # fmt: skip
    return replace(plan, wanted=done, kept=(*plan.kept, *left))


def _is_8_bit(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.const_value.dtype.itemsize == 1


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
