from __future__ import annotations

import json

import pytest
from toolchain.bench import roofline as module
from toolchain.bench import roofline_probe
from toolchain.bench.cache import roofline_path
from toolchain.bench.costs import LayerCost, ModelCosts
from toolchain.bench.roofline import Bandwidth, Roofline, find_roofline, limit_s, roofline_from_json

MADE_UP = Roofline(
    cpu_model="made up",
    threads=1,
    date="2026-11-01T00:00:00+00:00",
    bandwidths=(
        Bandwidth(size_bytes=1_000, read_bytes_per_s=100e9, copy_bytes_per_s=90e9),
        Bandwidth(size_bytes=1_000_000, read_bytes_per_s=10e9, copy_bytes_per_s=9e9),
    ),
    flops_per_s=50e9,
    disturbed=False,
)


def layer(**fields):
    defaults = {"name": "n", "op_type": "LSTM", "input_size": 1, "dtype": "float32", "rows": 1, "parameters": 1}
    return LayerCost(**{**defaults, "multiply_adds": 0, "once_bytes": 0, **fields})


def test_r_is_read_from_its_own_cache_and_the_rest_from_where_the_model_lies():
    costs = ModelCosts(layers=(layer(steps=10, step_bytes=1_000, once_bytes=999_000),), not_counted=())
    assert limit_s(MADE_UP, costs) == pytest.approx(10 * 1_000 / 100e9 + 999_000 / 10e9)


def test_a_layer_with_more_arithmetic_than_traffic_is_bound_by_arithmetic():
    costs = ModelCosts(layers=(layer(multiply_adds=25_000_000, once_bytes=1_000_000),), not_counted=())
    assert limit_s(MADE_UP, costs) == pytest.approx(2 * 25e6 / 50e9)


def test_layers_take_turns_so_their_limits_add_up():
    one = layer(multiply_adds=25_000_000)
    costs = ModelCosts(layers=(one, one), not_counted=())
    assert limit_s(MADE_UP, costs) == pytest.approx(2 * 1e-3)


def test_nothing_is_claimed_of_a_graph_that_is_not_understood():
    assert limit_s(MADE_UP, ModelCosts(layers=(layer(multiply_adds=1),), not_counted=("If x",))) is None


def test_bandwidth_between_two_sizes_follows_the_logarithm_of_size():
    assert MADE_UP.read_bytes_per_s(31_623) == pytest.approx(55e9, rel=1e-3)
    assert MADE_UP.read_bytes_per_s(10) == 100e9
    assert MADE_UP.read_bytes_per_s(10**12) == 10e9


def test_it_is_measured_once_and_then_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = []
    monkeypatch.setattr(module, "measure_roofline", lambda threads: measured.append(threads) or MADE_UP)
    assert find_roofline(1) == find_roofline(1) == MADE_UP
    assert measured == [1]
    assert json.loads(roofline_path(1).read_text())["date"] == MADE_UP.date
    find_roofline(1, again=True)
    find_roofline(2)
    assert measured == [1, 1, 2]


def test_a_disturbed_measurement_and_a_damaged_file_are_not_kept(tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "measure_roofline", lambda threads: replace(MADE_UP, disturbed=True))
    roofline_path(1).parent.mkdir()
    roofline_path(1).write_text('{"schema": 2, "threads"')
    assert find_roofline(1).disturbed
    assert roofline_path(1).read_text() == '{"schema": 2, "threads"'


def test_json_and_back_is_the_same():
    assert roofline_from_json(json.loads(json.dumps(MADE_UP.to_json()))) == MADE_UP


def test_the_probe_measures_this_machine():
    points = roofline_probe.bandwidths(64 << 10)
    assert [point["size_bytes"] for point in points] == [32 << 10, 64 << 10]
    assert all(1e8 < point[key] < 1e13 for point in points for key in ("read_bytes_per_s", "copy_bytes_per_s"))


class Clock:
    """A processor on which a call takes 1 microsecond, a look at the clock 1, and the first call 5 ms more."""

    def __init__(self):
        self.now, self.calls, self.disturbance = 0.0, 0, 5e-3

    def perf_counter(self):
        self.now += 1e-6
        return self.now

    def call(self):
        self.now += 1e-6 + self.disturbance
        self.calls, self.disturbance = self.calls + 1, 0.0


def test_the_best_of_several_repetitions_counts_and_a_disturbed_first_call_does_not(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(roofline_probe, "time", clock)
    assert roofline_probe.best_s(clock.call, budget_s=0.04) == pytest.approx(1e-6, rel=2e-3)  # the clock is not in it
    assert clock.calls > 25_000  # of the 35,000 that fit into the rest of the budget


def test_a_call_that_is_longer_than_the_budget_is_made_once(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(roofline_probe, "time", clock)
    assert roofline_probe.best_s(clock.call, budget_s=1e-3) == pytest.approx(5e-3, rel=1e-3)
    assert clock.calls == 1


def test_the_faster_of_two_products_is_the_peak(monkeypatch):
    rates = iter([4.0, 2.0])
    called = []
    monkeypatch.setattr(roofline_probe, "best_s", lambda call, budget_s: (called.append(call()), next(rates))[1])
    monkeypatch.setattr(roofline_probe, "MATRIX", 8)
    assert roofline_probe.peak_flops(threads=1) == 2 * 8**3 / 2.0
    by_numpy, (by_onnx_runtime,) = called
    assert (by_numpy == 8).all()
    assert (by_onnx_runtime == 8).all()
