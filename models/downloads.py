"""Files from well-known addresses, downloaded once, never kept unless their checksum is right."""

from __future__ import annotations

from pathlib import Path

from toolchain.errors import DatasetError, MissingExtraError


def download(url: str, known_hash: str) -> Path:
    """Return the local copy of `url`, downloaded on first use; a wrong or partial file is never kept.

    Args:
        url: where it is.
        known_hash: its checksum, as `sha256:...` or `md5:...`.

    Raises:
        DatasetError: the download failed, or the file has another checksum.
        MissingExtraError: pooch is not installed.
    """
    try:
        import pooch
    except ImportError as error:
        raise MissingExtraError("pooch", extra="train") from error
    try:
        return Path(pooch.retrieve(url, known_hash, path=pooch.os_cache("rnn-toolchain")))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
        reason = " ".join(str(error).split())[:160]
        raise DatasetError(
            f"{url}: the download failed ({type(error).__name__}: {reason}); expected {known_hash}. "
            "Run the command again, or put the files in a folder and pass `--data DIR`."
        ) from error
