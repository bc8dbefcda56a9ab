"""Synthetic audio and EEG of the kind that speech and EEG models see: seeded, without network or recordings.

speech    a source (glottal pulses or noise) shaped by formants that move from sound to sound, with pauses
noise     coloured, slowly modulated, some with mains hum
eeg       1/f background with slow waves, alpha, spindles, rhythmic discharges, artefacts and mains hum

Not recordings: what a model makes of them is like what it makes of the real thing in range and correlation, no more.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

FRAME_S = 0.01  # between two shapes of the vocal tract
# First four formants in Hz of a, e, i, o, u, schwa and a nasal; an average adult.
VOWELS = np.array([[730, 1090, 2440, 3400], [530, 1840, 2480, 3500], [270, 2290, 3010, 3700], [570, 840, 2410, 3300],
                   [300, 870, 2240, 3200], [500, 1500, 2500, 3500], [250, 1200, 2200, 3100]], np.float64)  # fmt: skip
BANDWIDTHS = np.array([80.0, 110, 160, 250])  # Hz, of the formants
FRICATIVES = np.array([[4800.0, 2500], [3000, 1200], [1500, 1500], [6500, 3000]])  # centre and width in Hz
HUM_HZ = 50.0


def noisy_speech(rng: np.random.Generator, seconds: float, rate: int) -> FloatArray:
    """Return one speaker in one kind of noise, at a drawn level and signal-to-noise ratio, shape `[num_samples]`."""
    voice, background = speech(rng, seconds, rate), noise(rng, round(seconds * rate), rate)
    snr_db = rng.choice([-5.0, 0, 5, 10, 20, 40])
    mixed = voice + background * np.sqrt(np.mean(voice**2) / np.mean(background**2)) * 10 ** (-snr_db / 20)
    level_db = rng.uniform(-38, -18)  # of full scale, what speech is recorded at
    return np.asarray(mixed / np.sqrt(np.mean(mixed**2)) * 10 ** (level_db / 20))


def speech(rng: np.random.Generator, seconds: float, rate: int) -> FloatArray:
    """Return clean speech-like sound of one speaker, shape `[num_samples]`."""
    frames = round(seconds / FRAME_S) + 2
    envelopes, voiced, unvoiced = _vocal_tract(rng, frames, rate)
    hop = round(rate * FRAME_S)
    pitch = _pitch(rng, frames)
    excitation = np.zeros((2, frames * hop))
    phase = np.cumsum(np.interp(np.arange(frames * hop) / hop, np.arange(frames), pitch)) / rate
    pulses = np.flatnonzero(np.diff(np.floor(phase)))
    excitation[0, pulses] = np.sqrt(rate / pitch.mean())
    excitation[1] = rng.standard_normal(frames * hop)
    shaped = [_shape(sound, envelope, gain, hop) for sound, envelope, gain
              in zip(excitation, envelopes, (voiced, unvoiced), strict=True)]  # fmt: skip
    return np.asarray((shaped[0] + shaped[1])[: round(seconds * rate)] + 1e-6 * rng.standard_normal(
        round(seconds * rate)))  # fmt: skip


def noise(rng: np.random.Generator, count: int, rate: int) -> FloatArray:
    """Return background noise, shape `[count]`."""
    sound = coloured(rng, count, rate, slope=rng.uniform(0, 1.6), lowest_hz=40.0)
    swell = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, 8), rng.uniform(0.3, 1.0, 8))
    hum = rng.choice([0.0, 0.0, 0.5]) * np.sin(2 * np.pi * HUM_HZ * rng.integers(1, 4) * np.arange(count) / rate)
    return np.asarray(sound * swell + hum)


def coloured(rng: np.random.Generator, count: int, rate: int, *, slope: float, lowest_hz: float) -> FloatArray:
    """Return noise of unit variance whose power falls as `1/f^slope` above `lowest_hz`, shape `[count]`."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequencies = np.maximum(np.fft.rfftfreq(count, 1 / rate), lowest_hz)
    sound = np.fft.irfft(spectrum * frequencies ** (-slope / 2), count)
    return np.asarray(sound / sound.std())


