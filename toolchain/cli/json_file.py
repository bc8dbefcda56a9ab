"""The file that `--json` names: complete or absent, on every command alike."""

from __future__ import annotations

import json
from pathlib import Path

from toolchain.errors import OutputError


def write_json(path: Path | None, content: dict[str, object]) -> None:
    """Write `content` at `path`, through a temporary name; do nothing without a path.

    Raises:
        OutputError: the folder is missing or cannot be written, or the disk is full.
    """
    if path is None:
        return
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); expected a writable place. Choose another with --json."
        ) from error
