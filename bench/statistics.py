"""From samples to a verdict, in numpy alone.

Samples come in three levels: processes, short rounds in a process, calls in a round. Calls of one round
share the machine's mood, so resampling single calls would call noise significant. The bootstrap therefore
resamples processes, and in each of them rounds, whole. Models took turns, so round `j` of process `i` exists
for both and saw the same neighbours: both get the *same* indices, and what both saw cancels.

With few processes a percentile bootstrap is too narrow: for 5 it covers about 85%, not 95%. The quantiles are
widened accordingly ("expanded percentile interval"): alpha' = Phi(-sqrt(n / (n - 1)) * t_{n-1, alpha/2}).
Two levels count the spread of rounds twice, so the interval errs on the wide side: in simulation a model
against itself came out significant in 2% of 150 runs or less for 5, 8 and 16 processes, where 5% are allowed.

Source: Hesterberg 2015, What Teachers Should Know About the Bootstrap, section 3.3 and 5.3 (arXiv 1411.5279).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
CountArray = npt.NDArray[np.int32]
Process = Sequence[FloatArray]  # one array of seconds per round

RESAMPLES = 4000  # 20 resamples lie beyond alpha' for 8 processes (0.0057)
CHUNK = 200  # resamples weighed at once: 200 x 8,000 samples are 6 MB
CONFIDENCE = 0.95
UNSTABLE = 0.10  # pyperf warns from the same spread on, 10%, of the standard deviation over the mean

# Student's t, 97.5% quantile for 1 to 9 degrees of freedom; from 10 on the expansion below is exact to 0.1%.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """What the calls of one model took, in seconds; `spread` is how far apart its processes' medians are."""

    p50_s: float
    p90_s: float
    p99_s: float
    mean_s: float
    spread: float

    @property
    def unstable(self) -> bool:
        """Whether processes disagree so much that single numbers should not be quoted."""
        return self.spread > UNSTABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """How many times faster than the baseline, by medians, with a 95% interval."""

    ratio: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 1."""
        return self.low > 1.0 or self.high < 1.0


def describe(processes: Sequence[Process]) -> Latency:
    """Summarise all samples of one model in one case."""
    samples = np.concatenate([samples for rounds in processes for samples in rounds])
    p50, p90, p99 = np.percentile(samples, [50, 90, 99])
    medians = [float(np.median(np.concatenate(rounds))) for rounds in processes]
    return Latency(
        p50_s=float(p50),
        p90_s=float(p90),
        p99_s=float(p99),
        mean_s=float(samples.mean()),
        spread=max(medians) / min(medians) - 1.0,
    )


def compare(baseline: Sequence[Process], model: Sequence[Process], *, seed: int, paired: bool = True) -> Speedup:
    """Return the ratio of medians, baseline over model, and its interval.

    Args:
        baseline: rounds of each process; at least 2 processes.
        model: likewise; as many processes of as many rounds where they are paired.
        seed: of the resampling.
        paired: whether they took turns, so that what both saw cancels. Measurements of different times did not.
    """
    return speedup_of(
        baseline,
        model,
        bootstrap_medians(baseline, seed=seed),
        bootstrap_medians(model, seed=seed if paired else seed + 1),
    )


def speedup_of(
    baseline: Sequence[Process], model: Sequence[Process], baseline_medians: FloatArray, medians: FloatArray
) -> Speedup:
    """Return what `compare` does, from medians that were resampled before."""
    low, high = interval(baseline_medians / medians, processes=min(len(baseline), len(model)))
    return Speedup(ratio=_median(baseline) / _median(model), low=low, high=high)


def bootstrap_medians(processes: Sequence[Process], *, seed: int, resamples: int | None = None) -> FloatArray:
    """Return the median of each resample, shape `[resamples]`.

    The draw depends on the seed and on the numbers of processes and rounds alone: two models that took turns get the
    same draw from the same seed.
    """
    rounds_per_process = [len(rounds) for rounds in processes]
    return _medians(processes, _resample(rounds_per_process, np.random.default_rng(seed), resamples or RESAMPLES))


def interval(values: FloatArray, *, processes: int) -> tuple[float, float]:
    """Return the expanded 95% percentile interval of a statistic's resampled values."""
    tail = _expanded_tail(processes)
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def precision(low: float, value: float, high: float) -> float:
    """Return half an interval's width over its value: 0.02 reads as plus or minus 2%."""
    return (high - low) / 2 / value


def processes_to_add(found: float, asked: float, processes: int) -> int:
    """Return how many more processes should make `found` as narrow as `asked`; 0 when it is.

    An interval narrows with the root of the number of processes. At most as many again are added before another
    look, because the first look is itself uncertain; at least 2, so that a look costs less than what it looks at.
    """
    if found <= asked:
        return 0
    return int(np.clip(np.ceil(processes * ((found / asked) ** 2 - 1)), 2, processes))


def _median(processes: Sequence[Process]) -> float:
    return float(np.median(np.concatenate([samples for rounds in processes for samples in rounds])))


def _resample(rounds_per_process: Sequence[int], random: np.random.Generator, resamples: int) -> CountArray:
    """Draw processes, then rounds of each drawn process; return how often each round was drawn.

    Returns:
        shape `[resamples, sum(rounds_per_process)]`.
    """
    processes = len(rounds_per_process)
    drawn = random.multinomial(processes, np.full(processes, 1 / processes), size=resamples)
    columns = [
        # n draws of a process with r rounds are n*r draws of its rounds.
        random.multinomial(drawn[:, process] * rounds, np.full(rounds, 1 / rounds))
        for process, rounds in enumerate(rounds_per_process)
    ]
    return np.concatenate(columns, axis=1).astype(np.int32)


def _medians(processes: Sequence[Process], counts: CountArray) -> FloatArray:
    """Return the median of each resample: samples are sorted once, and weighed by their round's count."""
    rounds = [samples for process in processes for samples in process]
    samples = np.concatenate(rounds)
    order = np.argsort(samples)
    ordered = samples[order]
    round_of = np.repeat(np.arange(len(rounds)), [len(samples) for samples in rounds])[order]
    medians = [
        _weighted_median(ordered, counts[start : start + CHUNK, round_of]) for start in range(0, len(counts), CHUNK)
    ]
    return np.concatenate(medians)


def _weighted_median(ordered: FloatArray, weights: CountArray) -> FloatArray:
    """Return the median of sorted samples for each row of `weights`, shape `[resamples, samples]`."""
    ranks = np.cumsum(weights, axis=1, dtype=np.int64)
    total = ranks[:, -1:]
    lower = np.argmax(2 * ranks >= total, axis=1)
    upper = np.argmax(2 * ranks > total, axis=1)  # differs from lower when the total is even and they straddle
    medians: FloatArray = (ordered[lower] + ordered[upper]) / 2
    return medians


def _expanded_tail(processes: int) -> float:
    """Return alpha', the probability left beyond each end of the interval."""
    degrees = processes - 1
    if degrees <= len(T_QUANTILES):
        t = T_QUANTILES[degrees - 1]
    else:  # Source: Abramowitz and Stegun 26.7.5
        z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2)
        t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return NormalDist().cdf(-t * (processes / degrees) ** 0.5)
