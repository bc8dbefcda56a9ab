"""JapaneseVowels: nine speakers told apart by two vowels, 12 numbers a frame, 7 to 29 frames an utterance.

270 utterances to learn from, 370 to test on, each frame the 12 coefficients of a linear prediction analysis. The files
come out of the package aeon (BSD licence), which is downloaded once and not installed.

Source: Kudo, Toyama and Shimbo 1999, Multidimensional curve classification using passing-through regions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from toolchain.errors import DatasetError

from .package_files import cache_folder, fetch_files

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]

PACKAGE = "aeon==1.6.0"
SPEAKERS, CHANNELS = 9, 12
_FOLDER = "aeon/datasets/data/JapaneseVowels"
_FILES = {  # split: name, sha256
    "train": ("JapaneseVowels_TRAIN.ts", "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd"),
    "test": ("JapaneseVowels_TEST.ts", "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterances:
    """One split.

    Attributes:
        frames: one array per utterance, float32, shape `[num_frames, 12]`.
        speakers: 0 to 8, int64, shape `[num_utterances]`.
    """

    frames: tuple[FloatArray, ...]
    speakers: IndexArray

    def take(self, chosen: Sequence[int] | IndexArray) -> Utterances:
        """Return some of the utterances, in the order asked for."""
        return Utterances(frames=tuple(self.frames[index] for index in chosen), speakers=self.speakers[list(chosen)])


def load_vowels(folder: Path | None = None) -> tuple[Utterances, Utterances]:
    """Return the utterances to learn from and those to test on.

    Args:
        folder: where the two .ts files lie; None fetches them once into the user's cache.

    Raises:
        DatasetError: a file is missing or damaged, or the download failed.
    """
    place = cache_folder() / "vowels" if folder is None else folder
    if folder is None:
        missing = {f"{_FOLDER}/{name}": (digest, place / name) for name, digest in _FILES.values()
                   if not (place / name).is_file()}  # fmt: skip
        if missing:
            fetch_files(PACKAGE, missing)
    train, test = (read_utterances(_checked(place / name, digest)) for name, digest in _FILES.values())
    return train, test


def read_utterances(text: str) -> Utterances:
    """Read aeon's .ts format: one utterance a line, channels with colons between them, the class last.

    Raises:
        DatasetError: a line has another number of channels, or they differ in length.
    """
    frames, speakers = [], []
    lines = [line for line in text.splitlines() if line and line[0] not in "#@"]
    for number, line in enumerate(lines, 1):
        *channels, speaker = line.split(":")
        values = [[float(value) for value in channel.split(",")] for channel in channels]
        lengths = {len(channel) for channel in values}
        if len(values) != CHANNELS or len(lengths) != 1:
            raise DatasetError(
                f"utterance {number}: {len(values)} channels of {sorted(lengths)} frames; expected {CHANNELS} of equal "
                "length. Fetch the file again."
            )
        frames.append(np.asarray(values, np.float32).T)  # [num_frames, 12]
        speakers.append(int(speaker) - 1)
    return Utterances(frames=tuple(frames), speakers=np.asarray(speakers, np.int64))


def pad(frames: Sequence[FloatArray]) -> tuple[FloatArray, FloatArray]:
    """Lay utterances side by side, zeros behind the shorter ones.

    Returns:
        The frames, shape `[T, B, 12]`, and which of them are real, ones and zeros of shape `[T, B, 1]`.
    """
    longest = max(len(each) for each in frames)
    padded = np.zeros((longest, len(frames), frames[0].shape[1]), np.float32)
    real = np.zeros((longest, len(frames), 1), np.float32)
    for column, each in enumerate(frames):
        padded[: len(each), column], real[: len(each), column] = each, 1
    return padded, real


def _checked(path: Path, sha256: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({error.strerror}); expected a file of {PACKAGE}. Check the folder."
        ) from error
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise DatasetError(f"{path}: has sha256 {found}; expected {sha256}. Delete it, so that it is fetched again.")
    return content.decode()
