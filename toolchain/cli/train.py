"""`toolchain train`: learn which neurons are needed, and write `model.onnx`."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from toolchain.errors import MissingExtraError
from toolchain.memory import keep_freed_memory
from toolchain.training.recipe import METHODS
from toolchain.training.recipe_files import load_recipe, parse_override
from toolchain.training.run_folder import RECIPE

# Keys of a recipe that `--from` reads off the file instead; dropout is the recipe's.
FROM_FILE = frozenset(
    f"model.{key}"
    for key in ("factory", "cell", "embedding_size", "hidden_sizes", "tied", "init_scale", "character_channels", "file")
)
KEEP_METHODS = ("neuron-selection", "magnitude", "l1")  # those that gates.keep decides


@click.command()
@click.argument("recipe", default="pydocs")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Replace a value, as optim.epochs=3.")
@click.option("--method", type=click.Choice(METHODS), help="How to prune.")
@click.option("--keep", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Share of the recurrent multiply-adds to keep.")  # fmt: skip
@click.option("--l0-weight", type=click.FloatRange(0, min_open=True), help="A fixed price instead of a share to keep.")
@click.option("--data", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder that holds the files of ptb, wikitext-2 or squad.")  # fmt: skip
@click.option("--text", type=click.Path(path_type=Path), help="Train on this UTF-8 text.")
@click.option("--from", "source", type=click.Path(dir_okay=False, path_type=Path), metavar="MODEL.onnx",
              help="Start from this model, shrunk or not; trains densely unless told otherwise.")  # fmt: skip
@click.option("--like", type=click.Path(path_type=Path), metavar="MODEL.onnx|RUN",
              help="Train a dense network of this pruned one's sizes from scratch (method direct).")  # fmt: skip
@click.option("--resume", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Go on with an interrupted run, as runs/NAME.")  # fmt: skip
@click.option("--as-is", is_flag=True, help="With --resume: write the model that the run has now, and leave it there.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of weights, documents, dropout and gates.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute.")
@click.option("--name", help="Name of the run's folder under runs/.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("model.onnx"),
              show_default=True, help="The ONNX file to write.")  # fmt: skip
@click.pass_context
def train(
    ctx: click.Context,
    recipe: str,
    settings: tuple[str, ...],
    method: str | None,
    keep: float | None,
    l0_weight: float | None,
    folder: Path | None,
    text: Path | None,
    source: Path | None,
    like: Path | None,
    resume: Path | None,
    as_is: bool,
    seed: int | None,
    threads: int | None,
    device: str | None,
    name: str | None,
    output: Path,
) -> None:
    """Learn in PyTorch which neurons are needed; write model.onnx.

    RECIPE is the name of a recipe that comes with the package (pydocs, ptb-small, squad, ...) or a TOML file.
    The ONNX file has the original shapes; removed neurons are exact zeros, which `toolchain shrink` cuts.
    """
    if keep is not None and l0_weight is not None:
        raise click.UsageError("--keep and --l0-weight exclude each other.")
    if name is not None and (Path(name).name != name or name == ".."):
        raise click.UsageError(f"--name {name}: expected the name of one folder, without a path.")
    if as_is and resume is None:
        raise click.UsageError("--as-is belongs to --resume RUN.")
    if source is not None:
        _check_start_options(source, resume, settings, output)
    if resume is not None:
        _refuse_others(ctx)
        resolved = load_recipe(resume / RECIPE)
    else:
        options = {
            "run.method": method,
            "gates.keep": keep,
            "gates.l0_weight": l0_weight,
            "data.folder": None if folder is None else str(folder.resolve()),
            "data.text": None if text is None else str(text.resolve()),
            "data.corpus": None if text is None else "text",
            "run.seed": seed,
            "run.threads": threads,
            "run.device": device,
        }
        overrides = _overrides(settings, options)
        if source is not None and not {"run.method", "gates.keep", "gates.l0_weight"} & overrides.keys():
            overrides["run.method"] = "dense"
        if like is not None:
            overrides.setdefault("run.method", "direct")
        resolved = load_recipe(recipe, overrides=overrides)
        _check_method_options(resolved.run.method, keep=keep, l0_weight=l0_weight, source=source, like=like)
    _require("torch", "accelerate", "safetensors")
    keep_freed_memory()  # before PyTorch allocates anything
    sys.path.insert(0, os.getcwd())  # a recipe's factory may live in the user's folder, as with `python -m`
    from toolchain.cli.train_run import carry_out

    if like is not None:
        from toolchain.training.rebuilding import section_like

        resolved = replace(resolved, model=section_like(like, resolved))
    carry_out(resolved, source=source, resume=resume, as_is=as_is, name=name, output=output)


def _overrides(settings: tuple[str, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """Join `--set` and the options that were given; choosing one kind of pressure drops the other."""
    overrides = dict(parse_override(setting) for setting in settings)
    overrides |= {key: value for key, value in options.items() if value is not None}
    for chosen, dropped in (("gates.keep", "gates.l0_weight"), ("gates.l0_weight", "gates.keep")):
        if chosen in overrides and dropped not in overrides:
            overrides[dropped] = None
    return overrides


def _check_method_options(
    method: str, *, keep: float | None, l0_weight: float | None, source: Path | None, like: Path | None
) -> None:
    """Refuse an option that the method would pass over, and method direct without sizes."""
    if keep is not None and method not in KEEP_METHODS:
        raise click.UsageError(f"--keep has no meaning for --method {method}; expected {', '.join(KEEP_METHODS)}.")
    if l0_weight is not None and method != "neuron-selection":
        raise click.UsageError(f"--l0-weight has no meaning for --method {method}; expected neuron-selection.")
    if (like is None) == (method == "direct"):
        raise click.UsageError("--method direct and --like MODEL.onnx belong together.")
    if like is not None and source is not None:
        raise click.UsageError("--from and --like exclude each other.")


def _check_start_options(source: Path, resume: Path | None, settings: tuple[str, ...], output: Path) -> None:
    """Refuse what contradicts `--from`."""
    if resume is not None:
        raise click.UsageError("--from and --resume exclude each other.")
    if output.resolve() == source.resolve():
        raise click.UsageError(f"--output {output} is the model to start from; expected another file.")
    shapes = [setting for setting in settings if setting.split("=")[0].strip() in FROM_FILE]
    if shapes:
        raise click.UsageError(f"--from takes the network's shapes from the file; got --set {shapes[0]}.")


def _refuse_others(ctx: click.Context) -> None:
    given = [
        parameter.name
        for parameter in ctx.command.params
        if ctx.get_parameter_source(str(parameter.name)) is click.core.ParameterSource.COMMANDLINE
        and parameter.name not in ("resume", "as_is", "output")
    ]
    if given:
        raise click.UsageError(
            f"--resume takes everything else from the run's folder; got {', '.join(map(str, given))}."
        )


def _require(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra="train")
