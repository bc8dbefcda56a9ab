"""Where measurements of this machine are kept between runs: the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = "rnn-toolchain"


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/rnn-toolchain`, by default `~/.cache/rnn-toolchain`; it need not exist yet.

    Source: https://specifications.freedesktop.org/basedir-spec/latest/
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / FOLDER
