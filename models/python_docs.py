"""The running Python's own documentation as documents of words; needs no network.

The docstrings of the standard library's source files (parsed, never imported, so nothing runs) and `pydoc_data.topics`.
They differ a little between Python versions, so a corpus of them names the version.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from .words import END, tokenize

_NO_PROSE = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "site-packages"}


def python_documents() -> list[list[str]]:
    """Return one document per module of the standard library and per help topic, in the order of their names."""
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
