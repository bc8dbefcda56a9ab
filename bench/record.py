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

# Columns of a row, and where `result.json` has them: of a language model, of a reader.
PERPLEXITIES = {"test_tokens": "test_tokens", "test_perplexity": "perplexity",
                "onnx_test_perplexity": "onnx_perplexity"}  # fmt: skip
SCORES = {"test_questions": "test_questions", "test_exact_match": "exact_match", "test_f1": "f1",
          "onnx_test_exact_match": "onnx_exact_match", "onnx_test_f1": "onnx_f1"}  # fmt: skip


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
        **{column: round(result[key], 4) for column, key in (SCORES if "f1" in result else PERPLEXITIES).items()},
        "multiply_adds_share": round(result["share"], 4),
        "training_threads": recipe["run"].get("threads", ""),
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
    for folder, row in zip(folders, rows, strict=True):
        if row.keys() != rows[0].keys():
            raise BenchError(
                f"{folder}: has other test figures than {folders[0]}; expected runs of one task. Record them apart."
            )
    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
    main()
