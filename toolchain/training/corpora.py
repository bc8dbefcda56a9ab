"""Load the data that a recipe names."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from toolchain.training.recipe import Recipe


def load_data(recipe: Recipe, *, folder: Path | None = None) -> Any:
    """Return what a recipe's network reads, by the code beside the recipes.

    Args:
        recipe: says which data, how many words, and with which seed.
        folder: where the files lie, instead of where the recipe says.

    Returns:
        A `toolchain.models.text.Corpus`, or for `squad` a `toolchain.models.squad.Squad`.

    Raises:
        DatasetError: it cannot be read.
    """
    section = recipe.data
    place = folder or (None if section.folder is None else Path(section.folder))
    if section.corpus == "squad":
        squad = importlib.import_module("toolchain.models.squad")
        return squad.load_squad(folder=place, vocabulary_size=section.vocabulary_size)
    return importlib.import_module("toolchain.models.text").load_corpus(
        section.corpus, vocabulary_size=section.vocabulary_size, max_tokens=section.max_tokens, seed=recipe.run.seed,
        folder=place, text=None if section.text is None else Path(section.text),
    )  # fmt: skip
