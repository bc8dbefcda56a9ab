"""The tables of README.md and docs, each made from one file under bench/results.

A place that `bench.tables` fills is a name in `PLACES`; its function gets the folder of results and returns Markdown. A
figure that a row does not hold is left out: a column that is empty in all rows is not shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

from toolchain.oneshot.criteria import CRITERIA

from .front_chart import front_picture, point_of
from .paper_table import SHAPES as PAPER_SHAPES
from .result_file import read_rows
from .squad_table import QUANTILES
from .table import count, milliseconds, significant, times
from .timing import COLUMNS, Shape
from .vowels import SHAPES as VOWELS_SHAPES

Row = Mapping[str, str]
Column = tuple[str, Callable[[Row], str]]
FRONT = "images/front.svg"
METHODS = {"neuron-selection": "pruned", "direct": "direct"}


def markdown_table(columns: Sequence[Column], rows: Iterable[Row]) -> str:
    """Return rows as Markdown, numbers to the right, without the columns that nobody filled."""
    texts = [[text(row) for _, text in columns] for row in rows]
    shown = [number for number in range(len(columns)) if any(line[number] for line in texts)]
    head = [columns[number][0] for number in shown]
    rule = ["---", *("---:" for _ in head[1:])]
    lines = [head, rule, *([line[number] for number in shown] for line in texts)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def language_models(results: Path) -> str:
    """Return tables for each recipe on Penn Treebank: one for the rows that share a baseline, so a recording."""
    rows = read_rows(results / "ptb.csv")
    tables = []
    for recipe in dict.fromkeys(row["recipe"] for row in rows):  # a row recorded later stands with its recipe
        of_recipe = [row for row in rows if row["recipe"] == recipe]
        for recording in dict.fromkeys(_recording(row) for row in of_recipe):
            group = [row for row in of_recipe if _recording(row) == recording]
            tables.append(f"`{recipe}`, {recording}\n\n{markdown_table(_LANGUAGE_MODEL, group)}")
        tables += [line for line in (_seeds(of_recipe),) if line]
    return "\n\n".join([*tables, _provenance(rows)]) if rows else _not_recorded("paper_table")


def front(results: Path) -> str:
    """Return language models of every size against the largest, as a picture and as a table."""
    rows = read_rows(results / "front.csv")
    if not rows:
        return _not_recorded("paper_table")
    columns = [column for column in _LANGUAGE_MODEL if column[0] in _FRONT]
    return f"![Test perplexity against time]({FRONT})\n\n{markdown_table(columns, rows)}\n\n{_provenance(rows)}"


def headline(results: Path) -> str:
    """Return the front's first network and, for each kind of weights, the fastest one that is not worse."""
    rows = read_rows(results / "front.csv")
    if not rows:
        return _not_recorded("paper_table")
    placed = [(row, point) for row in rows if (point := point_of(row)) is not None]
    dense, (_, perplexity) = placed[0]
    fastest = {row["weights"]: row for row, point in sorted(placed[1:], key=lambda pair: -pair[1][0])
               if point[1] <= perplexity}  # fmt: skip
    columns = [column for column in _LANGUAGE_MODEL if column[0] in _HEADLINE]
    shown = [dense, *(fastest[weights] for weights in sorted(fastest))]
    return f"{markdown_table(columns, shown)}\n\n{_provenance(shown)}"


def front_svg(results: Path) -> str | None:
    """Return the picture of `front`; None where nothing is on record."""
    rows = read_rows(results / "front.csv")
    return front_picture(rows) if rows else None


def readers(results: Path) -> str:
    """Return the readers of paragraphs."""
    rows = read_rows(results / "squad.csv")
    if not rows:
        return _not_recorded("squad_table")
    first = rows[0]
    words = "".join(f", {name}: {first[f'{name}_words']} words" for name in QUANTILES if first[f"{name}_words"])
    return f"{first['test_questions']} questions{words}.\n\n{markdown_table(_READER, rows)}\n\n{_provenance(rows)}"


def demo(results: Path) -> str:
    """Return what a reader of the README wants to know of the demo's networks."""
    rows = read_rows(results / "pydocs.csv")
    columns = [column for column in _LANGUAGE_MODEL if column[0] in _DEMO]
    return f"{markdown_table(columns, rows)}\n\n{_provenance(rows)}" if rows else _not_recorded("paper_table")


