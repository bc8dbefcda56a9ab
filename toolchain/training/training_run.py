"""The state of a training run: begun from a recipe, saved to one file, restored bit by bit."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolchain.errors import RecipeError
from toolchain.exporting import State
from toolchain.training.averaging import Averaging, begin_averaging
from toolchain.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
    with_prefix,
)
from toolchain.training.graph_network import GraphNetwork
from toolchain.training.methods.begin import begin_method
from toolchain.training.methods.pruning_method import PruningMethod
from toolchain.training.processes import Processes, gather_columns, own_columns
from toolchain.training.recipe import ModelSection, OptimSection, Recipe
from toolchain.training.run_folder import CHECKPOINT, Row
from toolchain.training.schedule import Schedule
from toolchain.training.task import Task, begin_task
from toolchain.training.teacher import Teacher


@dataclass(slots=True, kw_only=True)
class TrainingRun:
    """Everything that changes while a network is trained, and what it is trained for.

    Attributes:
        recipe: as resolved.
        folder: `runs/NAME`.
        processes: this process among all.
        task: data, loss and figures.
        model: the network in training: gated, cut or plain.
        optimizer: of its weights.
        method: what prunes the model, with its state.
        averaging: of the weights; None without it.
        teacher: whose predictions are learnt; None without one.
        state: carried from the previous update; None at the top of the data.
        update: number of updates done.
        loss_sum: of this epoch's updates, float64 scalar.
        seconds: of this epoch's training.
        metrics: rows of `metrics.csv`.
        gates: rows of `gates.csv`.
    """

    recipe: Recipe
    folder: Path
    processes: Processes
    task: Task
    model: nn.Module
    optimizer: torch.optim.Optimizer
    method: PruningMethod
    averaging: Averaging | None
    teacher: Teacher | None
    state: State | None
    update: int
    loss_sum: Tensor
    seconds: float
    metrics: list[Row]
    gates: list[Row]

    @property
    def schedule(self) -> Schedule:
        """Which update happens when."""
        return self.task.schedule


def begin_run(
    recipe: Recipe,
    corpus: Any,
    *,
    folder: Path,
    processes: Processes,
    weights: Mapping[str, Tensor] | None = None,
    teacher: Teacher | None = None,
) -> TrainingRun:
    """Build the network and everything around it, from the recipe's seed.

    Args:
        recipe: what to train.
        corpus: what the recipe's data section names, as a `toolchain.models.text.Corpus`.
        folder: `runs/NAME`, which exists.
        processes: from `join_processes`.
        weights: state of the recipe's network to start from; None starts from random weights.
        teacher: at the top of the text; its network is moved to the device.

    Raises:
        DatasetError: there is not enough data for one batch.
        RecipeError: the recipe's factory cannot be used.
        TrainingError: a batch cannot be shared out over the processes, or the model cannot be gated.
    """
    # The same seed in every process: all start from the same weights and sample the same gates. Dropout masks
    # are then alike too, each on its own part of the batch.
    torch.manual_seed(recipe.run.seed)
    model = build_network(recipe.model, len(corpus.vocabulary), folder=folder)
    if weights is not None:
        model.load_state_dict(weights)
    model.to(processes.device)
    if teacher is not None:
        teacher.network.to(processes.device)
    model, method = begin_method(model, recipe)
    return TrainingRun(
        recipe=recipe,
        folder=folder,
        processes=processes,
        task=begin_task(recipe, corpus, recipe.gates if method.learning else None, processes=processes),
        model=model,
        optimizer=weights_optimizer(model, recipe.optim),
        method=method,
        averaging=begin_averaging(recipe.averaging),
        teacher=teacher,
        state=None,
        update=0,
        loss_sum=torch.zeros((), dtype=torch.float64, device=processes.device),
        seconds=0.0,
        metrics=[],
        gates=[],
    )


def build_network(section: ModelSection, vocabulary_size: int, *, folder: Path = Path()) -> nn.Module:
    """Build the recipe's language model or reader, or call the user's factory.

    Args:
        section: of the recipe.
        vocabulary_size: number of words.
        folder: of the run, which `section.file` is relative to.

    Raises:
        ModelFileError: `section.file` cannot be read.
        RecipeError: the factory cannot be imported, or what it returns is no token model.
    """
    if section.file is not None:
        return GraphNetwork(folder / section.file, dropout=section.dropout)
    if section.network == "reader":
        return _build_reader(section, vocabulary_size)
    if section.factory is None:
        models = importlib.import_module("toolchain.models.language_model")
        config = models.LanguageModelConfig(
            vocabulary_size=vocabulary_size,
            embedding_size=section.embedding_size,
            hidden_sizes=section.hidden_sizes,
            cell=section.cell,
            dropout=section.dropout,
            input_dropout=section.input_dropout,
            hidden_dropout=section.hidden_dropout,
            embedding_dropout=section.embedding_dropout,
            variational=section.variational,
            weight_drop=section.weight_drop,
            tied=section.tied,
            init_scale=section.init_scale,
        )
        network: nn.Module = models.LanguageModel(config)
        return network
    module, _, function = section.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"model.factory: {section.factory}: {error}; expected package.module:function. "
            "Run in the folder that holds the module, or install its package."
        ) from error
    model = factory(vocabulary_size)
    if not isinstance(model, nn.Module) or not hasattr(model, "initial_state"):
        raise RecipeError(
            f"model.factory: {section.factory} returned {type(model).__name__}; expected an nn.Module with "
            "forward(tokens, state) and initial_state(batch_size). See models/language_model.py."
        )
    return model


def _build_reader(section: ModelSection, vocabulary_size: int) -> nn.Module:
    models = importlib.import_module("toolchain.models.reader")
    config = models.ReaderConfig(
        vocabulary_size=vocabulary_size,
        embedding_size=section.embedding_size,
        character_channels=section.character_channels,
        hidden_sizes=section.hidden_sizes,
        dropout=section.dropout,
    )
    network: nn.Module = models.Reader(config)
    return network


def weights_optimizer(model: nn.Module, optim: OptimSection) -> torch.optim.Optimizer:
    """Return the optimizer of everything but the gates."""
    weights = [parameter for name, parameter in model.named_parameters() if not name.endswith("log_alpha")]
    if optim.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=optim.learning_rate, weight_decay=optim.weight_decay)
    return torch.optim.AdamW(weights, lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True)


def save_run(run: TrainingRun) -> None:
    """Write the run's checkpoint; every process calls it, the main one writes."""
    parts = [pack_optimizer("optimizer", run.optimizer), run.method.pack()]
    tensors = {f"model.{name}": tensor for name, tensor in run.model.state_dict().items()}
    tensors |= {"loss_sum": run.loss_sum, "random.cpu": torch.get_rng_state()}
    if run.processes.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(run.processes.device)
    tensors |= _packed_state("state", run.state, run.processes)
    if run.teacher is not None:
        tensors |= _packed_state("teacher_state", run.teacher.state, run.processes)
    facts: dict[str, Any] = {
        "update": run.update,
        "seconds": run.seconds,
        "metrics": run.metrics,
        "gates": run.gates,
    }
    if run.averaging is not None:
        facts["averaging"] = {"triggered": run.averaging.triggered, "count": run.averaging.count}
    for part in parts:
        tensors |= part.tensors
        facts |= part.facts
    if run.processes.is_main:
        save_checkpoint(run.folder / CHECKPOINT, Checkpoint(tensors=tensors, facts=facts))


