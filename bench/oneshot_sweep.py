"""One model, every criterion, every ratio: what one-shot pruning makes of it, scored on the file that comes out.

A method (criterion, with or without compensation) is analysed once; each ratio is then cut from that analysis, proven
and written, as `toolchain shrink --family` does. The score is the caller's, and sees nothing but the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from toolchain.errors import ParityError, SelectionError
from toolchain.interface import read_interface
from toolchain.oneshot.criteria import CRITERIA
from toolchain.oneshot.pruning import Pruning
from toolchain.oneshot.selection import Target
from toolchain.shrink_result import ShrinkResult
from toolchain.shrinking import analyse_file, shrink

from .oneshot_steps import Step

Row = dict[str, Any]
Score = Callable[[Path], Row]
StatePair = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What to try on one model; `calibration` as `toolchain shrink --calibration` takes it.

    `steps` follow the cut by the default criterion with compensation, each on its own; so do `distill` gradient steps
    towards the original's outputs on the samples, as `toolchain shrink --distill` takes them.
    """

    model: Path
    calibration: str
    ratios: tuple[float, ...]
    criteria: tuple[str, ...] = CRITERIA
    carried: tuple[StatePair, ...] | None = None
    seed: int = 0
    threads: int = 1
    steps: tuple[Step, ...] = ()
    distill: int = 0


def sweep_rows(sweep: Sweep, score: Score, folder: Path) -> Iterator[Row]:
    """Yield a row for each method and ratio, and one for the model itself before the first.

    A ratio that cannot be met, or a result that cannot be proven, has no row; why is printed to stderr.

    Args:
        sweep: what to try.
        score: what is said about a file; joined to its row.
        folder: where smaller models are written, `CRITERION-RATIO[-plain].onnx`.
    """
    first = True
    for pruning in _methods(sweep):
        analysis = analyse_file(sweep.model, pruning, carried=sweep.carried)
        for ratio in sweep.ratios:
            file = folder / f"{pruning.criterion}-{ratio:g}{'' if pruning.compensate else '-plain'}.onnx"
            asked = replace(pruning, target=Target(kind="ratio", value=ratio))
            try:
                result = shrink(sweep.model, file, carried=sweep.carried, pruning=asked, analysis=analysis)
            except (SelectionError, ParityError) as error:  # a network that amplifies rounding cannot be proven
                click.echo(f"{file.stem}: {error}", err=True)
                continue
            if first:
                dense = {"ratio": 0.0, **_sizes(result, "before")}
                yield {**dense, **score(sweep.model)}
                yield from _after(sweep.model, folder, [step for step in sweep.steps if step.of_dense], dense, score)
                first = False
            assert result.pruned is not None, "pruning was asked for"
            cut = {"criterion": pruning.criterion, "compensated": result.pruned.compensated, "ratio": ratio,
                   **_sizes(result, "after")}  # fmt: skip
            yield {**cut, "held_out_error": result.pruned.error, **score(file)}
            if pruning.criterion == "reconstruct" and pruning.compensate:
                yield from _after(file, folder, sweep.steps, cut, score)
                if sweep.distill:
                    target = folder / f"{file.stem}-distilled.onnx"
                    taught = replace(asked, distill=sweep.distill)
                    shrink(sweep.model, target, carried=sweep.carried, pruning=taught, analysis=analysis)
                    yield _row_after(target, f"distilled, {sweep.distill} steps", cut, score)


def _after(file: Path, folder: Path, steps: Sequence[Step], row: Row, score: Score) -> Iterator[Row]:
    """Yield a row for what each step makes of a model."""
    for step in steps:
        target = folder / f"{file.stem}-{step.name.replace(' ', '-')}.onnx"
        step.make(file, target)
        yield _row_after(target, step.name, row, score)


def _row_after(file: Path, what: str, row: Row, score: Score) -> Row:
    return {**row, "then": what, "bytes": read_interface(file).file_bytes, **score(file)}


def _methods(sweep: Sweep) -> Iterator[Pruning]:
    """Yield every criterion with and without compensation."""
    for criterion in sweep.criteria:
        for compensate in (True, False):
            yield Pruning(target=Target(kind="ratio", value=sweep.ratios[0]), calibration=sweep.calibration,
                          criterion=criterion, compensate=compensate, seed=sweep.seed,
                          threads=sweep.threads)  # fmt: skip


def _sizes(result: ShrinkResult, when: str) -> Row:
    """Return what a model costs before or after."""
    sizes = getattr(result, when)
    return {"hidden_sizes": "+".join(str(getattr(node, f"hidden_{when}")) for node in result.nodes),
            "parameters": sizes.parameters, "multiply_adds": sizes.multiply_adds, "bytes": sizes.bytes}  # fmt: skip
