"""The runner's job for another place: every path in it is relative, and the files that it means come along.

A model is its own file and the external data beside it. It lies in a subfolder named by these contents, so equal models
are one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain.errors import BenchError
from toolchain.interface import external_files
from toolchain.model_file import read_proto

from ..measure import job_of
from ..plan import BenchPlan

PIECE_BYTES = 1 << 20


Files = dict[str, tuple[Path, str]]  # path in the other place -> the file here, its sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class PortableJob:
    """A job and the files that its relative paths mean."""

    job: dict[str, Any]
    files: Files


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model's files; `entry` is the path of the model itself in the other place."""

    entry: str
    files: Files


def portable_job(plan: BenchPlan) -> PortableJob:
    """Return a plan's job with the files that it needs.

    Raises:
        ModelFileError: external data is missing.
        BenchError: a model is to run on another runtime, which only this machine can do.
    """
    job = job_of(plan)
    files: Files = {}
    known: dict[str, ModelFiles] = {}
    for member in (member for case in job["cases"] for member in case["members"]):
        if "worker" in member:
            raise BenchError(
                f"{member['model']}: other runtimes are measured on this machine only; expected ONNX Runtime on a "
                "device. Leave out --runtimes."
            )
        model = known.get(member["path"]) or files_of(Path(member["path"]))
        known[member["path"]] = model
        member["path"] = model.entry
        files |= model.files
        if "inputs" in member:
            path = Path(member["inputs"])
            sha256 = file_sha256(path)
            member["inputs"] = f"inputs/{sha256[:16]}.npz"
            files[member["inputs"]] = (path, sha256)
    return PortableJob(job=job, files=files)


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
