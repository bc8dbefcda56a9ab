"""The command line of shrink: exit codes, JSON, and one line for every error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import layer_with_head, unrolled_rnn
from onnx import helper


def shrink(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolchain", "shrink", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_a_shrunk_model_is_written_with_a_table_and_the_next_step(tmp_path: Path) -> None:
    layer_with_head(tmp_path / "model.onnx")
    done = shrink("model.onnx", "--json", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "8 -> 5" in done.stdout
    assert "Proven equal in ONNX Runtime at 6 input shapes" in done.stdout
    assert done.stdout.rstrip().endswith("Next: toolchain bench --device cpu")
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["schema"] == 1
    assert content["status"] == "written"
    (node,) = content["nodes"]
    assert node["hidden_size"] == {"before": 8, "after": 5}
    assert node["input_size"] == {"before": 5, "after": 5}
    assert (node["name"], node["op_type"], node["blocked_by"]) == ("layer", "LSTM", [])
    assert content["parameters"]["after"] < content["parameters"]["before"]
    assert content["bytes"]["after"] == (tmp_path / "model.shrunk.onnx").stat().st_size
    assert content["parity"]["max_abs_diff"] <= 1e-5
    assert len(content["parity"]["cases"]) == 6


def test_nothing_to_remove_exits_3_and_writes_only_the_json(tmp_path: Path) -> None:
    layer_with_head(tmp_path / "model.onnx", dead=[()])
    done = shrink("model.onnx", "--json", "r.json", cwd=tmp_path)
    assert done.returncode == 3
    assert "Nothing to remove" in done.stdout
    assert json.loads((tmp_path / "r.json").read_text())["status"] == "nothing_to_remove"
    assert not (tmp_path / "model.shrunk.onnx").exists()


def test_a_dry_run_shows_the_sizes_and_writes_no_model(tmp_path: Path) -> None:
    layer_with_head(tmp_path / "model.onnx")
    done = shrink("model.onnx", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert "8 -> 5" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert done.stdout.rstrip().endswith("Next: toolchain shrink model.onnx")


def test_the_next_step_after_a_dry_run_says_the_same_options(tmp_path: Path) -> None:
    layer_with_head(tmp_path / "model.onnx")
    arguments = ("--dry-run", "--explain", "--carried", "auto", "--compact-state", "-o", "s.onnx")
    done = shrink("model.onnx", *arguments, cwd=tmp_path)
    assert done.stdout.rstrip().endswith("Next: toolchain shrink model.onnx --carried auto --compact-state -o s.onnx")


def test_explain_says_what_is_live_and_what_a_blocker_costs(tmp_path: Path) -> None:
    middle = [
        helper.make_node("Transpose", ["Y"], ["T"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["T", "shape"], ["S"]),
        helper.make_node("SampleOp", ["S"], ["M"], domain="com.microsoft", name="gelu"),
    ]
    path = tmp_path / "model.onnx"
    layer_with_head(path, middle=middle, extra={"shape": np.array([0, 0, -1])})
    done = shrink("model.onnx", "--dry-run", "--explain", "--json", "r.json", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "LSTM layer: 8 of 8 units are live, 8 stay" in done.stdout
    assert "coupled with: nothing" in done.stdout
    assert "blocked by SampleOp gelu: no transfer function is known for this operator; how many" in done.stdout
    assert "Nothing to remove: every unit is read, or kept by what is named above." in done.stdout
    (node,) = json.loads((tmp_path / "r.json").read_text())["explanations"]
    assert (node["live"], node["kept"], node["would_free_together"]) == ([8], 8, None)
    (blocker,) = node["blocked_by"]
    assert (blocker["node"], blocker["would_free"]) == ("gelu", None)


def test_without_explain_there_are_no_explanations(tmp_path: Path) -> None:
    layer_with_head(tmp_path / "model.onnx")
    done = shrink("model.onnx", "--dry-run", "--json", "r.json", cwd=tmp_path)
    assert "coupled with" not in done.stdout
    assert json.loads((tmp_path / "r.json").read_text())["explanations"] == []


def test_an_unrolled_recurrence_exits_3_with_what_to_do(tmp_path: Path) -> None:
    unrolled_rnn(tmp_path / "model.onnx", steps=4)
    done = shrink("model.onnx", "--json", "r.json", cwd=tmp_path)
    assert done.returncode == 3
    assert "Nothing to remove: the graph has no LSTM, GRU or RNN node." in done.stdout
    assert "Left whole: one matrix applied to its own result at node 'step0', 4 times. Export nn.LSTM" in done.stdout
    assert json.loads((tmp_path / "r.json").read_text())["unrolled"][0]["count"] == 4


def test_an_error_is_one_line_exits_1_and_is_in_the_json(tmp_path: Path) -> None:
    done = shrink("missing.onnx", "--json", "r.json", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip().count("\n") == 0
    assert done.stderr.startswith("error: missing.onnx: no such file")
    assert json.loads((tmp_path / "r.json").read_text())["status"] == "error"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--carried", "h"), "expected auto, or IN=OUT"),
        (("--carried", "auto", "--carried", "h=hn"), "not both"),
        (("--unknown",), "No such option"),
    ],
)
def test_wrong_usage_exits_2(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    layer_with_head(tmp_path / "model.onnx")
    done = shrink("model.onnx", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_carried_pair_that_does_not_exist_is_named(tmp_path: Path) -> None:
    layer_with_head(tmp_path / "model.onnx")
    done = shrink("model.onnx", "--carried", "h0=hn", cwd=tmp_path)
    assert done.returncode == 1
    assert "carried state h0=hn: the model has no input 'h0'; expected one of X" in done.stderr


def test_help_loads_no_heavy_library() -> None:
    probe = (
        "import sys\nfrom click.testing import CliRunner\nfrom toolchain.cli import cli\n"
        "assert CliRunner().invoke(cli, ['--help']).exit_code == 0\n"
        "assert CliRunner().invoke(cli, ['shrink', '--help']).exit_code == 0\n"
        "print(sorted({'torch', 'onnx', 'onnxsim', 'onnxruntime', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
