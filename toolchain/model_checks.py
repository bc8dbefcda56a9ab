"""What must hold of an ONNX file before anything is computed with it; each error names the object and the way out.

The version is one that this installation knows, each tensor's bytes are as many as its shape says, external data lies
beside the model and is long enough, each name is made once and before it is read, recurrent nodes have their weights.
What the operators mean is not checked here: shape inference and ONNX Runtime do that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from toolchain.axes import graphs_of, inner_graphs, nodes_of
from toolchain.errors import LayoutError, ModelFileError
from toolchain.recurrent import GATES

# Which field of a tensor holds its numbers when `raw_data` does not; every other type uses `int32_data`.
_FIELDS = {
    ir.DataType.FLOAT: "float_data", ir.DataType.COMPLEX64: "float_data", ir.DataType.DOUBLE: "double_data",
    ir.DataType.COMPLEX128: "double_data", ir.DataType.INT64: "int64_data", ir.DataType.UINT32: "uint64_data",
    ir.DataType.UINT64: "uint64_data", ir.DataType.STRING: "string_data",
}  # fmt: skip
_COMPLEX = frozenset({ir.DataType.COMPLEX64, ir.DataType.COMPLEX128})


def check_model(path: Path, model: onnx.ModelProto) -> None:
    """Check a model that was read from `path`.

    Raises:
        ModelFileError: something in the file is not what it claims to be.
        LayoutError: a recurrent node lacks its weights.
    """
    _check_versions(path, model)
    for graph in graphs_of(model.graph):
        for sparse in graph.sparse_initializer:
            raise ModelFileError(
                f"{path}: constant {sparse.values.name!r} is a sparse tensor; expected dense ones. Export it dense."
            )
    for tensor in tensors_of(model.graph):
        check_tensor(path, tensor)
    for node in nodes_of(model.graph):
        if node.op_type in GATES and (len(node.input) < 3 or not node.input[1] or not node.input[2]):
            raise LayoutError(
                f"node {_name(node)!r}: has no weights W and R; expected X, W and R as the first inputs of an "
                f"{node.op_type}. Export the model again."
            )
    if not model.graph.output:
        raise ModelFileError(f"{path}: returns nothing; expected a graph with outputs. Export it again.")
    _check_names(path, model.graph, frozenset())


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a graph and the graphs inside it: initializers and attributes."""
    for inner in graphs_of(graph):
        yield from inner.initializer
    for node in nodes_of(graph):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_versions(path: Path, model: onnx.ModelProto) -> None:
    if model.ir_version > onnx.IR_VERSION:
        raise ModelFileError(
            f"{path}: has IR version {model.ir_version}; expected at most {onnx.IR_VERSION}, the newest that onnx "
            f"{onnx.__version__} knows. Update onnx, or export for an older version."
        )
    known = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > known:
            raise ModelFileError(
                f"{path}: needs opset {opset.version}; expected at most {known}, the newest that onnx "
                f"{onnx.__version__} knows. Export it for a lower opset, or update onnx."
            )
    if model.training_info:
        raise ModelFileError(
            f"{path}: holds training information, which a smaller model would lose; expected a model for inference. "
            "Export it for inference."
        )


