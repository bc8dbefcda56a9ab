"""Put language models side by side: every column of every method, all times in one interleaved run, as CSV.

python -m toolchain.bench.paper_table --recipe ptb-small runs/dense runs/gated one-shot=halved.onnx
python -m toolchain.bench.paper_table --recipe ptb-small --untimed ...     quality and sizes alone, while others compute
python -m toolchain.bench.paper_table --recipe front -o bench/results/front.csv zaremba-large=1500,1500,1500@78.4 ...

A member is the folder of a finished run, a model file with the name of its method, or a published network: the sizes of
its embedding and layers and the test perplexity that its authors report. That one is timed with random weights, and
its perplexity has a column of its own. The first member is the dense network that speedups are over. Each is shrunk,
which proves it equal to what was trained, and quantized; perplexities are those of the resulting file over the whole
text in ONNX Runtime. A file whose SHA-256 is on record already, in any table beside the one that is written, keeps its
perplexities.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from toolchain.errors import BenchError, ToolchainError

from .members import TRAINING, Member, read_members
from .plan import Effort
from .random_lm import write_language_model
from .recipe_changes import recipe_changes
from .result_file import (
    ORIGIN,
    RESULTS,
    Row,
    check_kept,
    keep_model,
    known_rows,
    origin,
    read_rows,
    record_rows,
    sha256_of,
)
from .shrunk_files import SIZES, shrunk_files
from .timing import Shape, time_models

SHAPES = (Shape(steps=30, batch=10), Shape(steps=35, batch=1), Shape(steps=1, batch=1))
KEY = ("recipe", "run", "weights")
PERPLEXITIES = ("valid_perplexity", "test_perplexity")
FIELDS = ("recipe", "run", "method", "changed", "weights", "seed", *PERPLEXITIES, "published_perplexity", *SIZES,
          *(column for shape in SHAPES for column in shape.columns), "baseline",
          *TRAINING, *ORIGIN, "model",
          "sha256")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What perplexities are measured on: word ids, shape `[num_tokens]`, and where they come from."""

    origin: str
    valid: Any
    test: Any


def read_texts(members: Sequence[Member], folder: Path | None) -> Texts:
    """Load the text of the first member that was trained by a recipe.

    Raises:
        BenchError: there is none, or another one reads other words.
        DatasetError: the text cannot be loaded.
    """
    from toolchain.training.corpora import load_data
    from toolchain.training.recipe_files import load_recipe

    recipes = [load_recipe(member.recipe) for member in members if member.recipe is not None]
    if not recipes:
        raise BenchError("members: none is the folder of a run; expected one at least, which says what text to read.")
    corpus = load_data(recipes[0], folder=folder)
    for member in members:
        words = (
            [] if member.recipe is None else (member.recipe.parent / "vocabulary.txt").read_text("utf-8").split("\n")
        )
        if words and tuple(words[:-1]) != corpus.vocabulary:
            raise BenchError(
                f"{member.name}: was trained on other words than {members[0].name}; expected the same text, or their "
                "perplexities cannot be compared. Record them apart."
            )
    return Texts(origin=corpus.origin, valid=corpus.valid, test=corpus.test)


def source_of(member: Member, folder: Path) -> Path:
    """Return a member's file; that of a published network is written into `folder`, with random weights."""
    if member.model is not None:
        return member.model
    path = folder / f"{member.name}.random.onnx"
    write_language_model(path, embedding=member.sizes[0], hidden=member.sizes[1:])
    return path


def changes_of(member: Member, name: str) -> Row:
    """Return what a run changes of the recipe called `name`; nothing where there is no such run or recipe."""
    from toolchain.training.recipe_files import load_recipe, recipe_names

    if member.recipe is None or name not in recipe_names():
        return {}
    return {"changed": recipe_changes(load_recipe(member.recipe), load_recipe(name))}


def perplexities(file: Path, texts: Texts, recorded: Sequence[Row]) -> Row:
    """Return the perplexities of a file over both texts, or those on record for the very same file."""
    from toolchain.evaluation import onnx_perplexity

    digest = sha256_of(file)
    for row in recorded:
        if row.get("sha256") == digest and row["corpus"].startswith(texts.origin) and row.get("test_perplexity"):
            return {"sha256": digest, **{name: row[name] for name in PERPLEXITIES}}
    found = (onnx_perplexity(file, tokens, threads=1) for tokens in (texts.valid, texts.test))
    return {"sha256": digest, **dict(zip(PERPLEXITIES, found, strict=True))}


@click.command()
@click.argument("members", nargs=-1, required=True, metavar="FOLDER|METHOD=FILE|NAME=SIZES@PERPLEXITY…")
@click.option("--recipe", required=True, help="What the rows belong to.")
@click.option("--data", type=click.Path(path_type=Path), help="Where the text lies [as the first run says].")
@click.option("-o", "--output", default=RESULTS / "ptb.csv", show_default=True, type=click.Path(path_type=Path))
@click.option("--int8/--no-int8", default=True, show_default=True, help="Also the 8-bit copy of each.")
@click.option("--untimed", is_flag=True, help="Leave the columns of times empty.")
@click.option("--keep", multiple=True, help="Keep this file, NAME or NAME.int8, beside the results, for verification.")
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(min=0.1), help="A model and shape.")
@click.option("--processes", default=8, show_default=True, type=click.IntRange(min=1))
def main(
    members: tuple[str, ...], recipe: str, data: Path | None, output: Path, int8: bool, untimed: bool,
    keep: tuple[str, ...], seconds: float, processes: int,
) -> None:  # fmt: skip
    """Record MEMBERS, the dense one first."""
    known_rows(output, FIELDS)
    chosen = read_members(members)
    check_kept(keep, [member.name for member in chosen])
    texts = read_texts(chosen, data)
    recorded = [row for table in sorted(output.parent.glob("*.csv")) for row in read_rows(table)]
    named = {str(output): str(RESULTS / output.name)} | ({} if data is None else {str(data): "FOLDER"})
    here = origin("toolchain.bench.paper_table", sys.argv[1:], folders=named)
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        rows: dict[str, Row] = {}
        files: dict[str, Path] = {}
        for member in chosen:
            source = source_of(member, Path(folder))
            for file, sizes in shrunk_files(member.name, source, Path(folder), int8=int8):
                name = file.name.removesuffix(".onnx")
                quality = {"sha256": sha256_of(file)} if member.model is None else perplexities(file, texts, recorded)
                rows[name] = {"recipe": recipe, "run": member.name, "corpus": texts.origin, **member.facts,
                              **changes_of(member, recipe), **sizes, **quality, **here}  # fmt: skip
                if sizes["weights"] == "int8":
                    rows[name]["published_perplexity"] = None  # they published the float network
                rows[name]["model"] = keep_model(file, output.parent, recipe) if name in keep else None
                files[name] = file
                click.echo(f"{name}: test perplexity {rows[name].get('test_perplexity', 'not measured')}", err=True)
        if not untimed:
            for name, times in time_models(files, SHAPES, Effort(processes=processes, seconds=seconds)).items():
                rows[name] |= {**times, "baseline": chosen[0].name}
    record_rows(output, FIELDS, KEY, list(rows.values()))


if __name__ == "__main__":
    try:
        main()
    except ToolchainError as error:
        sys.exit(str(error))
