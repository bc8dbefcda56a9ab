"""The files that a model consists of, and where they lie in a folder that holds several models."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from toolchain.interface import external_files
from toolchain.model_file import read_proto

PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model's files as `{path in the folder: (file here, its sha256)}`; `entry` is the model itself."""

    entry: str
    files: dict[str, tuple[Path, str]]


def files_of(path: Path) -> ModelFiles:
    """Return a model's own file and its external data, in a subfolder named by their contents.

    Raises:
        ModelFileError: it is not an ONNX model, or its external data is missing.
    """
    names = [path.name, *sorted(external_files(path, read_proto(path)))]
    found = {name: (path.parent / name, file_sha256(path.parent / name)) for name in names}
    digest = hashlib.sha256("".join(sha256 for _, sha256 in found.values()).encode()).hexdigest()[:16]
    return ModelFiles(
        entry=f"models/{digest}/{path.name}",
        files={f"models/{digest}/{name}": entry for name, entry in found.items()},
    )


def file_sha256(path: Path) -> str:
    """Return a file's sha256 as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
