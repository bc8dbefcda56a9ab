"""Stored results against each other: the same machine, the same rows, resampled apart."""

from __future__ import annotations

import io
import json

import pytest
from click.testing import CliRunner
from rich.console import Console
from test_bench_report import measurement
from toolchain.bench import report, table
from toolchain.bench.stored import compare_stored, read_result_file

from toolchain.cli import cli
from toolchain.errors import BenchError

MACHINE = {"cpu_model": "X1", "cpus": 2, "cpus_allowed": [0, 1], "machine": "x86_64", "governor": None,
           "emulated": False, "onnxruntime": "1.32.0"}  # fmt: skip


def stored(path, times, machine=MACHINE, **kwargs):
    report.write_json(path, machine, report.build_rows(measurement(times, **kwargs)))
    return read_result_file(path)


def test_a_result_against_a_faster_one_reads_as_written_here(tmp_path):
    before = stored(tmp_path / "a.json", {"m": 2e-3, "gone": 1e-3})
    after = stored(tmp_path / "b.json", {"m": 1e-3}, {**MACHINE, "onnxruntime": "1.33.0"})
    console = Console(width=80, file=io.StringIO())
    table.print_stored(console, compare_stored(before, after), "a.json", "b.json")
    text = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
    assert (
        text
        == f"""\
b.json against a.json
                     steps x batch    A ms    B ms    speedup   95% interval
m.onnx                      35 x 1    2.00    1.00       2.0x     2.0 to 2.0

onnxruntime 1.32.0 -> 1.33.0
Not compared: gone.onnx at 35 steps x 1, 1 threads, cpu, measured is in {before.path} only.
Measured at different times: what the machine did meanwhile does not cancel."""
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"cpu_model": "Y2"}, r"cpu_model 'X1' and 'Y2'"),
        ({"cpus": 4, "governor": "powersave"}, r"cpus 2 and 4, governor None and 'powersave'"),
        ({"cpus_allowed": [0]}, r"cpus_allowed 2 and 1"),
    ],
)
def test_another_machine_is_refused_with_the_facts_that_differ(tmp_path, change, text):
    before = stored(tmp_path / "a.json", {"m": 2e-3})
    after = stored(tmp_path / "b.json", {"m": 1e-3}, {**MACHINE, **change})
    with pytest.raises(BenchError, match=rf"b\.json: was measured on another machine than .*a\.json \({text}\)"):
        compare_stored(before, after)


def test_other_shapes_or_methods_are_no_rows_in_common(tmp_path):
    before = stored(tmp_path / "a.json", {"m": 2e-3}, steps=(1,))
    after = stored(tmp_path / "b.json", {"m": 1e-3}, steps=(35,))
    with pytest.raises(BenchError, match="has no row in common"):
        compare_stored(before, after)
    content = json.loads((tmp_path / "a.json").read_text())
    content["rows"][0]["method"] = "estimated"
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(BenchError, match="has no row in common"):
        compare_stored(before, read_result_file(tmp_path / "c.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("{", "is not JSON"),
        ("[]", "has no rows; expected a result of `toolchain bench --json`"),
        ('{"schema": 9, "machine": {}, "rows": [1]}', "has schema 9; expected 1"),
        ('{"schema": 1, "machine": {}, "rows": [{"model": "m"}]}', "holds rows without 'steps'"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BenchError) as caught:
        read_result_file(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_compares_and_can_fail(tmp_path):
    stored(tmp_path / "a.json", {"m": 1e-3})
    stored(tmp_path / "b.json", {"m": 2e-3})
    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
    result = CliRunner().invoke(cli, ["bench", "compare", *paths, "--json", str(tmp_path / "c.json")])
    assert result.exit_code == 0, result.output
    assert "0.50x" in result.output
    assert json.loads((tmp_path / "c.json").read_text())["rows"][0]["speedup"] == 0.5
    result = CliRunner().invoke(cli, ["bench", "compare", *paths, "--fail-below", "0.9x"])
    assert type(result.exception) is BenchError
    assert "m.onnx: speedup 0.50x at 35 x 1 (95% interval 0.50x to 0.50x); expected at least 0.90x." in str(
        result.exception
    )
