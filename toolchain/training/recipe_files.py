"""Recipes in TOML: those of the package and the user's, read whole and checked, and written again.

Every value is checked when the recipe is read, so a run never fails later over a recipe.
"""

from __future__ import annotations

import importlib.resources
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from toolchain.errors import RecipeError
from toolchain.training.pruning_sections import GatesSection, IssSection, L1Section
from toolchain.training.recipe import DataSection, ModelSection, OptimSection, Recipe, RunSection
from toolchain.training.recipe_rules import check_recipe
from toolchain.training.recipe_values import checked, nearest
from toolchain.training.teaching_sections import AveragingSection, TeacherSection

Section = TypeVar(
    "Section",
    DataSection,
    ModelSection,
    OptimSection,
    AveragingSection,
    TeacherSection,
    GatesSection,
    IssSection,
    L1Section,
    RunSection,
)


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes that come with the package."""
    folder = importlib.resources.files("toolchain.models") / "recipes"
    return tuple(sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load_recipe(source: str | Path, *, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe by name or path.

    Args:
        source: a name from `recipe_names()`, or the path of a TOML file.
        overrides: values by dotted key (`{"optim.epochs": 3}`) that replace the file's; None removes a key.

    Raises:
        RecipeError: no such recipe, not TOML, an unknown key, a wrong type, or a value out of range.
    """
    name, content, origin = _read(source)
    try:
        table = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(
            f"{origin}: not TOML ({error}); expected sections of key = value. Correct the file."
        ) from error
    for key, value in (overrides or {}).items():
        _override(table, key, value)
    return _recipe(name, table, origin)


def parse_override(text: str) -> tuple[str, Any]:
    """Split `optim.epochs=3` into key and value; the value is read as TOML, or else as a string.

    Raises:
        RecipeError: not of the form section.key=value.
    """
    key, equals, raw = text.partition("=")
    if not equals or key.count(".") != 1:
        raise RecipeError(f"--set {text}: no value; expected section.key=value. Write for example optim.epochs=3.")
    try:
        return key.strip(), tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), raw.strip()


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as TOML that `load_recipe` reads back as an equal recipe (but for its name)."""
    lines = []
    for section in fields(recipe):
        if section.name != "name":
            values = asdict(getattr(recipe, section.name))
            lines += [f"[{section.name}]"]
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None] + [""]
    return "\n".join(lines)


def _read(source: str | Path) -> tuple[str, str, str]:
    """Return (name, content, how to call it in messages)."""
    if str(source) in recipe_names():
        file = importlib.resources.files("toolchain.models") / "recipes" / f"{source}.toml"
        return str(source), file.read_text("utf-8"), f"recipe {source}"
    path = Path(source)
    try:
        return path.stem, path.read_text("utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        hint = nearest(str(source), recipe_names())
        raise RecipeError(
            f"{source}: no such recipe ({type(error).__name__}); expected a TOML file or one of "
            f"{', '.join(recipe_names())}.{hint}"
        ) from error


def _override(table: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    target = table.setdefault(section, {})
    if value is None:
        target.pop(name, None)
    else:
        target[name] = value


def _recipe(name: str, table: dict[str, Any], origin: str) -> Recipe:
    kinds: dict[str, Any] = {key: kind for key, kind in _hints(Recipe).items() if key != "name"}
    _refuse_unknown(table, kinds, origin, prefix="")
    sections = {key: _section(kind, table.get(key, {}), origin, key) for key, kind in kinds.items()}
    recipe = Recipe(name=name, **sections)
    check_recipe(recipe, origin)
    return recipe


def _section(kind: type[Section], table: Any, origin: str, section: str) -> Section:
    if not isinstance(table, dict):
        raise RecipeError(f"{origin}: {section}: {table!r}; expected a section. Write `[{section}]` above its keys.")
    hints = _hints(kind)
    _refuse_unknown(table, hints, origin, prefix=f"{section}.")
    for field in fields(kind):
        if field.default is MISSING and field.name not in table:
            raise RecipeError(f"{origin}: {section}.{field.name}: missing; expected a value. Add it to `[{section}]`.")
    return kind(**{key: checked(value, hints[key], origin, f"{section}.{key}") for key, value in table.items()})


def _refuse_unknown(table: Mapping[str, Any], known: Iterable[str], origin: str, *, prefix: str) -> None:
    valid = list(known)
    for key in table:
        if key not in valid:
            expected = ", ".join(valid)
            raise RecipeError(f"{origin}: {prefix}{key}: no such key; expected one of {expected}.{nearest(key, valid)}")


def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)
