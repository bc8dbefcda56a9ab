"""Variants of one model, made for a measurement and thrown away after it: shrunk, quantized to int8, both.

int8 is what `toolchain shrink --int8` writes. ONNX Runtime has no quantized GRU or RNN; those stay as they are, and the
note says so. A quantized model computes something else, so its note also says how far its outputs are from the
original's.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.errors import BenchError
from toolchain.interface import plan_feeds, read_interface
from toolchain.recurrent import GATES

if TYPE_CHECKING:
    from toolchain.quantisation import QuantisationResult

VARIANTS = ("dense", "shrunk", "int8", "shrunk-int8")
_CALLED = re.compile(rf"(?P<model>.+) \((?P<variant>{'|'.join(VARIANTS[1:])})\)")
STEPS, BATCH, SEED = 10, 1, 0  # of the inputs on which a quantized model is compared with its original


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model file, what it is called in the table, and what must be said about it."""

    path: Path
    name: str
    notes: tuple[str, ...] = ()


def make_variants(model: Path, names: Sequence[str], folder: Path) -> tuple[Variant, ...]:
    """Write the variants of a model into a folder; `dense` is the model itself.

    Raises:
        BenchError: a name is not known, nothing can be removed, or nothing can be quantized.
        ToolchainError: the model cannot be read or shrunk.
    """
    for name in names:
        if name not in VARIANTS:
            raise BenchError(f"variant {name!r}: is not known; expected one of: {', '.join(VARIANTS)}.")
    shrunk = _shrink(model, folder) if any("shrunk" in name for name in names) else model
    return tuple(_variant(model, shrunk, name, folder) for name in dict.fromkeys(names))


def _variant(model: Path, shrunk: Path, name: str, folder: Path) -> Variant:
    if name == "dense":
        return Variant(path=model, name=str(model))
    source = shrunk if name.startswith("shrunk") else model
    called = f"{model.name} ({name})"
    if not name.endswith("int8"):
        return Variant(path=source, name=called)
    target = folder / f"{name}.onnx"
    from toolchain.quantisation import quantise

    result = quantise(source, target)
    if result.output is None:
        raise BenchError(
            f"{called}: ONNX Runtime cannot quantize it; expected matrices or LSTMs. Leave it out of --variants."
        )
    return Variant(path=target, name=called, notes=tuple(_notes(result, called)))


def making(called: str) -> str | None:
    """Return the command that writes a variant for good, None where `called` names a file that is there."""
    match = _CALLED.fullmatch(called)
    if match is None:
        return None
    return f"toolchain shrink {shlex.quote(match['model'])}{' --int8' if match['variant'].endswith('int8') else ''}"


def _shrink(model: Path, folder: Path) -> Path:
    from toolchain.shrinking import shrink

    target = folder / "shrunk.onnx"
    if shrink(model, target).status == "nothing_to_remove":
        raise BenchError(
            f"{model}: has nothing to remove, so there is no shrunk variant; expected units that nobody reads. "
            "Train with gates, or leave shrunk out of --variants."
        )
    return target


def _notes(result: QuantisationResult, called: str) -> Iterator[str]:
    """Yield what stayed as it was, and how far the outputs moved."""
    left = [node for node in result.kept if node.op_type in GATES]
    for reason, group in itertools.groupby(sorted(left, key=lambda node: node.reason), key=lambda node: node.reason):
        first, *others = group
        more = f" and {len(others)} more" if others else ""
        yield f"{called}: {first.op_type} {first.name}{more} stays in float: {reason}."
    assert result.output is not None
    difference = output_difference(result.source, result.output)
    yield f"{called}: its outputs differ from the float32 model's by up to {difference:.2%} of their size."


def output_difference(one: Path, other: Path) -> float:
    """Return how far apart the outputs of two models are on the same inputs, relative to each output's size."""
    from . import runner
    from .output_check import chained_outputs, largest_difference

    interface = read_interface(one)
    feeds = plan_feeds(interface, steps=interface.fixed("time") or STEPS, batch=interface.fixed("batch") or BATCH)
    job = {"feeds": [asdict(feed) for feed in feeds], "carried": interface.carried, "threads": 1, "seed": SEED}
    expected, actual = (chained_outputs(runner.ONNX_RUNTIME, {**job, "path": str(path)}) for path in (one, other))
    return largest_difference(expected, actual)
