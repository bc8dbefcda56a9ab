"""The kinds of values that a recipe's keys take, numbers with their range, and how a value is held against them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from toolchain.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Within:
    """A range, bounds included unless `open`; used in `Annotated[float, Within(0, 1)]`."""

    low: float
    high: float = float("inf")
    open: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low < value < self.high if self.open else self.low <= value <= self.high

    def __str__(self) -> str:
        if self.high == float("inf"):
            return f"{'more than' if self.open else 'at least'} {self.low:g}"
        return f"a value {'strictly ' if self.open else ''}between {self.low:g} and {self.high:g}"


Count = Annotated[int, Within(1)]
Positive = Annotated[float, Within(0, open=True)]
NonNegative = Annotated[float, Within(0)]
Share = Annotated[float, Within(0, 1)]
Rate = Annotated[float, Within(0, 0.99)]  # of dropout; below 1, so that something is left
OpenShare = Annotated[float, Within(0, 1, open=True)]


def checked(value: Any, hint: Any, origin: str, key: str) -> Any:
    """Return `value` as the annotated type.

    Args:
        value: as TOML has it.
        hint: the annotation of the key's field.
        origin: what a message calls the recipe.
        key: with its section.

    Raises:
        RecipeError: another type, or a value out of range.
    """
    if isinstance(hint, UnionType) or (get_origin(hint) is not None and NoneType in get_args(hint)):
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    ranges = hint.__metadata__ if get_origin(hint) is Annotated else ()
    kind = get_args(hint)[0] if ranges else hint
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            choices = [str(choice) for choice in get_args(kind)]
            raise refused(origin, key, value, f"one of {', '.join(choices)}", nearest(str(value), choices))
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not value:
            raise refused(origin, key, value, "a list such as [256, 256]")
        return tuple(checked(item, get_args(kind)[0], origin, key) for item in value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise refused(
            origin,
            key,
            value,
            {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text"),
        )
    for bounds in ranges:
        if value not in bounds:
            raise refused(origin, key, value, str(bounds))
    return value


def refused(origin: str, key: str, value: Any, expected: str, hint: str = "") -> RecipeError:
    """Return the error that says which value was expected."""
    return RecipeError(f"{origin}: {key}: {value!r}; expected {expected}.{hint or ' Correct the value.'}")


def nearest(word: str, candidates: Iterable[str]) -> str:
    """Return the question whether a similar word was meant; empty if there is none."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""
