"""The command line of inspect: what it prints, the JSON, the exit codes, and what it does not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
from graphs import layer_with_head, unrolled_rnn

from toolchain.inspection import inspect


def run_inspect(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolchain", "inspect", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_a_fine_model_is_said_to_be_fine_with_the_next_step(tmp_path: Path) -> None:
    layer_with_head(tmp_path / "model.onnx")
    done = run_inspect("model.onnx", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"model.onnx  {(tmp_path / 'model.onnx').stat().st_size:,} bytes"
    assert "producer   not named" in lines
    assert "opset      ai.onnx 17, com.microsoft 1" in lines
    assert "input      X [T, B, 5] float" in lines
    assert "output     Z [?, ?, ?] float" in lines
    assert "nodes      4, of which recurrent: 1" in lines
    row = next(line for line in lines if "LSTM layer" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        *("LSTM layer", "forward", "5", "8"),
        *("480 (95%)", "416 (95%)"),
    ]
    assert lines[-2:] == [
        "Diagnosis: fine; none of the known ills.",
        "Next: toolchain shrink model.onnx --dry-run --explain",
    ]


def test_an_ill_is_one_line_with_its_remedy_and_exits_0(tmp_path: Path) -> None:
    unrolled_rnn(tmp_path / "model.onnx", steps=4)
    done = run_inspect("model.onnx", cwd=tmp_path)
    assert done.returncode == 0
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("  warning  "))
    assert line.startswith("  warning  node 'step0': the recurrence is one matrix applied to its own result")
    assert "Export nn.LSTM, nn.GRU or nn.RNN as one node" in line
    assert done.stdout.splitlines()[-1] == "Next: export the recurrence as one node, then inspect the new file."


def test_a_model_with_an_error_is_not_sent_to_shrink(tmp_path: Path) -> None:
    model = onnx.load(layer_with_head(tmp_path / "model.onnx"))
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("layout", 1))
    onnx.save(model, tmp_path / "model.onnx")
    done = run_inspect("model.onnx", cwd=tmp_path)
    assert "  error    LSTM 'layer': it has layout=1" in done.stdout
    assert done.stdout.splitlines()[-1] == "Next: correct the errors, then inspect the new file."


def test_a_model_without_recurrence_is_told_so(tmp_path: Path) -> None:
    unrolled_rnn(tmp_path / "model.onnx", steps=1)
    done = run_inspect("model.onnx", cwd=tmp_path)
    assert "Diagnosis: no recurrence was found." in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Next: nothing; ")


def test_the_json_is_the_inspection(tmp_path: Path) -> None:
    layer_with_head(tmp_path / "model.onnx")
    assert run_inspect("model.onnx", "--json", "i.json", cwd=tmp_path).returncode == 0
    content = json.loads((tmp_path / "i.json").read_text())
    expected = json.loads(json.dumps(inspect(tmp_path / "model.onnx").to_json()))
    assert content == {**expected, "path": "model.onnx"}
    assert content["schema"] == 1
    assert content["recurrent"][0]["hidden_size"] == 8
    assert content["inputs"] == [{"name": "X", "dtype": "float", "shape": ["T", "B", 5]}]


def test_an_error_is_one_line_exits_1_and_is_in_the_json(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08")
    done = run_inspect("model.onnx", "--json", "i.json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: model.onnx: ")
    assert done.stderr.count("\n") == 1
    assert json.loads((tmp_path / "i.json").read_text())["message"] in done.stderr


def test_wrong_usage_exits_2(tmp_path: Path) -> None:
    assert run_inspect(cwd=tmp_path).returncode == 2


def test_inspecting_imports_no_heavy_library(tmp_path: Path) -> None:
    layer_with_head(tmp_path / "model.onnx")
    probe = (
        "import sys\nfrom click.testing import CliRunner\nfrom toolchain.cli import cli\n"
        "assert CliRunner().invoke(cli, ['inspect', 'model.onnx']).exit_code == 0\n"
        "print(sorted({'torch', 'onnxsim', 'onnxruntime', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
