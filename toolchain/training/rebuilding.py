"""Start a training run from an ONNX language model, or learn from it: the same network in PyTorch.

It is as small as the file has it. A shrunk model that keeps the wide interface of its carried state is rebuilt without
it: the network carries as many numbers as it has units, and its export declares state of that width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolchain.errors import TrainingError
from toolchain.evaluation import onnx_perplexity, torch_perplexity
from toolchain.graph.token_model import TokenModelWeights, read_token_model
from toolchain.recurrent import in_pytorch_order
from toolchain.training.checkpoint import load_checkpoint
from toolchain.training.recipe import ModelSection, Recipe
from toolchain.training.run_folder import CHECKPOINT, MODEL
from toolchain.training.teacher import Teacher, teacher_of
from toolchain.training.training_run import build_network

CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn"}
CHECKED_TOKENS = 5000  # of the validation text: seconds on the largest recipe, in one column
# Two float32 implementations of one network were seen to differ by 1e-6 of the perplexity; swapped gates change its
# first digit.
RTOL = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a run starts.

    Attributes:
        source: the ONNX file.
        section: the network's shapes; dropout is the recipe's.
        weights: state of that network, by PyTorch's names.
        state_widths: of the carried state at the file's interface, per layer.
        vocabulary_hash: of the words the file was trained on, None when it does not say.
        untied: the recipe ties output layer and embedding, but in the file they differ.
    """

    source: Path
    section: ModelSection
    weights: dict[str, Tensor]
    state_widths: tuple[int, ...]
    vocabulary_hash: str | None
    untied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StartCheck:
    """Perplexity of the same text under the file and under the rebuilt network."""

    onnx: float
    torch: float
    tokens: int


def rebuild(path: Path, recipe: Recipe) -> Start:
    """Read an ONNX language model as the network that a recipe trains.

    Raises:
        ModelFileError: the file is no such model.
        TrainingError: the recipe's network is a reader, or the user's own.
    """
    _check_known_by_sizes(recipe, "--from rebuilds it from the file. Load the weights in the factory instead.")
    model = read_token_model(path)
    kinds = {layer.op_type for layer in model.layers}
    if len(kinds) != 1:
        raise TrainingError(
            f"{path}: its layers are {', '.join(sorted(kinds))}; expected one kind. Train such a network by a factory."
        )
    same = model.embedding.shape == model.output.T.shape and np.array_equal(model.embedding, model.output.T)
    section = replace(
        recipe.model,
        cell=CELLS[kinds.pop()],  # type: ignore[arg-type]  # the keys of ModelSection's literal
        embedding_size=model.embedding.shape[1],
        hidden_sizes=tuple(layer.hidden_size for layer in model.layers),
        tied=recipe.model.tied and same,
        init_scale=None,
    )
    return Start(
        source=path,
        section=section,
        weights=_state_dict(model),
        state_widths=tuple(layer.state_width for layer in model.layers),
        vocabulary_hash=model.vocabulary_hash,
        untied=recipe.model.tied and not same,
    )


def check_start(start: Start, corpus: Any, *, threads: int | None = None) -> StartCheck:
    """Prove that the rebuilt network is the file's: equal perplexity of the first words of the validation text.

    Args:
        start: from `rebuild`.
        corpus: a `toolchain.models.text.Corpus`.
        threads: of ONNX Runtime.

    Raises:
        TrainingError: the file knows other words than the corpus, or the perplexities differ.
    """
    _check_vocabulary(start, corpus)
    network = build_network(start.section, len(corpus.vocabulary))
    network.load_state_dict(start.weights)
    text = np.asarray(corpus.valid[:CHECKED_TOKENS])
    expected = onnx_perplexity(start.source, text, threads=threads)
    found = torch_perplexity(network, torch.from_numpy(text.astype(np.int64))[:, None])
    if not abs(found / expected - 1) <= RTOL:
        raise TrainingError(
            f"{start.source}: its perplexity is {expected:.4f} in ONNX Runtime and {found:.4f} in the network rebuilt "
            "from it; expected equal ones. Nothing was trained; report this model."
        )
    return StartCheck(onnx=expected, torch=found, tokens=len(text))


def load_teacher(recipe: Recipe, corpus: Any) -> Teacher | None:
    """Rebuild the network that `teacher.model` names, proved equal to its file; None if it names none.

    Args:
        recipe: of the network in training, whose sizes do not matter.
        corpus: a `toolchain.models.text.Corpus`.

    Raises:
        ModelFileError: the file is no language model.
        TrainingError: it knows other words than the corpus, or the rebuilt network computes something else.
    """
    if recipe.teacher.model is None:
        return None
    path = Path(recipe.teacher.model)
    start = rebuild(path / MODEL if path.is_dir() else path, replace(recipe, model=ModelSection()))
    check = check_start(start, corpus, threads=recipe.run.threads)
    network = build_network(start.section, len(corpus.vocabulary))
    network.load_state_dict(start.weights)
    return teacher_of(recipe.teacher, network, perplexity=check.torch)


