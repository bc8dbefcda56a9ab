"""The options that say what a bench runs, shared by `bench` and `bench bundle`."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from toolchain.bench.plan import BenchPlan

Command = Callable[..., Any]

FILE = click.Path(path_type=Path)
DEFAULT_STEPS, DEFAULT_BATCH = "1,35", "1"


def whole_numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Read a comma-separated list of whole numbers, each at least 1; repetitions are dropped."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers such as 1,35.", ctx, param) from error
    if min(numbers) < 1:
        raise click.BadParameter(f"{min(numbers)} is out of range; expected at least 1.", ctx, param)
    return numbers


def words(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Read a comma-separated list; repetitions are dropped."""
    return tuple(dict.fromkeys(part.strip() for part in (value or "").split(",") if part.strip()))


def share(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read `2%` or `0.02`."""
    return _positive(ctx, param, value, suffix="%", unit=0.01, example="2%")


def ratio(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read `10x` or `10`."""
    return _positive(ctx, param, value, suffix="x", unit=1.0, example="10x")


def _positive(
    ctx: click.Context, param: click.Parameter, value: str | None, *, suffix: str, unit: float, example: str
) -> float | None:
    if value is None:
        return None
    try:
        number = float(value.removesuffix(suffix)) * (unit if value.endswith(suffix) else 1.0)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a number such as {example}.", ctx, param) from error
    if not 0 < number < float("inf"):
        raise click.BadParameter(f"{value!r} is out of range; expected more than 0, such as {example}.", ctx, param)
    return number


WHAT_TO_RUN = (
    click.argument("models", nargs=-1, metavar="[MODEL]...", type=FILE),
    click.option("--baseline", type=FILE,
                 help="What the speedup is over.  [default: x.onnx for x.shrunk.onnx, else the first MODEL]"),
    click.option("--steps", default=DEFAULT_STEPS, show_default=True, metavar="N[,N…]", callback=whole_numbers,
                 help="Sequence lengths."),
    click.option("--batch", default=DEFAULT_BATCH, show_default=True, metavar="N[,N…]", callback=whole_numbers,
                 help="Sequences at once."),
    click.option("--threads", default="1", show_default=True, metavar="N[,N…]", callback=whole_numbers,
                 help="Threads per model."),
    click.option("--protocol",
                 help="A published protocol instead of --steps and --batch: iss is 30 steps, 10 sequences."),
    click.option("--inputs", type=FILE, help="Real inputs: an .npz with one array per model input."),
    click.option("--variants", metavar="NAME[,NAME…]", callback=words,
                 help="Make these of one MODEL and compare them: dense, shrunk, int8, shrunk-int8."),
    click.option("--processes", default=8, show_default=True, type=click.IntRange(2, 1000),
                 help="Fresh processes per row."),
    click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(0.1, 3600),
                 help="Time per row, about."),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of inputs and order."),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatToRun:
    """What the arguments and options of `WHAT_TO_RUN` said, each under its name."""

    models: tuple[Path, ...]
    baseline: Path | None
    steps: tuple[int, ...]
    batch: tuple[int, ...]
    threads: tuple[int, ...]
    protocol: str | None
    inputs: Path | None
    variants: tuple[str, ...]
    processes: int
    seconds: float
    seed: int

    def refuse_contradictions(self, ctx: click.Context) -> None:
        """Raise a usage error where two options decide the same."""
        given = {
            name
            for name in ("steps", "batch", "protocol", "inputs")
            if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        }
        for chooser in ("inputs", "protocol"):
            if chooser in given and len(given) > 1:
                other = min(given - {chooser})
                raise click.UsageError(f"--{chooser} decides steps and sequences; it cannot go with --{other}.")
        if self.variants and (len(self.models) > 1 or self.baseline is not None):
            raise click.UsageError("--variants are made of one MODEL and compared with the first of them.")

    @contextmanager
    def plan(
        self, *, device: str = "cpu", until: Mapping[str, Any] | None = None, **how: Any
    ) -> Iterator[tuple[BenchPlan, tuple[str, ...]]]:
        """Yield what will be measured, and notes on the models; variants live until the context ends.

        Args:
            device: as `toolchain.bench.devices.naming` reads it.
            until: `precision` and `limit_s` of `toolchain.bench.plan.Effort`; absent: its own.
            how: further arguments of `toolchain.bench.compare.plan_comparison`.
        """
        plans, compare = (importlib.import_module(f"toolchain.bench.{name}") for name in ("plan", "compare"))
        with self._files() as (files, names, notes):
            steps, batches = self._shapes()
            yield (
                compare.plan_comparison(
                    files,
                    baseline=self.baseline,
                    names=names,
                    device=device,
                    steps=steps,
                    batches=batches,
                    threads=self.threads,
                    protocol=self.protocol,
                    inputs=self.inputs,
                    effort=plans.Effort(
                        processes=self.processes, seconds=self.seconds, seed=self.seed, **(until or {})
                    ),
                    **how,
                ),
                notes,
            )

    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return sequence lengths and sequences at once: the protocol's where one is named."""
        if self.protocol is None:
            return self.steps, self.batch
        published = importlib.import_module("toolchain.bench.protocols").protocol_named(self.protocol)
        return (published.steps,), (published.batch,)

    @contextmanager
    def _files(self) -> Iterator[tuple[tuple[Path, ...], dict[Path, str], tuple[str, ...]]]:
        """Yield the files to run, the variants' names, and notes on them."""
        if not self.variants:
            yield self.models, {}, ()
            return
        plans = importlib.import_module("toolchain.bench.plan")
        make = importlib.import_module("toolchain.bench.variants").make_variants
        with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
            made = make(self.models[0] if self.models else plans.DEFAULT_BASELINE, self.variants, Path(folder))
            names = {variant.path: variant.name for variant in made}
            yield tuple(names), names, tuple(note for variant in made for note in variant.notes)


def what_to_run(command: Command) -> Command:
    """Give a command the arguments and options of `WHAT_TO_RUN`, in that order in its help; it gets them as `asked`."""

    def with_what_to_run(**values: Any) -> Any:
        asked = WhatToRun(**{field.name: values.pop(field.name) for field in fields(WhatToRun)})
        asked.refuse_contradictions(click.get_current_context())
        return command(asked=asked, **values)

    return with_options(WHAT_TO_RUN, update_wrapper(with_what_to_run, command))


def with_options(options: tuple[Callable[[Command], Command], ...], command: Command) -> Command:
    """Give a command these options, in this order in its help."""
    for decorate in reversed(options):
        command = decorate(command)
    return command