def vowels(results: Path) -> str:
    """Return the speaker classifiers, each method's seeds as mean and range."""
    rows = read_rows(results / "vowels.csv")
    if not rows:
        return _not_recorded("vowels")
    groups: dict[tuple[str, str], list[Row]] = {key: [row for row in rows if (row["cell"], row["method"]) == key]
              for key in dict.fromkeys((row["cell"], row["method"]) for row in rows)}  # fmt: skip
    columns: list[tuple[str, Callable[[list[Row]], str]]] = [
        ("network", lambda group: f"{group[0]['cell'].upper()} {METHODS.get(group[0]['method'], group[0]['method'])}"),
        ("seeds", lambda group: str(len(group))),
        ("accuracy", partial(_spread, name="test_accuracy", text=_percent)),
        ("frame by frame", lambda group: "" if all(row["streaming_accuracy"] == row["test_accuracy"] for row in rows)
         else _spread(group, name="streaming_accuracy", text=_percent)),
        ("units", lambda group: ", ".join(row["hidden_sizes"] for row in group)
         if len({row["hidden_sizes"] for row in group}) > 1 else group[0]["hidden_sizes"]),
        *((title, partial(_spread, name=name, text=text)) for title, name, text in (
            ("parameters", "parameters", count), ("multiply-adds a frame", "multiply_adds", count),
            ("kB", "bytes", _kilobytes), ("training s", "training_s", partial(significant, digits=3)))),
        *((f"{what} {_shape(shape)}", partial(_spread, name=name, text=text)) for shape in VOWELS_SHAPES
          for what, name, text in (("ms", shape.columns[0], _milliseconds), ("speedup", shape.columns[1], times))),
    ]  # fmt: skip
    lines = [{title: text(group) for title, text in columns} for group in groups.values()]
    table = markdown_table([(title, lambda line, title=title: line[title]) for title, _ in columns], lines)  # type: ignore[misc]
    return f"{table}\n\nMean, and the range over the seeds. {_provenance(rows)}"


def one_shot(name: str, score: Column, results: Path) -> str:
    """Return what each criterion does at each ratio, a table for each model of a file of `bench.oneshot_table`."""
    rows = read_rows(results / name)
    tables = []
    for model in dict.fromkeys(row["model"] for row in rows):
        group = sorted((row for row in rows if row["model"] == model), key=_place)
        cells = {(_criterion(row), row["ratio"]): score[1](row) for row in group}
        cells |= {(f"{_criterion(row)}: times faster", row["ratio"]): times(float(row["speedup"]))
                  for row in group if row["speedup"]}  # fmt: skip
        ratios = sorted({ratio for _, ratio in cells}, key=float)
        columns: list[Column] = [("criterion", lambda line: line["criterion"])]
        columns += [(f"{float(ratio):g}", lambda line, ratio=ratio: line[ratio]) for ratio in ratios]  # type: ignore[misc]
        lines = [{"criterion": criterion, **{ratio: cells.get((criterion, ratio), "") for ratio in ratios}}
                 for criterion in dict.fromkeys(criterion for criterion, _ in cells)]  # fmt: skip
        tables.append(
            f"`{model}`, {score[0]} by the share of hidden units given up:\n\n{markdown_table(columns, lines)}"
        )
    return "\n\n".join([*tables, _provenance(rows)]) if rows else _not_recorded("oneshot_table")


def _seeds(rows: Sequence[Row]) -> str:
    """Return, for what was trained with several seeds, the mean over them and the range."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["weights"] == "fp32" and row["seed"]:
            groups.setdefault((row["method"], row["changed"], row["keep"]), []).append(row)
    lines = [
        f"- {' '.join(part for part in (method, changed) if part)}, {len(group)} seeds: test perplexity "
        f"{_spread(group, name='test_perplexity', text='{:.2f}'.format)}, multiply-adds "
        f"{_spread(group, name='multiply_adds', text='{:,.0f}'.format)}"
        for (method, changed, _), group in groups.items()
        if len({row["seed"] for row in group}) > 1
    ]
    return "Mean, and the range over the seeds:\n\n" + "\n".join(lines) if lines else ""


def _number(row: Row, name: str, text: Callable[[float], str]) -> str:
    return text(float(row[name])) if row[name] else ""


def _spread(group: Sequence[Row], *, name: str, text: Callable[[float], str]) -> str:
    """Return the mean over seeds, and the range where they differ."""
    values = [float(row[name]) for row in group if row[name]]
    if not values:
        return ""
    low, high = text(min(values)), text(max(values))
    return text(mean(values)) if low == high else f"{text(mean(values))} ({low} to {high})"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _kilobytes(size: float) -> str:
    return significant(size / 1e3, digits=3)


def _megabytes(size: float) -> str:
    return significant(size / 1e6, digits=3)


def _milliseconds(value: float) -> str:
    return milliseconds(value / 1e3)


def _shape(shape: Shape) -> str:
    return f"T={shape.steps}, B={shape.batch}"


def _interval(row: Row, columns: Sequence[str]) -> str:
    _, ratio, low, high = (row[column] for column in columns)
    if not ratio:
        return ""
    return times(float(ratio)) if row["run"] == row["baseline"] and row["weights"] == "fp32" else (
        f"{times(float(ratio))} ({times(float(low))[:-1]} to {times(float(high))[:-1]})")  # fmt: skip


def _recording(row: Row) -> str:
    """Return what a row's times are to be read against; those of other recordings are not comparable."""
    return f"over `{row['baseline']}` on {row['cpu']}" if row["baseline"] else "not timed"


