"""Measure what shrinking a model above 2 GB costs: seconds and peak memory of a fresh process, verification included.

python -m toolchain.bench.large_model                    5 LSTM layers of 4096 units, 2.7 GB of external data, 70% dead
python -m toolchain.bench.large_model --dead 0.05        so little that the result needs external data as well

Peak memory is that of the whole process (VmHWM: a mapped page counts once it was touched) and that of its anonymous
part alone (what the machine cannot take back), both sampled while it works and given over the model's bytes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

_CHILD = """
import json, re, sys, threading, time
def status_bytes(key):  # VmHWM, not ru_maxrss, which a child inherits from the process that forked it
    return int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
import onnx.reference, onnxsim, toolchain.shrinking
imported_bytes, anonymous, done = status_bytes("VmHWM"), [0], threading.Event()
def watch():
    while not done.wait(0.005):
        anonymous[0] = max(anonymous[0], status_bytes("RssAnon"))
watcher = threading.Thread(target=watch)
watcher.start()
stages, started = [], time.perf_counter()
def progress(stage):
    stages.append((stage, time.perf_counter() - started, status_bytes("VmHWM"), anonymous[0]))
try:
    result = toolchain.shrinking.shrink(sys.argv[1], sys.argv[2], progress=progress)
    progress("end")
finally:
    done.set()
print(json.dumps({"import_bytes": imported_bytes, "peak_bytes": status_bytes("VmHWM"), "anonymous_bytes": anonymous[0],
                  "stages": stages, "status": result.status, "bytes": result.after.bytes,
                  "nodes": [[node.hidden_before, node.hidden_after] for node in result.nodes]}))
"""
_CHUNK_ROWS = 1024  # rows of a matrix that the writer holds at a time

FloatArray = npt.NDArray[np.float32]


def write_large_model(path: Path, *, hidden: int, layers: int, input_size: int, output_size: int, dead: float) -> int:
    """Write LSTM layers and a head with their weights in `NAME.data`, a few rows at a time; return the bytes of both.

    Args:
        path: the ONNX file.
        hidden: units of each layer.
        layers: how many.
        input_size: features of a step.
        output_size: columns of the head.
        dead: fraction of each layer's units that nobody reads.
    """
    random = np.random.default_rng(0)
    unread = [np.sort(random.permutation(hidden)[: round(hidden * dead)]) for _ in range(layers)]
    location = f"{path.name}.data"
    tensors, nodes = [], []
    with (path.parent / location).open("wb") as data:

        def tensor(name: str, rows: Iterator[FloatArray], *shape: int) -> None:
            offset = data.tell()
            for chunk in rows:
                data.write(chunk.tobytes())
            tensors.append(_external(name, shape, location, offset, data.tell() - offset))

        before, none = input_size, np.empty(0, dtype=np.intp)
        for layer, mine in enumerate(unread):
            read = unread[layer - 1] if layer else none
            tensor(f"W{layer}", _rows(random, 4 * hidden, before, read), 1, 4 * hidden, before)
            tensor(f"R{layer}", _rows(random, 4 * hidden, hidden, mine), 1, 4 * hidden, hidden)
            tensor(f"B{layer}", _rows(random, 1, 8 * hidden, none), 1, 8 * hidden)
            weights = [f"W{layer}", f"R{layer}", f"B{layer}"]
            nodes.append(helper.make_node("LSTM", [f"x{layer}", *weights], [f"y{layer}"], f"lstm{layer}",
                                          hidden_size=hidden))  # fmt: skip
            nodes.append(helper.make_node("Squeeze", [f"y{layer}", "one"], [f"x{layer + 1}"], f"squeeze{layer}"))
            before = hidden
        tensor("head", _rows(random, output_size, hidden, unread[-1]), output_size, hidden)
    nodes.append(helper.make_node("Transpose", [f"x{layers}"], ["units_first"], "turn", perm=[2, 0, 1]))
    nodes.append(helper.make_node("Reshape", ["units_first", "columns"], ["flat"], "flat"))
    nodes.append(helper.make_node("MatMul", ["head", "flat"], ["z"], "head"))
    tensors += [helper.make_tensor("one", TensorProto.INT64, [1], [1]),
                helper.make_tensor("columns", TensorProto.INT64, [2], [0, -1])]  # fmt: skip
    inputs = [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["T", "B", input_size])]
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [output_size, None])]
    graph = helper.make_graph(nodes, "large", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path.stat().st_size + (path.parent / location).stat().st_size


def _external(name: str, shape: tuple[int, ...], location: str, offset: int, length: int) -> TensorProto:
    tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=text)
    return tensor


def _rows(random: np.random.Generator, rows: int, columns: int, unread: npt.NDArray[np.intp]) -> Iterator[FloatArray]:
    """Yield a matrix of U(-s, s), s = 1/sqrt(columns), with zero columns where nobody reads; chunk by chunk."""
    for first in range(0, rows, _CHUNK_ROWS):
        chunk = random.random((min(_CHUNK_ROWS, rows - first), columns), dtype=np.float32)
        chunk = (2 * chunk - 1) * np.float32(columns**-0.5)
        chunk[:, unread] = 0
        yield chunk


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _memory(peak: int, anonymous: int, whole: int) -> str:
    one, other = (f"{part / 1e6:.0f} MB = {part / whole:.2f} x the model" for part in (peak, anonymous))
    return f"peak {one}, anonymous {other}"


@click.command()
@click.option("--hidden", default=4096, show_default=True, help="Units of each layer.")
@click.option("--layers", default=5, show_default=True)
@click.option("--dead", default=0.7, show_default=True, help="Fraction of planted dead units.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Where to work [a temporary folder].")
def main(hidden: int, layers: int, dead: float, folder: Path | None) -> None:
    """Write a large model, shrink it in a fresh process, and print time and memory."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        model, out = Path(place) / "model.onnx", Path(place) / "out.onnx"
        size = write_large_model(model, hidden=hidden, layers=layers, input_size=2048, output_size=1000, dead=dead)
        click.echo(f"{layers} layers of {hidden} units, {size / 1e6:.0f} MB, {dead:.0%} dead")
        originals = [model, model.with_name("model.onnx.data")]
        before = [_digest(path) for path in originals]
        command = [sys.executable, "-c", _CHILD, str(model), str(out)]
        run = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        for stage, seconds, peak, anonymous in run["stages"]:
            click.echo(f"  {seconds:7.2f} s  {_memory(peak, anonymous, size)} before {stage}")
        before_units, after_units = run["nodes"][0]
        memory_text = _memory(run["peak_bytes"], run["anonymous_bytes"], size)
        seconds = run["stages"][-1][1]
        click.echo(f"{run['status']}: units {before_units} -> {after_units} in {seconds:.1f} s; {memory_text}")
        untouched = [_digest(path) for path in originals] == before
        files = ", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in sorted(out.parent.iterdir())
                          if path not in originals)  # fmt: skip
        click.echo(f"originals {'untouched' if untouched else 'CHANGED'}; written {files}")
        if not untouched:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
