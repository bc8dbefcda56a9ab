"""Variants of one model, made for a measurement and thrown away after it: shrunk, quantized to int8, both.

int8 is ONNX Runtime's dynamic quantization, per channel: what a user would try first. ONNX Runtime has no quantized GRU
or RNN; those stay as they are, and the note says so. A quantized model computes something else, so its note also says
how far its outputs are from the original's.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from toolchain.errors import BenchError
from toolchain.interface import plan_feeds, read_interface

VARIANTS = ("dense", "shrunk", "int8", "shrunk-int8")
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
    quantize(source, target, called)
    return Variant(path=target, name=called, notes=tuple(_notes(source, target, called)))


def _shrink(model: Path, folder: Path) -> Path:
    from toolchain.shrinking import shrink

    target = folder / "shrunk.onnx"
    if shrink(model, target).status == "nothing_to_remove":
        raise BenchError(
            f"{model}: has nothing to remove, so there is no shrunk variant; expected units that nobody reads. "
            "Train with gates, or leave shrunk out of --variants."
        )
    return target


def quantize(source: Path, target: Path, called: str) -> None:
    """Write what ONNX Runtime's dynamic quantization makes of a model.

    Raises:
        BenchError: it cannot be quantized.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)  # it advises a preprocessing for image models, through the root logger
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)
    except (ValueError, RuntimeError, NotImplementedError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise BenchError(
            f"{called}: ONNX Runtime cannot quantize it ({reason}); expected matrices or LSTMs. "
            "Leave it out of --variants."
        ) from error
    finally:
        logger.setLevel(before)


def _notes(source: Path, target: Path, called: str) -> Iterator[str]:
    """Yield what stayed as it was, and how far the outputs moved."""
    import onnx

    from toolchain.axes import nodes_of

    left = [node for node in nodes_of(onnx.load(target).graph) if node.op_type in ("LSTM", "GRU", "RNN")]
    for op_type in dict.fromkeys(node.op_type for node in left):
        names = [node.name or node.output[0] for node in left if node.op_type == op_type]
        reason = "ONNX Runtime did not quantize it" if op_type == "LSTM" else f"ONNX Runtime has no int8 {op_type}"
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{called}: {op_type} {names[0]}{more} stays float32; {reason}."
    difference = output_difference(source, target)
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
