"""Files that appear complete or not at all: every writer of this package goes through here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolchain.errors import OutputError


@contextmanager
def written_whole(path: Path, *, remedy: str = "Nothing was written; choose another place.") -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder beside `path`; on success it is renamed, else removed.

    A process that is killed leaves the older file as it was. What else was written into the folder (a model's weights)
    comes along, before the file that refers to it.

    Args:
        path: the file to write or replace.
        remedy: what to do when that fails; the last sentence of the error.

    Raises:
        OutputError: the folder is missing or cannot be written, the disk is full, or `path` is a folder.
    """
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; expected the name of a file to write. Name a file inside it.")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            unfinished = Path(folder) / path.name
            yield unfinished
            for companion in Path(folder).iterdir():
                if companion != unfinished:
                    os.replace(companion, path.parent / companion.name)
            os.replace(unfinished, path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); expected a writable folder with free space. "
            f"{remedy}"
        ) from error


def write_text(path: Path, content: str, *, remedy: str = "Make room or choose another place.") -> None:
    """Write a text file in UTF-8, in place of an older one.

    Raises:
        OutputError: it cannot be written.
    """
    with written_whole(path, remedy=remedy) as unfinished:
        unfinished.write_text(content, "utf-8")
