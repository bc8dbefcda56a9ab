from __future__ import annotations

import json
import subprocess
import sys

import bench_models
import onnx
import pytest
from click.testing import CliRunner
from test_bench_roofline import MADE_UP
from toolchain.bench import measure, roofline, runner

from toolchain.cli import cli
from toolchain.errors import BenchError, ModelFileError, OutputError

QUICK = ["--processes", "5", "--seconds", "0.5"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.with_name(tmp_path.name + "-cache")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench(*arguments, roofline="skip"):
    return CliRunner().invoke(cli, ["bench", *map(str, arguments), "--roofline", roofline])


def test_without_names_the_shrunk_model_is_compared_and_found_faster(folder):
    """The baseline's hidden layer is 32 times wider: no noise can hide that."""
    bench_models.lstm(folder / "model.onnx", hidden=256)
    bench_models.lstm(folder / "model.shrunk.onnx", hidden=8)
    result = bench("--device", "cpu", *QUICK, "--json", "r.json", "--csv", "r.csv")
    assert result.exit_code == 0, result.output
    assert "model.shrunk.onnx ran " in result.output
    assert "x faster than model.onnx at 35 steps (95% interval " in result.output
    document = json.loads((folder / "r.json").read_text())
    assert [(row["model"], row["steps"]) for row in document["rows"]] == [
        ("model.onnx", 1), ("model.shrunk.onnx", 1), ("model.onnx", 35), ("model.shrunk.onnx", 35)
    ]  # fmt: skip
    last = document["rows"][-1]
    assert last["significant"]
    assert last["speedup"] > 3
    assert last["speedup_low"] <= last["speedup"] <= last["speedup_high"]
    assert last["samples_s"][0][0] > 0
    assert document["machine"]["emulated"] is False
    assert len((folder / "r.csv").read_text().splitlines()) == 5


def test_a_slowed_model_is_found_slower(folder):
    bench_models.lstm(folder / "fast.onnx", hidden=8)
    bench_models.lstm(folder / "slow.onnx", hidden=256)
    result = bench("slow.onnx", "--baseline", "fast.onnx", "--steps", 35, *QUICK)
    assert result.exit_code == 0, result.output
    assert "slow.onnx ran " in result.output
    assert "x slower than fast.onnx at 35 steps" in result.output


def test_a_model_against_itself_is_close_to_1_and_says_so_consistently(folder):
    """5% of such intervals may leave out 1, so what is demanded holds always: near 1, verdict = interval."""
    bench_models.lstm(folder / "m.onnx", hidden=64)
    result = bench("m.onnx", "--baseline", "m.onnx", "--steps", 35, *QUICK, "--json", "r.json")
    assert result.exit_code == 0, result.output
    row = json.loads((folder / "r.json").read_text())["rows"][1]
    assert 0.7 < row["speedup"] < 1.4
    assert row["significant"] is not (row["speedup_low"] <= 1 <= row["speedup_high"])
    assert ("not significantly faster or slower" in result.output) is not row["significant"]


@pytest.mark.parametrize("make", [bench_models.batch_first, bench_models.tokens, bench_models.streaming_gru])
def test_any_recurrent_model_is_measured_at_the_shapes_asked_for(folder, make):
    make(folder / "m.onnx")
    result = bench("m.onnx", "--steps", "1,7", "--batch", "2", "--processes", 2, "--seconds", 0.1, "--json", "r.json")
    assert result.exit_code == 0, result.output
    rows = json.loads((folder / "r.json").read_text())["rows"]
    assert [(row["steps"], row["batch"]) for row in rows] == [(1, 2), (7, 2)]
    assert [row["state_fed_back"] for row in rows] == [make is bench_models.streaming_gru, False]


def test_rows_say_what_a_static_model_really_ran(folder):
    bench_models.static_gru(folder / "m.onnx", steps=6)
    result = bench("m.onnx", "--processes", 2, "--seconds", 0.1, "--json", "r.json")
    assert result.exit_code == 0, result.output
    rows = json.loads((folder / "r.json").read_text())["rows"]
    assert [(row["steps"], row["batch"]) for row in rows] == [(6, 2)]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ([], ModelFileError, r"^model\.onnx: no such file; .*Write one with `toolchain train`"),
        (["none.onnx"], ModelFileError, r"^none\.onnx: no such file; expected an ONNX model\."),
        (["m.onnx", "--device", "rpi9"], BenchError, r"^device 'rpi9': is not known; expected one of: cpu"),
        (["m.onnx", "--json", "none/r.json"], OutputError, r"^none/r\.json: its folder none does not exist"),
        (["bad.onnx"], ModelFileError, r"^bad\.onnx: ONNX Runtime does not load it \(.*Frobnicate"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(folder, arguments, error, text):
    bench_models.lstm(folder / "m.onnx")
    model = onnx.load("m.onnx")
    model.graph.node[0].op_type = "Frobnicate"
    onnx.save(model, "bad.onnx")
    before = sorted(folder.iterdir())
    result = bench(*arguments)
    assert type(result.exception) is error
    assert "\n" not in str(result.exception)
    with pytest.raises(error, match=text):
        raise result.exception
    assert sorted(folder.iterdir()) == before


def test_a_missing_shrunk_model_names_the_command_that_writes_it(folder):
    bench_models.lstm(folder / "model.onnx")
    with pytest.raises(ModelFileError, match=r"Write it with `toolchain shrink model\.onnx`"):
        raise bench().exception


def test_inputs_that_a_model_refuses_name_their_shapes(folder):
    """A 3x3 kernel without padding needs three steps; one step is the user's to change."""
    node, weights = bench_models.recurrent("LSTM", "frames", hidden=8, inputs=4)
    conv = onnx.helper.make_node("Conv", ["X", "kernel"], ["convolved"])
    transpose = onnx.helper.make_node("Transpose", ["convolved"], ["frames"], perm=[2, 0, 1])
    initializers = [bench_models.constant("kernel", (4, 6, 3)), *weights]
    inputs = [("X", onnx.TensorProto.FLOAT, ("a", 6, "c"))]
    bench_models.save(folder / "m.onnx", [conv, transpose, node], initializers, inputs, ["Y"])
    result = bench("m.onnx", "--steps", 1, *QUICK)
    assert type(result.exception) is BenchError
    assert "expected it to accept X (1, 6, 1). Choose other --steps or --batch." in str(result.exception)


def test_emulated_time_is_refused(folder, monkeypatch):
    bench_models.lstm(folder / "m.onnx")
    monkeypatch.setattr(measure.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(runner, "elf_machine", lambda: 62)
    result = bench("m.onnx")
    assert isinstance(result.exception, BenchError)
    assert "this Python says aarch64 but runs under emulation (ELF machine 62)" in str(result.exception)


def test_every_output_is_written_and_the_result_is_held_against_this_machines_limits(folder, monkeypatch):
    measured = []
    monkeypatch.setattr(roofline, "measure_roofline", lambda threads: measured.append(threads) or MADE_UP)
    bench_models.lstm(folder / "m.onnx")
    outputs = ["--json", "r.json", "--csv", "r.csv", "--markdown", "r.md", "--html", "r.html"]
    result = bench("m.onnx", "--steps", 5, "--processes", 2, "--seconds", 0.1, *outputs, roofline="cached")
    assert result.exit_code == 0, result.output
    assert measured == [1]
    assert "Limits of made up, measured 2026-11-01: 100 GB/s from 0 kB, 10 GB/s from 0 MB, 50 GFLOP/s." in result.output
    document = json.loads((folder / "r.json").read_text())
    (row,) = document["rows"]
    W, R = 4 * 8 * 4, 4 * 8 * 8
    assert row["bytes_moved"] == (5 * R + W) * 4
    assert row["flops_per_s"] == pytest.approx(2 * 5 * (W + R) / row["p50_s"])
    assert row["bytes_per_s"] == pytest.approx(row["bytes_moved"] / row["p50_s"])
    assert row["limit_share"] == pytest.approx(row["limit_s"] / row["p50_s"])
    assert row["p50_low_s"] <= row["p50_s"] <= row["p50_high_s"]
    assert document["models"]["m.onnx"]["layers"][0]["hidden_size"] == 8
    assert document["rooflines"][0]["threads"] == 1
    assert "limit_share" in (folder / "r.csv").read_text()
    assert "| m.onnx |" in (folder / "r.md").read_text()
    assert (folder / "r.html").read_text().count('class="mark ') >= 3


def test_a_speedup_below_the_threshold_ends_with_one_line_after_everything_is_written(folder):
    bench_models.lstm(folder / "model.onnx", hidden=64)
    bench_models.lstm(folder / "model.shrunk.onnx", hidden=64)
    result = bench("--steps", 35, *QUICK, "--fail-below", "10x", "--json", "r.json")
    assert type(result.exception) is BenchError
    assert str(result.exception).startswith("model.shrunk.onnx: speedup ")
    assert "expected at least 10.0x. Lower --fail-below, or make the model faster." in str(result.exception)
    assert (folder / "r.json").exists()
    assert bench("--steps", 35, *QUICK, "--fail-below", "0.1").exit_code == 0


def test_one_model_alone_has_no_speedup_to_fail_below(folder):
    bench_models.lstm(folder / "m.onnx")
    result = bench("m.onnx", "--steps", 1, "--processes", 2, "--seconds", 0.1, "--fail-below", "1x")
    assert "one model alone has no speedup; expected two or more" in str(result.exception)


def test_a_precision_that_cannot_be_had_in_time_is_said(folder):
    bench_models.lstm(folder / "m.onnx")
    result = bench("m.onnx", "--steps", 1, "--processes", 5, "--seconds", 0.3, "--precision", "0.0001%", "--limit", 1)
    assert result.exit_code == 0, result.output
    assert "0.0% was asked (1 of 1 rows). The time limit came first: close other programs, or raise" in result.output


def test_commands_of_two_words_do_not_take_the_place_of_models(folder):
    """`bench compare` is a command; `bench` takes everything else, a file of that name too."""
    for arguments, text in (
        (["bench", "compare", "--help"], "Usage: cli bench compare [OPTIONS] A.json B.json"),
        (["bench", "table", "--help"], "Usage: cli bench table [OPTIONS]"),
        (["bench", "bundle", "--help"], "Usage: cli bench bundle [OPTIONS] FOLDER [MODEL]..."),
        (["bench", "merge", "--help"], "Usage: cli bench merge [OPTIONS] FOLDER"),
        (["bench", "calibrate", "--help"], "Usage: cli bench calibrate [OPTIONS]"),
        (["bench", "--help"], "Usage: cli bench [OPTIONS] [MODEL]..."),
    ):
        assert text in CliRunner().invoke(cli, arguments).output
    assert type(bench("./compare").exception) is ModelFileError
    assert type(bench("model", "compare").exception) is ModelFileError


def test_the_first_lines_of_the_help_show_the_three_stages_below_each_other():
    lines = CliRunner().invoke(cli, ["--help"]).output.splitlines()
    assert [line.split()[:2] for line in lines if "->" in line] == [
        ["toolchain", "train"], ["toolchain", "shrink"], ["toolchain", "bench"]
    ]  # fmt: skip


def test_more_threads_than_cpus_are_warned_about(folder):
    bench_models.lstm(folder / "m.onnx")
    result = bench("m.onnx", "--threads", 999, "--steps", 1, "--processes", 2, "--seconds", 0.1)
    assert "warning: 999 threads on " in result.output


@pytest.mark.parametrize(
    "arguments",
    [["--steps", "0"], ["--steps", "a"], ["--batch", ""], ["--threads", "-1"], ["--processes", "1"],
     ["--seconds", "0"], ["--seed", "-1"], ["--nonsense"]],
)  # fmt: skip
def test_options_out_of_range_are_usage_errors(folder, arguments):
    result = bench(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.output


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from toolchain.cli import cli\n"
        "try: cli(['bench', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'pandas', 'onnx', 'onnxruntime', 'rich.table'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "model.shrunk.onnx against model.onnx" in done.stdout


def test_an_expected_error_ends_the_process_with_one_line_and_exit_code_1(folder):
    done = subprocess.run(
        [sys.executable, "-m", "toolchain", "bench", "none.onnx"], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: none.onnx: no such file")
    assert len(done.stderr.splitlines()) == 1
