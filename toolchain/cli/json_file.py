"""The file that `--json` names: complete or absent, on every command alike."""

from __future__ import annotations

import json
from pathlib import Path

from toolchain.files import write_text


def write_json(path: Path | None, content: dict[str, object]) -> None:
    """Write `content` at `path`; do nothing without a path.

    Raises:
        OutputError: the folder is missing or cannot be written, or the disk is full.
    """
    if path is None:
        return
    write_text(path, json.dumps(content, indent=2) + "\n", remedy="Choose another place with --json.")
