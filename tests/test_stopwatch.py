"""Timing beside other programs: a machine whose pace changes is played by a clock that the test turns."""

from __future__ import annotations

from pathlib import Path

import pytest
from graphs import layer_with_head

from toolchain.interface import read_interface
from toolchain.oneshot import stopwatch
from toolchain.oneshot.stopwatch import Stopwatch


class Machine:
    """Its clock stands still but for calls, which take the time of the model's file by how busy the machine is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.slowdown = 0.0, 1.0
        monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(stopwatch, "open_session", self.open)

    def open(self, path: Path, threads: int) -> object:
        machine, seconds = self, float(path.stem) * 1e-3

        class Session:
            def run(self, _: object, feeds: object) -> None:
                machine.now += seconds * machine.slowdown

        return Session()


def test_a_busy_moment_does_not_make_a_model_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interface = read_interface(layer_with_head(tmp_path / "m.onnx"))
    machine = Machine(monkeypatch)
    watch = Stopwatch(interface, steps=5)
    assert watch.seconds(Path("4.onnx")) == pytest.approx(4e-3)
    machine.slowdown = 2.5
    assert watch.seconds(Path("1.onnx")) == pytest.approx(1e-3)
    assert watch.seconds(Path("4.onnx")) == pytest.approx(4e-3)


def test_a_busy_start_is_forgotten_in_the_first_quiet_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interface = read_interface(layer_with_head(tmp_path / "m.onnx"))
    machine = Machine(monkeypatch)
    machine.slowdown = 3.0
    watch = Stopwatch(interface, steps=5)
    assert watch.seconds(Path("4.onnx")) == pytest.approx(12e-3)
    machine.slowdown = 1.0
    assert watch.seconds(Path("2.onnx")) == pytest.approx(2e-3)
