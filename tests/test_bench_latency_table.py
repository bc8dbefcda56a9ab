"""The latency table: exact where its assumptions hold, silent about what it did not see."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import bench_models
import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from toolchain.bench.costs import read_costs
from toolchain.bench.kernels import Kernel, kernel_model, stack_model
from toolchain.bench.latency_measurement import Axes, Check, plan_kernels, rows_for, with_checks
from toolchain.bench.latency_table import LatencyTable, Point

from toolchain.cli import cli
from toolchain.errors import BenchError

OVERHEAD_S = 1e-9
METADATA = {"overhead_s": OVERHEAD_S, "threads": 1}


def law(input_size, hidden_size, batch, steps):
    """A power law in every size and a start plus equal steps: what the interpolation must meet exactly."""
    return float(1e-9 * input_size**0.5 * hidden_size**1.7 * batch**0.8 * (3.0 + steps))


def table(**changes):
    points = [
        Point(op_type=op, dtype="float32", num_directions=1, input_size=i, hidden_size=h, batch=b, steps=t,
              seconds=law(i, h, b, t))
        for op, i, h, b, t in product(["LSTM"], [16, 64], [8, 64, 512], [1, 4], [1, 100])
    ]  # fmt: skip
    points += [
        Point(op_type="MatMul", dtype="float32", num_directions=1, input_size=k, hidden_size=n, batch=m, steps=1,
              seconds=law(k, n, m, 1))
        for k, n, m in product([4, 64], [4, 4096], [1, 400])
    ]  # fmt: skip
    return LatencyTable(points, {**METADATA, **changes})


@pytest.mark.parametrize("sizes", [(16, 8, 1, 1), (33, 100, 3, 35), (64, 512, 4, 100), (20, 300, 2, 7)])
def test_a_power_law_with_equal_steps_is_predicted_exactly(sizes):
    i, h, b, t = sizes
    expected = law(i, h, b, t) - OVERHEAD_S
    assert table().predict_s("LSTM", i, h, 1, b, t) == pytest.approx(expected, rel=1e-9)


def test_a_matrix_depends_on_its_rows_alone():
    found = table()
    expected = law(30, 1000, 60, 1) - OVERHEAD_S
    assert found.predict_s("MatMul", 30, 1000, 1, 3, 20) == pytest.approx(expected, rel=1e-9)
    assert found.predict_s("MatMul", 30, 1000, 1, 60, 1) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("LSTM", 128, 64, 1, 1, 1),
            "LSTM 128 -> 64: input_size 128 lies outside the latency table; expected 16 to ",
        ),
        (("LSTM", 64, 7, 1, 1, 1), "hidden_size 7 lies outside the latency table; expected 8 to 512"),
        (("LSTM", 64, 64, 1, 5, 1), "batch 5 lies outside"),
        (("LSTM", 64, 64, 1, 1, 101), "steps 101 lies outside"),
        (("MatMul", 64, 64, 1, 20, 21), "rows 420 lies outside the latency table; expected 1 to 400"),
        (("GRU", 64, 64, 1, 1, 1), "GRU float32 x 1: is not in the latency table; expected one of: LSTM float32 x 1, "),
        (("LSTM", 64, 64, 2, 1, 1), "LSTM float32 x 2: is not in the latency table"),
    ],
)
def test_what_was_not_measured_is_not_predicted(arguments, text):
    with pytest.raises(BenchError) as caught:
        table().predict_s(*arguments)
    assert text in str(caught.value)


def test_a_model_is_the_sum_of_its_nodes_and_one_overhead(tmp_path):
    path = bench_models.lstm(tmp_path / "m.onnx", hidden=16, inputs=16, shape=("s0", "s1", 16))
    found = table()
    expected = OVERHEAD_S + found.predict_s("LSTM", 16, 16, 1, 2, 5)
    assert found.predict_model_s(path, steps=5, batch=2) == pytest.approx(expected, rel=1e-12)
    prediction = found.predict(read_costs(path, {"X": (5, 2, 16)}))
    assert [name for name, _ in prediction.layers] == ["recurrent"]
    assert prediction.left_out == ()


def test_the_file_holds_the_same_table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(table(cpu_model="X1").to_csv())
    loaded = LatencyTable.load(path)
    assert loaded.points == table().points
    assert loaded.metadata["cpu_model"] == "X1"
    assert loaded.hull("LSTM", "float32", 1) == {
        "input_size": (16, 64), "hidden_size": (8, 512), "batch": (1, 4), "steps": (1, 100)
    }  # fmt: skip


def test_a_hole_in_the_grid_is_refused():
    points = table().points[1:]
    with pytest.raises(BenchError, match=r"LSTM lacks input_size 16, hidden_size 8, batch 1, steps 1; expected every"):
        LatencyTable(points, METADATA)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", '# {"schema": 9}\nx\n', '# {"schema": 1}\nop_type\n'])
def test_a_file_that_is_no_table_is_refused(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(BenchError) as caught:
        LatencyTable.load(path)
    assert "Measure it again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_loads_without_torch_pandas_and_onnxruntime():
    code = (
        "import sys, toolchain.bench.latency_table\n"
        "print(sorted({'torch', 'pandas', 'onnxruntime', 'onnxsim'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_combination_is_planned_and_int8_only_where_onnx_runtime_has_it():
    axes = Axes(input_sizes=(8,), hidden_sizes=(4, 8), batches=(1,), steps=(1, 9), columns=(16,), rows=(1, 9))
    planned = plan_kernels(axes)
    kinds = [(kernel.op_type, kernel.dtype, kernel.num_directions) for kernel, _ in planned]
    assert kinds.count(("GRU", "float32", 2)) == 2
    assert kinds.count(("DynamicQuantizeLSTM", "int8", 1)) == 2
    assert {kind[0] for kind in kinds if kind[1] == "int8"} == {"DynamicQuantizeLSTM", "MatMul"}
    assert {shapes for kernel, shapes in planned if kernel.op_type == "MatMul"} == {((1, 1), (9, 1))}


def test_rows_of_matrices_reach_from_one_to_all():
    assert rows_for((1, 16), (1, 100))[0] == 1
    assert rows_for((1, 16), (1, 100))[-1] == 1600
    assert rows_for((1,), (1,)) == (1,)


@pytest.mark.parametrize(
    ("op_type", "dtype", "D"),
    [("LSTM", "float32", 2), ("GRU", "float32", 1), ("RNN", "float32", 2), ("DynamicQuantizeLSTM", "int8", 1),
     ("MatMul", "float32", 1), ("MatMul", "int8", 1), ("Identity", "float32", 1)],
)  # fmt: skip
def test_each_kernel_is_a_model_that_runs(op_type, dtype, D):
    kernel = Kernel(op_type=op_type, dtype=dtype, num_directions=D, input_size=6, hidden_size=8)
    session = onnxruntime.InferenceSession(kernel_model(kernel, seed=0), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"X": np.ones((3, 2, 6), np.float32)})
    assert result.shape == (3, 2, 6 if op_type == "Identity" else 8 * D)
    assert np.isfinite(result).all()


def test_a_stack_is_made_of_the_layers_asked_for(tmp_path):
    layers = [Kernel(op_type="GRU", num_directions=2, input_size=5, hidden_size=4),
              Kernel(op_type="GRU", num_directions=2, input_size=8, hidden_size=3)]  # fmt: skip
    import onnx

    onnx.save(stack_model(layers, output_size=7, seed=0), tmp_path / "m.onnx")
    found = read_costs(tmp_path / "m.onnx", {"X": (3, 2, 5)}).layers
    assert [(layer.input_size, layer.hidden_size or layer.output_size) for layer in found] == [(5, 4), (8, 3), (6, 7)]


def test_errors_stay_with_the_table():
    checks = [Check(model="m", batch=1, steps=1, predicted_s=p, measured_s=1.0) for p in (0.9, 1.02, 1.3)]
    found = with_checks(table(), checks).metadata["validation"]
    assert found["median_error"] == pytest.approx(0.1)
    assert found["worst_error"] == pytest.approx(0.3)
    assert found["models"][0]["error"] == pytest.approx(-0.1)


def test_the_command_measures_writes_and_checks_a_table(tmp_path):
    path = tmp_path / "t.csv"
    small = ["--ops", "LSTM", "--dtypes", "float32", "--directions", "1", "--input", "8,16", "--hidden", "8,16",
             "--output-size", "8,16", "--batch", "1", "--steps", "1,4", "--processes", "1"]  # fmt: skip
    result = CliRunner().invoke(cli, ["bench", "table", "-o", str(path), *small, "--validate", "2"])
    assert result.exit_code == 0, result.output
    assert "Error of the predictions: median " in result.output
    loaded = LatencyTable.load(path)
    assert len(loaded.points) == 2 * 2 * 2 + 2 * 2 * 2
    assert 1e-7 < loaded.overhead_s < 1e-2
    assert len(loaded.metadata["validation"]["models"]) == 2
    assert loaded.predict_s("LSTM", 12, 12, 1, 1, 2) > 0
