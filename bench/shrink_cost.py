"""Measure what shrinking costs: wall time and peak memory of a fresh process, imports counted apart.

python -m toolchain.bench.shrink_cost                    the 264 MB dense 2x1500 language model, 80% dead
python -m toolchain.bench.shrink_cost MODEL.onnx
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

_CHILD = """
import json, re, sys, time
def peak_bytes():  # not ru_maxrss, which a child inherits from the process that forked it
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
started = time.perf_counter()
import onnx.reference, onnxsim, toolchain.shrinking
from toolchain.graph import normalise
imported_s, imported_bytes = time.perf_counter() - started, peak_bytes()
started = time.perf_counter()
result = toolchain.shrinking.shrink(sys.argv[1], sys.argv[2])
print(json.dumps({"import_s": imported_s, "import_bytes": imported_bytes, "shrink_s": time.perf_counter() - started,
                  "peak_bytes": peak_bytes(), "status": result.status}))
"""


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--sizes", default="1500,1500,1500", show_default=True, help="Embedding and hidden sizes, without MODEL.")
@click.option("--dead", default=0.8, show_default=True, help="Fraction of planted dead neurons, without MODEL.")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
def main(model: Path | None, sizes: str, dead: float, runs: int) -> None:
    """Shrink MODEL in fresh processes and print time and memory of each run."""
    from .random_lm import write_language_model

    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            model = Path(folder) / "model.onnx"
            embedding, *hidden = (int(size) for size in sizes.split(","))
            write_language_model(model, embedding=embedding, hidden=hidden, dead=dead)
        file_bytes = model.stat().st_size
        click.echo(f"{model.name}: {file_bytes / 1e6:.0f} MB")
        for _ in range(runs):
            command = [sys.executable, "-c", _CHILD, str(model), str(Path(folder) / "out.onnx")]
            run = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            above = run["peak_bytes"] - run["import_bytes"]
            click.echo(
                f"{run['status']}: {run['shrink_s']:.2f} s after {run['import_s']:.2f} s of imports; peak "
                f"{run['peak_bytes'] / 1e6:.0f} MB, {above / 1e6:.0f} MB above the imports "
                f"= {above / file_bytes:.2f} x the file"
            )


if __name__ == "__main__":
    main()
