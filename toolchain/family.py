"""Several models of one: the same analysis cut at several ratios, on the front of size against error.

    toolchain shrink model.onnx --family 0.25,0.5,0.75 --calibration samples.npz

writes `model.shrunk-25.onnx`, `-50`, `-75` beside the input, each proven like any other result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from toolchain.graph.program import StatePair
from toolchain.oneshot.pruning import Pruning
from toolchain.oneshot.selection import Target
from toolchain.shrink_result import ShrinkResult
from toolchain.shrinking import analyse_file, default_output, shrink


def shrink_family(
    source: Path,
    ratios: Sequence[float],
    pruning: Pruning,
    output: Path | None = None,
    *,
    carried: str | Sequence[StatePair] | None = None,
    compact_state: bool = False,
    dry_run: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
) -> tuple[ShrinkResult, ...]:
    """Shrink a model once for each share of hidden units to give up.

    Args:
        source: an ONNX file, never changed.
        ratios: shares of the hidden units, each between 0 and 1.
        pruning: samples and method; its target is replaced by the ratios.
        output: the name that the ratios are put into, by default `NAME.shrunk.onnx` beside the input.
        carried: as for `shrink`; compact_state, dry_run and progress likewise.
        compact_state: see `carried`.
        dry_run: see `carried`.
        progress: see `carried`.

    Raises:
        ToolchainError: as `shrink` does; models that were written before stay.
    """
    members = [replace(pruning, target=Target(kind="ratio", value=ratio)) for ratio in ratios]
    analysis = analyse_file(source, members[0], carried=carried, progress=progress)
    place = output or default_output(source)
    return tuple(
        shrink(source, member_name(place, member.target.value), carried=carried, compact_state=compact_state,
               dry_run=dry_run, pruning=member, analysis=analysis, progress=progress)
        for member in members
    )  # fmt: skip


def member_name(output: Path, ratio: float) -> Path:
    """Return the file of one ratio: `model.shrunk.onnx` at 0.5 becomes `model.shrunk-50.onnx`, at 0.125 `-12.5`."""
    return output.with_name(f"{output.name.removesuffix('.onnx')}-{100 * ratio:g}.onnx")
