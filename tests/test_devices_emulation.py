"""The real aarch64 ONNX Runtime under qemu-user. The first run fetches 60 MB into the user's cache folder."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace

import bench_models
import numpy as np
import pytest
from click.testing import CliRunner
from toolchain.bench import runner
from toolchain.bench.devices import emulation, naming, sysroot
from toolchain.bench.devices.profiles import find_profile
from toolchain.bench.plan import Effort, plan_bench, read_interfaces
from toolchain.bench.random_lm import write_language_model

import toolchain
from toolchain.cli import cli
from toolchain.errors import BenchError

MISSING = sysroot.missing_tools()


@pytest.fixture(scope="module")
def installed():
    if MISSING:
        pytest.skip(f"no emulator: {MISSING}")
    found = sysroot.find_sysroot()
    if found is None:
        try:
            found = sysroot.install_sysroot(lambda text: None)
        except BenchError as error:
            pytest.skip(f"no aarch64 packages: {error}")
    return found


def plan(paths, *, steps=(10,), threads=(1,), device="qemu:rpi4"):
    models = read_interfaces(paths)
    return plan_bench(models, device=device, steps=steps, batches=[1], threads=threads, effort=Effort())


def quiet(done, total, what):
    pass


def rows_of(paths, installed, *, profile="rpi4", **arguments):
    return emulation.emulate(plan(paths, **arguments), find_profile(profile), installed, quiet)[1]


def test_a_shrunk_model_answers_on_aarch64_as_it_does_here_with_fewer_instructions(installed, tmp_path, monkeypatch):
    """A language model whose state is carried: several calls, each fed with the state of the one before."""
    monkeypatch.chdir(tmp_path)
    write_language_model(tmp_path / "model.onnx", vocabulary=200, embedding=64, hidden=[256, 256], dead=0.6)
    toolchain.shrink("model.onnx", "model.shrunk.onnx")
    result = CliRunner().invoke(cli, ["bench", "--device", "qemu:rpi4", "--steps", "1,10", "--json", "r.json"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Emulated: Raspberry Pi 4 Model B, one Cortex-A72 core\n")
    assert "Outputs on aarch64 are this machine's, to rounding." in result.output
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["machine"]["machine"] == "aarch64"
    assert document["machine"]["emulated_core"] == "cortex-a72"
    assert len(document["rows"]) == 4
    for row in document["rows"]:
        assert row["method"] == "emulated"
        assert not [key for key in row if key.endswith("_s") or "speedup" in key], "no time comes of emulation"
        assert row["parity_max_abs_diff"] <= 1e-5
        assert row["parity_max_abs_value"] > 1e-3, "all zeros would agree as well"
        assert row["state_fed_back"] == (row["steps"] == 1)
    for baseline, shrunk in (document["rows"][:2], document["rows"][2:]):
        assert shrunk["instructions"] < baseline["instructions"]
        assert shrunk["instruction_ratio"] == baseline["instructions"] / shrunk["instructions"]


def test_real_inputs_are_what_the_emulated_model_is_fed(installed, tmp_path):
    path = bench_models.lstm(tmp_path / "m.onnx", hidden=8)
    values = np.full((3, 1, 4), 0.25, np.float32)
    np.savez(tmp_path / "real.npz", X=values)
    asked = replace(plan([path], steps=(3,)), inputs=tmp_path / "real.npz")
    member = emulation.job_of(asked)["cases"][0]["members"][0]
    order = emulation._member(member, 0, threads=1, seed=0, folder=tmp_path)
    with np.load(order["feeds"]) as stored:
        np.testing.assert_array_equal(stored["X"], values)
    (row,) = emulation.emulate(asked, find_profile("rpi4"), installed, quiet)[1]
    assert row["parity_max_abs_diff"] <= 1e-6


def test_counts_repeat_within_a_percent(installed, tmp_path):
    path = bench_models.lstm(tmp_path / "m.onnx", hidden=64, inputs=64, shape=("t", "b", 64))
    first, second = (rows_of([path], installed)[0] for _ in range(2))
    assert second["instructions"] == pytest.approx(first["instructions"], rel=0.01)
    calls = first["instructions_of_calls"]
    assert len(calls) == emulation.CALLS
    assert calls[0] > max(calls[1:]), "the first call prepares what the others find"


def test_counts_grow_with_the_steps_as_the_work_does(installed, tmp_path):
    """Twice as many further steps take twice as many further instructions: nothing is lost, nothing counted twice."""
    path = bench_models.lstm(tmp_path / "m.onnx", hidden=128, inputs=128, shape=("t", "b", 128))
    at_20, at_40, at_80 = (row["instructions"] for row in rows_of([path], installed, steps=(20, 40, 80)))
    assert at_80 - at_40 == pytest.approx(2 * (at_40 - at_20), rel=0.01)
    multiply_adds = 20 * 4 * 128 * (128 + 128)
    per_instruction = multiply_adds / (at_40 - at_20)
    assert 1 < per_instruction < 4, "NEON does four multiply-adds per instruction, and loads take as many again"


def test_weights_that_fit_into_a_cache_miss_it_once_and_others_at_every_step(installed, tmp_path):
    """R of 64 units (64 kB) fits into the second level of a Raspberry Pi 4, R of 640 (6.6 MB) does not."""
    per_step = {}
    for hidden in (64, 640):
        path = bench_models.lstm(tmp_path / f"{hidden}.onnx", hidden=hidden, inputs=8, shape=("t", "b", 8))
        asked = replace(plan([path], steps=(5, 10)), simulate_caches=True)
        at_5, at_10 = emulation.emulate(asked, find_profile("rpi4"), installed, quiet)[1]
        assert list(at_5["cache_misses"]) == ["L1D", "L2"]
        lines = 4 * hidden * hidden * 4 / 64
        per_step[hidden] = [
            (at_10["cache_misses"][level] - at_5["cache_misses"][level]) / 5 / lines for level in ("L1D", "L2")
        ]
    # 1.14 as a rule; once in many runs 1.78, in all calls of the process, for a reason not found.
    assert 0.8 < per_step[64][0] < 2, "64 kB do not fit into 32 kB"
    assert per_step[64][1] < 0.02
    assert per_step[640] == [pytest.approx(1, rel=0.1), pytest.approx(1, rel=0.1)]


def test_caches_are_simulated_on_emulated_devices_only(tmp_path):
    path = bench_models.lstm(tmp_path / "m.onnx", hidden=8)
    result = CliRunner().invoke(cli, ["bench", str(path), "--simulate-caches"])
    assert str(result.exception).startswith(
        "--simulate-caches: device 'cpu' is measured, not emulated; expected a device that QEMU runs, as qemu:rpi4."
    )


def test_marks_of_another_number_are_refused(tmp_path):
    (tmp_path / "marks").write_text("1 2\n3 4\n")
    with pytest.raises(BenchError, match=r"plugin count\.c: wrote 2 marks; expected 18\. Install qemu-user again\."):
        emulation.read_marks(tmp_path / "marks", members=1)


def test_a_mark_itself_is_taken_off_every_column(tmp_path):
    marks = [(0, 0), (5, 1)] + [pair for call in range(emulation.CALLS) for pair in ((100, 10), (205 + call, 31))]
    (tmp_path / "marks").write_text("\n".join(f"{count} {misses}" for count, misses in marks))
    (counts,) = emulation.read_marks(tmp_path / "marks", members=1)
    assert counts == (tuple(100 + call for call in range(emulation.CALLS)), (20,) * emulation.CALLS)


def test_the_core_decides_which_kernels_run(installed, tmp_path):
    """A Cortex-A76 multiplies bytes four at a time, a Cortex-A72 does not."""
    from onnxruntime.quantization import quantize_dynamic

    bench_models.lstm(tmp_path / "m.onnx", hidden=256, inputs=64, shape=("t", "b", 64))
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "int8.onnx", op_types_to_quantize=["LSTM"])
    (old,) = rows_of([tmp_path / "int8.onnx"], installed)
    (new,) = rows_of([tmp_path / "int8.onnx"], installed, profile="rpi5", device="qemu:rpi5")
    assert old["instructions"] > 1.3 * new["instructions"]


def test_an_emulated_python_is_recognised_although_it_says_aarch64(installed, tmp_path):
    """`platform.machine()` says what the emulator claims; the ELF header behind /proc/thread-self/exe does not."""
    script = tmp_path / "who.py"
    script.write_text(f"import sys, json; sys.path.insert(0, {os.path.dirname(runner.__file__)!r})\n"
                      "import runner; print(json.dumps(runner.describe_machine()))\n")  # fmt: skip
    command = emulation.guest_command(find_profile("rpi4"), installed, [str(script)], tmp_path / "marks")
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert said["machine"] == "aarch64"
    assert said["elf_machine"] == runner.elf_machine() != 183
    assert said["emulated"] is True


def test_a_core_that_this_qemu_lacks_is_named(installed, tmp_path):
    path = bench_models.lstm(tmp_path / "m.onnx")
    profile = replace(find_profile("rpi4"), emulate_as="cortex-x9")
    with pytest.raises(
        BenchError, match="device 'qemu:rpi4': the installed QEMU has no cortex-x9; expected one that has"
    ):
        emulation.emulate(plan([path]), profile, installed, quiet)


def test_several_threads_are_refused(installed, tmp_path):
    path = bench_models.lstm(tmp_path / "m.onnx")
    with pytest.raises(BenchError, match="counts are exact for one thread only; expected --threads 1"):
        emulation.emulate(plan([path], threads=(2,)), find_profile("rpi4"), installed, quiet)


def test_the_manifest_names_every_package_with_its_version_and_checksum(installed):
    manifest = json.loads((installed.folder / "manifest.json").read_text())
    packages = {package["name"]: package for package in manifest["packages"]}
    assert packages["onnxruntime"]["version"] == manifest["onnxruntime"] == installed.onnxruntime
    assert {"libc6", "libstdc++6", "numpy"} <= set(packages)
    assert all(len(package["sha256"]) == 64 for package in packages.values())


def test_arm_is_emulated_where_everything_is_installed(installed, monkeypatch):
    monkeypatch.setattr(naming.platform, "machine", lambda: "x86_64")
    found = naming.resolve_device("arm")
    assert found.method == "emulated"
    assert found.note.startswith("device arm: emulated as qemu:rpi4 (Raspberry Pi 4 Model B); instructions and parity")


def test_without_the_packages_the_command_that_fetches_them_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = bench_models.lstm(tmp_path / "m.onnx")
    result = CliRunner().invoke(cli, ["bench", str(path), "--device", "qemu:rpi4"])
    assert str(result.exception).startswith("device 'qemu:rpi4': cannot be emulated yet; expected QEMU, and an aarch64")
    assert "toolchain devices install qemu`." in str(result.exception)
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(cli, ["bench", str(path), "--device", "qemu:rpi4"])
    assert str(result.exception).endswith(
        "Run `apt-get install --no-install-recommends qemu-user gcc libc6-dev && toolchain devices install qemu`."
    )


def test_sources_without_arm64_leave_nothing_half_installed(tmp_path, monkeypatch):
    if MISSING:
        pytest.skip(f"no emulator: {MISSING}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "none.list").write_text("")
    result = CliRunner().invoke(cli, ["devices", "install", "qemu", "--apt-sources", str(tmp_path / "none.list")])
    assert "apt-get for arm64: failed (E: " in str(result.exception)
    assert "`toolchain devices install qemu --apt-sources FILE`" in str(result.exception)
    assert list((tmp_path / "cache" / "rnn-toolchain").iterdir()) == []
    assert sysroot.find_sysroot() is None


NAN = float("nan")


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([1.0, NAN], [1.0, NAN], 0.0),
        ([1.0, NAN], [1.0, 2.0], float("inf")),
        ([1.0, 2.0], [1.0, NAN], float("inf")),
        ([float("inf")], [float("inf")], 0.0),
        ([float("inf")], [-float("inf")], float("inf")),
        ([1.0, 2.0], [1.0], float("inf")),
    ],
)
def test_the_difference_sees_what_is_not_a_number(ours, theirs, expected):
    assert emulation.difference(np.array(ours), np.array(theirs)) == expected


def test_outputs_that_differ_are_warned_of_and_stored_without_infinity(tmp_path):
    """Rows as they are after a real difference, and after an output that is no number on one side."""
    from rich.console import Console
    from toolchain.bench import report
    from toolchain.bench.devices import showing

    machine = {"title": "Board", "core": "Cortex-A72", "emulated_core": "cortex-a72", "onnxruntime": "1.0",
               "profile": "board"}  # fmt: skip
    row = {
        "model": "a.onnx", "is_baseline": True, "method": "emulated", "steps": 1, "batch": 1, "threads": 1,
        "state_fed_back": False, "instructions": 1000, "instruction_ratio": 1.0, "parity_max_abs_value": 1.0,
    }  # fmt: skip
    for gap, text in ((2e-5, "differ by 2.0e-05 from this"), (None, "differ by inf from this")):
        rows = [{**row, "parity_max_abs_diff": gap}]
        with (console := Console(width=200)).capture() as printed:
            showing.print_unmeasured(console, machine, rows)
        assert text in printed.get()
        assert "Outputs on aarch64 are" not in printed.get()
        report.write_json(tmp_path / "r.json", machine, rows)
    with (console := Console(width=200)).capture() as printed:
        showing.print_unmeasured(console, machine, [{**row, "parity_max_abs_diff": 9e-6}])
    assert "Outputs on aarch64 are" in printed.get()


def test_an_infinite_difference_is_none_in_the_row(tmp_path):
    path = bench_models.lstm(tmp_path / "m.onnx")
    asked = plan([path])
    seen = emulation.Emulated(instructions=(5, 3), max_abs_diff=float("inf"), max_abs_value=1.0)
    (row,) = emulation._rows(asked, asked.cases[0], [seen])
    assert (row["parity_max_abs_diff"], row["instructions"]) == (None, 3)
