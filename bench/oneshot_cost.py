"""Measure what one-shot pruning costs: seconds of the analysis and of each ratio after it, in this process.

python -m toolchain.bench.oneshot_cost                    a 2x1500 language model, 10,000 calibration steps
python -m toolchain.bench.oneshot_cost --sizes 400,400,300 --steps 5000
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

VOCABULARY = 10_000
CALL = (35, 20)  # steps and sequences of one call


@click.command()
@click.option("--sizes", default="1500,1500,1500", show_default=True, help="Embedding and hidden sizes.")
@click.option("--steps", default=10_000, show_default=True, type=click.IntRange(1400), help="Tokens of calibration.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
def main(sizes: str, steps: int, threads: int) -> None:
    """Prune a language model of random weights to half its units and print how long each part took."""
    from toolchain.memory import keep_freed_memory
    from toolchain.oneshot.pruning import Pruning
    from toolchain.oneshot.selection import Target
    from toolchain.shrinking import analyse_file, shrink

    from .random_lm import write_language_model

    keep_freed_memory()  # as the command does
    with tempfile.TemporaryDirectory() as folder:
        model, samples = Path(folder) / "model.onnx", Path(folder) / "samples.npz"
        embedding, *hidden = (int(size) for size in sizes.split(","))
        write_language_model(model, vocabulary=VOCABULARY, embedding=embedding, hidden=hidden)
        calls = -(-steps // (CALL[0] * CALL[1]))
        np.savez(samples, tokens=np.random.default_rng(0).integers(0, VOCABULARY, (calls, *CALL)))
        pruning = Pruning(target=Target(kind="ratio", value=0.5), calibration=str(samples), threads=threads)
        started = time.perf_counter()
        analysis = analyse_file(model, pruning)
        analysed = time.perf_counter()
        click.echo(f"analysis: {analysed - started:.1f} s, {calls * CALL[0] * CALL[1]:,} steps, {threads} threads")
        for ratio in (0.5, 0.75):
            started = time.perf_counter()
            asked = replace(pruning, target=Target(kind="ratio", value=ratio))
            result = shrink(model, Path(folder) / "out.onnx", pruning=asked, analysis=analysis)
            kept = ", ".join(str(node.hidden_after) for node in result.nodes)
            click.echo(f"ratio {ratio:g}: {time.perf_counter() - started:.1f} s, {kept} units left, {result.status}")


if __name__ == "__main__":
    main()
