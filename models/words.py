"""From a file to words: lower case, numbers and marks apart, the end of a paragraph a word of its own."""

from __future__ import annotations

import re
from pathlib import Path

from toolchain.errors import DatasetError

UNKNOWN = "<unk>"
END = "<eos>"

_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_")  # letters, digits, or one mark
_PARAGRAPH = re.compile(r"\n\s*\n")


def tokenize(content: str) -> list[str]:
    """Return lower-case words, numbers and single marks, with `<eos>` after each paragraph."""
    words: list[str] = []
    for paragraph in _PARAGRAPH.split(content):
        found = _WORD.findall(paragraph.lower())
        if found:
            words += found
            words.append(END)
    return words


def read_text(path: Path) -> str:
    """Return what a UTF-8 file holds.

    Raises:
        DatasetError: it cannot be read, or is not UTF-8.
    """
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
