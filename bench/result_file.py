"""The files under bench/results: rows with columns in a fixed order, each saying where it comes from.

A row is found again by its key columns: recorded once more, it takes the place of the older one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from toolchain.errors import BenchError
from toolchain.files import write_text

from .runner import describe_machine

RESULTS = Path("bench/results")
ORIGIN = ("cpu", "commit", "command", "versions")  # columns of every result file
PACKAGES = ("onnxruntime", "onnx", "onnx-ir", "numpy")
DIGITS = 5  # significant, of a measured number

Row = dict[str, Any]


def origin(module: str, arguments: Sequence[str], *, folders: Mapping[str, str] | None = None) -> Row:
    """Return the columns `ORIGIN` of what this process is about to record.

    Args:
        module: that was started with `python -m`.
        arguments: it was given.
        folders: what to write instead of a path that is only on this machine.
    """
    written = [(folders or {}).get(argument, argument) for argument in arguments]
    return {
        "cpu": describe_machine()["cpu_model"],
        "commit": _commit(),
        "command": shlex.join(["python", "-m", module, *written]),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("rnn-toolchain", *PACKAGES)),
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a result file; none if there is no file."""
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8")))) if path.is_file() else []


def known_rows(path: Path, fields: Sequence[str]) -> list[dict[str, str]]:
    """Return a result file's rows, none if there is no file; ask before a long measurement.

    Raises:
        BenchError: the file has other columns.
    """
    known = read_rows(path)
    if known and tuple(known[0]) != tuple(fields):
        other = sorted(set(known[0]) ^ set(fields)) or ["their order"]
        raise BenchError(
            f"{path}: has other columns ({', '.join(other)}); expected {', '.join(fields)}. Move it away and record "
            "everything again."
        )
    return known


def record_rows(path: Path, fields: Sequence[str], key: Sequence[str], rows: Sequence[Row]) -> None:
    """Add rows to a result file, in place of those with the same key; the others stay as they are.

    Args:
        path: the file; written whole.
        fields: its columns, in order.
        key: columns that tell rows apart.
        rows: to add; a column that a row lacks stays empty.

    Raises:
        BenchError: the file has other columns.
        OutputError: it cannot be written.
    """
    known = known_rows(path, fields)
    added = [{name: _cell(row.get(name)) for name in fields} for row in rows]
    new = {tuple(row[name] for name in key) for row in added}
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for row in known if tuple(row[name] for name in key) not in new)
    writer.writerows(added)
    write_text(path, text.getvalue())


def check_kept(wanted: Sequence[str], members: Sequence[str]) -> None:
    """Refuse a file to keep that no member of a table makes.

    Raises:
        BenchError: it is neither NAME nor NAME.int8 of a member.
    """
    names = [f"{member}{suffix}" for member in members for suffix in ("", ".int8")]
    if unknown := [name for name in wanted if name not in names]:
        raise BenchError(f"--keep {unknown[0]}: is no file of this table; expected one of {', '.join(names)}.")


def keep_model(file: Path, results: Path, group: str) -> Path:
    """Copy a model beside the results, for `make verify-results`; return its path from there."""
    model = Path("models") / group / file.name
    (results / model).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, results / model)
    return model


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)


def _commit() -> str:
    """Return the short commit that is checked out, with a plus sign where tracked files differ from it."""
    try:
        here = Path(__file__).parent
        commit = _git("rev-parse", "--short=10", "HEAD", folder=here)
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no", folder=here) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str, folder: Path) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
