"""Shows training: a live bar on a terminal, one plain line per epoch elsewhere, and what the test data say."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from toolchain.training.language_modelling import LanguageModellingResult
from toolchain.training.loop import StepReport
from toolchain.training.run_folder import Row
from toolchain.training.task import TrainingResult


class _TimeLeft(ProgressColumn):
    """Time left by the speed of this epoch, since updates get faster as the network gets smaller."""

    def render(self, task: Task) -> Text:
        seconds = task.fields["seconds_left"]
        return Text("" if seconds is None else f"{_duration(seconds)} left", style="cyan")


class TrainingDisplay:
    """A `Reporter` that speaks to the user; used as a context manager around the training."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            _TimeLeft(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, epoch=1, numbers="", seconds_left=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, report: StepReport) -> None:
        """Move the bar."""
        figures = "  ".join(f"{_label(name)} {value:.1f}" for name, value in report.figures.items())
        kept = " ".join(str(number) for _, number in report.kept)
        self._progress.update(
            self._task,
            completed=report.update,
            total=report.updates,
            epoch=report.epoch,
            seconds_left=report.seconds_left,
            numbers=f"{report.phase}  loss {report.loss:.3f}  {figures}  "
            f"{report.tokens_per_s:,.0f} tokens/s  neurons {kept}",
        )

    def epoch(self, row: Row) -> None:
        """Print the epoch's line."""
        figures = "  ".join(
            f"{_label(name)} {value:>8.2f}" for name, value in row.items() if name.startswith(("train_", "valid_"))
        )
        self._console.print(
            f"epoch {row['epoch']:>2}  {row['phase']:<6}  {figures}  "
            f"multiply-adds {row['multiply_adds_share']:>6.1%}  "
            f"{row['tokens_per_s']:>7,.0f} tokens/s  {_duration(float(row['seconds'] or 0))}",
            highlight=False,
        )

    def event(self, text: str) -> None:
        """Print what happened."""
        self._console.print(f"          {text}", highlight=False)


def result_lines(result: TrainingResult) -> tuple[str, ...]:
    """Return what a finished run says of its test data."""
    if isinstance(result, LanguageModellingResult):
        apart = abs(result.onnx_perplexity / result.perplexity - 1)
        return (
            f"test perplexity  {result.perplexity:.3f} in PyTorch, {result.onnx_perplexity:.3f} in ONNX Runtime, "
            f"{apart:.0e} apart ({result.test_tokens:,} tokens)",
        )
    return (
        f"test F1          {result.f1:.2f} in PyTorch, {result.onnx_f1:.2f} in ONNX Runtime "
        f"({result.test_questions:,} questions)",
        f"exact match      {result.exact_match:.2f} in PyTorch, {result.onnx_exact_match:.2f} in ONNX Runtime",
    )


def _label(column: str) -> str:
    """Return `train` for `train_perplexity`, and the words of any other column."""
    return column.removesuffix("_perplexity").replace("_", " ")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
