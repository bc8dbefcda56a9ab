"""A data set in the format of SQuAD 1.1 that a tiny reader learns in seconds: who lives where."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

PEOPLE = ("Anna", "Bob", "Cleo", "Dan", "Eve", "Finn")
CITIES = ("Rome", "Paris", "New York", "Oslo", "Bern", "Lima")

RECIPE = """
[data]
corpus = "squad"
[model]
network = "reader"
embedding_size = 12
character_channels = 6
hidden_sizes = [8, 7, 6, 5]
[optim]
learning_rate = 0.02
epochs = 2
batch_size = 8
clip_norm = 5.0
[gates]
keep = 0.5
learning_rate = 0.3
calibration_tokens = 300
[run]
threads = 1
"""


def articles(count: int, *, paragraphs: int = 4, seed: int = 0) -> list[dict]:
    """Return articles of paragraphs such as `Bob lives in Rome. Eve lives in New York.` with a question for each."""
    random = np.random.default_rng(seed)
    return [
        {"title": str(number), "paragraphs": [_paragraph(random, f"{number}-{each}") for each in range(paragraphs)]}
        for number in range(count)
    ]


def _paragraph(random: np.random.Generator, name: str) -> dict:
    people = random.choice(PEOPLE, random.integers(2, 5), replace=False)
    text, questions = "", []
    for person in people:
        city = str(random.choice(CITIES))
        start = len(text) + len(f"{person} lives in ")
        text += f"{person} lives in {city}. "
        answers = [{"text": city, "answer_start": start}, {"text": f"the {city}!", "answer_start": start}]
        questions.append({"id": f"{name}-{person}", "question": f"Where does {person} live?", "answers": answers})
    return {"context": text.strip(), "qas": questions}


def write(folder: Path, *, dev: int = 8, train: int = 0) -> Path:
    """Write a folder as a user has it, with the number of articles in each file."""
    folder.mkdir(exist_ok=True)
    (folder / "dev-v1.1.json").write_text(json.dumps({"version": "1.1", "data": articles(dev)}))
    if train:
        (folder / "train-v1.1.json").write_text(json.dumps({"version": "1.1", "data": articles(train, seed=1)}))
    return folder