def check_tensor(path: Path, tensor: onnx.TensorProto) -> None:
    """Check that a tensor of the model at `path` has a known type and as many numbers as its shape says.

    Raises:
        ModelFileError: it has not, or they are not where it says that they are.
    """
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    shape = list(tensor.dims)
    if dtype == ir.DataType.UNDEFINED or min(shape, default=0) < 0:
        raise ModelFileError(
            f"{path}: tensor {tensor.name!r} has data type {tensor.data_type} and shape {shape}; expected a type that "
            "ONNX defines and lengths of at least 0. Export it again."
        )
    size, bits = math.prod(shape), 0 if dtype == ir.DataType.STRING else dtype.bitwidth
    num_bytes = -(-size * bits // 8)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(path, tensor, num_bytes)
        return
    if tensor.HasField("raw_data"):
        needed, found, unit = num_bytes, len(tensor.raw_data), "bytes"
    else:
        needed = 2 * size if dtype in _COMPLEX else num_bytes if 0 < bits < 8 else size
        found, unit = len(getattr(tensor, _FIELDS.get(dtype, "int32_data"))), "entries"
    if needed != found:
        raise ModelFileError(
            f"{path}: tensor {tensor.name!r} holds {found} {unit}; expected {needed}, as its shape {shape} says. "
            "Export or copy it again."
        )


def _check_external(path: Path, tensor: onnx.TensorProto, needed: int) -> None:
    """Check where a tensor of `needed` bytes lies; the folder is that of the real file, as in ONNX Runtime."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, subject = entries.get("location", ""), f"{path}: tensor {tensor.name!r}"
    file = path.parent / location
    if not location:
        raise ModelFileError(f"{subject} is external and names no file; expected a location. Export it again.")
    if Path(location).is_absolute() or path.resolve().parent not in file.resolve().parents:
        raise ModelFileError(
            f"{subject} lies in {location!r}, outside the model's folder; expected a file beside the model. Move it "
            "there and export again."
        )
    numbers = {key: entries.get(key) or str(default) for key, default in (("offset", 0), ("length", needed))}
    for key, text in numbers.items():
        if not text.isdecimal() or (key == "length" and int(text) != needed):
            rule = f"{needed}, as its shape {list(tensor.dims)} says" if key == "length" else "a number of bytes"
            raise ModelFileError(f"{subject} has {key} {text} in {location!r}; expected {rule}. Export it again.")
    end = int(numbers["offset"]) + needed
    if not file.is_file() or file.stat().st_size < end:
        found = f"has {file.stat().st_size} bytes" if file.is_file() else "is missing"
        raise ModelFileError(
            f"{path}: its weights file {location!r} {found}; expected at least {end} bytes for tensor {tensor.name!r}. "
            "Copy it there again."
        )


def _check_names(path: Path, graph: onnx.GraphProto, outer: frozenset[str]) -> None:
    """Check that each name of a graph is made once, that what is read is made, and that no node waits for itself."""
    makers: dict[str, str] = {}
    made = [(value.name, "the graph's inputs") for value in graph.input]
    listed = {value.name for value in graph.input}
    made += [(tensor.name, "the constants") for tensor in graph.initializer if tensor.name not in listed]
    made += [(name, f"node {_name(node)!r}") for node in graph.node for name in node.output if name]
    for name, maker in made:
        if name in makers:
            raise ModelFileError(
                f"{path}: the name {name!r} is made twice, by {makers[name]} and by {maker}; expected one of each. "
                "Export it again."
            )
        makers[name] = maker
    visible = outer | makers.keys()
    for node in graph.node:
        for name in node.input:
            if name and name not in visible:
                raise ModelFileError(
                    f"{path}: node {_name(node)!r} reads {name!r}, which nothing in the graph makes; expected the "
                    "name of an input, a constant or a node's output. Export it again."
                )
        for inner in inner_graphs(node):
            _check_names(path, inner, visible)
    for output in graph.output:
        if output.name not in visible:
            raise ModelFileError(
                f"{path}: the graph returns {output.name!r}, which nothing in it makes; expected a node's output. "
                "Export it again."
            )
    _check_order(path, graph)


def _check_order(path: Path, graph: onnx.GraphProto) -> None:
    """Refuse a cycle: follow each node's unmade inputs back until there are none, or one comes again."""
    producers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    waits = [[producers[name] for name in _read(node) if name in producers] for node in graph.node]
    done = [False] * len(waits)
    for start in range(len(waits)):
        trail, waiting = [start], {start}  # nodes, each waiting for the next
        while trail:
            place = trail[-1]
            unmade = next((before for before in waits[place] if not done[before]), None)
            if unmade is None:
                done[place] = True
                waiting.discard(trail.pop())
            elif unmade in waiting:
                names = [_name(graph.node[node]) for node in trail[trail.index(unmade) :]]
                raise ModelFileError(
                    f"{path}: its nodes wait for one another in a cycle ({' <- '.join(map(repr, names[:5]))}); "
                    "expected a graph without. Export it again."
                )
            else:
                trail.append(unmade)
                waiting.add(unmade)


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node and the graphs inside it read."""
    yield from node.input
    for inner in inner_graphs(node):
        for one in nodes_of(inner):
            yield from one.input
        yield from (output.name for output in inner.output)


def _name(node: onnx.NodeProto) -> str:
    return node.name or next(iter(node.output), node.op_type)
