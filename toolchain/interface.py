"""Read from a model what it must be fed: shapes, number types, ids in range, carried state.

Nothing is executed and no weight is looked at, only shapes and axes among the constants; a model of any size costs one
read of its file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from toolchain.axes import (
    BATCH,
    TIME,
    Dimension,
    Labels,
    Role,
    Trace,
    constants_of,
    label_axes,
    trace_axes,
)
from toolchain.errors import ModelFileError
from toolchain.model_checks import check_tensor, tensors_of
from toolchain.model_file import SUGGESTION, read_proto

if TYPE_CHECKING:
    import onnx

CARRIED_STATE_KEY = "toolchain.carried_state"
LENGTH_WORDS = frozenset({"len", "lens", "length", "lengths"})
SAMPLE_RATE_WORDS = frozenset({"sr", "rate", "samplerate"})
SAMPLE_RATE_HZ = 16_000  # speech models with a rate input (Silero VAD) accept 8000 and this
UNBOUNDED_IDS = 2  # an integer input that feeds no table may be a flag or a class: 0 and 1 are safest


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """One graph input; `labels` says for every axis whether it is time, batch, or has a known length."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...]
    labels: Labels
    role: Role
    rows: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInterface:
    """A model file as it is named by the user, and everything that planning needs to know about it."""

    name: str
    path: Path
    file_bytes: int
    parameters: int
    inputs: tuple[ModelInput, ...]
    carried: tuple[tuple[str, str], ...]
    weights_files: tuple[Path, ...] = ()

    def fixed(self, label: str) -> int | None:
        """Return the length that the file fixes for time or batch; None when it is free."""
        lengths = self._lengths(label)
        static = [length for length in lengths if isinstance(length, int)]
        if static:
            return static[0]
        return None if lengths else 1  # without such an axis the model sees one step, or one sequence

    def has(self, label: str) -> bool:
        """Tell whether any input has an axis for time or batch."""
        return bool(self._lengths(label))

    def _lengths(self, label: str) -> list[Dimension]:
        return [
            length
            for model_input in self.inputs
            for length, known in zip(model_input.shape, model_input.labels, strict=True)
            if known == label
        ]

    @property
    def has_state(self) -> bool:
        """Whether any input is the initial state of a recurrent node."""
        return any(model_input.role == "state" for model_input in self.inputs)

    @property
    def reads_tokens(self) -> bool:
        """Whether an embedding table is fed by an input, so that a step is a token."""
        return any(model_input.rows is not None for model_input in self.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """How the runner builds one input; `value` is the number of ids, or the number to fill with."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: Literal["ids", "normal", "fill"]
    value: int = 0


def read_interface(path: Path, *, suggestion: str = SUGGESTION) -> ModelInterface:
    """Read a model's interface, size and number of parameters.

    Args:
        path: an ONNX file; external data files are found beside it.
        suggestion: what to do when the file does not exist.

    Raises:
        ModelFileError: there is no such file, it is not an ONNX model, or an input has a type that cannot be fed.
    """
    return interface_of(path, read_proto(path, suggestion=suggestion))


def interface_of(path: Path, model: onnx.ModelProto) -> ModelInterface:
    """Return what `read_interface` does, of a file that was read already."""
    known = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in known]
    shapes = {value.name: _shape(value) for value in inputs}
    carried = _carried_state(path, model, [value.name for value in inputs])
    external = external_files(path, model)
    traces = {value.name: Trace() for value in inputs} | trace_axes(model.graph, folder=path.parent)
    traces |= {state_in: replace(traces[state_in], role="state") for state_in, _ in carried}
    labels = label_axes(shapes, traces)
    return ModelInterface(
        name=str(path),
        path=path,
        file_bytes=path.stat().st_size + sum(external.values()),
        parameters=sum(_parameters(model.graph)),
        inputs=tuple(
            ModelInput(
                name=value.name,
                dtype=_dtype(path, value),
                shape=shapes[value.name],
                labels=labels[value.name],
                role=traces[value.name].role,
                rows=traces[value.name].rows,
            )
            for value in inputs
        ),
        carried=carried,
        weights_files=tuple(path.parent / location for location in sorted(external)),
    )


def plan_feeds(model: ModelInterface, *, steps: int, batch: int) -> tuple[Feed, ...]:
    """Decide shape and contents of every input for so many steps of so many sequences."""
    return tuple(_feed(model_input, steps, batch) for model_input in model.inputs)


def _shape(value: onnx.ValueInfoProto) -> tuple[Dimension, ...]:
    return tuple(
        dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param or None
        for dimension in value.type.tensor_type.shape.dim
    )


def _dtype(path: Path, value: onnx.ValueInfoProto) -> str:
    from onnx import helper

    element = value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else 0
    dtype = helper.tensor_dtype_to_np_dtype(element) if element else np.dtype(object)
    if dtype.kind not in "fiub":
        raise ModelFileError(
            f"{path}: input {value.name!r} is not a tensor of plain numbers; expected float, integer or "
            "bool. Measure a part of the model that takes numbers."
        )
    return str(dtype)


def _carried_state(path: Path, model: onnx.ModelProto, inputs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Read which inputs are fed from which outputs of the call before, as our exporter declares it."""
    text = next((entry.value for entry in model.metadata_props if entry.key == CARRIED_STATE_KEY), "[]")
    outputs = {value.name for value in model.graph.output}
    try:
        pairs = tuple((str(state_in), str(state_out)) for state_in, state_out in json.loads(text))
    except (ValueError, TypeError) as error:
        raise ModelFileError(
            f"{path}: metadata {CARRIED_STATE_KEY} is {text!r}; expected a JSON list of [input, output] "
            "pairs. Correct it, or remove it."
        ) from error
    for state_in, state_out in pairs:
        if state_in not in inputs or state_out not in outputs:
            raise ModelFileError(
                f"{path}: metadata {CARRIED_STATE_KEY} names [{state_in}, {state_out}]; "
                "expected an input and an output of the graph. Correct it, or remove it."
            )
    return pairs


def external_files(path: Path, model: onnx.ModelProto) -> dict[str, int]:
    """Return the size in bytes of each file that holds weights outside the model file.

    Raises:
        ModelFileError: such a file is missing, too short, or not beside the model.
    """
    locations = set()
    for tensor in tensors_of(model.graph):
        if tensor.data_location == tensor.EXTERNAL:
            check_tensor(path, tensor)
            locations |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    return {location: (path.parent / location).stat().st_size for location in locations}


def _parameters(graph: onnx.GraphProto) -> Iterator[int]:
    """Yield the size of each constant that is a weight; int64, int32 and bool are shapes and indices."""
    from onnx import TensorProto

    structural = {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.STRING}
    for tensor in constants_of(graph).values():
        if tensor.data_type not in structural:
            yield int(np.prod(tensor.dims, dtype=np.int64))


def _feed(model_input: ModelInput, steps: int, batch: int) -> Feed:
    lengths = {TIME: steps, BATCH: batch}
    shape = tuple(
        dimension if isinstance(dimension, int) else label if isinstance(label, int) else lengths.get(label or "", 1)
        for dimension, label in zip(model_input.shape, model_input.labels, strict=True)
    )
    kind, value = _contents(model_input, steps)
    return Feed(name=model_input.name, dtype=model_input.dtype, shape=shape, kind=kind, value=value)


def _contents(model_input: ModelInput, steps: int) -> tuple[Literal["ids", "normal", "fill"], int]:
    """Choose values that the model accepts and that a real caller might send."""
    kind = np.dtype(model_input.dtype).kind
    words = set(re.findall(r"[a-z]+", model_input.name.lower()))
    if model_input.role == "state":
        return "fill", 0
    if kind == "f":
        return "normal", 0
    if kind == "b" or "mask" in words:
        return "fill", 1
    if model_input.role == "lengths" or (len(model_input.shape) <= 1 and words & LENGTH_WORDS):
        return "fill", steps
    if len(model_input.shape) <= 1 and words & SAMPLE_RATE_WORDS:
        return "fill", SAMPLE_RATE_HZ
    return "ids", model_input.rows or UNBOUNDED_IDS
