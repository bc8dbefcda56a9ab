"""The file that `--json` names: complete or absent, on every command alike."""

from __future__ import annotations

import json
from pathlib import Path

from toolchain.errors import OutputError
from toolchain.files import write_text


def write_json(path: Path | None, content: dict[str, object]) -> None:
    """Write `content` at `path`; do nothing without a path.

    Raises:
        OutputError: the folder is missing or cannot be written, or the disk is full.
    """
    if path is None:
        return
    write_text(path, json.dumps(content, indent=2) + "\n", remedy="Choose another place with --json.")


def check_json(path: Path | None, *others: Path | None) -> None:
    """Refuse a `--json` that would replace a model that is read or written.

    Raises:
        OutputError: it names one of `others`.
    """
    if path is not None and path.resolve() in {other.resolve() for other in others if other is not None}:
        raise OutputError(f"{path}: is a model; expected a file of its own for the JSON. Choose another with --json.")
