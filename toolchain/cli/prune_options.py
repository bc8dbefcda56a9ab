"""The options of `toolchain shrink` that give up living neurons, and the `Pruning` they stand for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from toolchain.oneshot.pruning import Pruning, PruningReport

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
CRITERIA = ("reconstruct", "magnitude", "activation", "random")
TARGETS = {"ratio": "ratio", "keep_parameters": "parameters", "keep_macs": "multiply_adds",
           "target_latency": "latency", "max_error": "error"}  # fmt: skip


def _latency(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Read a time such as 2ms."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9.eE+-]+)\s*(s|ms|us)", value.strip())
    try:
        seconds = float(match[1]) * SECONDS[match[2]] if match else 0.0
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise click.BadParameter(f"{value!r} is no time; expected one such as 2ms, 500us or 0.1s.", ctx, parameter)
    return seconds


def prune_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; they arrive as keyword arguments for `pruning_of`."""
    above_zero = click.FloatRange(min=0, min_open=True)
    options = (
        click.option("--ratio", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="SHARE",
                     help="Give up this share of the hidden units, at the least error."),
        click.option("--keep-parameters", type=above_zero, metavar="NUMBER|SHARE",
                     help="Give up neurons until so many parameters are left (below 1: that share)."),
        click.option("--keep-macs", type=above_zero, metavar="NUMBER|SHARE",
                     help="The same for multiply-adds per step."),
        click.option("--target-latency", callback=_latency, metavar="TIME",
                     help="The same for the time of one call on this CPU, as 2ms."),
        click.option("--steps", type=click.IntRange(min=1), default=35, help="Length of that call [35]."),
        click.option("--max-error", type=above_zero, metavar="ERROR",
                     help="Give up as much as this relative output error allows."),
        click.option("--calibration", metavar="SAMPLES",
                     help="Inputs: an .npz, a folder of them, or path.py:function [random inputs]."),
        click.option("--criterion", type=click.Choice(CRITERIA),
                     help="Which units go first [reconstruct; magnitude without samples]."),
        click.option("--no-compensate", is_flag=True, help="Do not fold what lost units said into the others."),
        click.option("--seed", type=click.IntRange(min=0), default=0, help="Of random inputs and choices [0]."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def pruning_of(*, calibration: str | None, criterion: str | None, no_compensate: bool, seed: int, steps: int,
               **targets: float | None) -> Pruning | None:  # fmt: skip
    """Return what the options ask for, None when they ask for nothing.

    Raises:
        click.UsageError: two targets, or options without a target.
    """
    named = {name: value for name, value in targets.items() if value is not None}
    flags = [f"--{name.replace('_', '-')}" for name in named]
    if len(flags) > 1:
        raise click.UsageError(f"{' and '.join(flags)}: two targets; expected one. Choose the one that matters.")
    if not flags:
        if calibration is not None or criterion is not None or no_compensate:
            raise click.UsageError(
                "--calibration, --criterion and --no-compensate: expected a target beside them. Add --ratio 0.5, "
                "--max-error 0.01, --keep-macs 0.5, --keep-parameters 0.5 or --target-latency 2ms."
            )
        return None
    from toolchain.oneshot.pruning import Pruning
    from toolchain.oneshot.selection import Target

    ((name, value),) = named.items()
    return Pruning(target=Target(kind=TARGETS[name], value=value), calibration=calibration,  # type: ignore[arg-type]
                   criterion=criterion, compensate=not no_compensate, seed=seed, steps=steps)  # fmt: skip


def flags_of(*, calibration: str | None, criterion: str | None, no_compensate: bool, seed: int, steps: int,
             **targets: float | None) -> list[str]:  # fmt: skip
    """Return the options as they were typed."""
    given = {**targets, "calibration": calibration, "criterion": criterion, "seed": seed or None}
    if targets.get("target_latency") is not None:
        given["steps"] = steps
    if given.get("target_latency") is not None:
        given["target_latency"] = f"{given['target_latency']}s"
    flags = [f"--{name.replace('_', '-')} {value}" for name, value in given.items() if value is not None]
    return [*flags, *(["--no-compensate"] if no_compensate else [])]


def report_lines(report: PruningReport) -> list[str]:
    """Return what was given up, for people."""
    folded = "what they said folded into the others" if report.compensated else "nothing folded"
    lines = [f"Gave up living neurons by {report.criterion} on {report.calibration}, {folded}:"]
    for group in report.groups:
        kind = "units" if group.recurrent else "columns"
        held = f", {group.held} of them held by more than matrices (see --explain)" if group.held else ""
        lines.append(f"  {', '.join(group.nodes)}: {group.size} -> {group.kept} {kind}{held}")
    calls = f"{report.held_out_calls} held-out call{'s' if report.held_out_calls != 1 else ''}"
    if report.seconds is not None:
        lines.append(f"One call takes {1e3 * report.seconds:.3g} ms here, one thread, before folding.")
    return [*lines, f"Relative output error: {report.error:.3g}, on {calls}."]


def curve_lines(report: PruningReport) -> list[str]:
    """Return the output error against what one group alone gives up, for --explain."""
    lines = ["Output error when one layer alone gives up neurons:"]
    for group in report.groups:
        points = ", ".join(f"{removed} of {group.size}: {error:.2g}" for removed, error in group.curve)
        lines.append(f"  {', '.join(group.nodes)}: {points}")
    return lines
