"""Begin a run's pruning method by its recipe."""

from __future__ import annotations

from torch import nn

from toolchain.gating.neuron_links import FedModel, LinkedModel
from toolchain.training.methods.group_lasso import begin_group_lasso
from toolchain.training.methods.group_lasso_in_place import begin_group_lasso_in_place
from toolchain.training.methods.l1 import L1
from toolchain.training.methods.magnitude import begin_magnitude
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
        case "iss" if isinstance(model, FedModel) and not isinstance(model, LinkedModel):
            return begin_group_lasso_in_place(model, recipe.iss, sites=recipe.gates.sites)
        case "iss":
            return begin_group_lasso(model, recipe.iss, sites=recipe.gates.sites)
        case "magnitude":
            assert recipe.gates.keep is not None  # for the type checker: load_recipe has refused it
            return begin_magnitude(model, keep=recipe.gates.keep, sites=recipe.gates.sites)
        case "l1":
            return model, L1(weight=recipe.l1.weight, keep=recipe.gates.keep)
        case "dense" | "direct":
            return model, Dense()
