"""What `toolchain shrink` does after the cut: `--int8` and `--ort`, one row for each file written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolchain.oneshot.calibration import Calibration
    from toolchain.ort_format import OrtFormatResult
    from toolchain.quantisation import QuantisationResult
    from toolchain.shrink_result import ShrinkResult

    Smaller = tuple[QuantisationResult | None, OrtFormatResult | None]


def make_smaller(result: ShrinkResult, *, int8: bool, ort: bool, calibration: str | None) -> Smaller:
    """Quantize the shrunk model, or the model itself where nothing went, and write the last file as .ort too.

    The error of int8 is measured on the samples that were held out of pruning, on random inputs without samples.
    """
    model = result.output or result.source
    quantised = converted = None
    if int8:
        from toolchain.quantisation import quantise

        samples, held_out = _samples(result, calibration)
        quantised = quantise(model, calibration=samples, held_out=held_out, carried=result.carried)
    if ort:
        from toolchain.ort_format import to_ort_format

        last = quantised.output if quantised is not None and quantised.output is not None else model
        converted = to_ort_format(last, carried=result.carried)
    return quantised, converted


def _samples(result: ShrinkResult, calibration: str | None) -> tuple[Calibration | None, Calibration | None]:
    """Return the samples, and those of them that were held out; None where there are none."""
    if calibration is None:
        return None, None
    from toolchain.interface import read_interface
    from toolchain.oneshot.calibration import read_calibration, split
    from toolchain.oneshot.pieces import in_pieces

    interface = read_interface(result.source)
    samples = in_pieces(read_calibration(calibration, interface, result.carried), interface)
    fit, held_out = split(samples)
    return samples, None if held_out is fit else held_out


def smaller_json(smaller: Smaller) -> dict[str, Any]:
    """Return what was written, None for what was not, by the schema in docs/shrink.md."""
    return {name: None if made is None else made.to_json() for name, made in zip(("int8", "ort"), smaller, strict=True)}


def smaller_lines(quantised: QuantisationResult | None, converted: OrtFormatResult | None) -> list[str]:
    """Return what was written, for people."""
    lines = []
    if quantised is not None:
        lines += _int8_lines(quantised)
    if converted is not None:
        same = "exactly equal" if not converted.parity.max_abs_diff else f"{converted.parity.max_abs_diff:.2g} apart"
        lines.append(f"Written: {converted.output} ({converted.bytes:,} bytes, {same}) and {converted.config}")
    return lines


def _int8_lines(quantised: QuantisationResult) -> list[str]:
    kept = [f"Stays in float: {node.op_type} {node.name}: {node.reason}." for node in quantised.kept]
    if quantised.output is None:
        return [f"Nothing to quantize in {quantised.source}: no int8 model was written.", *kept]
    error = "not measured" if quantised.error is None else f"{quantised.error:.3g}"
    held_out = "held-out samples of " if quantised.held_out else ""
    return [
        f"Written: {quantised.output} ({quantised.bytes_before:,} -> {quantised.bytes_after:,} bytes; relative output "
        f"error against float {error}, on {held_out}{quantised.measured_on})",
        *kept,
    ]
