"""SQuAD 1.1: questions whose answers are spans of a paragraph, as numbers that a network reads.

The words of a paragraph are runs of letters and digits, or single marks, each with its place in the text, so that a
span of words is a span of the original text. A *form* is a word as it is written; forms are numbered through, and two
tables say what a network sees of them: the number of the lower-case word, and the bytes. Form 0 is padding.

The published training file is split by article: its last articles are for validation, and the development file is
the test. Without the training file the development file itself is split by article; `Squad.origin` then says so,
because scores on that split cannot be compared with published ones.

Source: Rajpurkar et al. 2016, arXiv 1606.05250.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from toolchain.errors import DatasetError

from .downloads import download

IndexArray = npt.NDArray[np.int32]

PAD, UNKNOWN = "<pad>", "<unk>"
WORD_BYTES = 16  # as Seo et al. 2017; 99.97% of the words in the development file's paragraphs are no longer
HELD_OUT = 8  # one article in eight is for validation, and one for test where the development file is all there is

_WORD = re.compile(r"[^\W_]+|[^\w\s]|_")
_URL = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
_TRAIN, _DEV = "train-v1.1.json", "dev-v1.1.json"
_SHA256 = {
    _TRAIN: "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
    _DEV: "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """A text and its words.

    Attributes:
        text: as it is written.
        offsets: first and last-plus-one character of each word, shape `[num_words, 2]`.
        forms: shape `[num_words]`.
    """

    text: str
    offsets: IndexArray
    forms: IndexArray

    def span(self, first: int, last: int) -> str:
        """Return the text from word `first` to word `last`."""
        return self.text[self.offsets[first, 0] : self.offsets[last, 1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about a paragraph.

    Attributes:
        identifier: the data set's own.
        paragraph: what holds the answer.
        forms: the question's words, shape `[num_words]`.
        answers: gold answers, at least one.
        first: word of the paragraph with which the first gold answer begins.
        last: word with which it ends.
    """

    identifier: str
    paragraph: Paragraph
    forms: IndexArray
    answers: tuple[str, ...]
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Squad:
    """Three splits, and what a network sees of a form.

    Attributes:
        origin: what exactly was read, for the record of a run.
        vocabulary: lower-case words by number; 0 is padding, 1 stands for every word that is not in it.
        words: word of each form, shape `[num_forms]`.
        characters: UTF-8 bytes of each form plus one, 0 behind the last, shape `[num_forms, WORD_BYTES]`.
        train: questions to learn from.
        valid: questions about other articles.
        test: questions about yet others.
    """

    unit: ClassVar[str] = "questions"

    origin: str
    vocabulary: tuple[str, ...]
    words: npt.NDArray[np.int64]
    characters: npt.NDArray[np.int64]
    train: tuple[Question, ...]
    valid: tuple[Question, ...]
    test: tuple[Question, ...]

    @property
    def vocabulary_hash(self) -> str:
        """SHA-256 of the words, one a line: two models with the same hash read the same numbers."""
        return hashlib.sha256("\n".join(self.vocabulary).encode()).hexdigest()

    def feeds(self, questions: Sequence[Question]) -> dict[str, npt.NDArray[np.int64]]:
        """Return what a reader takes for some questions, by input name, padded to the longest.

        Shapes are `[T, B]` and `[T, B, WORD_BYTES]` for paragraphs, `[J, B]` and `[J, B, WORD_BYTES]` for questions.
        """
        paragraph, question = _columns([q.paragraph.forms for q in questions]), _columns([q.forms for q in questions])
        return {
            "paragraph": self.words[paragraph],
            "paragraph_characters": self.characters[paragraph],
            "question": self.words[question],
            "question_characters": self.characters[question],
        }


