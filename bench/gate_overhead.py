"""Measure what gates add to a training step: gated over plain `nn.LSTM`, forward and backward, on this CPU.

Both modules take turns step by step, so that whatever else the machine does falls on both; the ratio is taken
per pair of steps. The gated step includes sampling its gates and the penalty `expected_l0`. Neither
includes an embedding, an output layer or an optimizer, which would make the ratio look better.

    python -m toolchain.bench.gate_overhead --threads 1
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from toolchain.gates import expected_l0, gate

BATCH_SIZE, SEQ_LENGTH = 20, 35  # the published language models' training step
WIDTHS = (200, 650)  # of the small and the medium one, two layers each
WARM_UP_STEPS = 3  # the first calls allocate and choose kernels
RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Step times of one network size, and the median ratio of paired steps with its 95% interval."""

    layers: int
    hidden_size: int
    threads: int
    plain_s: float
    gated_s: float
    ratio: float
    ratio_low: float
    ratio_high: float


def measure_overhead(*, hidden_size: int, layers: int, steps: int, threads: int, seed: int) -> Overhead:
    """Time `steps` pairs of training steps of a plain and a gated LSTM."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    plain = nn.LSTM(hidden_size, hidden_size, layers)
    gated = gate(plain)
    x = torch.randn(SEQ_LENGTH, BATCH_SIZE, hidden_size)
    state = (torch.zeros(layers, BATCH_SIZE, hidden_size), torch.zeros(layers, BATCH_SIZE, hidden_size))
    for _ in range(WARM_UP_STEPS):
        _time_step(plain, x, state)
        _time_step(gated, x, state)
    pairs = np.array([(_time_step(plain, x, state), _time_step(gated, x, state)) for _ in range(steps)])
    ratios = pairs[:, 1] / pairs[:, 0]
    random = np.random.default_rng(seed)
    medians = np.median(random.choice(ratios, (RESAMPLES, steps)), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    plain_s, gated_s = np.median(pairs, axis=0)
    return Overhead(
        layers=layers,
        hidden_size=hidden_size,
        threads=threads,
        plain_s=float(plain_s),
        gated_s=float(gated_s),
        ratio=float(np.median(ratios)),
        ratio_low=float(low),
        ratio_high=float(high),
    )


def _time_step(module: nn.LSTM, x: Tensor, state: tuple[Tensor, Tensor]) -> float:
    """Return the seconds of one forward and backward pass."""
    module.zero_grad()
    start = time.perf_counter()
    output, _ = module(x, state)
    loss = output.sum()
    if hasattr(module, "hidden_gates"):
        loss = loss + 1e-6 * expected_l0(module)
    loss.backward()
    return time.perf_counter() - start


def overhead_table(rows: list[Overhead]) -> Table:
    """Lay the rows out for a terminal."""
    table = Table(title=f"A training step, T={SEQ_LENGTH}, B={BATCH_SIZE}, forward and backward")
    for heading in ("network", "threads", "plain (ms)", "gated (ms)", "gated / plain", "95% interval"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row.layers}x{row.hidden_size}",
            str(row.threads),
            f"{row.plain_s * 1e3:.1f}",
            f"{row.gated_s * 1e3:.1f}",
            f"{row.ratio:.3f}",
            f"{row.ratio_low:.3f} to {row.ratio_high:.3f}",
        )
    return table


@click.command()
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--steps", default=40, show_default=True, type=click.IntRange(min=2), help="Pairs of steps.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON.")
def main(threads: int, steps: int, seed: int, json_path: Path | None) -> None:
    """Compare the training step of a gated LSTM with the plain one's."""
    rows = [measure_overhead(hidden_size=width, layers=2, steps=steps, threads=threads, seed=seed) for width in WIDTHS]
    Console().print(overhead_table(rows))
    if json_path is not None:
        report = {"schema": 1, "torch": torch.__version__, "rows": [asdict(row) for row in rows]}
        json_path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
