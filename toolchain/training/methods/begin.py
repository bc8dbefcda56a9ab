"""Begin a run's pruning method by its recipe."""

from __future__ import annotations

from torch import nn

from toolchain.training.methods.group_lasso import begin_group_lasso
from toolchain.training.methods.neuron_selection import begin_neuron_selection
from toolchain.training.methods.pruning_method import Dense, PruningMethod
from toolchain.training.recipe import Recipe


def begin_method(model: nn.Module, recipe: Recipe) -> tuple[nn.Module, PruningMethod]:
    """Return the model to train, which may be a changed copy of the dense one, and the method `run.method`.

    Raises:
        TrainingError: the method cannot prune this model.
    """
    match recipe.run.method:
        case "neuron-selection":
            return begin_neuron_selection(model, recipe.gates)
        case "iss":
            return begin_group_lasso(model, recipe.iss, sites=recipe.gates.sites)
        case "dense" | "direct":
            return model, Dense()