def section_like(source: Path, recipe: Recipe) -> ModelSection:
    """Return a recipe's network at the sizes of a pruned one, for method `direct`: its shapes, none of its weights.

    Dropout is `gates.dropout`, that of a narrow network, if the recipe has one; it replaces all three rates.

    Args:
        source: a shrunk language model, or the folder of a finished run, whose network in training is as narrow.
        recipe: gives everything but the sizes.

    Raises:
        ModelFileError: the file is no such model.
        TrainingError: the folder has no checkpoint, the recipe's network is a reader or the user's own, or it ties
            sizes that differ.
    """
    _check_known_by_sizes(recipe, "--like changes them. Build the smaller network in the factory instead.")
    sizes = _sizes_of_run(source) if source.is_dir() else _sizes_of_model(source)
    if recipe.model.tied and sizes[0] != sizes[-1]:
        raise TrainingError(
            f"{source}: has embedding {sizes[0]} and a last layer of {sizes[-1]}; expected equal sizes, because the "
            "recipe ties them. Use --set model.tied=false."
        )
    section = replace(recipe.model, embedding_size=sizes[0], hidden_sizes=sizes[1:])
    if recipe.gates.dropout is None:
        return section
    return replace(section, dropout=recipe.gates.dropout, input_dropout=None, hidden_dropout=None)


def _check_known_by_sizes(recipe: Recipe, reason: str) -> None:
    if recipe.model.network != "language-model":
        raise TrainingError(
            f"recipe {recipe.name}: model.network is {recipe.model.network}; expected a language-model, because no "
            "other network is known by the sizes in a file. Train this one from the start."
        )
    if recipe.model.factory is not None:
        raise TrainingError(
            f"recipe {recipe.name}: model.factory is {recipe.model.factory}; expected a network that is known by its "
            f"sizes, because {reason}"
        )


def _sizes_of_model(path: Path) -> tuple[int, ...]:
    model = read_token_model(path)
    return (model.embedding.shape[1], *(layer.hidden_size for layer in model.layers))


def _sizes_of_run(folder: Path) -> tuple[int, ...]:
    tensors = load_checkpoint(folder / CHECKPOINT).tensors
    layers = [tensors[name] for name in (f"model.rnn.{n}.weight_hh_l0" for n in range(len(tensors))) if name in tensors]
    if "model.embedding.weight" not in tensors or not layers:
        raise TrainingError(
            f"{folder}: holds no language model known by its sizes; expected a run of a recipe without model.factory. "
            "Name a shrunk model file instead."
        )
    return (tensors["model.embedding.weight"].shape[1], *(R.shape[1] for R in layers))


def _check_vocabulary(start: Start, corpus: Any) -> None:
    known, given = len(start.weights["embedding.weight"]), len(corpus.vocabulary)
    if known != given:
        raise TrainingError(
            f"{start.source}: knows {known:,} words, {corpus.origin} has {given:,}; expected the text that it was "
            "trained on. Name its recipe, or --text FILE."
        )
    if start.vocabulary_hash not in (None, corpus.vocabulary_hash):
        raise TrainingError(
            f"{start.source}: was trained on other words than those of {corpus.origin} (SHA-256 "
            f"{str(start.vocabulary_hash)[:8]}, not {corpus.vocabulary_hash[:8]}); expected the same vocabulary. Name "
            "its recipe, or --text FILE, and use the same version of Python for `pydocs`."
        )


def _state_dict(model: TokenModelWeights) -> dict[str, Tensor]:
    """Return the weights under the names of `LanguageModel`, gates in PyTorch's order."""
    arrays = {"embedding.weight": model.embedding}
    for number, layer in enumerate(model.layers):
        bias_ih, bias_hh = np.split(layer.B, 2)
        parts = (("weight_ih", layer.W), ("weight_hh", layer.R), ("bias_ih", bias_ih), ("bias_hh", bias_hh))
        arrays |= {f"rnn.{number}.{name}_l0": in_pytorch_order(array, layer.op_type) for name, array in parts}
    arrays |= {"decoder.weight": model.output.T, "decoder.bias": model.bias}
    return {name: torch.from_numpy(np.array(array, dtype=np.float32)) for name, array in arrays.items()}