def _place(row: Row) -> tuple[int, bool, bool]:
    """Return where a row of one-shot pruning stands, in whatever order rows were recorded: the model itself first."""
    criterion = CRITERIA.index(row["criterion"]) if row["criterion"] else -1
    return criterion, row["compensated"] == "False", bool(row["then"])


def _criterion(row: Row) -> str:
    then = f", then {row['then']}" if row.get("then") else ""
    if not row["criterion"]:
        return f"as it was{then}"
    return f"{row['criterion']}{'' if row['compensated'] == 'True' else ', not folded'}{then}"


def _provenance(rows: Sequence[Row]) -> str:
    """Return where the figures come from, in a line: versions, processors and, where recorded, commits."""

    def listed(name: str) -> str:
        return "; ".join(dict.fromkeys(row[name] for row in rows if row.get(name)))

    commits = listed("commit")
    return f"{listed('cpu')}; {listed('versions')}{f'; commit {commits}' if commits else ''}."


def _not_recorded(module: str) -> str:
    return f"Not recorded yet; `python -m toolchain.bench.{module}` does."


_RECURRENT: Column = ("recurrent multiply-adds", lambda row: _number(row, "recurrent_multiply_adds", "{:,.0f}".format))
_LANGUAGE_MODEL: tuple[Column, ...] = (
    ("run", lambda row: f"`{row['run']}`"),
    ("method", lambda row: row["method"]),
    ("changed", lambda row: row["changed"]),
    ("weights", lambda row: row["weights"]),
    ("seed", lambda row: row["seed"]),
    ("valid", lambda row: _number(row, "valid_perplexity", "{:.2f}".format)),
    ("test perplexity", lambda row: _number(row, "test_perplexity", "{:.2f}".format)),
    ("published", lambda row: _number(row, "published_perplexity", "{:.2f}".format)),
    ("inputs", lambda row: row["input_sizes"]),
    ("units", lambda row: row["hidden_sizes"]),
    ("parameters", lambda row: _number(row, "parameters", "{:,.0f}".format)),
    _RECURRENT,
    ("multiply-adds", lambda row: _number(row, "multiply_adds", "{:,.0f}".format)),
    ("MB", lambda row: _number(row, "bytes", _megabytes)),
    *((title, text) for shape in PAPER_SHAPES for title, text in (
        (f"ms {_shape(shape)}", lambda row, shape=shape: _number(row, shape.columns[0], _milliseconds)),
        (f"speedup {_shape(shape)}", lambda row, shape=shape: _interval(row, shape.columns)))),
    ("training s", lambda row: _number(row, "training_s", "{:.0f}".format)),
)  # fmt: skip

_READER: tuple[Column, ...] = (
    ("run", lambda row: f"`{row['run']}`"),
    ("method", lambda row: row["method"]),
    ("weights", lambda row: row["weights"]),
    *((title, lambda row, name=name: _number(row, name, "{:.2f}".format))
      for title, name in (("exact match", "exact_match"), ("F1", "f1"))),
    ("F1 against dense", lambda row: f"{float(row['f1_change_low']):+.1f} to {float(row['f1_change_high']):+.1f}"
     if row["f1_change_low"] else ""),
    ("units", lambda row: row["hidden_sizes"]),
    _RECURRENT,
    ("parameters", lambda row: _number(row, "parameters", "{:,.0f}".format)),
    ("MB", lambda row: _number(row, "bytes", _megabytes)),
    *((title, text) for name in QUANTILES for title, text in (
        (f"ms {name}", lambda row, name=name: _number(row, f"{name}_p50_ms", _milliseconds)),
        (f"speedup {name}", lambda row, name=name: _interval(row, [f"{name}_{column}" for column in COLUMNS])))),
    ("training s", lambda row: _number(row, "training_s", "{:.0f}".format)),
)  # fmt: skip

_FRONT = {"run", "method", "weights", "test perplexity", "published", "units", "MB",
          *(f"{what} {_shape(shape)}" for what in ("ms", "speedup") for shape in PAPER_SHAPES)}  # fmt: skip
_DEMO = {"run", "weights", "test perplexity", "units", "parameters", "MB",
         *(f"{what} {_shape(shape)}" for what in ("ms", "speedup") for shape in PAPER_SHAPES[1:])}  # fmt: skip

_HEADLINE = _FRONT - {"method"} - {f"{what} {_shape(PAPER_SHAPES[0])}" for what in ("ms", "speedup")}

PICTURES: dict[str, Callable[[Path], str | None]] = {FRONT: front_svg}  # by their place under docs

PLACES: dict[str, Callable[[Path], str]] = {
    "demo": demo,
    "front": front,
    "headline": headline,
    "ptb": language_models,
    "squad": readers,
    "vowels": vowels,
    "oneshot_language": partial(one_shot, "oneshot_language.csv", (
        "test perplexity", lambda row: _number(row, "test_perplexity", "{:.2f}".format))),
    "oneshot_real": partial(one_shot, "oneshot_real.csv", (
        "error of the outputs", lambda row: _number(row, "output_nmse", partial(significant, digits=2)))),
}  # fmt: skip
