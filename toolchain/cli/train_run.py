"""What `toolchain train` does once it knows what was asked for: begin or resume, train, write the model, say so.

Imported by the command alone, because it needs the extra `train`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from toolchain import __version__
from toolchain.bench.runner import describe_machine
from toolchain.cli.train_progress import TrainingDisplay, result_lines
from toolchain.errors import TrainingError
from toolchain.files import write_text, written_whole
from toolchain.graph.loading import load_model
from toolchain.graph.saving import save_embedded
from toolchain.model_file import read_proto
from toolchain.training.corpora import load_data
from toolchain.training.loop import end_early, finish, train
from toolchain.training.processes import decided_by_main, join_processes, leave_processes
from toolchain.training.reader_start import ReaderStart, start_reader
from toolchain.training.rebuilding import Start, StartCheck, check_start, load_teacher, rebuild
from toolchain.training.recipe import Recipe
from toolchain.training.recipe_files import dump_recipe
from toolchain.training.run_folder import RECIPE, RESULT, START, VOCABULARY, new_run_folder
from toolchain.training.task import TrainingResult
from toolchain.training.training_run import TrainingRun, begin_run, restore_run

RUNS = Path("runs")
INTERRUPTED = 130  # what a shell expects of a program that ended by Ctrl-C


def carry_out(
    recipe: Recipe, *, source: Path | None, resume: Path | None, as_is: bool, name: str | None, output: Path
) -> None:
    """Train by a recipe.

    Args:
        recipe: as resolved.
        source: the model to start from.
        resume: the folder of an interrupted run to go on with.
        as_is: write the model that the interrupted run has, and leave the run where it is.
        name: of a new run's folder.
        output: the ONNX file to write beside the run's own.

    Raises:
        ToolchainError: data, start, recipe or machine do not allow it, or a file cannot be written.
    """
    if source is not None:
        read_proto(source)  # what is no model is refused before any data is fetched
    if recipe.run.threads is not None:
        torch.set_num_threads(recipe.run.threads)
    processes = join_processes(recipe.run.device)
    console = Console(quiet=not processes.is_main, soft_wrap=True)
    corpus = load_data(recipe)
    weights = None
    if source is not None:
        recipe, weights = _started(recipe, source, corpus, processes.device, console)
    teacher = load_teacher(recipe, corpus)
    if teacher is not None:
        console.print(f"taught by {recipe.teacher.model}: perplexity {teacher.perplexity:#.4g} of the beginning of the "
                      "validation text", highlight=False)  # fmt: skip
    created = None
    if resume is not None:
        folder = resume
        _check_vocabulary(folder, corpus)
    else:
        created = new_run_folder(RUNS, name, default=recipe.name) if processes.is_main else None
        if created is not None and source is not None and recipe.model.file == START:
            _save_start(source, created / START)
        folder = decided_by_main(created, processes=processes) or RUNS
    with _removed_unless_begun(created):
        run = begin_run(recipe, corpus, folder=folder, processes=processes, weights=weights, teacher=teacher)
    if resume is not None:
        restore_run(run)
    elif processes.is_main:
        write_text(folder / RECIPE, _described(corpus, source, processes.device) + dump_recipe(recipe))
        write_text(folder / VOCABULARY, "\n".join(corpus.vocabulary) + "\n")
    console.print(_headline(recipe, corpus, run), highlight=False)
    if as_is:
        _write_as_is(run, corpus, console, output)
    else:
        _train(run, corpus, console, output)
    leave_processes()


@contextlib.contextmanager
def _removed_unless_begun(created: Path | None) -> Iterator[None]:
    """Remove the folder of a run that its network or the machine refuses, so that its name is free again."""
    try:
        yield
    except BaseException:  # Ctrl-C as well
        if created is not None:
            shutil.rmtree(created)
        raise


def _started(
    recipe: Recipe, source: Path, corpus: Any, device: torch.device, console: Console
) -> tuple[Recipe, Mapping[str, Tensor] | None]:
    """Return the recipe of the network in a file, and its weights, None where the graph itself is the network."""
    if recipe.model.network == "reader":
        console.print(_reader_line(start_reader(source, recipe, corpus, device)), highlight=False)
        return replace(recipe, model=replace(recipe.model, file=START)), None
    start = rebuild(source, recipe)
    recipe = replace(recipe, model=start.section)
    console.print(_start_lines(start, check_start(start, corpus, threads=recipe.run.threads)), highlight=False)
    return recipe, start.weights


def _train(run: TrainingRun, corpus: Any, console: Console, output: Path) -> None:
    """Train to the end, or until the user stops it; then write the model."""
    with TrainingDisplay(console) as display, _stop_on_interrupt() as stop:
        ended = train(run, report=display, stop=stop)
    if not ended:
        console.print(f"\nstopped and saved after update {run.update} of {run.schedule.updates}. "
                      f"Go on with: toolchain train --resume {run.folder}", highlight=False)  # fmt: skip
        sys.exit(INTERRUPTED)
    if run.processes.is_main:
        result = _finished(run, corpus, console)
        content = json.dumps({"schema": 1, **asdict(result), "model": result.model.name}, indent=1)
        write_text(run.folder / RESULT, content)
        _copy(result.model, output)
        written = f"written          {output}, and {run.folder}/ with recipe, metrics, checkpoint"
        _conclude(console, result, output, (written,))


def _write_as_is(run: TrainingRun, corpus: Any, console: Console, output: Path) -> None:
    """Write the model of an unfinished run; its folder stays as it is."""
    with TrainingDisplay(console) as display:
        end_early(run, report=display)
    if run.processes.is_main:
        result = _finished(run, corpus, console, path=output)
        stays = f"after update {run.update} of {run.schedule.updates}: toolchain train --resume {run.folder}"
        _conclude(console, result, output, (f"written          {output}", f"{f'{run.folder}':<16} stays {stays}"))


def _finished(run: TrainingRun, corpus: Any, console: Console, *, path: Path | None = None) -> TrainingResult:
    """Write and measure the model; a wide one takes minutes, which the terminal shows."""
    with console.status("writing the model, measuring it on the test data"):
        return finish(run, corpus, path=path, threads=run.recipe.run.threads)


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


def _save_start(source: Path, target: Path) -> None:
    """Write the model with its weights inside, so that a run needs no file but its own folder's."""
    with written_whole(target) as unfinished:
        save_embedded(load_model(source)[0], unfinished)


def _copy(source: Path, target: Path) -> None:
    with written_whole(target, remedy=f"The model is in {source}: copy it from there.") as unfinished:
        shutil.copyfile(source, unfinished)


def _conclude(console: Console, result: TrainingResult, output: Path, written: Sequence[str]) -> None:
    lines = (
        "",
        *result_lines(result),
        f"kept             {result.share:.1%} of the recurrent multiply-adds",
        f"training speed   last epoch {result.speed_ratio:.2f}x the first",
        *written,
        "",
        f"next: toolchain shrink {output}",
    )
    console.print("\n".join(lines), highlight=False)
