"""Word corpora: the running Python's own documentation, Penn Treebank, WikiText-2, or any text.

A corpus is three int32 arrays of word ids (train, valid, test) and the vocabulary that made them.
The vocabulary is counted on the training text only; word 0 stands for every word that is not in it.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from toolchain.errors import DatasetError

from .benchmark_texts import ptb_words, wikitext_words
from .python_docs import python_documents
from .words import UNKNOWN, read_text, tokenize

TokenArray = npt.NDArray[np.int32]

SPLIT = (0.90, 0.05)  # train, valid; the rest is test
CORPORA = ("pydocs", "ptb", "wikitext-2", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Three splits as word ids, and the words.

    Attributes:
        name: one of `CORPORA`.
        origin: what exactly was read (version, file), for the record of a run.
        vocabulary: word of each id; `vocabulary[0]` is `<unk>`.
        train: shape `[num_train]`.
        valid: shape `[num_valid]`.
        test: shape `[num_test]`.
    """

    unit: ClassVar[str] = "tokens"

    name: str
    origin: str
    vocabulary: tuple[str, ...]
    train: TokenArray
    valid: TokenArray
    test: TokenArray

    @property
    def vocabulary_hash(self) -> str:
        """SHA-256 of the words, one a line: two models with the same hash read the same ids."""
        return hashlib.sha256("\n".join(self.vocabulary).encode()).hexdigest()


def load_corpus(
    name: str,
    *,
    vocabulary_size: int | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    folder: Path | None = None,
    text: Path | None = None,
) -> Corpus:
    """Read a corpus and split it.

    Args:
        name: one of `CORPORA`.
        vocabulary_size: most frequent words kept beside `<unk>`; None keeps all.
        max_tokens: read no more than about this many tokens in all (whole documents; a benchmark's split
            is cut in its usual proportions); None reads everything.
        seed: order of the documents of `pydocs`.
        folder: where the files of `ptb` or `wikitext-2` lie already; None downloads them once.
        text: the file of corpus `text`, UTF-8.

    Raises:
        DatasetError: a file is missing, damaged or too small, or a download failed.
        MissingExtraError: a download is needed and pooch is not installed.
    """
    if name == "pydocs":
        documents = _shuffled(python_documents(), seed=seed, max_tokens=max_tokens)
        splits, origin = _split_documents(documents), f"documentation of Python {sys.version.split()[0]}"
    elif name == "text":
        if text is None:
            raise DatasetError("text: no file was named; expected a UTF-8 text. Pass `--text FILE`.")
        words = tokenize(read_text(text))[:max_tokens]
        splits, origin = _split_words(words), text.name
    elif name == "ptb":
        splits, origin = _first(ptb_words(folder), max_tokens), "Penn Treebank, preprocessed by Mikolov"
    elif name == "wikitext-2":
        splits, origin = _first(wikitext_words(folder), max_tokens), "WikiText-2"
    else:
        raise DatasetError(f"{name}: no such corpus; expected one of {', '.join(CORPORA)}.")
    return _numbered(name, origin, splits, vocabulary_size)


def batch_columns(tokens: TokenArray, batch_size: int) -> TokenArray:
    """Lay a text out as `batch_size` columns that are read in parallel, each from top to bottom.

    Args:
        tokens: shape `[num_tokens]`.
        batch_size: number of columns; the last tokens that do not fill a row are left out.

    Returns:
        A new array, shape `[num_tokens // batch_size, batch_size]`.

    Raises:
        DatasetError: fewer than two rows, so that no word has a successor to predict.
    """
    rows = len(tokens) // batch_size
    if rows < 2:
        raise DatasetError(
            f"text: a split of {len(tokens)} tokens cannot fill {batch_size} columns of two; "
            f"expected at least {2 * batch_size}. Use a longer text or a smaller `optim.batch_size`."
        )
    return np.ascontiguousarray(tokens[: rows * batch_size].reshape(batch_size, rows).T)


def _numbered(name: str, origin: str, splits: Sequence[list[str]], vocabulary_size: int | None) -> Corpus:
    """Count the training words, number them by frequency, and look all splits up."""
    if min(len(split) for split in splits) < 2 or len(set(splits[0])) < 2:
        raise DatasetError(
            f"{origin}: {sum(map(len, splits))} tokens, {len(set(splits[0]))} different in the first 90%; "
            "expected at least two different words, and two tokens in each of train, valid and test (5%). "
            "Use a longer text."
        )
    counts = Counter(splits[0])
    counts.pop(UNKNOWN, None)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:vocabulary_size]
    vocabulary = (UNKNOWN, *ranked)
    ids = {word: index for index, word in enumerate(vocabulary)}
    train, valid, test = (np.array([ids.get(word, 0) for word in split], dtype=np.int32) for split in splits)
    return Corpus(name=name, origin=origin, vocabulary=vocabulary, train=train, valid=valid, test=test)


def _shuffled(documents: list[list[str]], *, seed: int, max_tokens: int | None) -> list[list[str]]:
    """Reorder whole documents, and stop once `max_tokens` is reached.

    With a limit, a document that alone would fill the valid or test part is passed over.
    """
    order = np.random.default_rng(seed).permutation(len(documents))
    if max_tokens is None:
        return [documents[index] for index in order]
    chosen: list[list[str]] = []
    length = 0
    for document in (documents[index] for index in order):
        if length < max_tokens and len(document) <= SPLIT[1] * max_tokens:
            chosen.append(document)
            length += len(document)
    return chosen


def _split_documents(documents: list[list[str]]) -> list[list[str]]:
    """Deal whole documents out to train, valid and test, so that no document is in two of them."""
    total = sum(map(len, documents))
    splits: list[list[str]] = [[], [], []]
    missing = [share * total for share in (*SPLIT, 1 - sum(SPLIT))]
    for document in documents:
        index = missing.index(max(missing))
        splits[index] += document
        missing[index] -= len(document)
    return splits


def _split_words(words: list[str]) -> list[list[str]]:
    first, second = int(SPLIT[0] * len(words)), int(sum(SPLIT) * len(words))
    return [words[:first], words[first:second], words[second:]]


def _first(splits: Sequence[list[str]], max_tokens: int | None) -> list[list[str]]:
    """Keep the beginning of each split, `max_tokens` in all, in the proportions of `SPLIT`."""
    if max_tokens is None:
        return list(splits)
    shares = (*SPLIT, 1 - sum(SPLIT))
    return [split[: int(share * max_tokens)] for split, share in zip(splits, shares, strict=True)]
