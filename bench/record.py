"""Put finished training runs on record: one CSV row per run folder, read from what the run itself wrote.

python -m toolchain.bench.record runs/dense runs/gated > bench/results/pydocs.csv
"""

from __future__ import annotations

import csv
import json
import sys
import tomllib
from pathlib import Path

import click

from toolchain.errors import BenchError

from .runner import describe_machine

FIELDS = ("run", "method", "corpus", "hidden_sizes", "epochs", "keep", "dropout", "seed", "precision", "test_tokens",
          "test_perplexity", "onnx_test_perplexity", "multiply_adds_share", "training_s", "speed_last_over_first",
          "versions", "cpu")  # fmt: skip


def record_row(folder: Path) -> dict[str, object]:
    """Return one finished run as a row.

    Raises:
        BenchError: the folder holds no finished run.
    """
    try:
        recipe_text = (folder / "recipe.toml").read_text()
        result = json.loads((folder / "result.json").read_text())
        metrics = list(csv.DictReader((folder / "metrics.csv").open()))
    except OSError as error:
        raise BenchError(
            f"{folder}: holds no finished run ({error.strerror}: {Path(str(error.filename)).name}); expected what "
            "`toolchain train` leaves. Finish it with `toolchain train --resume`."
        ) from error
    recipe = tomllib.loads(recipe_text)
    keeps = recipe["run"]["method"] in ("neuron-selection", "magnitude", "l1")
    origin, versions = (line.removeprefix("# ") for line in recipe_text.splitlines()[:2])
    return {
        "run": folder.name,
        "method": recipe["run"]["method"],
        "corpus": origin,
        "hidden_sizes": "x".join(map(str, recipe["model"]["hidden_sizes"])),
        "epochs": recipe["optim"]["epochs"],
        "keep": recipe["gates"].get("keep", "") if keeps else "",
        "dropout": recipe["model"]["dropout"],
        "seed": recipe["run"]["seed"],
        "precision": recipe["run"]["precision"],
        "test_tokens": result["test_tokens"],
        "test_perplexity": round(result["perplexity"], 4),
        "onnx_test_perplexity": round(result["onnx_perplexity"], 4),
        "multiply_adds_share": round(result["share"], 4),
        "training_s": round(sum(float(row["seconds"]) for row in metrics), 1),
        "speed_last_over_first": round(result["speed_ratio"], 2),
        "versions": versions,
        "cpu": describe_machine()["cpu_model"],
    }


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
def main(folders: tuple[Path, ...]) -> None:
    """Print the finished runs in FOLDERS as CSV."""
    rows = [record_row(folder) for folder in folders]
    writer = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
    main()
