"""Put the speaker classifier on record: LSTM and GRU, dense and pruned, accuracy and latency, as CSV.

python -m toolchain.bench.vowels            trains what is not there yet (minutes), then times all in one run per cell
python -m toolchain.bench.vowels --untimed  leaves the columns of times empty

What is trained stays in `--runs`, so that times can be taken again. The files of seed 0 are kept for
`make verify-results`. `direct` is the control: a dense network with no more multiply-adds than the pruned one, trained
from scratch.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from toolchain.models.vowels import CHANNELS, SPEAKERS, Utterances, load_vowels, pad

from toolchain.errors import ToolchainError
from toolchain.runtime import open_session

from .plan import Effort
from .result_file import ORIGIN, RESULTS, Row, known_rows, origin, record_rows, sha256_of
from .timing import Shape, time_models

CELLS, METHODS = ("lstm", "gru"), ("dense", "neuron-selection", "direct")
HIDDEN_SIZE = 128
# Chosen on a held-out third of the training utterances: 4 nats kept more units and were no better, nor were 60 epochs.
EPOCHS = 120
PRICE = 8.0  # nats for all recurrent weights
SHAPES = (Shape(steps=16, batch=1), Shape(steps=1, batch=1))  # an utterance of mean length (15.6 frames), and a frame
KEPT_SEED = 0  # whose models stay in bench/results/models
KEY = ("cell", "method", "seed")
FIELDS = (*KEY, "epochs", "price", "test_accuracy", "streaming_accuracy", "hidden_sizes", "parameters", "multiply_adds",
          "bytes", *(column for shape in SHAPES for column in shape.columns), "training_s", "baseline", *ORIGIN,
          "model", "sha256")  # fmt: skip
CARRIED = "toolchain.carried_state"


@click.command()
@click.option("--cells", default=",".join(CELLS), show_default=True, callback=lambda _, __, text: text.split(","))
@click.option("--seeds", default="0,1,2", show_default=True, callback=lambda _, __, text: [*map(int, text.split(","))])
@click.option("--epochs", default=EPOCHS, show_default=True, type=click.IntRange(min=2))
@click.option("--price", default=PRICE, show_default=True, type=click.FloatRange(min=0, min_open=True))
@click.option("--hidden", default=HIDDEN_SIZE, show_default=True, type=click.IntRange(min=1))
@click.option("--runs", default=Path("runs/vowels"), show_default=True, type=click.Path(path_type=Path))
@click.option("--results", default=RESULTS, show_default=True, type=click.Path(path_type=Path, exists=True))
@click.option("--untimed", is_flag=True, help="Leave the columns of times empty.")
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(min=0.1), help="Of samples, a model "
              "and shape.")  # fmt: skip
@click.option("--processes", default=8, show_default=True, type=click.IntRange(min=1))
def main(
    cells: list[str], seeds: list[int], epochs: int, price: float, hidden: int, runs: Path, results: Path,
    untimed: bool, seconds: float, processes: int,
) -> None:  # fmt: skip
    """Train, prune, score and time the speaker classifier."""
    known_rows(results / "vowels.csv", FIELDS)
    here = origin("toolchain.bench.vowels", sys.argv[1:])
    for cell in cells:
        rows = [row for seed in seeds for row in _trained(cell, seed, epochs, price, hidden, runs)]
        baseline = f"{cell}-dense-{seeds[0]}"
        if not untimed:
            files = {_name(row): runs / _name(row) / "model.onnx" for row in rows}
            files = {baseline: files.pop(baseline), **files}
            times = time_models(files, SHAPES, Effort(processes=processes, seconds=seconds))
            rows = [row | times[_name(row)] | {"baseline": baseline} for row in rows]
        record_rows(results / "vowels.csv", FIELDS, KEY, [row | here | _keep(row, runs, results) for row in rows])
        for row in rows:
            click.echo(", ".join(f"{name} {row[name]}" for name in FIELDS if name in row and name not in ORIGIN))


def _trained(cell: str, seed: int, epochs: int, price: float, hidden: int, runs: Path) -> Iterator[Row]:
    """Yield a row for each method; what is in its folder already, with the same settings, is not trained again."""
    pruned: Row = {}
    for method in METHODS:
        size = hidden if method != "direct" else _size_for(cell, pruned["multiply_adds"])
        asked: Row = {"cell": cell, "method": method, "seed": seed, "epochs": epochs, "hidden": size,
                 "price": price if method == "neuron-selection" else None}  # fmt: skip
        folder = runs / _name(asked)
        record = folder / "trained.json"
        found = json.loads(record.read_text()) if record.is_file() else {}
        if found.get("asked") != asked:
            training_s = train_one(folder, cell=cell, method=method, seed=seed, epochs=epochs, hidden=size,
                                   price=asked["price"])  # fmt: skip
            found = {"asked": asked, "training_s": training_s}
            record.write_text(json.dumps(found))
        row: Row = {**{name: asked[name] for name in (*KEY, "epochs", "price")}, **shrink_one(folder),
                    "training_s": found["training_s"]}  # fmt: skip
        pruned = row if method == "neuron-selection" else pruned
        yield row


def train_one(
    folder: Path, *, cell: str, method: str, seed: int, epochs: int, hidden: int, price: float | None
) -> float:
    """Train one network, write it to `folder/wide.onnx`, and return how many seconds it took."""
    import torch
    from toolchain.models.speaker import CELLS as KINDS
    from toolchain.models.speaker import SpeakerNet, learn

    from toolchain.exporting import export
    from toolchain.gates import fold, gate

    train, _ = load_vowels()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = SpeakerNet(KINDS[cell], hidden, train)
    model = gate(model) if method == "neuron-selection" else model
    started = time.perf_counter()
    learn(model, train, epochs=epochs, price=price or 0.0)
    training_s = time.perf_counter() - started
    model = fold(model.eval()) if method == "neuron-selection" else model
    folder.mkdir(parents=True, exist_ok=True)
    export(model, folder / "wide.onnx", example=torch.from_numpy(pad(train.frames[:4])[0]))
    return training_s


def shrink_one(folder: Path) -> Row:
    """Write `folder/model.onnx` out of `wide.onnx`, its state narrowed too; return what it costs and does."""
    from toolchain.shrinking import shrink

    _, test = load_vowels()
    file, wide = folder / "model.onnx", folder / "wide.onnx"
    result = shrink(wide, file, compact_state=True)
    if result.status == "nothing_to_remove":
        shutil.copyfile(wide, file)
    return {
        "test_accuracy": accuracy(file, test),
        "streaming_accuracy": accuracy(file, test, streaming=True),
        "hidden_sizes": "+".join(str(node.hidden_after) for node in result.nodes),
        "parameters": result.after.parameters,
        "multiply_adds": result.after.multiply_adds,
        "bytes": file.stat().st_size,
    }


def accuracy(file: Path, utterances: Utterances, *, streaming: bool = False) -> float:
    """Return the share of utterances whose speaker has the highest mean score, in ONNX Runtime.

    Args:
        file: a model as `toolchain.models.speaker` exports it.
        utterances: of `toolchain.models.vowels`.
        streaming: one frame a call, the state fed back, instead of the whole utterance in one.
    """
    session = open_session(file, threads=1)
    carried = json.loads(session.get_modelmeta().custom_metadata_map[CARRIED])
    start = {value.name: np.zeros([size if isinstance(size, int) else 1 for size in value.shape], np.float32)
             for value in session.get_inputs() if value.name != "input"}  # fmt: skip
    outputs = ["output", *(state_out for _, state_out in carried)]
    right = 0
    for frames, speaker in zip(utterances.frames, utterances.speakers, strict=True):
        state, total = dict(start), np.zeros(SPEAKERS, np.float64)
        for part in frames[:, None] if streaming else [frames]:
            scores, *after = session.run(outputs, {"input": part[:, None], **state})  # [T, 1, 9]
            state = {state_in: value for (state_in, _), value in zip(carried, after, strict=True)}
            total += scores.sum(axis=(0, 1))
        right += int(total.argmax() == speaker)
    return right / len(utterances.frames)


def _size_for(cell: str, multiply_adds: int) -> int:
    """Return the widest two layers that need no more multiply-adds per frame."""
    gates = {"lstm": 4, "gru": 3}[cell]
    return max(size for size in range(1, HIDDEN_SIZE + 1)
               if size == 1 or gates * size * (CHANNELS + 3 * size) + SPEAKERS * size <= multiply_adds)  # fmt: skip


def _name(row: Row) -> str:
    return "-".join(str(row[name]) for name in KEY)


def _keep(row: Row, runs: Path, results: Path) -> Row:
    """Copy the model of one seed to where it is kept; return where, and its SHA-256."""
    if row["seed"] != KEPT_SEED:
        return {}
    model = Path("models") / "vowels" / f"{_name(row)}.onnx"
    (results / model).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(runs / _name(row) / "model.onnx", results / model)
    return {"model": model, "sha256": sha256_of(results / model)}


if __name__ == "__main__":
    try:
        main()
    except ToolchainError as error:
        sys.exit(str(error))
