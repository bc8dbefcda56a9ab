"""What a table puts side by side, one argument each.

FOLDER or METHOD=FOLDER             a finished run of `toolchain train`
METHOD=FILE.onnx                    a model that was made from one, as by `toolchain shrink --ratio`
NAME=EMBEDDING,HIDDEN,HIDDEN@PPL    a published language model: sizes, and the test perplexity its authors report
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.errors import BenchError

from .record import record_row
from .result_file import Row

PUBLISHED = re.compile(r"([^=]+)=(\d+(?:,\d+)+)@(\d+(?:\.\d+)?)")
TRAINING = ("corpus", "epochs", "keep", "dropout", "precision", "training_s", "training_threads", "trained_with")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One network to put on record.

    Attributes:
        name: unique in a table.
        model: its file; None for a published network, of which only the sizes are known.
        facts: the columns of its training run, as far as there was one.
        recipe: of that run.
        sizes: of the embedding and of each layer, of a published network.
    """

    name: str
    model: Path | None
    facts: Row
    recipe: Path | None = None
    sizes: tuple[int, ...] = ()


def read_members(texts: Sequence[str]) -> list[Member]:
    """Read the arguments of a table.

    Raises:
        BenchError: one cannot be read, or two have the same name.
    """
    members = [read_member(text) for text in texts]
    names = [member.name for member in members]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BenchError(f"{twice[0]}: is the name of two members; expected different ones. Rename a folder or file.")
    return members


def read_member(text: str) -> Member:
    """Read one of the forms above.

    Raises:
        BenchError: it is none of these, or the run did not finish.
    """
    if found := PUBLISHED.fullmatch(text):
        facts: Row = {"method": "published", "published_perplexity": float(found[3])}
        return Member(name=found[1], model=None, facts=facts, sizes=tuple(map(int, found[2].split(","))))
    method, _, name = text.rpartition("=")
    path = Path(name)
    if path.is_dir():
        row = record_row(path)
        row["trained_with"] = row["versions"]
        facts = {name: row[name] for name in ("run", "method", "seed", *TRAINING)}
        facts |= {"method": method} if method else {}
        return Member(name=path.name, model=path / "model.onnx", facts=facts, recipe=path / "recipe.toml")
    if path.suffix != ".onnx" or not path.is_file() or not method:
        raise BenchError(
            f"{text}: is neither a folder of `toolchain train` nor METHOD=FILE.onnx nor NAME=SIZES@PERPLEXITY; "
            "expected one of these. Check the path, and name the method of a file."
        )
    return Member(name=path.name.removesuffix(".onnx"), model=path, facts={"method": method})
