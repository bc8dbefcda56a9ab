"""Read an ONNX file's protobuf, or say in one line why that is not possible."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.errors import ModelFileError

if TYPE_CHECKING:
    import onnx

SUGGESTION = "`toolchain train` writes one; or export your own."


def read_proto(path: Path, *, suggestion: str = SUGGESTION) -> onnx.ModelProto:
    """Parse a model; weights in external files are not read.

    Args:
        path: an ONNX file.
        suggestion: what to do when it does not exist.

    Raises:
        ModelFileError: there is no such file, it cannot be read, or it is not a complete ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if path.is_dir():
        raise ModelFileError(f"{path}: is a folder; expected an ONNX file. Name the file inside it.")
    try:
        proto = onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file; expected an ONNX model. {suggestion}") from error
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}); expected a readable file.") from error
    except (DecodeError, UnicodeDecodeError) as error:
        if _is_ort_format(path):
            raise ModelFileError(
                f"{path}: is in ONNX Runtime's own format (ORT); expected the ONNX file that it was made from. "
                "Give that one."
            ) from error
        raise ModelFileError(
            f"{path}: is not an ONNX file, or only a part of one; expected a complete model. Export or copy it again."
        ) from error
    if not proto.graph.node:
        raise ModelFileError(f"{path}: holds no graph; expected an ONNX model with nodes. Export or copy it again.")
    if not proto.opset_import:
        raise ModelFileError(f"{path}: names no opset; expected a model that says which it needs. Export it again.")
    return proto


def _is_ort_format(path: Path) -> bool:
    """Tell by the file identifier of the flatbuffer, bytes 4 to 7."""
    with path.open("rb") as file:
        return file.read(8)[4:] == b"ORTM"
