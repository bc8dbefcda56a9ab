"""What is done to a model after the cut, for the one-shot tables: 8-bit weights, an epoch of training."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.errors import BenchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Writes one model from another; `of_dense` says whether the original goes through it too, to compare with."""

    name: str
    make: Callable[[Path, Path], None]
    of_dense: bool


def int8() -> Step:
    """Return ONNX Runtime's dynamic quantization, as `toolchain shrink --int8` does it."""
    from toolchain.quantisation import quantise

    def make(source: Path, target: Path) -> None:
        if quantise(source, target).output is None:
            raise BenchError(f"{source.name}: nothing in it can be quantized; expected matrices. Leave out --int8.")

    return Step(name="int8", make=make, of_dense=True)


def epoch(recipe: str, settings: Sequence[str], *, data: Path | None) -> Step:
    """Return one epoch of `toolchain train --from`.

    Args:
        recipe: of the corpus that the model was trained on.
        settings: as `--set` takes them.
        data: the corpus's folder, if it is not downloaded.
    """
    options = [part for setting in ("optim.epochs=1", *settings) for part in ("--set", setting)]
    options += ["--data", str(data.resolve())] if data is not None else []

    def make(source: Path, target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:  # runs/ goes there
            command = [sys.executable, "-m", "toolchain", "train", recipe, "--from", str(source.resolve()), *options]
            done = subprocess.run([*command, "-o", str(target.resolve())], cwd=folder, capture_output=True, text=True,
                                  check=False)  # fmt: skip
        if done.returncode != 0:
            raise BenchError(f"{source.name}: an epoch of training failed: {done.stderr.strip().splitlines()[-1]}")

    return Step(name="1 epoch", make=make, of_dense=False)
