"""The command line: parses, prints and exits; everything else is done by typed functions.

Exit codes: 0 done, 1 a `ToolchainError`, 2 wrong usage (click), 3 nothing to shrink.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from toolchain import __version__
from toolchain.errors import ToolchainError

# Command -> where it lives. Loaded when called, so `toolchain --help` imports neither torch nor pandas.
# Two words go before the first alone, which may take file names: a model called `compare` is `./compare`.
_COMMANDS = {
    "train": ("toolchain.cli.train:train", "Learn in PyTorch which neurons are needed; write model.onnx."),
    "inspect": ("toolchain.cli.inspect:inspect", "Say what is recurrent in an ONNX model, and what is wrong with it."),
    "shrink": ("toolchain.cli.shrink:shrink", "Rewrite an ONNX model with smaller recurrent tensors."),
    "bench": ("toolchain.cli.bench:bench", "Measure models in ONNX Runtime against a baseline."),
    "bench compare": ("toolchain.cli.bench_compare:compare", "Compare two stored results of the same machine."),
    "bench bundle": ("toolchain.cli.bench_bundle:bundle", "Write a folder that a device without ssh measures."),
    "bench merge": ("toolchain.cli.bench_bundle:merge", "Read what a device measured with such a folder."),
    "bench table": (
        "toolchain.cli.bench_table:table",
        "Measure recurrent kernels; write a table that predicts latency.",
    ),
    "bench calibrate": (
        "toolchain.cli.bench_calibrate:calibrate",
        "Measure this machine's profile, and the error of estimates on it.",
    ),
    "devices": ("toolchain.cli.devices:devices", "List what to bench on, and what is missing for it."),
    "report": ("toolchain.cli.report:report", "Write training runs and bench results as one HTML page."),
}


class LazyGroup(click.Group):
    """A click group whose commands have one word or two, and are imported when they are first needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order of the data flow."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, or None when there is no such command."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of the first two words, else of the first."""
        name = " ".join(args[:2])
        if len(args) > 1 and name in _COMMANDS:
            return name, self.get_command(ctx, name), args[2:]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their one-line help, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="toolchain")
def cli() -> None:
    """Make recurrent networks (LSTM, GRU, RNN) small and fast where they are deployed.

    \b
    toolchain train                  -> model.onnx
    toolchain shrink model.onnx      -> model.shrunk.onnx, proven equal to model.onnx
    toolchain bench --device cpu     -> model.shrunk.onnx against model.onnx
    """  # noqa: D301  (in a raw string click would not see its backspace)


def main() -> None:
    """Run the command line; one clear line on stderr instead of a traceback for every expected error."""
    try:
        cli()
    except ToolchainError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # `toolchain … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
