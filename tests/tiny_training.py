"""A text that a tiny network learns in a second, and runs on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from toolchain.models.text import Corpus

from toolchain.training.processes import Processes
from toolchain.training.recipe import Recipe
from toolchain.training.recipe_files import load_recipe
from toolchain.training.training_run import TrainingRun, begin_run

ALONE = Processes(device=torch.device("cpu"), count=1, index=0)
WORDS = 12

RECIPE = """
[data]
corpus = "text"
[model]
embedding_size = 10
hidden_sizes = [12, 9]
dropout = 0.1
[optim]
learning_rate = 0.02
epochs = 4
batch_size = 4
steps = 10
clip_norm = 1.0
[gates]
keep = 0.3
learning_rate = 0.2
calibration_tokens = 400
[run]
threads = 1
"""


class Silent:
    """A reporter that remembers."""

    def __init__(self):
        self.steps, self.epochs, self.events = [], [], []

    def step(self, report):
        self.steps.append(report)

    def epoch(self, row):
        self.epochs.append(row)

    def event(self, text):
        self.events.append(text)


def tiny_corpus(tokens: int = 2400) -> Corpus:
    """Words that follow a fixed cycle, one in ten replaced at random: perplexity about 2 when learnt."""
    random = np.random.default_rng(0)
    noise = random.random(tokens) < 0.1
    words = np.where(noise, random.integers(0, WORDS, tokens), np.arange(tokens) % WORDS).astype(np.int32)
    train, valid, test = np.split(words, [tokens * 8 // 10, tokens * 9 // 10])
    vocabulary = tuple(f"word{i}" for i in range(WORDS))
    return Corpus(name="text", origin="a cycle", vocabulary=vocabulary, train=train, valid=valid, test=test)


def tiny_recipe(folder: Path, **overrides) -> Recipe:
    path = folder / "tiny.toml"
    path.write_text(RECIPE)
    return load_recipe(path, overrides={key.replace("__", "."): value for key, value in overrides.items()})


def tiny_run(folder: Path, name: str = "run", **overrides) -> TrainingRun:
    recipe = tiny_recipe(folder, **overrides)
    (folder / name).mkdir(exist_ok=True)
    torch.set_num_threads(1)
    return begin_run(recipe, tiny_corpus(), folder=folder / name, processes=ALONE)
