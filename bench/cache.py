"""Where measurements of this machine, and what was fetched for it, are kept between runs: the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from . import runner

FOLDER = "rnn-toolchain"


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/rnn-toolchain`, by default `~/.cache/rnn-toolchain`; it need not exist yet.

    Source: https://specifications.freedesktop.org/basedir-spec/latest/
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / FOLDER


def machine_digest(threads: int) -> str:
    """Return a name for this machine as far as speed goes, and for a number of threads."""
    machine = runner.describe_machine()
    facts = [machine["cpu_model"], machine["cpus"], machine["machine"], len(machine["cpus_allowed"]), threads]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def roofline_path(threads: int) -> Path:
    """Return where this machine's roofline is kept."""
    return cache_folder() / f"roofline-{machine_digest(threads)}.json"


def latency_table_path(threads: int) -> Path:
    """Return where this machine's latency table is kept."""
    return cache_folder() / f"latency-{machine_digest(threads)}.csv"
