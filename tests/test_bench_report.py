from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from toolchain.bench import report, table
from toolchain.bench.measure import Measurement, Run, read_result
from toolchain.bench.plan import BenchPlan, Case, Effort, choose_models

from toolchain.errors import OutputError
from toolchain.interface import ModelInterface


def model(name, size=1_000_000):
    return ModelInterface(name=name, path=None, file_bytes=size, parameters=size // 4, inputs=(), carried=())


def measurement(times, *, processes=8, steps=(35,), factors=(1.0,) * 8, warm=True):
    """Call times in seconds per model, constant up to a factor per process."""
    models = tuple(model(f"{name}.onnx", size=4_000_000 // (number + 1)) for number, name in enumerate(times))
    cases = tuple(Case(steps=step, batch=1, threads=1, feeds=()) for step in steps)
    runs = [
        Run(
            case=case,
            member=member,
            load_s=0.012,
            first_s=0.0034,
            warm=warm,
            peak_rss_bytes=80_000_000 + process,
            idle_rss_bytes=50_000_000,
            rounds=(np.full(3, seconds * factors[process]), np.full(2, seconds * factors[process])),
        )
        for case in range(len(steps))
        for process in range(processes)
        for member, seconds in enumerate(times.values())
    ]
    effort = Effort(processes=processes, seed=7)
    plan = BenchPlan(device="cpu", models=models, cases=cases, effort=effort)
    return Measurement(plan=plan, machine={"cpu_model": "x"}, runs=tuple(runs))


def printed(measured):
    console = Console(width=80, file=io.StringIO())
    table.print_report(console, report.build_rows(measured))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def test_the_whole_output_reads_as_written_here_and_fits_80_columns():
    text = printed(measurement({"model": 2.3e-3, "model.shrunk": 0.575e-3}, steps=(1, 35)))
    assert (
        text
        == """\
1 step, 1 thread
                      p50 ms  p90 ms  p99 ms  steps/s    speedup 95% interval
model.onnx              2.30    2.30    2.30      435   baseline
model.shrunk.onnx      0.575   0.575   0.575    1.74k       4.0x   4.0 to 4.0

35 steps, 1 thread
                      p50 ms  p90 ms  p99 ms  steps/s    speedup 95% interval
model.onnx              2.30    2.30    2.30    15.2k   baseline
model.shrunk.onnx      0.575   0.575   0.575    60.9k       4.0x   4.0 to 4.0

each model, in a fresh process
                     file MB parameters peak MB load ms first ms
model.onnx              4.00  1,000,000      80    12.0     3.40
model.shrunk.onnx       2.00    500,000      80    12.0     3.40

model.shrunk.onnx ran 4.0x faster than model.onnx at 35 steps (95% interval 4.0 to 4.0), 4.0x at 1 step.
Next: ship model.shrunk.onnx; --json FILE keeps the raw samples."""
    )
    assert max(len(line) for line in text.splitlines()[:-2]) <= 80


def test_no_difference_is_a_verdict():
    text = printed(measurement({"a": 1e-3, "b": 1e-3}))
    assert "1.00x n.s." in text
    assert "b.onnx is not significantly faster or slower than a.onnx at 35 steps (95% interval 1.00 to 1.00)." in text
    assert "Next: narrow the interval with --precision 1%" in text


def test_a_slower_model_is_called_slower():
    text = printed(measurement({"a": 1e-3, "b": 3e-3}))
    assert "b.onnx ran 3.0x slower than a.onnx at 35 steps (95% interval 3.0 to 3.0)." in text
    assert "Next: ship a.onnx; none of the others is faster." in text


def test_a_model_alone_is_told_its_time_and_how_to_compare_it():
    text = printed(measurement({"a": 1e-3}))
    assert "a.onnx took 1.00 ms at 35 steps." in text
    assert "toolchain bench OTHER --baseline a.onnx" in text


def test_unstable_processes_are_warned_about_with_a_remedy():
    factors = (1.0, 1.0, 1.25, 1.0, 1.0, 1.0, 1.0, 1.0)
    text = printed(measurement({"a": 1e-3, "b": 1e-3}, factors=factors))
    assert "medians of fresh processes differ by 25% (2 of 2 rows: above 10%)" in text
    assert "use --precision 2%." in text
    assert "differ by" not in printed(measurement({"a": 1e-3, "b": 1e-3}))


def test_a_cold_model_and_too_few_processes_are_warned_about():
    text = printed(measurement({"a": 1e-3, "b": 1e-3}, warm=False, processes=4))
    assert "still getting faster after 1 s of warm-up (2 of 2 rows)" in text
    assert "fewer than 5 processes cannot carry a 95% interval" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0000213, "0.0213"), (0.0023, "2.30"), (0.144, "144"), (1.5, "1500"), (0.0, "0.00")],
)
def test_milliseconds_have_three_digits_and_no_exponent(seconds, text):
    assert table.milliseconds(seconds) == text


