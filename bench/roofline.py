"""The roofline: what this machine could do at most, against what a model achieves on it.

Weights cannot be read faster than the memory that holds them allows, and not multiplied faster than the processor
multiplies. For each layer, with BW(s) the read bandwidth measured at a working set of s bytes:

    limit = max(T * |R| / BW(|R|) + once / BW(all weights),  2 * multiply-adds / peak)

because `R` is read over and over and stays in the cache that it fits into, while everything that is read once per
inference had the whole model read in between. The sum over layers is the least time one inference can take;
`share = limit / measured` says how near the result is.

Source: Williams, Waterman and Patterson 2009, Roofline (doi 10.1145/1498765.1498785).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.errors import BenchError

from . import roofline_probe, runner
from .busy import busy_cpus
from .cache import roofline_path
from .costs import LayerCost, ModelCosts

SCHEMA = 2  # 1 took the peak of arithmetic from numpy alone
TIMEOUT_S = 120.0  # it takes 3 s on a server, 20 s on a small device
BUSY = 0.5  # CPUs used by others, beyond those that would be free: then the figures are too low to be kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """Bytes per second at one size of the working set."""

    size_bytes: int
    read_bytes_per_s: float
    copy_bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Measured peaks of one machine for one number of threads; `date` is when, in UTC."""

    cpu_model: str | None
    threads: int
    date: str
    bandwidths: tuple[Bandwidth, ...]
    flops_per_s: float
    disturbed: bool

    def read_bytes_per_s(self, size_bytes: int) -> float:
        """Return the bandwidth at a working set, between measured sizes by the logarithm of size."""
        sizes = np.log([point.size_bytes for point in self.bandwidths])
        rates = [point.read_bytes_per_s for point in self.bandwidths]
        return float(np.interp(np.log(max(size_bytes, 1)), sizes, rates))

    def to_json(self) -> dict[str, Any]:
        """Return plain data, as it is cached and stored with results."""
        return {"schema": SCHEMA, **asdict(self)}


def limit_s(roofline: Roofline, costs: ModelCosts) -> float | None:
    """Return the least time that one inference can take; None where the graph's cost is not known."""
    if costs.not_counted or not costs.layers:
        return None
    resident_bytes = sum(layer.once_bytes + layer.step_bytes for layer in costs.layers)
    once_rate = roofline.read_bytes_per_s(resident_bytes)
    return sum(_layer_limit_s(roofline, layer, once_rate) for layer in costs.layers)


def _layer_limit_s(roofline: Roofline, layer: LayerCost, once_rate: float) -> float:
    step_rate = roofline.read_bytes_per_s(layer.step_bytes)
    memory_s = layer.steps * layer.step_bytes / step_rate + layer.once_bytes / once_rate
    return max(memory_s, 2 * layer.multiply_adds / roofline.flops_per_s)


def find_roofline(threads: int, *, again: bool = False) -> Roofline:
    """Return this machine's roofline: the cached one, or a new measurement that is then cached.

    A measurement that other programs disturbed is used once and not kept.

    Args:
        threads: of the models that are held against it.
        again: measure even if there is a cached one.

    Raises:
        BenchError: the measurement fails.
    """
    path = roofline_path(threads)
    if not again and (cached := _read(path)) is not None:
        return cached
    roofline = measure_roofline(threads)
    if not roofline.disturbed:
        _keep(path, roofline)
    return roofline


def measure_roofline(threads: int, *, busy: Callable[[], float | None] = busy_cpus) -> Roofline:
    """Measure in a fresh process that is pinned to as many CPUs as there are threads.

    Raises:
        BenchError: the measurement fails.
    """
    others = busy() or 0.0
    command = [sys.executable, "-P", str(Path(roofline_probe.__file__).resolve()), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        last = str(error.stderr or error).strip().splitlines()[-1]
        raise BenchError(
            f"roofline: this machine's peaks could not be measured ({last}); expected a process with numpy and free "
            "memory. Free some, or use --roofline skip."
        ) from error
    peaks = json.loads(done.stdout)
    machine = runner.describe_machine()
    return Roofline(
        cpu_model=machine["cpu_model"],
        threads=threads,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        bandwidths=tuple(Bandwidth(**point) for point in peaks["bandwidths"]),
        flops_per_s=peaks["flops_per_s"],
        disturbed=others > len(machine["cpus_allowed"]) - threads + BUSY,
    )


def roofline_from_json(content: dict[str, Any]) -> Roofline:
    """Read what `to_json` wrote."""
    fields = {key: value for key, value in content.items() if key != "schema"}
    return Roofline(**{**fields, "bandwidths": tuple(Bandwidth(**point) for point in fields["bandwidths"])})


def headline(rooflines: Sequence[Roofline]) -> str:
    """Return one line that says what the shares are shares of, and from when that is."""
    roofline = rooflines[0]
    fast, slow = roofline.bandwidths[0], roofline.bandwidths[-1]
    disturbed = ", while other programs ran: too low, and not kept" if roofline.disturbed else ""
    return (
        f"Limits of {roofline.cpu_model or 'this CPU'}, measured {roofline.date[:10]}{disturbed}: "
        f"{fast.read_bytes_per_s / 1e9:.0f} GB/s from {fast.size_bytes >> 10} kB, "
        f"{slow.read_bytes_per_s / 1e9:.0f} GB/s from {slow.size_bytes >> 20} MB, "
        f"{roofline.flops_per_s / 1e9:.0f} GFLOP/s."
    )


def _read(path: Path) -> Roofline | None:
    """Return a cached roofline; None where there is none, or one that another version wrote."""
    try:
        content = json.loads(path.read_text("utf-8"))
        return roofline_from_json(content) if content["schema"] == SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, roofline: Roofline) -> None:
    """Cache a roofline; a cache that cannot be written only costs the next run 3 s."""
    unfinished = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(roofline.to_json(), indent=1) + "\n", "utf-8")
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
