"""Estimates, by numbers computed by hand: a profile with round figures and graphs whose products can be counted."""

from __future__ import annotations

import json

import bench_models
import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from toolchain.bench.costs import ModelCosts, read_costs
from toolchain.bench.devices import calibration
from toolchain.bench.devices.estimation import core_time, estimate, memory_time
from toolchain.bench.devices.profiles import profile_of
from toolchain.bench.devices.workload import Product, Workload, workload_of

from toolchain.cli import cli
from toolchain.errors import BenchError
from toolchain.interface import plan_feeds, read_interface


def figure(low, high=None):
    return {"low": low, "high": high or low, "kind": "derived", "source": "made up"}


def make_profile(**changes):
    """1 to 2 GHz; 64 cycles for 256 multiply-adds in four rows (4 each), 32 for 64 in one row (2 each)."""
    table = {
        "title": "Round", "core": "Core", "clock_ghz": figure(1, 2),
        "four_row_cycles": figure(64), "one_row_cycles": figure(32),
        "unit_step_cycles": figure(10, 20), "step_cycles": figure(100), "call_cycles": figure(1000, 3000),
        "levels": [
            {"name": "L1D", "capacity_bytes": figure(1000)},
            {"name": "L2", "capacity_bytes": figure(100_000), "bandwidth_gb_s": figure(10, 20)},
            {"name": "DRAM", "bandwidth_gb_s": figure(1, 2)},
        ],
    }  # fmt: skip
    return profile_of({**table, **changes}, name="round", where="round")


def workload(*products, unit_steps=0, node_steps=0):
    return Workload(products=products, unit_steps=unit_steps, node_steps=node_steps, left_out=())


def costs_of(path, *, steps, batch=1):
    model = read_interface(path)
    return read_costs(path, {feed.name: feed.shape for feed in plan_feeds(model, steps=steps, batch=batch)})


def test_rows_beyond_the_last_four_take_the_loop_over_one_row():
    """7 rows x 640 weights: 4*640/256*64 = 640 cycles and 3*640/64*32 = 960 cycles, the call 1000 or 3000."""
    time = core_time(workload(Product(name="m", rows=7, weights=640)), make_profile())
    assert time.low_s == pytest.approx((640 + 960 + 1000) / 2e9)
    assert time.high_s == pytest.approx((640 + 960 + 3000) / 1e9)


def test_steps_and_units_take_their_cycles():
    time = core_time(workload(unit_steps=50, node_steps=5), make_profile())
    assert time.low_s == pytest.approx((50 * 10 + 5 * 100 + 1000) / 2e9)
    assert time.high_s == pytest.approx((50 * 20 + 5 * 100 + 3000) / 1e9)


def test_further_passes_come_from_the_level_that_holds_the_matrix():
    """40 kB alone fit into L2; with the other 80 kB they do not, so each matrix's first pass is from memory."""
    R = Product(name="R", rows=1, weights=10_000, repeats=3)
    W = Product(name="W", rows=3, weights=20_000)
    time = memory_time(workload(R, W), make_profile())
    assert time.low_s == pytest.approx((40e3 + 80e3) / 2e9 + 2 * 40e3 / 20e9)
    assert time.high_s == pytest.approx((40e3 + 80e3) / 1e9 + 2 * 40e3 / 10e9)


def test_what_the_first_cache_holds_takes_no_time_beyond_the_loops_own():
    time = memory_time(workload(Product(name="R", rows=1, weights=250, repeats=9)), make_profile())
    assert (time.low_s, time.high_s) == (0, 0)


def test_a_cache_of_unknown_bandwidth_is_between_no_delay_and_the_memory_behind_it():
    levels = [
        {"name": "L1D", "capacity_bytes": figure(1000)},
        {"name": "L2", "capacity_bytes": figure(100_000)},
        {"name": "DRAM", "bandwidth_gb_s": figure(1, 2)},
    ]
    time = memory_time(workload(Product(name="R", rows=1, weights=10_000)), make_profile(levels=levels))
    assert time.low_s == 0
    assert time.high_s == pytest.approx(40e3 / 2e9)


def test_the_interval_goes_from_the_larger_part_to_the_sum():
    profile = make_profile()
    bound_by_memory = workload(Product(name="R", rows=1, weights=1_000_000))
    found = estimate(bound_by_memory, profile)
    assert found.memory.low_s > found.core.low_s
    assert found.low_s == found.memory.low_s
    assert found.high_s == found.core.high_s + found.memory.high_s
    bound_by_core = workload(Product(name="R", rows=1, weights=100))
    assert estimate(bound_by_core, profile).low_s == core_time(bound_by_core, profile).low_s


def workload_at(path, **lengths):
    return workload_of(costs_of(path, **lengths), name="m.onnx")


def test_the_workload_of_an_lstm_is_its_two_products(tmp_path):
    found = workload_at(bench_models.lstm(tmp_path / "m.onnx", hidden=8, inputs=4), steps=5, batch=3)
    assert found.products == (
        Product(name="recurrent W", rows=15, weights=4 * 8 * 4),
        Product(name="recurrent R", rows=3, weights=4 * 8 * 8, repeats=5),
    )
    assert (found.unit_steps, found.node_steps) == (8 * 5 * 3, 5)


