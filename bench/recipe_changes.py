"""What a run's recipe changes of the one it is named after, in the words of `--set`; only what its method heeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from toolchain.training.recipe import Recipe

TRAINING = ("model", "optim", "averaging", "teacher")
WHEN = ("start_at", "freeze_at", "sites", "dropout", "compact_steps")  # keys of gates that every pruning method heeds


def recipe_changes(recipe: Recipe, base: Recipe) -> str:
    """Return `key=value, key=value` for what differs; share, seed, data and machine have columns of their own."""
    known = dict(_heeded(base, recipe.run.method))
    return ", ".join(f"{key}={_written(value)}" for key, value in _heeded(recipe, recipe.run.method)
                     if value != known[key])  # fmt: skip


def _heeded(recipe: Recipe, method: str) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values that a method heeds; a `direct` network's sizes are another network's."""
    sections = asdict(recipe)
    for section in (*TRAINING, "gates", *({method} & {"iss", "l1"})):
        if (section == "gates" and method in ("dense", "direct")) or (section == "model" and method == "direct"):
            continue
        for key, value in sections[section].items():
            if section != "gates" or key in WHEN or (method == "neuron-selection" and key != "keep"):
                yield f"{section}.{key}", value


def _written(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
