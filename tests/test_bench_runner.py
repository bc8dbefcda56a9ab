from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import bench_models
import numpy as np
import pytest
from toolchain.bench import runner


class FakeClock:
    """Nanoseconds that pass only when a call spends them."""

    def __init__(self, costs_ns):
        self.now = 0
        self.costs = iter(costs_ns)
        self.calls = 0

    def __call__(self):
        return self.now

    def call(self):
        self.calls += 1
        self.now += next(self.costs)


def test_a_round_drops_its_cold_first_call_and_ends_when_its_time_is_up():
    clock = FakeClock([9_000_000, 2_000_000, 3_000_000, 1_000_000, 7])
    samples = runner.time_round(clock.call, clock, 0.015, max_calls=100)
    assert samples == [0.002, 0.003, 0.001]
    assert clock.calls == 4


def test_a_round_of_one_long_call_keeps_it():
    clock = FakeClock([60_000_000, 7])
    assert runner.time_round(clock.call, clock, 0.05, max_calls=100) == [0.06]


def test_a_round_of_short_calls_ends_after_the_most_allowed():
    clock = FakeClock([1_000] * 1000)
    assert len(runner.time_round(clock.call, clock, 1.0, max_calls=10)) == 10


def test_warm_up_goes_on_while_calls_get_faster_and_then_stops():
    costs = [20_000_000 - 1_000_000 * min(n, 8) for n in range(50)]  # 20 ms, 19 ms, … 12 ms, 12 ms
    clock = FakeClock(costs)
    spent_s, warm = runner.warm_up(clock.call, clock)
    assert warm
    assert spent_s == pytest.approx(sum(costs[: clock.calls]) / 1e9)
    assert 10 <= clock.calls <= 13


def test_warm_up_gives_up_on_calls_that_never_settle():
    clock = FakeClock(int(100_000_000 * 0.95**n) for n in range(1000))
    spent_s, warm = runner.warm_up(clock.call, clock)
    assert not warm
    assert runner.WARM_UP_LIMIT_S < spent_s < 2 * runner.WARM_UP_LIMIT_S


@pytest.mark.parametrize(
    ("machine", "elf", "emulated"),
    [
        ("aarch64", 183, False),
        ("aarch64", 62, True),  # the interpreter's real file is qemu, an x86-64 program
        ("aarch64", 40, False),  # a 32-bit Python on a 64-bit kernel
        ("x86_64", 62, False),
        ("x86_64", 183, True),
        ("aarch64", None, False),  # no /proc: not known to be emulated
        ("s390x", 22, False),  # an architecture without an entry is believed
    ],
)
def test_emulation_is_seen_in_the_elf_machine(machine, elf, emulated):
    assert runner.is_emulated(machine, elf) is emulated


@pytest.mark.skipif(not Path("/proc/thread-self/exe").exists(), reason="needs Linux")
def test_this_interpreter_is_native():
    assert runner.elf_machine() in runner.NATIVE_ELF_MACHINES[runner.platform.machine()]
    assert runner.describe_machine()["emulated"] is False


def test_feeds_depend_on_seed_and_name_only():
    feed = {"name": "ids", "dtype": "int64", "shape": [50, 2], "kind": "ids", "value": 7}
    ids = runner.make_feed(feed, seed=3)
    assert ids.dtype == np.int64
    assert (ids.min(), ids.max()) == (0, 6)
    np.testing.assert_array_equal(ids, runner.make_feed(dict(feed), seed=3))
    assert (ids != runner.make_feed(feed, seed=4)).any()
    assert (ids != runner.make_feed({**feed, "name": "others"}, seed=3)).any()


def test_carried_state_is_fed_back_and_other_outputs_are_not():
    seen = []

    class Session:
        def get_outputs(self):
            return [type("Output", (), {"name": name}) for name in ("Y", "state_next")]

        def run(self, names, feeds):
            seen.append(dict(feeds))
            return [feeds["X"] + 10, feeds["state"] + 1]

    call = runner.make_call(Session(), {"X": 0, "state": 5}, [["state", "state_next"]])
    call()
    call()
    call()
    assert seen == [{"X": 0, "state": 5}, {"X": 0, "state": 6}, {"X": 0, "state": 7}]


