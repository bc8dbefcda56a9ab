"""`toolchain shrink --target-latency`: what is timed, and which layers pay for it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_cli_prune import shrink
from test_oneshot import HIDDEN, INPUT, stacked


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.savez("samples.npz", X=np.random.default_rng(0).standard_normal((30, 20, 2, INPUT)).astype(np.float32))
    return stacked(tmp_path / "model.onnx", "LSTM")


class Clock:
    """Stands for a device: tells a time by what each node multiplies, and notes which operators it was shown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ns: dict[str, float]) -> None:
        self.ns, self.seen = ns, []
        monkeypatch.setattr("toolchain.bench.one_call.call_seconds", self.seconds)

    def seconds(self, path: Path, device: str, *, steps: int) -> float:
        graph = onnx.load(path).graph
        self.seen.append({node.op_type for node in graph.node})
        sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
        return (
            1e-9
            * steps
            * sum(
                self.ns.get(node.name.removesuffix("_quant"), 0) * sum(sizes.get(name, 0) for name in node.input[1:3])
                for node in graph.node
            )
        )


def test_a_latency_that_one_unit_does_not_reach_is_refused_with_the_best(model: Path) -> None:
    done = shrink("model.onnx", "--target-latency", "0.001us", "--calibration", "samples.npz")
    assert done.exit_code == 1
    assert (
        "target latency 1e-06 ms: cannot be met; with one unit left in each layer a call of 35 steps takes"
        in done.output
    )
    assert not Path("model.shrunk.onnx").exists()


def test_a_latency_that_the_whole_model_reaches_removes_nothing(model: Path) -> None:
    done = shrink("model.onnx", "--target-latency", "10s", "--calibration", "samples.npz")
    assert done.exit_code == 3, done.output
    assert not Path("model.shrunk.onnx").exists()


def test_a_latency_target_can_be_about_another_processor(model: Path) -> None:
    from toolchain.bench.one_call import call_seconds

    whole = call_seconds(model, "rpi4", steps=35)
    done = shrink("model.onnx", "--target-latency", f"{0.9 * whole}s", "--device", "rpi4", "--calibration",
                  "samples.npz", "--json", "r.json")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(Path("r.json").read_text())["pruned"]["seconds"]
    assert found <= 0.9 * whole
    assert call_seconds(Path("model.shrunk.onnx"), "rpi4", steps=35) <= 0.95 * whole


def test_a_latency_target_with_int8_is_about_the_int8_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {"layer0": 1, "layer1": 1})
    whole = clock.seconds(model, "", steps=35)
    clock.seen.clear()
    done = shrink("model.onnx", "--target-latency", f"{0.5 * whole}s", "--device", "clock", "--int8", "--calibration",
                  "samples.npz", "--json", "r.json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert clock.seen
    assert all("DynamicQuantizeLSTM" in operators for operators in clock.seen)
    assert clock.seconds(Path("model.shrunk.int8.onnx"), "", steps=35) <= 0.5 * whole
    assert json.loads(Path("r.json").read_text())["pruned"]["timed_as_int8"]
    assert "ms with 8-bit weights, one thread, before folding." in done.output


@pytest.mark.parametrize("slow", [0, 1])
def test_a_latency_target_takes_neurons_where_they_cost_time(
    model: Path, monkeypatch: pytest.MonkeyPatch, slow: int
) -> None:
    clock = Clock(monkeypatch, {f"layer{slow}": 1, f"layer{1 - slow}": 0.01})
    whole = clock.seconds(model, "", steps=35)
    arguments = ["--calibration", "samples.npz", "--criterion", "magnitude", "--no-compensate", "--json", "r.json"]
    done = shrink("model.onnx", "--target-latency", f"{0.6 * whole}s", "--device", "clock", *arguments)
    assert done.exit_code == 0, done.output
    kept = [node["hidden_size"]["after"] for node in json.loads(Path("r.json").read_text())["nodes"]]
    assert kept[slow] < kept[1 - slow] == HIDDEN


def test_a_device_that_tells_no_time_is_refused(model: Path) -> None:
    done = shrink("model.onnx", "--target-latency", "1ms", "--device", "nowhere", "--calibration", "samples.npz")
    assert done.exit_code == 1
    assert "device 'nowhere'" in done.output


def test_a_model_without_anything_to_quantize_is_not_said_to_be_timed_as_int8(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacked(model, "GRU", reader="Conv")  # ONNX Runtime has no quantized GRU, and convolutions stay
    clock = Clock(monkeypatch, {"layer0": 1, "layer1": 1})
    whole = clock.seconds(model, "", steps=35)
    done = shrink("model.onnx", "--target-latency", f"{0.5 * whole}s", "--device", "clock", "--int8", "--calibration",
                  "samples.npz", "--json", "r.json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert not json.loads(Path("r.json").read_text())["pruned"]["timed_as_int8"]
    assert "8-bit weights" not in done.output


def test_a_model_that_cannot_be_quantized_is_named_not_its_copy_that_was_to_be_timed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no such type")

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", fail)
    done = shrink("model.onnx", "--target-latency", "1ms", "--int8", "--calibration", "samples.npz")
    assert done.exit_code == 1
    assert "model.onnx: ONNX Runtime's quantizer does not take it (RuntimeError: no such type)" in done.output
    assert "toolchain-" not in done.output
    assert not Path("model.shrunk.onnx").exists()
