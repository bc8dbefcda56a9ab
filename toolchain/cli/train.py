"""`toolchain train`: learn which neurons are needed, and write `model.onnx`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from toolchain import __version__
from toolchain.errors import MissingExtraError, TrainingError
from toolchain.files import write_text, written_whole
from toolchain.memory import keep_freed_memory
from toolchain.training.recipe import METHODS, Recipe
from toolchain.training.recipe_files import dump_recipe, load_recipe, parse_override
from toolchain.training.run_folder import RECIPE, RESULT, START, VOCABULARY, new_run_folder

if TYPE_CHECKING:
    import torch

    from toolchain.training.reader_start import ReaderStart
    from toolchain.training.rebuilding import Start, StartCheck
    from toolchain.training.task import TrainingResult
    from toolchain.training.training_run import TrainingRun

RUNS = Path("runs")
# Keys of a recipe that `--from` reads off the file instead; dropout is the recipe's.
FROM_FILE = frozenset(
    f"model.{key}"
    for key in ("factory", "cell", "embedding_size", "hidden_sizes", "tied", "init_scale", "character_channels", "file")
)
KEEP_METHODS = ("neuron-selection", "magnitude", "l1")  # those that gates.keep decides
INTERRUPTED = 130  # what a shell expects of a program that ended by Ctrl-C


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
    sys.path.insert(0, os.getcwd())  # a recipe's factory may live in the user's folder, as with `python -m`
    if like is not None:
        from toolchain.training.rebuilding import section_like

        resolved = replace(resolved, model=section_like(like, resolved))
    _run(resolved, source=source, resume=resume, name=name, output=output)


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
        and parameter.name not in ("resume", "output")
    ]
    if given:
        raise click.UsageError(
            f"--resume takes everything else from the run's folder; got {', '.join(map(str, given))}."
        )


def _require(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra="train")


def _run(recipe: Recipe, *, source: Path | None, resume: Path | None, name: str | None, output: Path) -> None:
    keep_freed_memory()
    import torch

    from toolchain.training.processes import decided_by_main, join_processes, leave_processes
    from toolchain.training.reader_start import start_reader
    from toolchain.training.rebuilding import check_start, load_teacher, rebuild
    from toolchain.training.training_run import begin_run, restore_run

    if recipe.run.threads is not None:
        torch.set_num_threads(recipe.run.threads)
    processes = join_processes(recipe.run.device)
    console = Console(quiet=not processes.is_main, soft_wrap=True)
    reads = recipe.model.network == "reader"
    start = None if source is None or reads else rebuild(source, recipe)
    corpus = _load_corpus(recipe)
    if source is not None and reads:
        console.print(_reader_line(start_reader(source, recipe, corpus, processes.device)), highlight=False)
        recipe = replace(recipe, model=replace(recipe.model, file=START))
    if start is not None:
        recipe = replace(recipe, model=start.section)
        console.print(_start_lines(start, check_start(start, corpus, threads=recipe.run.threads)), highlight=False)
    teacher = load_teacher(recipe, corpus)
    if teacher is not None:
        console.print(f"taught by {recipe.teacher.model}: perplexity {teacher.perplexity:#.4g} of the beginning of the "
                      "validation text", highlight=False)  # fmt: skip
    if resume is not None:
        folder = resume
        _check_vocabulary(folder, corpus)
    else:
        created = new_run_folder(RUNS, name, default=recipe.name) if processes.is_main else None
        if source is not None and created is not None and reads:
            shutil.copyfile(source, created / START)
        folder = decided_by_main(created, processes=processes) or RUNS
    weights = None if start is None else start.weights
    run = begin_run(recipe, corpus, folder=folder, processes=processes, weights=weights, teacher=teacher)
    if resume is not None:
        restore_run(run)
    elif processes.is_main:
        write_text(folder / RECIPE, _described(corpus, source, processes.device) + dump_recipe(recipe))
        write_text(folder / VOCABULARY, "\n".join(corpus.vocabulary) + "\n")
    console.print(_headline(recipe, corpus, run), highlight=False)
    _carry_out(run, corpus, console, output)
    leave_processes()


def _carry_out(run: TrainingRun, corpus: Any, console: Console, output: Path) -> None:
    """Train to the end, or until the user stops it; then write the model."""
    from toolchain.cli.train_progress import TrainingDisplay
    from toolchain.training.loop import finish
    from toolchain.training.loop import train as carry_out

    with TrainingDisplay(console) as display, _stop_on_interrupt() as stop:
        ended = carry_out(run, report=display, stop=stop)
    if not ended:
        console.print(f"\nstopped and saved after update {run.update} of {run.schedule.updates}. "
                      f"Go on with: toolchain train --resume {run.folder}", highlight=False)  # fmt: skip
        sys.exit(INTERRUPTED)
    if run.processes.is_main:
        result = finish(run, corpus, threads=run.recipe.run.threads)
        content = json.dumps({"schema": 1, **asdict(result), "model": result.model.name}, indent=1)
        write_text(run.folder / RESULT, content)
        _copy(result.model, output)
        _conclude(console, result, run.folder, output)


def _load_corpus(recipe: Recipe) -> Any:
    section = recipe.data
    folder = None if section.folder is None else Path(section.folder)
    if section.corpus == "squad":
        squad = importlib.import_module("toolchain.models.squad")
        return squad.load_squad(folder=folder, vocabulary_size=section.vocabulary_size)
    return importlib.import_module("toolchain.models.text").load_corpus(
        section.corpus,
        vocabulary_size=section.vocabulary_size,
        max_tokens=section.max_tokens,
        seed=recipe.run.seed,
        folder=folder,
        text=None if section.text is None else Path(section.text),
    )


def _check_vocabulary(folder: Path, corpus: Any) -> None:
    try:
        words = (folder / VOCABULARY).read_text("utf-8").splitlines()
    except OSError as error:
        raise TrainingError(
            f"{folder / VOCABULARY}: cannot be read ({error.strerror}); expected the vocabulary of a run. "
            "Check the folder, or start the run again."
        ) from error
    if words != list(corpus.vocabulary):
        raise TrainingError(
            f"{folder}: was trained on another text than {corpus.origin}; expected the same vocabulary. "
            "Resume with the same file and version of Python, or start the run again."
        )


@contextlib.contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after this update; a second ends at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_lines(start: Start, check: StartCheck) -> str:
    section = start.section
    sizes = " + ".join(map(str, section.hidden_sizes))
    lines = [
        f"from {start.source}: embedding {section.embedding_size}, {section.cell.upper()} {sizes}; perplexity "
        f"{check.onnx:#.4g} in ONNX Runtime, {check.torch:#.4g} in the rebuilt network "
        f"({abs(check.torch / check.onnx - 1):.0e} apart; first {check.tokens:,} words of the validation text)"
    ]
    if start.state_widths != section.hidden_sizes:
        wide = " + ".join(map(str, start.state_widths))
        lines.append(f"the exported model carries a state of {sizes} units, where {start.source.name} takes {wide}")
    if start.untied:
        lines.append("output layer and embedding differ in the file, so they are trained apart (the recipe ties them)")
    return "\n".join(lines)


def _reader_line(start: ReaderStart) -> str:
    sizes = " + ".join(map(str, start.hidden_sizes))
    return (
        f"from {start.source}: recurrent nodes of {sizes} units; scores of {start.questions} validation questions "
        f"{start.difference:.0e} apart in ONNX Runtime and PyTorch"
    )


def _described(corpus: Any, source: Path | None, device: torch.device) -> str:
    import torch

    from toolchain.bench.runner import describe_machine

    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        processor = describe_machine()["cpu_model"] or "unknown processor"
    tokens = " + ".join(f"{len(split):,}" for split in (corpus.train, corpus.valid, corpus.test))
    return (
        f"# {corpus.origin}: {tokens} {corpus.unit} (train, valid, test), {len(corpus.vocabulary):,} words\n"
        f"# rnn-toolchain {__version__}, torch {torch.__version__}, {processor}\n"
        + ("\n" if source is None else f"# started from {source}\n\n")
    )


def _headline(recipe: Recipe, corpus: Any, run: TrainingRun) -> str:
    count = run.processes.count
    where = str(run.processes.device) + (f" in {count} processes" if count > 1 else "")
    return (
        f"{run.folder}: {recipe.run.method} on {corpus.origin}, "
        f"{sum(map(len, (corpus.train, corpus.valid, corpus.test))):,} {corpus.unit}, "
        f"{len(corpus.vocabulary):,} words; "
        f"{recipe.optim.epochs} epochs on {where}, {recipe.run.precision}"
    )


def _copy(source: Path, target: Path) -> None:
    with written_whole(target, remedy=f"The model is in {source}: copy it from there.") as unfinished:
        shutil.copyfile(source, unfinished)


def _conclude(console: Console, result: TrainingResult, folder: Path, output: Path) -> None:
    from toolchain.cli.train_progress import result_lines

    lines = (
        "",
        *result_lines(result),
        f"kept             {result.share:.1%} of the recurrent multiply-adds",
        f"training speed   last epoch {result.speed_ratio:.2f}x the first",
        f"written          {output}, and {folder}/ with recipe, metrics, checkpoint",
        "",
        f"next: toolchain shrink {output}",
    )
    console.print("\n".join(lines), highlight=False)