def job_for(path, *, shape=(3, 1, 4), **changes):
    feeds = [{"name": "X", "dtype": "float32", "shape": shape, "kind": "normal", "value": 0}]
    member = {"model": "tiny", "path": str(path), "feeds": feeds, "carried": []}
    cases = [{"threads": 1, "members": [member, member]}]
    return {"seed": 0, "processes": 2, "rounds": 3, "round_s": 0.002, "cases": cases, **changes}


def test_the_file_alone_measures_a_job_without_this_package(tmp_path):
    """What a device gets: the runner copied somewhere else, a job on stdin, a result on stdout."""
    copied = tmp_path / "runner.py"
    copied.write_bytes(Path(runner.__file__).read_bytes())
    job = job_for(bench_models.lstm(tmp_path / "m.onnx"))
    blocked = tmp_path / "toolchain"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('the runner must stand alone')")
    done = subprocess.run(
        [sys.executable, str(copied)], input=json.dumps(job), capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [(run["case"], run["process"], run["member"]) for run in result["runs"]] == [
        (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)
    ]  # fmt: skip
    for run in result["runs"]:
        assert len(run["rounds_s"]) == 3
        assert all(0 < sample < 1 for samples in run["rounds_s"] for sample in samples)
        assert run["peak_rss_bytes"] >= run["idle_rss_bytes"] > 10_000_000  # numpy and onnxruntime alone
        assert run["load_s"] > 0
        assert run["first_s"] > 0
    import onnxruntime

    assert result["machine"]["onnxruntime"] == onnxruntime.__version__


def test_the_runner_is_written_in_the_python_of_old_devices():
    ast.parse(Path(runner.__file__).read_text(), feature_version=(3, 9))


def test_a_refused_model_names_the_reason_and_leaves_no_process(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_text("not a model")
    before = children()
    with pytest.raises(runner.WorkerError, match=r"INVALID_PROTOBUF") as caught:
        runner.conduct(job_for(broken), lambda *_: None)
    assert caught.value.stage == "load"
    assert children() == before


def test_refused_inputs_are_told_from_a_refused_model(tmp_path):
    path = bench_models.lstm(tmp_path / "m.onnx")
    before = children()
    with pytest.raises(runner.WorkerError, match=r"INVALID_ARGUMENT") as caught:
        runner.conduct(job_for(path, shape=(3, 1, 5)), lambda *_: None)
    assert caught.value.stage == "run"
    assert children() == before


def test_a_silent_worker_is_ended_and_reported(tmp_path):
    worker = runner.Worker(job_for(bench_models.lstm(tmp_path / "m.onnx"))["cases"][0]["members"][0], 1, 0)
    with pytest.raises(runner.WorkerError, match=r"tiny: load: no answer for 0\.001 s"):
        worker.ask("load", worker.job, timeout_s=0.001)  # starting Python alone takes 10 ms
    worker.close()
    assert worker.process.returncode is not None


def test_a_killed_worker_is_reported_with_its_signal(tmp_path):
    worker = runner.Worker(job_for(bench_models.lstm(tmp_path / "m.onnx"))["cases"][0]["members"][0], 1, 0)
    worker.ask("load", worker.job)
    worker.process.kill()
    worker.process.wait()
    with pytest.raises(runner.WorkerError, match=r"ended by SIGKILL \(out of memory\?\)"):
        worker.ask("run", {})
    worker.close()


def children():
    """Return the workers that this process started and that are still there."""
    stats = [stat.read_text().rpartition(")")[2].split() for stat in Path("/proc").glob("[0-9]*/stat")]
    return [fields for fields in stats if fields[1] == str(os.getpid())]
