"""`toolchain devices`: what can be benched on, what that rests on, and what is missing for it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from toolchain.cli.bench_options import FILE


def _module(name: str) -> Any:
    return importlib.import_module(f"toolchain.bench.devices.{name}")


@click.group(invoke_without_command=True)
@click.pass_context
def devices(context: click.Context) -> None:
    """List what `toolchain bench --device NAME` accepts, and what is missing for the rest."""
    if context.invoked_subcommand is not None:
        return
    for line in _module("listing").list_devices():
        click.echo(line)


@devices.command()
@click.argument("profile")
def show(profile: str) -> None:
    """Print every number of PROFILE (a name or a file) with its source."""
    for line in _module("listing").list_figures(_module("profiles").find_profile(profile)):
        click.echo(line)


@devices.command()
@click.argument("what", type=click.Choice(["qemu"]))
@click.option("--apt-sources", type=FILE, help="An apt sources file that holds arm64, in place of this machine's.")
def install(what: str, apt_sources: Path | None) -> None:
    """Fetch an aarch64 Python with ONNX Runtime into the cache folder, for qemu:PROFILE. Nothing else is changed."""
    installed = _module("sysroot").install_sysroot(click.echo, sources=apt_sources)
    click.echo(f"installed in {installed.folder}; remove that folder to be rid of it")
    click.echo("Next: toolchain bench --device qemu:rpi4")
