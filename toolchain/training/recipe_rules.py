"""What the values of a recipe must agree on, where each of them alone is right."""

from __future__ import annotations

import json
from dataclasses import fields

from toolchain.errors import RecipeError
from toolchain.training.recipe import Recipe
from toolchain.training.recipe_values import refused

READER_LAYERS = 4  # encoder, two modeling layers, output
# With a reader they keep their defaults.
LANGUAGE_MODEL_KEYS = (
    *("data.text", "data.max_tokens"),
    *("model.factory", "model.cell", "model.tied", "model.init_scale", "model.variational", "model.weight_drop"),
    *("model.input_dropout", "model.hidden_dropout", "model.embedding_dropout"),
    *("optim.loss", "optim.activation_penalty", "optim.slowness_penalty", "optim.output_noise"),
    *("optim.partial_shuffle", "teacher.model"),
)


def check_recipe(recipe: Recipe, origin: str) -> None:
    """Refuse a recipe that contradicts itself.

    Args:
        recipe: whose values are of the right types and in their ranges.
        origin: what a message calls it.

    Raises:
        RecipeError: it does.
    """
    _check_gates(recipe, origin)
    _check_network(recipe, origin)
    if recipe.data.corpus == "squad" or recipe.model.network == "reader":
        _check_reader(recipe, origin)


def _check_gates(recipe: Recipe, origin: str) -> None:
    gates = recipe.gates
    if recipe.run.method == "neuron-selection" and (gates.keep is None) == (gates.l0_weight is None):
        found = "neither" if gates.keep is None else "both"
        raise RecipeError(
            f"{origin}: gates.keep and gates.l0_weight: {found} given; expected exactly one. "
            "Set a share to keep, or a fixed price."
        )
    if recipe.run.method == "magnitude" and gates.keep is None:
        raise RecipeError(
            f"{origin}: gates.keep: missing; expected the share of the multiply-adds that method magnitude prunes to. "
            "Set a share to keep."
        )
    if gates.start_at >= gates.freeze_at:
        raise RecipeError(
            f"{origin}: gates.start_at: {gates.start_at}; expected less than gates.freeze_at, {gates.freeze_at}. "
            "Start earlier or freeze later."
        )
    prunes = recipe.run.method not in ("dense", "direct")
    if prunes and gates.freeze_at == 1 and recipe.averaging.kind != "none":
        raise RecipeError(
            f"{origin}: averaging.kind: {recipe.averaging.kind} with gates.freeze_at = 1; expected an earlier freeze, "
            "because averages start anew there. Set gates.freeze_at below 1, or averaging.kind = none."
        )


def _check_network(recipe: Recipe, origin: str) -> None:
    model, optim = recipe.model, recipe.optim
    if model.tied and model.hidden_sizes[-1] != model.embedding_size:
        raise RecipeError(
            f"{origin}: model.tied: the last of model.hidden_sizes is {model.hidden_sizes[-1]}; "
            f"expected model.embedding_size, {model.embedding_size}. Make them equal, or set model.tied = false."
        )
    if model.file is not None and model.network != "reader":
        raise refused(origin, "model.file", model.file, "no value, because only a reader's graph is trained as it is")
    for key in ("activation_penalty", "slowness_penalty", "output_noise"):
        found = getattr(optim, key)
        if model.factory is not None and found:
            raise refused(
                origin, f"optim.{key}", found, "0 with model.factory, because only the package's own layers are known"
            )


def _check_reader(recipe: Recipe, origin: str) -> None:
    """Refuse what readers and their data have no use for."""
    for key, found, only in (
        ("data.corpus", recipe.data.corpus, "squad"),
        ("model.network", recipe.model.network, "reader"),
    ):
        if found != only:
            raise refused(origin, key, found, f"{json.dumps(only)}, because readers and squad go together")
    for key in LANGUAGE_MODEL_KEYS:
        section, _, name = key.partition(".")
        values = getattr(recipe, section)
        found, default = getattr(values, name), {field.name: field.default for field in fields(values)}[name]
        if found != default:
            wanted = "no value" if default is None else json.dumps(default)
            raise refused(origin, key, found, f"{wanted}, because only language models take it")
    if len(recipe.model.hidden_sizes) != READER_LAYERS:
        raise refused(origin, "model.hidden_sizes", list(recipe.model.hidden_sizes), f"{READER_LAYERS} sizes")
