"""ONNX Runtime's dynamic quantizer: given a graph in the form that it expects, and held to what it was asked for.

prepare -> plan_quantisation -> quantised: the quantizer's graph, and the plan as it came out
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx_ir.passes import common

from toolchain.errors import ModelFileError
from toolchain.graph.loading import MAX_EMBEDDED_BYTES, load_model, save_model
from toolchain.graph.normalise import normalise
from toolchain.graph.quantisable import NodeKept, QuantisationPlan, plan_quantisation
from toolchain.interface import read_interface
from toolchain.recurrent import slot
from toolchain.runtime import first_line
from toolchain.verification import verify

LOWEST_OPSET = 11  # the first with DynamicQuantizeLinear, which everything but the LSTM needs
QUANTISED_OPS = ("LSTM", "MatMul", "Gather")
MADE_SUFFIX = {"LSTM": "_quant", "MatMul": "_quant", "Gemm": "_MatMul_quant", "Gather": ""}  # how it names its nodes
# What the quantizer raises for a graph that it does not expect; it has no error class of its own.
QUANTISER_ERRORS = (AssertionError, AttributeError, EncodeError, IndexError, KeyError, NotImplementedError,
                    RuntimeError, TypeError, ValueError, onnx.checker.ValidationError,
                    onnx.shape_inference.InferenceError)  # fmt: skip
PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")  # or it warns on stderr that nothing prepared the model


def prepare(path: Path, model: ir.Model) -> ir.Model:
    """Bring a normalised model into the form that the quantizer expects; the argument is used up.

    Raises:
        ModelFileError: its opset cannot be raised to one that has quantization.
    """
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


@contextmanager
def quantised(path: Path, model: ir.Model, plan: QuantisationPlan) -> Iterator[tuple[ir.Model, QuantisationPlan]]:
    """Run ONNX Runtime's quantizer on a prepared model; yield what it made, equal constants stored once.

    Args:
        path: the file that the model was read from, for messages.
        model: from `prepare`; its metadata come back as they are.
        plan: of this model; the one that is yielded says what the quantizer left after all.

    Raises:
        ModelFileError: the quantizer does not take the model, or leaves every node as it was.
    """
    metadata = dict(model.metadata_props)
    with _run_quantizer(path, model, plan) as smaller:
        plan = _confirmed(path, plan, smaller.graph)
        smaller.metadata_props.clear()
        smaller.metadata_props.update(metadata)
        yield smaller, plan


def write_int8(path: Path, source: Path) -> Path:
    """Write `NAME.int8.onnx` beside a model, neither run nor measured, to be timed; return its name.

    The model itself is returned where nothing in it can be quantized. `source` is the file that it was made of, with
    the same inputs and outputs: errors name that.
    """
    model = prepare(source, normalise(load_model(path)[0]).model)
    plan = plan_quantisation(model.graph)
    if not plan.wanted:
        return path
    target = int8_name(path)
    with quantised(source, model, plan) as (smaller, _):
        save_model(smaller, target)
    return target


def int8_name(source: Path) -> Path:
    """Return the name beside the input: `model.shrunk.onnx` becomes `model.shrunk.int8.onnx`."""
    return source.with_name(f"{source.name.removesuffix('.onnx')}.int8.onnx")


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
def _run_quantizer(path: Path, model: ir.Model, plan: QuantisationPlan) -> Iterator[ir.Model]:
    """Yield what the quantizer makes of a model, while the files that may hold its weights are there."""
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
            made, _ = load_model(target)
        except QUANTISER_ERRORS as error:
            raise ModelFileError(
                f"{path}: ONNX Runtime's quantizer does not take it ({type(error).__name__}: {first_line(error)}); "
                "expected a graph that it can quantize. Leave out --int8, and please report this model."
            ) from error
        common.DeduplicateHashedInitializersPass()(made)
        yield made


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
