"""Recipes: everything that decides what a training run computes, as frozen dataclasses.

In a file (see `recipe_files`) a recipe has the sections `[data]`, `[model]`, `[optim]`, `[averaging]`, `[teacher]`,
`[gates]`, `[iss]`, `[l1]` and `[run]`; each key is a field of the section's class, and a field without a default must
be given. `models/recipes/` holds those that come with the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from toolchain.training.pruning_sections import GatesSection, IssSection, L1Section
from toolchain.training.recipe_values import Count, NonNegative, Positive, Rate, Share, Within
from toolchain.training.teaching_sections import AveragingSection, TeacherSection

Method = Literal["neuron-selection", "iss", "magnitude", "l1", "direct", "dense"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSection:
    """What is read.

    Attributes:
        corpus: a text, see `models/text.py`, or `squad`, see `models/squad.py`.
        vocabulary_size: most frequent words kept; absent: all.
        max_tokens: read no more than about this many tokens; absent: all.
        folder: where the files of `ptb`, `wikitext-2` or `squad` lie; absent: downloaded once.
        text: the file of corpus `text`.
    """

    corpus: Literal["pydocs", "ptb", "wikitext-2", "text", "squad"]
    vocabulary_size: Count | None = None
    max_tokens: Count | None = None
    folder: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection:
    """The network: a language model or a reader by its sizes, or a user's own language model by `factory`.

    Attributes:
        network: `reader` for questions about paragraphs, see `models/reader.py`; it has LSTM layers.
        factory: "package.module:function"; gets the vocabulary size and returns an `nn.Module` with
            `LanguageModel`'s `forward` and `initial_state`. The other keys are then unused.
        cell: kind of recurrent layer.
        embedding_size: columns of the embedding table.
        hidden_sizes: neurons per recurrent layer, from the bottom; of a reader, per direction of encoder, first and
            second modeling layer, and output layer.
        dropout: probability of dropping a value between layers; where the next two are given, before the output only.
        input_dropout: the same after the embedding; absent: `dropout`.
        hidden_dropout: the same between layers; absent: `dropout`.
        embedding_dropout: probability of dropping a word from the inputs of an update, wherever it stands.
        variational: a dropout mask is the same at every step of an update (Gal and Ghahramani 2016).
        weight_drop: probability of dropping a recurrent weight for one update (Merity et al. 2017).
        tied: the output layer uses the embedding table.
        init_scale: weights start uniform in `[-init_scale, init_scale]`; absent: PyTorch's defaults.
        character_channels: of a reader: what the bytes of a word are made into, beside its embedding.
        file: of a reader: the ONNX file whose graph is the network, as `--from` sets it, relative to the run's folder.
            The keys that give sizes are then unused.
    """

    network: Literal["language-model", "reader"] = "language-model"
    factory: str | None = None
    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    embedding_size: Count = 256
    hidden_sizes: tuple[Count, ...] = (256, 256)
    dropout: Rate = 0.0
    input_dropout: Rate | None = None
    hidden_dropout: Rate | None = None
    embedding_dropout: Rate = 0.0
    variational: bool = False
    weight_drop: Rate = 0.0
    tied: bool = False
    init_scale: Positive | None = None
    character_channels: Count = 64
    file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimSection:
    """How the weights learn.

    Attributes:
        optimizer: `sgd` or `adamw`.
        learning_rate: at its highest.
        weight_decay: decoupled (`adamw`) or added to the gradient (`sgd`).
        epochs: passes over the training text, fine-tuning included.
        batch_size: columns of text read in parallel, over all processes.
        steps: time steps between two updates (truncated back-propagation).
        clip_norm: largest norm of the gradient.
        loss: averaged over every token, or summed over the steps of a `sequence` and averaged over columns
            (Zaremba et al.: their learning rates and norms belong to it).
        activation_penalty: on the mean square of what the output layer reads (Merity et al. 2017, AR).
        slowness_penalty: on the mean square of the last layer's change from step to step (the same, TAR).
        output_noise: of the worst noise on the output layer's row of the right word, its length in lengths of the row
            (Wang, Gong and Liu 2019).
        partial_shuffle: every epoch begins each column of text at another place (Press 2019).
        schedule: `cosine` falls to 0 at the end; `decay` multiplies by `decay` after each epoch from
            `decay_after` on.
        warmup: share of all updates in which the rate rises from 0.
        decay: factor per epoch.
        decay_after: epochs at the full rate before the first decay.
    """

    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: Positive
    weight_decay: NonNegative = 0.0
    epochs: Count
    batch_size: Count = 20
    steps: Count = 35
    clip_norm: Positive
    loss: Literal["token", "sequence"] = "token"
    activation_penalty: NonNegative = 0.0
    slowness_penalty: NonNegative = 0.0
    output_noise: Rate = 0.0
    partial_shuffle: bool = False
    schedule: Literal["cosine", "decay"] = "cosine"
    warmup: Share = 0.0
    decay: Annotated[float, Within(0.01, 1)] = 1.0
    decay_after: Count = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSection:
    """Where and how the run computes.

    Attributes:
        method: what prunes: `neuron-selection` (gates), `iss` (group lasso), `magnitude` (norms of neurons), `l1`
            (single weights); `dense` trains the unpruned baseline, `direct` one of the pruned sizes.
        seed: of weights, order of documents, dropout and gates.
        precision: `bfloat16` is autocast; weights stay float32.
        device: `auto` takes a GPU if there is one.
        threads: CPU threads of PyTorch; absent: its own choice. Results depend on it in the last bits.
    """

    method: Method = "neuron-selection"
    seed: Annotated[int, Within(0, 2**32 - 1)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole recipe; `name` is the file's name without its suffix."""

    name: str
    data: DataSection
    model: ModelSection
    optim: OptimSection
    averaging: AveragingSection
    teacher: TeacherSection
    gates: GatesSection
    iss: IssSection
    l1: L1Section
    run: RunSection