def restore_run(run: TrainingRun) -> None:
    """Bring a run that has just begun to where its checkpoint is.

    Raises:
        TrainingError: no readable checkpoint.
    """
    checkpoint = load_checkpoint(run.folder / CHECKPOINT)
    run.method.restore(run.model, checkpoint)
    run.optimizer = weights_optimizer(run.model, run.recipe.optim)
    run.model.load_state_dict(with_prefix("model", checkpoint.tensors))
    unpack_optimizer("optimizer", run.optimizer, checkpoint)
    run.state = _restored_state("state", checkpoint, run.processes)
    if run.teacher is not None:
        run.teacher.state = _restored_state("teacher_state", checkpoint, run.processes)
    if run.averaging is not None:
        facts = checkpoint.facts["averaging"]
        run.averaging.triggered, run.averaging.count = facts["triggered"], facts["count"]
    run.update, run.seconds = checkpoint.facts["update"], checkpoint.facts["seconds"]
    run.metrics, run.gates = checkpoint.facts["metrics"], checkpoint.facts["gates"]
    run.loss_sum = checkpoint.tensors["loss_sum"].to(run.processes.device)
    torch.set_rng_state(checkpoint.tensors["random.cpu"])
    if run.processes.device.type == "cuda" and "random.cuda" in checkpoint.tensors:
        torch.cuda.set_rng_state(checkpoint.tensors["random.cuda"], run.processes.device)


def _packed_state(prefix: str, state: State | None, processes: Processes) -> dict[str, Tensor]:
    return {
        f"{prefix}.{layer}.{index}": gather_columns(tensor, processes=processes)
        for layer, carried in enumerate(state or ())
        for index, tensor in enumerate(carried)
    }


def _restored_state(prefix: str, checkpoint: Checkpoint, processes: Processes) -> State | None:
    layers: dict[int, list[Tensor]] = {}
    named = with_prefix(prefix, checkpoint.tensors)
    for name in sorted(named, key=lambda name: [int(number) for number in name.split(".")]):
        layers.setdefault(int(name.partition(".")[0]), []).append(own_columns(named[name], processes=processes))
    return tuple(tuple(parts) for parts in layers.values()) or None
