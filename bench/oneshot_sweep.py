"""One model, every criterion, every ratio: what one-shot pruning makes of it, scored on the file that comes out.

A method (criterion, with or without compensation) is analysed once; each ratio is then cut from that analysis as
`toolchain shrink --ratio` cuts it. The score is the caller's, and sees nothing but the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from toolchain.errors import SelectionError
from toolchain.graph.costs import multiply_adds, parameters
from toolchain.graph.loading import load_model, save_model
from toolchain.graph.normalise import normalise
from toolchain.graph.surgery import apply_surgery, plan_surgery
from toolchain.oneshot.criteria import CRITERIA
from toolchain.oneshot.pruning import Pruning, analyse_for, prune
from toolchain.oneshot.selection import Target

Row = dict[str, Any]
Score = Callable[[Path], Row]
StatePair = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What to try on one model; `calibration` as `toolchain shrink --calibration` takes it."""

    model: Path
    calibration: str
    ratios: tuple[float, ...]
    criteria: tuple[str, ...] = CRITERIA
    carried: tuple[StatePair, ...] = ()
    seed: int = 0
    threads: int = 1


def sweep_rows(sweep: Sweep, score: Score, folder: Path) -> Iterator[Row]:
    """Yield a row for the model itself, then one for each method and ratio, in that order.

    Args:
        sweep: what to try.
        score: what is said about a file; joined to its row.
        folder: where smaller models are written, `CRITERION-RATIO[-plain].onnx`.
    """
    model, interface = load_model(sweep.model)
    normalised = normalise(model)
    carried = sweep.carried or interface.carried
    weights, products = parameters(normalised.model.graph), multiply_adds(normalised.model.graph)
    before = plan_surgery(normalised.model.graph, carried=carried, compact_state=False)
    sizes = "+".join(str(node.hidden_before) for node in before.changes)
    yield {"criterion": "", "compensated": "", "ratio": 0.0, "hidden_sizes": sizes, "parameters": weights,
           "multiply_adds": products, "bytes": interface.file_bytes, **score(sweep.model)}  # fmt: skip
    for criterion in sweep.criteria:
        for compensate in (True, False):
            pruning = Pruning(target=Target(kind="ratio", value=sweep.ratios[0]), calibration=sweep.calibration,
                              criterion=criterion, compensate=compensate, seed=sweep.seed,
                              threads=sweep.threads)  # fmt: skip
            analysis = analyse_for(normalised.model, interface, carried, pruning)
            for ratio in sweep.ratios:
                asked = replace(pruning, target=Target(kind="ratio", value=ratio))
                trial = replace(normalised, model=normalised.model.clone())
                method = {"criterion": criterion, "compensated": compensate, "ratio": ratio}
                try:
                    report = prune(trial, interface, analysis, asked)
                except SelectionError as error:
                    click.echo(f"{method}: {error}", err=True)
                    continue
                plan = plan_surgery(trial.model.graph, carried=carried, compact_state=False)
                smaller = apply_surgery(plan, trial)
                file = folder / f"{criterion}-{ratio:g}{'' if compensate else '-plain'}.onnx"
                save_model(smaller, file)
                yield {**method, "hidden_sizes": "+".join(str(node.hidden_after) for node in plan.changes),
                       "parameters": parameters(smaller.graph), "multiply_adds": multiply_adds(smaller.graph),
                       "bytes": file.stat().st_size, "held_out_error": report.error, **score(file)}  # fmt: skip