def load_squad(*, folder: Path | None = None, vocabulary_size: int | None = None) -> Squad:
    """Read SQuAD 1.1 and split it.

    Args:
        folder: where `dev-v1.1.json` lies, and `train-v1.1.json` if it is at hand; None downloads both once.
        vocabulary_size: most frequent words of the training articles kept; None keeps all.

    Raises:
        DatasetError: a file is missing, damaged or too small, or a download failed.
        MissingExtraError: a download is needed and pooch is not installed.
    """
    train_path, dev_path = _files(folder)
    dev = _articles(dev_path)
    if train_path is None:
        held_out = max(1, len(dev) // HELD_OUT)
        splits = [dev[: -2 * held_out], dev[-2 * held_out : -held_out], dev[-held_out:]]
        origin = (
            f"{dev_path.name} alone, split by article ({' + '.join(str(len(split)) for split in splits)}): "
            "not the published split"
        )
    else:
        articles = _articles(train_path)
        held_out = max(1, len(articles) // HELD_OUT)
        splits, origin = [articles[:-held_out], articles[-held_out:], dev], "SQuAD 1.1"
    if min(map(len, splits)) == 0:
        raise DatasetError(
            f"{dev_path if train_path is None else train_path}: too few articles to split; expected at least "
            f"{3 if train_path is None else 2}. Use a larger part of the data set."
        )
    if not all(_is_published(path) for path in (train_path, dev_path) if path is not None):
        origin += "; the files are not the published ones"
    return _numbered(origin, splits, vocabulary_size)


def tokenize(text: str) -> list[tuple[int, int]]:
    """Return first and last-plus-one character of each word: runs of letters and digits, single marks."""
    return [match.span() for match in _WORD.finditer(text)]


def _files(folder: Path | None) -> tuple[Path | None, Path]:
    """Return the training file, if there is one, and the development file."""
    if folder is None:
        train, dev = (download(_URL + name, f"sha256:{_SHA256[name]}") for name in (_TRAIN, _DEV))
        return train, dev
    return folder / _TRAIN if (folder / _TRAIN).exists() else None, folder / _DEV


def _is_published(path: Path) -> bool:
    return hashlib.sha256(path.read_bytes()).hexdigest() in _SHA256.values()


def _articles(path: Path) -> list[list[dict[str, Any]]]:
    """Return the paragraphs of each article, as the file has them."""
    try:
        content = json.loads(path.read_text("utf-8"))
        return [[dict(paragraph) for paragraph in article["paragraphs"]] for article in content["data"]]
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({error.strerror}); expected a file of SQuAD 1.1. "
            "Check `--data DIR`, or leave it out to download it."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path.name, error) from error


def _damaged(name: str, error: Exception) -> DatasetError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return DatasetError(
        f"{name}: not what SQuAD 1.1 is ({reason}); expected data, paragraphs, qas and answers. Download it again."
    )


def _numbered(origin: str, splits: Sequence[list[list[dict[str, Any]]]], vocabulary_size: int | None) -> Squad:
    forms: dict[str, int] = {"": 0}
    questions = [tuple(_questions(split, forms)) for split in splits]
    if not all(questions):
        raise DatasetError(f"{origin}: a part without questions; expected some in each. Use a larger part of the data.")
    written = list(forms)
    vocabulary = _vocabulary(questions[0], written, vocabulary_size)
    number = {word: index for index, word in enumerate(vocabulary)}
    words = np.array([0, *(number.get(form.lower(), 1) for form in written[1:])], dtype=np.int64)
    characters = np.zeros((len(written), WORD_BYTES), dtype=np.int64)
    for index, form in enumerate(written):
        content = np.frombuffer(form.encode()[:WORD_BYTES], dtype=np.uint8)
        characters[index, : len(content)] = content.astype(np.int64) + 1
    train, valid, test = questions
    return Squad(
        origin=origin, vocabulary=vocabulary, words=words, characters=characters, train=train, valid=valid, test=test
    )


def _questions(articles: Iterable[list[dict[str, Any]]], forms: dict[str, int]) -> Iterator[Question]:
    """Yield the questions of some articles; forms that are new get the next numbers."""
    for entry in (entry for article in articles for entry in article):
        try:
            text = str(entry["context"])
            offsets = np.array(tokenize(text), dtype=np.int32).reshape(-1, 2)
            paragraph = Paragraph(text=text, offsets=offsets, forms=_forms(text, forms))
            for question in entry["qas"]:
                yield _question(question, paragraph, forms)
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(f"paragraph {str(entry.get('context'))[:40]!r}", error) from error


def _question(entry: dict[str, Any], paragraph: Paragraph, forms: dict[str, int]) -> Question:
    identifier, answers = str(entry["id"]), [str(answer["text"]) for answer in entry["answers"]]
    words = _forms(str(entry["question"]), forms)
    if not answers or not len(words):
        raise DatasetError(
            f"question {identifier}: {len(words)} words and {len(answers)} answers; expected at least one of each. "
            "Use version 1.1, in which every question has an answer."
        )
    start = int(entry["answers"][0]["answer_start"])
    end = start + len(answers[0])
    inside = np.flatnonzero((paragraph.offsets[:, 1] > start) & (paragraph.offsets[:, 0] < end))
    if paragraph.text[start:end] != answers[0] or not len(inside):
        raise DatasetError(
            f"question {identifier}: its answer {answers[0][:40]!r} is not at character {start} of its paragraph; "
            "expected it there. Download the file again."
        )
    return Question(
        identifier=identifier,
        paragraph=paragraph,
        forms=words,
        answers=tuple(answers),
        first=int(inside[0]),
        last=int(inside[-1]),
    )


def _forms(text: str, forms: dict[str, int]) -> IndexArray:
    return np.array([forms.setdefault(text[a:b], len(forms)) for a, b in tokenize(text)], dtype=np.int32)


def _vocabulary(questions: Sequence[Question], written: Sequence[str], size: int | None) -> tuple[str, ...]:
    """Number the words of questions and their paragraphs by frequency."""
    counts: Counter[str] = Counter()
    paragraphs = {id(question.paragraph): question.paragraph for question in questions}
    for forms in (*(question.forms for question in questions), *(each.forms for each in paragraphs.values())):
        counts.update(written[form].lower() for form in forms)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:size]
    return (PAD, UNKNOWN, *ranked)


def _columns(sequences: Sequence[IndexArray]) -> npt.NDArray[np.int32]:
    """Return sequences as columns, padded with zeros to the longest."""
    columns = np.zeros((max(map(len, sequences)), len(sequences)), dtype=np.int32)
    for column, sequence in enumerate(sequences):
        columns[: len(sequence), column] = sequence
    return columns