def test_both_ends_of_an_interval_have_the_same_decimals():
    texts = [table._interval(low, high) for low, high in ((0.954, 2.1), (8.71, 21.4), (28.3, 33.1))]
    assert texts == ["0.95 to 2.10", "8.7 to 21.4", "28 to 33"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("long-runs/model.shrunk.onnx", "model.shrunk.onnx"),
        ("/home/me/runs/a/model.onnx", "me/runs/a/model.onnx"),
        ("runs/a-very-long-name-of-a-model.shrunk.onnx", "a-very-lon…el.shrunk"),
        ("runs/model.onnx (shrunk-int8)", "model (shrunk-int8)"),
        ("model.shrunk.onnx (openvino)", "mode…runk (openvino)"),
        ("model.shrunk.onnx (torch-compile)", "mo…k (torch-compile)"),
    ],
)
def test_a_long_name_keeps_its_ends_the_folders_that_fit_and_what_was_added(name, shown):
    assert table.short_name(name) == shown
    assert len(shown) <= table.NAME_WIDTH


def test_the_baseline_is_1x_itself_and_not_significant():
    baseline, other = report.build_rows(measurement({"a": 2e-3, "b": 1e-3}))
    assert (baseline["speedup"], baseline["speedup_low"], baseline["speedup_high"]) == (1.0, 1.0, 1.0)
    assert (baseline["significant"], other["significant"]) == (False, True)
    assert (baseline["baseline"], other["baseline"]) == ("a.onnx", "a.onnx")


def test_the_json_has_every_promised_field_and_samples_that_give_its_statistics(tmp_path):
    rows = report.build_rows(measurement({"a": 2e-3, "b": 1e-3}, factors=np.linspace(1, 1.05, 8)))
    report.write_json(tmp_path / "r.json", {"cpu_model": "x"}, rows)
    document = json.loads((tmp_path / "r.json").read_text())
    assert set(document) == {"schema", "machine", "rows"}
    assert document["schema"] == 1
    promised = """model baseline device method threads steps batch p50_s p90_s p99_s samples_s speedup
        speedup_low speedup_high significant tokens_per_s file_bytes parameters peak_rss_bytes load_s
        first_s seed"""
    for row in document["rows"]:
        assert set(promised.split()) <= set(row)
        assert row["method"] == "measured"
        assert len(row["samples_s"]) == 8
        samples = np.concatenate(row["samples_s"])
        np.testing.assert_array_equal(np.percentile(samples, [50, 90, 99]), [row[f"p{n}_s"] for n in (50, 90, 99)])
        assert [sum(lengths) for lengths in row["rounds"]] == [len(process) for process in row["samples_s"]]
    assert list(tmp_path.iterdir()) == [tmp_path / "r.json"]


def test_the_csv_holds_the_rows_without_samples(tmp_path):
    rows = report.build_rows(measurement({"a": 2e-3, "b": 1e-3}))
    report.write_csv(tmp_path / "r.csv", rows)
    frame = pd.read_csv(tmp_path / "r.csv")
    assert list(frame.speedup) == [1.0, 2.0]
    assert list(frame.model) == ["a.onnx", "b.onnx"]
    assert not {"samples_s", "rounds"} & set(frame.columns)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "r.json").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputError, match=r"r\.json: cannot be written \(No space left on device\)"):
        report.write_json(tmp_path / "r.json", {}, [])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_places_that_cannot_be_written_are_found_before_measuring(tmp_path):
    with pytest.raises(OutputError, match="is a folder"):
        report.check_writable(tmp_path)
    with pytest.raises(OutputError, match="does not exist"):
        report.check_writable(tmp_path / "none" / "r.json")


def test_the_runners_json_becomes_arrays_per_round():
    plan = measurement({"a": 1.0}).plan
    run = {"case": 0, "member": 0, "process": 0, "load_s": 1, "first_s": 2, "warm_up_s": 3, "warm": True,
           "peak_rss_bytes": 5, "idle_rss_bytes": 4, "rounds_s": [[0.5, 0.25], [1.0]]}  # fmt: skip
    read = read_result(plan, {"machine": {"cpus": 2}, "runs": [run]})
    assert read.machine == {"cpus": 2}
    assert [samples.tolist() for samples in read.of(0, 0)[0].rounds] == [[0.5, 0.25], [1.0]]


def test_which_models_are_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    a, b, c = Path("a.onnx"), Path("b.onnx"), Path("c.shrunk.onnx")
    assert choose_models([], None) == (Path("model.onnx"), Path("model.shrunk.onnx"))
    assert choose_models([], a) == (a, Path("model.shrunk.onnx"))
    assert choose_models([a], None) == (a,)
    assert choose_models([a, b, a], None) == (a, b)
    assert choose_models([a, b], b) == (b, a)
    assert choose_models([a], a) == (a, a)  # a model against itself: what this machine calls equal
    assert choose_models([c], None) == (c,)
    Path("c.onnx").touch()
    assert choose_models([c], None) == (Path("c.onnx"), c)
