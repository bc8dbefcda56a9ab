"""Read and write ONNX files: clear errors on the way in, whole files or none on the way out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from toolchain.errors import ModelFileError, OutputError
from toolchain.interface import ModelInterface, interface_of
from toolchain.model_file import read_proto

# Protobuf cannot hold more than 2 GiB in one file; weights go beside the model well before that.
MAX_EMBEDDED_BYTES = 1_900_000_000


def load_model(path: Path) -> tuple[ir.Model, ModelInterface]:
    """Read a model and its interface; external weights stay on disk and are mapped into memory when read.

    Raises:
        ModelFileError: there is no such file, it is not a complete ONNX model, or its external data is missing.
    """
    proto = read_proto(path)
    interface = interface_of(path, proto)
    try:
        model = ir.serde.deserialize_model(proto)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise ModelFileError(
            f"{path}: the graph is damaged ({problem}); expected a valid ONNX model. Export it again."
        ) from error
    ir.external_data.set_base_dir(model.graph, path.parent)
    _check_external(path, model)
    return model, interface


def _check_external(path: Path, model: ir.Model) -> None:
    for tensor in (value.const_value for value in model.graph.initializers.values()):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        file = Path(tensor.path)
        if path.parent.resolve() not in file.resolve().parents:
            raise ModelFileError(
                f"{path}: tensor {tensor.name!r} lies in {tensor.location!r}, outside the model's "
                "folder; expected a file beside the model. Move it there and export again."
            )
        needed = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
        if not file.is_file() or file.stat().st_size < needed:
            found = f"has {file.stat().st_size} bytes" if file.is_file() else "is missing"
            raise ModelFileError(
                f"{path}: its weights file {tensor.location!r} {found}; expected at least {needed} "
                f"bytes for tensor {tensor.name!r}. Copy it there again."
            )


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the name, on any error it is removed.

    Raises:
        OutputError: the folder is missing or cannot be written, the disk is full, or `path` is a folder.
    """
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; expected the name of a file to write. Name a file inside it.")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            yield temporary
            for companion in Path(folder).iterdir():  # external weights first, the model that needs them last
                if companion != temporary:
                    os.replace(companion, path.parent / companion.name)
            os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); expected a writable place with room. "
            "Nothing was written; choose another with -o."
        ) from error


def save_model(model: ir.Model, path: Path) -> None:
    """Write a model at `path`, its weights beside it where one file cannot hold them."""
    weights = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    if weights > MAX_EMBEDDED_BYTES:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.save(ir.external_data.load_to_model(model), path)
