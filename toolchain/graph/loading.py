"""Read and write ONNX files: clear errors on the way in, whole files or none on the way out, and weights held once.

Weights beside the model are mapped when they are asked for and unmapped as soon as nobody looks at them, so memory
holds what is being worked on, whatever the file's size.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from toolchain.errors import ModelFileError
from toolchain.files import written_whole
from toolchain.graph.saving import save_embedded
from toolchain.interface import ModelInterface, external_files, interface_of
from toolchain.model_checks import check_model
from toolchain.model_file import read_proto

# Protobuf cannot hold more than 2 GiB in one file; weights go beside the model well before that.
MAX_EMBEDDED_BYTES = 1_900_000_000


def load_model(path: Path) -> tuple[ir.Model, ModelInterface]:
    """Read a model and its interface; external weights stay on disk and are mapped into memory when read.

    Raises:
        ModelFileError: there is no such file, it is not a complete ONNX model, or its external data is missing.
    """
    proto = read_proto(path)
    check_model(path, proto)
    interface = interface_of(path, proto)
    try:
        model = ir.serde.deserialize_model(proto)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise ModelFileError(
            f"{path}: the graph is damaged ({problem}); expected a valid ONNX model. Export it again."
        ) from error
    model.graph.sort()  # the format asks for it, ONNX Runtime does not
    ir.external_data.set_base_dir(model.graph, path.parent)
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _mapped(value.const_value, path.parent)
    return model, interface


def _mapped(tensor: ir.ExternalTensor, folder: Path) -> ir.LazyTensor:
    """Return a tensor whose every array is a map of its own, closed with the array."""
    file = (folder / tensor.location).resolve()  # absolute, as it was checked; the working folder may change

    def map_again() -> ir.ExternalTensor:
        return ir.ExternalTensor(str(file), tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape,
                                 name=str(tensor.name))  # fmt: skip

    return ir.LazyTensor(map_again, tensor.dtype, tensor.shape, name=tensor.name)


@contextmanager
def written_model(model: ir.Model, path: Path) -> Iterator[Path]:
    """Write a model, with weights beside it where one file cannot hold them; the block checks it under another name.

    On success the model takes the name `path`, on any error nothing is left. External weights get a name that is free,
    so no other model's are overwritten, and the model that was at `path` is whole until it is replaced.

    Raises:
        OutputError: the place cannot be written.
    """
    outgrown = _own_weights(path)
    with written_whole(path, remedy="Nothing was written; choose another with -o.") as unfinished:
        save_model(model, unfinished, weights_name=_free_name(path))
        del model  # the caller may want its memory for the check
        yield unfinished
    for file in outgrown:
        file.unlink(missing_ok=True)


def save_model(model: ir.Model, path: Path, *, weights_name: str = "model.weights") -> None:
    """Write a model at `path`, its weights as `weights_name` beside it where one file cannot hold them."""
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    if sum(tensor.nbytes for tensor in tensors if tensor is not None) > MAX_EMBEDDED_BYTES:
        ir.save(model, path, external_data=weights_name)
    else:
        save_embedded(model, path)


def _free_name(path: Path) -> str:
    names = itertools.chain([f"{path.name}.data"], (f"{path.name}.{number}.data" for number in itertools.count(1)))
    return next(name for name in names if not path.with_name(name).exists())


def _own_weights(path: Path) -> list[Path]:
    """Return the weights files of the model that will be replaced at `path`, by the names that this module gives."""
    name = re.compile(rf"{re.escape(path.name)}(\.\d+)?\.data")
    files = [file for file in path.parent.iterdir() if name.fullmatch(file.name)] if path.is_file() else []
    if not files:  # the usual case, in which the older model need not be read
        return []
    try:
        used = external_files(path, read_proto(path))
    except ModelFileError:  # what lies there is no model
        return []
    return [file for file in files if file.name in used]
