"""The options of `toolchain shrink` that give up living neurons, and the `Pruning` they stand for."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from toolchain.oneshot.pruning import DistillationReport, Pruning, PruningReport
    from toolchain.oneshot.selection import TargetKind

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
ONE_CALL = "the one call that also decided"
CRITERIA = ("reconstruct", "magnitude", "activation", "random")
TARGETS: dict[str, TargetKind] = {
    "ratio": "ratio",
    "family": "ratio",
    "keep_parameters": "parameters",
    "keep_macs": "multiply_adds",
    "target_latency": "latency",
    "max_error": "error",
}


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


def _shares(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...]:
    """Read a list of shares such as 0.25,0.5,0.75."""
    try:
        shares = tuple(dict.fromkeys(float(part) for part in value.split(","))) if value else ()
    except ValueError:
        shares = (0.0,)
    if any(not 0 < share < 1 for share in shares):
        raise click.BadParameter(f"{value!r}: expected shares between 0 and 1 such as 0.25,0.5,0.75.", ctx, parameter)
    return shares


def prune_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; they arrive as the fields of `PruneOptions`."""
    above_zero = click.FloatRange(min=0, min_open=True)
    options = (
        click.option("--ratio", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="SHARE",
                     help="Give up this share of the hidden units, at the least error."),
        click.option("--family", callback=_shares, metavar="SHARE,…",
                     help="Write a model for each of these shares, from one analysis."),
        click.option("--html", type=click.Path(path_type=Path), help="With --family: error against size, as a page."),
        click.option("--keep-parameters", type=above_zero, metavar="NUMBER|SHARE",
                     help="Give up neurons until so many parameters are left (below 1: that share)."),
        click.option("--keep-macs", type=above_zero, metavar="NUMBER|SHARE",
                     help="The same for multiply-adds per step."),
        click.option("--target-latency", callback=_latency, metavar="TIME",
                     help="The same for the time of one call, as 2ms."),
        click.option("--device", default="cpu", help="Where that call runs: cpu, ssh://user@host, rpi4, … [cpu]."),
        click.option("--steps", type=click.IntRange(min=1), default=35, help="Length of that call [35]."),
        click.option("--max-error", type=above_zero, metavar="ERROR",
                     help="Give up as much as this relative output error allows."),
        click.option("--calibration", metavar="SAMPLES",
                     help="Inputs: an .npz, a folder of them, or path.py:function [random inputs]."),
        click.option("--criterion", type=click.Choice(CRITERIA),
                     help="Which units go first [reconstruct; magnitude without samples]."),
        click.option("--distill", type=click.IntRange(min=0), default=0, metavar="STEPS",
                     help="Then so many gradient steps towards the original's outputs (extra train)."),
        click.option("--no-compensate", is_flag=True, help="Do not fold what lost units said into the others."),
        click.option("--seed", type=click.IntRange(min=0), default=0, help="Of random inputs and choices [0]."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions:
    """The options as they were typed."""

    ratio: float | None
    family: tuple[float, ...]
    html: Path | None
    keep_parameters: float | None
    keep_macs: float | None
    target_latency: float | None
    steps: int
    device: str
    max_error: float | None
    calibration: str | None
    criterion: str | None
    distill: int
    no_compensate: bool
    seed: int

    def pruning(self, *, int8: bool) -> Pruning | None:
        """Return what the options ask for, None when they ask for nothing; a family's first share stands for all.

        Args:
            int8: whether the model is quantized afterwards: a latency target is then about that.

        Raises:
            click.UsageError: two targets, or options without a target.
        """
        if self.html is not None and not self.family:
            raise click.UsageError("--html: shows a family; expected --family beside it. Add --family 0.25,0.5,0.75.")
        named = {name: value for name in TARGETS if (value := getattr(self, name))}
        flags = [f"--{name.replace('_', '-')}" for name in named]
        if len(flags) > 1:
            raise click.UsageError(f"{' and '.join(flags)}: two targets; expected one. Choose the one that matters.")
        if not flags:
            if self.calibration or self.criterion or self.no_compensate or self.distill:
                raise click.UsageError(
                    "--calibration, --criterion, --distill and --no-compensate: expected a target beside them. Add "
                    "--ratio 0.5, --max-error 0.01, --keep-macs 0.5, --keep-parameters 0.5 or --target-latency 2ms."
                )
            return None
        from toolchain.oneshot.pruning import Pruning
        from toolchain.oneshot.selection import Target

        ((name, value),) = named.items()
        target = Target(kind=TARGETS[name], value=value[0] if isinstance(value, tuple) else value)
        return Pruning(target=target, calibration=self.calibration, criterion=self.criterion,
                       compensate=not self.no_compensate, seed=self.seed, steps=self.steps,
                       call_s=self._call_s(), int8=int8, distill=self.distill)  # fmt: skip

    def _call_s(self) -> Callable[[Path], float] | None:
        """Return what times a model on a device other than this CPU."""
        if self.target_latency is None or self.device == "cpu":
            return None
        call_seconds = importlib.import_module("toolchain.bench.one_call").call_seconds
        return lambda path: float(call_seconds(path, self.device, steps=self.steps))

    def flags(self) -> list[str]:
        """Return the options that ask for the same again."""
        given: dict[str, object] = {
            "ratio": self.ratio,
            "family": ",".join(f"{share:g}" for share in self.family) or None,
            "keep-parameters": self.keep_parameters,
            "keep-macs": self.keep_macs,
            "target-latency": None if self.target_latency is None else f"{self.target_latency:g}s",
            "steps": None if self.target_latency is None else self.steps,
            "device": None if self.device == "cpu" else self.device,
            "max-error": self.max_error,
            "calibration": self.calibration,
            "criterion": self.criterion,
            "distill": self.distill or None,
            "seed": self.seed or None,
        }
        flags = [f"--{name} {value}" for name, value in given.items() if value is not None]
        return [*flags, *(["--no-compensate"] if self.no_compensate else [])]


def report_lines(report: PruningReport) -> list[str]:
    """Return what was given up, for people."""
    folded = "what they said folded into the others" if report.compensated else "nothing folded"
    lines = [f"Gave up living neurons by {report.criterion} on {report.calibration}, {folded}:"]
    for group in report.groups:
        kind = "units" if group.recurrent else "columns"
        held = f", {group.held} of them held by more than matrices (see --explain)" if group.held else ""
        lines.append(f"  {', '.join(group.nodes)}: {group.size} -> {group.kept} {kind}{held}")
    unit = "piece" if report.in_pieces else "call"
    calls = f"{report.held_out_calls} held-out {unit}{'s' if report.held_out_calls != 1 else ''}"
    if not report.held_out_calls:
        calls = f"{ONE_CALL}: nothing was left to hold out"
    if report.seconds is not None:
        weights = " with 8-bit weights" if report.timed_as_int8 else ""
        lines.append(f"One call takes {1e3 * report.seconds:.3g} ms{weights}, one thread, before folding.")
    return [*lines, f"Relative output error: {report.error:.3g}, on {calls}.", *warning_lines(report)]


def warning_lines(report: PruningReport) -> list[str]:
    """Return what is wrong with the samples, for people."""
    lines = []
    if report.rows < report.advised_rows:
        lines.append(f"Few samples: {report.rows:,} steps decided; for layers as wide as these {report.advised_rows:,} "
                     "or more are advised. Beyond the samples the error may be larger.")  # fmt: skip
    if report.resting:
        lines.append(f"State at zero in every call: {', '.join(report.resting)}. If the caller feeds state back, say "
                     "`--carried auto`, or name each with --carried IN=OUT.")  # fmt: skip
    return lines


def distilled_line(report: DistillationReport) -> str:
    """Return what gradient steps did, for people."""
    took = f"Distilled for {report.steps} steps: "
    if not report.kept:
        return f"{took}the {'held-out ' * report.held_out}error did not fall; the model is as it was cut."
    where = "" if report.held_out else f", on {ONE_CALL}: how much of it holds elsewhere is not known"
    return f"{took}relative output error {report.error_before:.3g} -> {report.error_after:.3g}{where}."


def curve_lines(report: PruningReport) -> list[str]:
    """Return the output error against what is given up, by one layer alone and by all, for --explain."""
    lines = ["Output error when one layer alone gives up neurons:"]
    for group in report.groups:
        points = ", ".join(f"{removed} of {group.size}: {error:.2g}" for removed, error in group.curve)
        lines.append(f"  {', '.join(group.nodes)}: {points}")
    lines.append("Output error predicted when all layers give up neurons:")
    for point in report.front:
        left = f"{point.multiply_adds:6.1%} of the multiply-adds left"
        lines.append(f"  {point.units_removed:6.1%} of the units, {left}: {point.error:.2g}")
    return lines