def test_the_bytes_of_two_layers_of_1500_are_what_a_cache_simulator_saw(tmp_path):
    """795 MB were simulated for ten steps (QEMU's cache plugin); 792 MB follow from the formula."""
    path = calibration.write_lstm(tmp_path / "m.onnx", hidden=(1500, 1500), inputs=1500)
    costs = costs_of(path, steps=10)
    assert costs.bytes_moved == pytest.approx(792e6, rel=1e-9)
    products = workload_of(costs, name="m.onnx").products
    assert sum(one.weight_bytes * one.repeats for one in products) == costs.bytes_moved


def test_a_language_models_output_layer_counts_and_its_table_is_only_read(tmp_path):
    from toolchain.bench.random_lm import write_language_model

    write_language_model(tmp_path / "lm.onnx", vocabulary=100, embedding=6, hidden=[8, 16])
    products = workload_at(tmp_path / "lm.onnx", steps=5, batch=2).products
    assert [(one.rows, one.weights, one.repeats) for one in products] == [
        (0, 5 * 2 * 6, 1), (10, 4 * 8 * 6, 1), (2, 4 * 8 * 8, 5), (10, 4 * 16 * 8, 1), (2, 4 * 16 * 16, 5),
        (10, 16 * 100, 1),
    ]  # fmt: skip


def test_two_directions_each_read_their_own_matrix(tmp_path):
    weights = [bench_models.constant("W", (2, 24, 4)), bench_models.constant("R", (2, 24, 8))]
    node = helper.make_node("GRU", ["X", "W", "R"], ["Y"], name="both", hidden_size=8, direction="bidirectional")
    path = bench_models.save(tmp_path / "m.onnx", [node], weights, [("X", TensorProto.FLOAT, ("t", "b", 4))], ["Y"])
    found = workload_at(path, steps=3)
    recurrent = Product(name="both R", rows=1, weights=24 * 8, repeats=3)
    assert found.products == (Product(name="both W", rows=3, weights=2 * 24 * 4), recurrent, recurrent)
    assert (found.unit_steps, found.node_steps) == (2 * 8 * 3, 2 * 3)


def test_loops_that_are_not_described_are_named(tmp_path):
    nodes = [helper.make_node("Conv", ["X", "K"], ["Y"], name="front")]
    path = bench_models.save(
        tmp_path / "m.onnx", nodes, [bench_models.constant("K", (2, 4, 3))],
        [("X", TensorProto.FLOAT, (1, 4, 9))], ["Y"],
    )  # fmt: skip
    found = workload_at(path, steps=1)
    assert found.left_out == ("Conv front",)
    assert found.products == (Product(name="front", rows=0, weights=2 * 4 * 3),)


def test_int8_is_refused(tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    bench_models.lstm(tmp_path / "m.onnx", hidden=8)
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "int8.onnx", op_types_to_quantize=["LSTM"])
    with pytest.raises(BenchError, match=r"m.onnx: DynamicQuantizeLSTM '.*' has int8 weights; expected float32, bec"):
        workload_at(tmp_path / "int8.onnx", steps=1)


def test_a_layer_of_unknown_cost_is_refused_by_name():
    """An estimate without it would be too low by nobody knows how much."""
    costs = ModelCosts(layers=(), not_counted=("LSTM inner",))
    with pytest.raises(BenchError) as error:
        workload_of(costs, name="m.onnx")
    assert str(error.value) == (
        "m.onnx: what LSTM inner costs does not follow from the graph; expected known shapes, outside of If, Loop and "
        "Scan, to estimate with. Count its instructions with --device qemu:PROFILE, or measure it."
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    bench_models.lstm(tmp_path / "model.onnx", hidden=256)
    bench_models.lstm(tmp_path / "model.shrunk.onnx", hidden=8)
    return tmp_path


def test_estimated_rows_hold_an_interval_and_no_measured_time(folder):
    files = ["--json", "r.json", "--csv", "r.csv"]
    result = CliRunner().invoke(cli, ["bench", "--device", "rpi4", "--steps", "35", *files])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Estimated: Raspberry Pi 4 Model B, one Cortex-A72 core\n")
    assert "Never checked on this machine" in result.output
    baseline, shrunk = json.loads((folder / "r.json").read_text())["rows"]
    for row in (baseline, shrunk):
        assert (row["method"], row["device"]) == ("estimated", "rpi4")
        assert 0 < row["low_s"] < row["high_s"]
        assert not {"p50_s", "speedup", "instructions", "samples_s"} & set(row)
    assert shrunk["ratio_low"] == pytest.approx(baseline["low_s"] / shrunk["high_s"])
    assert shrunk["ratio_high"] == pytest.approx(baseline["high_s"] / shrunk["low_s"])
    assert len((folder / "r.csv").read_text().splitlines()) == 3


def bench(*arguments):
    return CliRunner().invoke(cli, ["bench", "--device", "rpi4", *arguments])


def test_an_estimate_is_shown_with_its_method_in_every_output(folder):
    files = ["--json", "r.json", "--markdown", "r.md", "--html", "r.html"]
    assert bench("--steps", "35", *files).exit_code == 0
    row = json.loads((folder / "r.json").read_text())["rows"][1]
    ratio = f"{row['ratio_low']:.1f} to {row['ratio_high']:.1f}"
    markdown, page = (folder / "r.md").read_text(), (folder / "r.html").read_text()
    assert "**35 steps, 1 thread, rpi4 (estimated)**" in markdown
    assert [line.split(" | ")[0] for line in markdown.splitlines() if line.endswith(f"{ratio} |")] == [
        "| model.shrunk.onnx"
    ]
    assert f"<td>{ratio}</td>" in page
    for text in (markdown, page):
        assert "Estimated: Raspberry Pi 4 Model B, one Cortex-A72 core" in text
        assert "Never checked on this machine" in text
        assert "p50" not in text
    assert 'id="bench0-layers-t"' in page
    result = CliRunner().invoke(cli, ["report", "r.json", "-o", "again.html"])
    assert result.exit_code == 0, result.output
    assert (folder / "again.html").read_text() == page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail-below", "2x"], "--fail-below: device 'rpi4' is estimated, which gives no speedup; expected a device "
         "that is measured, cpu or ssh://user@host. Leave --fail-below out, or measure."),
        (["--precision", "2%"], "--precision: device 'rpi4' is estimated, which gives no speedup; expected a device "
         "that is measured, cpu or ssh://user@host. Leave --precision out, or measure."),
        (["--runtimes", "onnxruntime,torch"], "device 'rpi4': is estimated, and torch is measured on this machine "
         "only; expected ONNX Runtime. Leave out --runtimes."),
    ],
)  # fmt: skip
def test_what_only_a_measurement_answers_is_refused(folder, arguments, message):
    assert str(bench(*arguments).exception) == message