def eeg(rng: np.random.Generator, seconds: float, rate: int) -> FloatArray:
    """Return one channel in microvolts, shape `[num_samples]`."""
    count = round(seconds * rate)
    t = np.arange(count) / rate
    signal = 30 * coloured(rng, count, rate, slope=rng.uniform(1.2, 2.2), lowest_hz=0.5)
    signal += rng.uniform(0, 6) * np.sin(2 * np.pi * HUM_HZ * t)
    # (events a minute, lengths in s, frequencies in Hz, amplitudes in uV)
    kinds = ((8, (0.6, 1.8), (12, 15), (15, 40)),  # spindles
             (10, (0.8, 2.0), (0.5, 1.5), (60, 150)),  # slow waves
             (5, (2.0, 8.0), (8, 11), (10, 40)))  # alpha  # fmt: skip
    for rate_per_minute, lengths, frequencies, amplitudes in kinds:
        for _ in range(rng.poisson(rate_per_minute * seconds / 60)):
            _add_burst(signal, rng, rate, lengths, frequencies, amplitudes, harmonics=1)
    if rng.random() < 0.6:  # of channels
        for _ in range(rng.integers(1, 4)):  # rhythmic discharges, spikes and waves
            _add_burst(signal, rng, rate, (15, 60), (2.5, 9), (150, 500), harmonics=6)
    for _ in range(rng.poisson(seconds / 60)):  # movement and muscle
        start, length = rng.integers(0, count), rng.integers(rate // 2, 3 * rate)
        part = signal[start : start + length]
        part += rng.uniform(50, 300) * coloured(rng, part.size, rate, slope=rng.choice([0.0, 2.0]), lowest_hz=0.5)
    return signal


def _add_burst(
    signal: FloatArray,
    rng: np.random.Generator,
    rate: int,
    lengths: tuple[float, float],
    frequencies: tuple[float, float],
    amplitudes: tuple[float, float],
    *,
    harmonics: int,
) -> None:
    """Add a rhythm that swells, fades and slows down, in place."""
    part = signal[rng.integers(0, signal.size) :][: round(rng.uniform(*lengths) * rate)]
    frequency = rng.uniform(*frequencies) * np.linspace(1.0, rng.uniform(0.7, 1.0), part.size)
    phase = 2 * np.pi * np.cumsum(frequency) / rate
    wave = sum((np.cos(n * phase) / n for n in range(1, harmonics + 1)), start=np.zeros(part.size))
    part += rng.uniform(*amplitudes) * np.hanning(part.size) * wave


def _pitch(rng: np.random.Generator, frames: int) -> FloatArray:
    """Return the pitch in Hz at each frame: a speaker's own, wandering by some semitones."""
    speaker = np.exp(rng.uniform(np.log(85), np.log(260)))
    steps = np.interp(np.arange(frames), np.linspace(0, frames, frames // 25 + 2),
                      rng.normal(0, 2.5, frames // 25 + 2))  # fmt: skip
    return np.asarray(speaker * 2 ** ((steps + rng.normal(0, 0.1, frames)) / 12))


def _vocal_tract(rng: np.random.Generator, frames: int, rate: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return envelopes of voiced and unvoiced sound `[2, frames, bins]` and the gain of each `[frames]`."""
    formants, fricatives = np.empty((frames, 4)), np.empty((frames, 2))
    voiced, unvoiced = np.zeros(frames), np.zeros(frames)
    tract = rng.uniform(0.88, 1.18)  # shorter ones have higher formants
    start = 0
    while start < frames:
        kind = rng.choice(3, p=[0.6, 0.25, 0.15])  # voiced, unvoiced, pause
        length = int(rng.integers(*((8, 28), (5, 14), (8, 70))[kind]))
        part = slice(start, start + length)
        formants[part] = tract * VOWELS[rng.integers(len(VOWELS))] * rng.uniform(0.93, 1.07, 4)
        fricatives[part] = FRICATIVES[rng.integers(len(FRICATIVES))]
        voiced[part] = rng.uniform(0.4, 1.0) if kind == 0 else 0.0
        unvoiced[part] = (0.02, rng.uniform(0.1, 0.4), 0.0)[kind]
        start += length
    smooth = np.hanning(9)[1:-1] / np.hanning(9).sum()  # 70 ms: how fast a mouth moves
    voiced, unvoiced = (np.convolve(gain, smooth, "same") for gain in (voiced, unvoiced))
    edge = np.pad(formants, ((3, 3), (0, 0)), mode="edge")
    formants = np.stack([np.convolve(column, smooth, "valid") for column in edge.T], axis=1)
    bins = np.fft.rfftfreq(2 * round(rate * FRAME_S), 1 / rate)
    tilt = 1 / (1 + (bins / 500) ** 1.2)
    peaks = 1 / (1 + ((bins - formants[:, :, None]) / BANDWIDTHS[:, None]) ** 2)  # [frames, 4, bins]
    open_mouth = (peaks * np.array([1.0, 0.6, 0.3, 0.15])[:, None]).sum(axis=1) + 0.004
    hiss = np.exp(-(((bins - fricatives[:, :1]) / fricatives[:, 1:]) ** 2))
    return np.stack([open_mouth * tilt * 12, hiss]), voiced, unvoiced


def _shape(sound: FloatArray, envelopes: FloatArray, gains: FloatArray, hop: int) -> FloatArray:
    """Filter a sound by one envelope a frame: windows of two hops, weighted, filtered, added up."""
    frames = len(envelopes) - 1
    window = np.hanning(2 * hop + 1)[:-1]
    pieces = np.lib.stride_tricks.sliding_window_view(sound, 2 * hop)[::hop][:frames] * window
    pieces = np.fft.irfft(np.fft.rfft(pieces) * envelopes[:frames] * gains[:frames, None], 2 * hop)
    shaped = np.zeros((frames + 1) * hop)
    shaped[: frames * hop] += pieces[:, :hop].ravel()
    shaped[hop:] += pieces[:, hop:].ravel()
    return shaped
