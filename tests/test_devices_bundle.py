"""A bundle is run as a device would run it: its own folder, its own runner, nothing of this package."""

from __future__ import annotations

import json
import subprocess
import sys

import bench_models
import numpy as np
import pytest
from click.testing import CliRunner
from toolchain.bench.devices import jobs

from toolchain.cli import cli
from toolchain.errors import BenchError


def bench(*arguments):
    return CliRunner().invoke(cli, ["bench", *map(str, arguments)])


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bench_models.lstm(tmp_path / "model.onnx", hidden=128)
    bench_models.lstm(tmp_path / "model.shrunk.onnx", hidden=8)
    result = bench("bundle", "board", "--steps", "5,20", "--processes", "5", "--seconds", "0.5")
    assert result.exit_code == 0, result.output
    return tmp_path / "board"


def measure(bundle, destination):
    """Move the folder away, run it there, bring the result back."""
    elsewhere = bundle.rename(destination)
    command = [sys.executable, "runner.py", "job.json"]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=True)
    elsewhere.rename(bundle)
    (bundle / "result.json").write_text(done.stdout)


def test_a_bundle_that_was_measured_elsewhere_becomes_the_usual_table(bundle, tmp_path):
    measure(bundle, tmp_path / "elsewhere")
    result = bench("merge", bundle, "--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("measured on ")
    assert "model.shrunk.onnx ran " in result.output
    document = json.loads((tmp_path / "r.json").read_text())
    assert [(row["model"], row["steps"]) for row in document["rows"]] == [
        ("model.onnx", 5), ("model.shrunk.onnx", 5), ("model.onnx", 20), ("model.shrunk.onnx", 20)
    ]  # fmt: skip
    assert {(row["method"], row["device"]) for row in document["rows"]} == {("measured", "bundle:board")}
    raw = json.loads((bundle / "result.json").read_text())
    first = next(run for run in raw["runs"] if (run["case"], run["member"]) == (0, 0))
    assert document["rows"][0]["samples_s"][0] == [sample for samples in first["rounds_s"] for sample in samples]


def test_a_bundle_holds_no_path_of_this_machine(bundle, tmp_path):
    for path in bundle.rglob("*"):
        if path.suffix in (".json", ".md"):
            assert str(tmp_path) not in path.read_text()
    job = json.loads((bundle / "job.json").read_text())
    assert all((bundle / member["path"]).is_file() for case in job["cases"] for member in case["members"])
    assert "python3 runner.py job.json > result.json" in (bundle / "README.md").read_text()


def test_a_result_that_is_not_there_or_not_whole_is_named(bundle):
    assert str(bench("merge", bundle).exception) == (
        f"{bundle}/result.json: cannot be read (No such file or directory); expected a file of a bundle. "
        "Run `python3 runner.py job.json > result.json` on the device first."
    )
    (bundle / "result.json").write_text('{"machine": ')
    assert f"{bundle}/result.json: is not complete JSON (" in str(bench("merge", bundle).exception)


def test_a_result_of_another_job_is_refused(bundle, tmp_path):
    measure(bundle, tmp_path / "elsewhere")
    result = json.loads((bundle / "result.json").read_text())
    result["runs"].pop()
    (bundle / "result.json").write_text(json.dumps(result))
    assert str(bench("merge", bundle).exception) == (
        f"{bundle}/result.json: holds 19 runs; expected 2 cases of 2 models in 5 processes each. It is of another job: "
        "run this folder's on the device."
    )


def test_real_inputs_and_every_output_go_the_whole_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bench_models.lstm(tmp_path / "m.onnx")
    np.savez(tmp_path / "real.npz", X=np.ones((7, 2, 4), np.float32))
    written = bench("bundle", "board", "m.onnx", "--inputs", "real.npz", "--processes", 2, "--seconds", 0.1)
    assert written.exit_code == 0, written.output
    (tmp_path / "real.npz").unlink()
    measure(tmp_path / "board", tmp_path / "elsewhere")
    result = bench("merge", "board", "--json", "r.json", "--markdown", "r.md", "--html", "r.html")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "r.json").read_text())
    (row,) = document["rows"]
    assert (row["steps"], row["batch"], row["bytes_moved"]) == (7, 2, 4 * 8 * (4 + 7 * 8) * 4)
    assert row["inputs"].endswith(".npz")
    assert "m.onnx" in document["models"]
    assert "bundle:board (measured)" in (tmp_path / "r.md").read_text()
    assert (tmp_path / "r.html").is_file()


def test_a_changed_job_is_refused(bundle, tmp_path):
    measure(bundle, tmp_path / "elsewhere")
    job = json.loads((bundle / "job.json").read_text())
    job["processes"] = 3
    (bundle / "job.json").write_text(json.dumps(job))
    assert str(bench("merge", bundle).exception) == (
        f"{bundle}: its models or its job were changed; expected them as written. Write the bundle again."
    )


def test_an_emulated_result_is_refused(bundle, tmp_path):
    measure(bundle, tmp_path / "elsewhere")
    result = json.loads((bundle / "result.json").read_text())
    result["machine"] |= {"machine": "aarch64", "emulated": True}
    (bundle / "result.json").write_text(json.dumps(result))
    assert "its result is of an emulated aarch64; expected a native Python" in str(bench("merge", bundle).exception)


def test_an_existing_folder_is_not_written_into(bundle):
    assert str(bench("bundle", bundle).exception) == (
        f"{bundle}: exists already; expected a new folder. Remove it, or name another."
    )


def test_an_unwritable_place_is_named(bundle):
    assert "/nowhere/board: cannot be written (No such file or directory)" in str(
        bench("bundle", "/nowhere/board").exception
    )


def test_inputs_come_along_and_other_runtimes_are_refused(tmp_path, monkeypatch):
    """What a job may hold besides models: a file of inputs, and a worker of another runtime."""
    model = bench_models.lstm(tmp_path / "m.onnx")
    (tmp_path / "real.npz").write_bytes(b"arrays")
    member = {"model": "m.onnx", "path": str(model), "inputs": str(tmp_path / "real.npz")}
    monkeypatch.setattr(jobs, "job_of", lambda plan: {"cases": [{"members": [dict(member)]}]})
    found = jobs.portable_job(None)
    place = found.job["cases"][0]["members"][0]["inputs"]
    assert found.files[place] == (tmp_path / "real.npz", jobs.file_sha256(tmp_path / "real.npz"))
    assert place.startswith("inputs/")
    monkeypatch.setattr(jobs, "job_of", lambda plan: {"cases": [{"members": [{**member, "worker": "torch.py"}]}]})
    with pytest.raises(BenchError, match=r"m.onnx: other runtimes are measured on this machine only; expected ONNX"):
        jobs.portable_job(None)