def test_an_estimate_is_not_compared_with_a_later_one(folder):
    assert bench("--json", "r.json").exit_code == 0
    result = CliRunner().invoke(cli, ["bench", "compare", "r.json", "r.json"])
    assert str(result.exception) == (
        "r.json: its rows are estimated and hold no samples; expected measured ones, because a ratio of anything else "
        "is no speedup. Measure with --device cpu or ssh://user@host."
    )


def test_real_inputs_decide_the_shape_of_an_estimate(folder):
    np.savez("real.npz", X=np.ones((7, 2, 4), np.float32))
    assert bench("--inputs", "real.npz", "--json", "r.json").exit_code == 0
    rows = json.loads((folder / "r.json").read_text())["rows"]
    assert {(row["steps"], row["batch"]) for row in rows} == {(7, 2)}
    assert rows[1]["bytes_moved"] == 4 * 8 * (4 + 7 * 8) * 4


def test_several_threads_are_not_estimated(folder):
    result = CliRunner().invoke(cli, ["bench", "--device", "rpi4", "--threads", "2"])
    assert str(result.exception).startswith("device 'rpi4': the figures are of one core; expected --threads 1.")


def test_the_fit_finds_what_steps_were_made_of():
    """Seconds that a step of 3 us, 40 ns a unit and 0.2 ns a multiply-add give."""
    per_step = {units: 3e-6 + units * 40e-9 + 4 * units * units * 0.2e-9 for units in calibration.UNITS}
    assert calibration.fit_steps(per_step) == pytest.approx((3e-6, 40e-9, 0.2e-9))


def test_the_errors_distribution_is_of_the_intervals_middle():
    """Middles 2, 4 and 10 (geometric) over measured 2, 5 and 5: off by 0, 20% and 100%; two inside."""
    sizes = [
        {"measured_s": 2.0, "low_s": 1.0, "high_s": 4.0},
        {"measured_s": 5.0, "low_s": 2.0, "high_s": 8.0},
        {"measured_s": 5.0, "low_s": 10.0, "high_s": 10.0},
    ]
    found = calibration.summarise(sizes, machine="m")
    assert (found["models"], found["inside"]) == (3, 2)
    assert (found["median_error"], found["worst_error"]) == pytest.approx((0.2, 1.0))


def test_at_least_twenty_sizes_are_validated():
    assert len(set(calibration.VALIDATED)) >= 20


def test_calibration_writes_a_profile_that_can_be_used_and_an_error_that_is_shown(folder, monkeypatch):
    monkeypatch.setattr(calibration, "VALIDATED", (((8,), 1), ((16, 16), 5)))
    monkeypatch.setattr(calibration, "MEMORY_BYTES", 8 << 20)
    result = CliRunner().invoke(cli, ["bench", "calibrate", "--seconds", "0.1"])
    assert result.exit_code == 0, result.output
    assert "of 2 measured times lie inside their interval" in result.output
    shown = CliRunner().invoke(cli, ["bench", "--device", "host", "--steps", "5"])
    assert shown.exit_code == 0, shown.output
    assert "of 2 measured times lie inside their interval" in shown.output
    document = json.loads(calibration.validation_file().read_text())
    assert [size["model"] for size in document["sizes"]] == ["8", "16x16"]
    assert all(size["measured_s"] > 0 for size in document["sizes"])
