from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from toolchain.cli import cli
from toolchain.errors import MissingExtraError, ModelFileError, RecipeError, TrainingError

SMALL = """
[data]
corpus = "text"
[model]
embedding_size = 10
hidden_sizes = [12, 9]
[optim]
learning_rate = 0.02
epochs = 4
batch_size = 4
steps = 10
clip_norm = 1.0
[gates]
keep = 0.3
learning_rate = 0.2
[run]
threads = 1
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder but for a text and a recipe."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    words = [f"w{'abcdefghijkl'[i % 12 if random.random() < 0.9 else random.integers(12)]}" for i in range(2400)]
    (tmp_path / "words.txt").write_text(" ".join(words))
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(cli, ["train", *arguments])


def start(*arguments, launcher=()):
    command = [sys.executable, "-m", *launcher, "toolchain", "train", *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def metrics(run):
    with open(f"runs/{run}/metrics.csv") as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_s")} for row in csv.DictReader(file)]


def test_a_run_writes_its_folder_and_the_model_and_names_the_next_command(folder):
    process = start("small.toml", "--text", "words.txt", "--seed", "3")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")  # and no warning of any exporter
    assert sorted(os.listdir("runs/small")) == [
        *("checkpoint.safetensors", "gates.csv", "metrics.csv", "model.onnx", "recipe.toml", "result.json"),
        "vocabulary.txt",
    ]
    assert (folder / "model.onnx").read_bytes() == (folder / "runs/small/model.onnx").read_bytes()
    assert out.rstrip().endswith("next: toolchain shrink model.onnx")
    assert "seed = 3" in (folder / "runs/small/recipe.toml").read_text()
    assert (folder / "runs/small/vocabulary.txt").read_text().split()[0] == "<unk>"
    result = json.loads((folder / "runs/small/result.json").read_text())
    assert f"test perplexity  {result['perplexity']:.3f} in PyTorch, {result['onnx_perplexity']:.3f} in ONNX" in out
    assert abs(result["share"] - 0.3) < 0.03
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_an_interrupted_run_says_how_to_go_on_and_ends_with_the_same_numbers(folder):
    recipe = ("small.toml", "--text", "words.txt", "--set", "optim.epochs=40")
    process = start(*recipe, "--name", "parts")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch  3"):
            process.send_signal(signal.SIGINT)
            break
    rest, err = process.communicate()
    assert (process.returncode, err) == (130, "")
    assert "Go on with: toolchain train --resume runs/parts" in rest
    assert not (folder / "model.onnx").exists()
    stopped = (folder / "runs/parts/checkpoint.safetensors").read_bytes()
    early = invoke("--resume", "runs/parts", "--as-is", "-o", "early.onnx")
    assert early.exit_code == 0, early.output
    assert re.search(r"runs/parts +stays after update \d+ of \d+: toolchain train --resume runs/parts", early.output)
    assert early.output.rstrip().endswith("next: toolchain shrink early.onnx")
    assert not {"model.onnx", "result.json"} & set(os.listdir("runs/parts"))
    assert (folder / "runs/parts/checkpoint.safetensors").read_bytes() == stopped
    for arguments in (("--resume", "runs/parts", "-o", "parts.onnx"), (*recipe, "--name", "whole", "-o", "whole.onnx")):
        process = start(*arguments)
        assert (process.communicate()[1], process.returncode) == ("", 0)
    assert len(metrics("whole")) == 40
    assert metrics("parts") == metrics("whole")
    assert (folder / "parts.onnx").read_bytes() == (folder / "whole.onnx").read_bytes()


def test_two_processes_reach_the_perplexity_of_one(folder):
    # `--cpu` would start one process only; `--multi_gpu` means "several on this machine", GPUs or not.
    launch = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m")  # fmt: skip
    process = start("small.toml", "--text", "words.txt", "--name", "two", launcher=launch)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "in 2 processes" in out
    assert out.count("next: toolchain shrink") == 1
    assert invoke("small.toml", "--text", "words.txt", "--name", "one").exit_code == 0
    one, two = (float(metrics(name)[-1]["valid_perplexity"]) for name in ("one", "two"))
    assert two == pytest.approx(one, rel=0.03)
    assert sorted(os.listdir("runs")) == ["one", "two"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--keep", "0"),
        ("--keep", "1"),
        ("--keep", "much"),
        ("--l0-weight", "-1"),
        ("--keep", "0.2", "--l0-weight", "1"),
        ("--method", "magic"),
        ("--seed", "-1"),
        ("--threads", "0"),
        ("--data", "gone"),
        ("--resume", "gone"),
        ("--resume", ".", "--seed", "1"),
        ("--as-is",),
        ("--resume", ".", "pydocs"),
        ("--name", "../x"),
        ("--name", ".."),
        ("--from", "m.onnx", "--resume", "."),
        ("small.toml", "--method", "iss", "--keep", "0.2"),
        ("small.toml", "--method", "dense", "--keep", "0.2"),
        ("small.toml", "--method", "iss", "--l0-weight", "1"),
        ("small.toml", "--method", "direct"),
        ("small.toml", "--method", "iss", "--like", "m.onnx"),
        ("small.toml", "--like", "m.onnx", "--from", "x.onnx"),
        ("--from", "m.onnx", "-o", "./m.onnx"),
        ("--from", "model.onnx"),
        ("--from", "m.onnx", "--set", "model.hidden_sizes=[3, 3]"),
    ],
)
def test_an_option_out_of_range_is_wrong_usage(folder, arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("small.tml",), RecipeError, "small.tml: no such recipe"),
        (("small.toml", "--set", "optim.epoch=3"), RecipeError, r"optim.epoch: no such key.*Did you mean epochs\?"),
        (("small.toml", "--set", "optim.epochs"), RecipeError, "expected section.key=value"),
        (("small.toml", "--from", "gone.onnx"), ModelFileError, "gone.onnx: no such file; expected an ONNX model"),
        (("small.toml", "--like", "gone.onnx"), ModelFileError, "gone.onnx: no such file; expected an ONNX model"),
        (("small.toml", "--like", "runs/taken"), TrainingError, "checkpoint.safetensors: no readable checkpoint"),
        (("small.toml", "--method", "magnitude", "--l0-weight", "1"), RecipeError, "gates.keep: missing; expected the"),
        (("--resume", "."), RecipeError, "recipe.toml: no such recipe"),
        (("small.toml", "--text", "words.txt", "--name", "taken"), TrainingError, "taken: exists already"),
    ],
)
def test_a_wrong_recipe_or_folder_is_an_error_of_one_line(folder, arguments, error, message):
    (folder / "runs" / "taken").mkdir(parents=True)
    result = invoke(*arguments)
    assert isinstance(result.exception, error)
    assert "\n" not in str(result.exception)
    with pytest.raises(error, match=message):
        raise result.exception


def test_a_run_that_its_network_refuses_leaves_no_folder_and_its_name_free(folder):
    arguments = ["small.toml", "--text", "words.txt", "--name", "a", "--set", "optim.epochs=1"]
    result = invoke(*arguments, "--set", "gates.sites=input", "--keep", "0.01")
    assert isinstance(result.exception, TrainingError)
    assert "gates.keep: 0.01 of the multiply-adds; expected at least" in str(result.exception)
    assert not (folder / "runs" / "a").exists()
    assert invoke(*arguments).exit_code == 0


def test_the_error_is_one_line_without_traceback(folder):
    process = start("small.toml", "--text", "gone.txt")
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("package", ["torch", "accelerate", "safetensors"])
def test_a_missing_extra_names_the_command_that_installs_it(folder, monkeypatch, package):
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else real(name))
    result = invoke("small.toml")
    assert isinstance(result.exception, MissingExtraError)
    assert f"{package}: not installed" in str(result.exception)
    assert "rnn-toolchain[train]" in str(result.exception)


def test_choosing_a_price_drops_the_recipes_share_and_the_other_way_round(folder):
    assert invoke("small.toml", "--text", "words.txt", "--l0-weight", "0.5", "--set", "optim.epochs=1").exit_code == 0
    resolved = (folder / "runs/small/recipe.toml").read_text()
    assert "l0_weight = 0.5" in resolved
    assert "keep" not in resolved.replace("initial_keep", "")


def test_a_resumed_run_refuses_another_text(folder):
    assert invoke("small.toml", "--text", "words.txt", "--set", "optim.epochs=1").exit_code == 0
    (folder / "words.txt").write_text("some other words " * 300)
    result = invoke("--resume", "runs/small")
    assert isinstance(result.exception, TrainingError)
    assert "expected the same vocabulary" in str(result.exception)


def test_a_run_goes_on_from_a_shrunk_model_densely_and_says_what_it_rebuilt(folder):
    assert invoke("small.toml", "--text", "words.txt").exit_code == 0
    assert CliRunner().invoke(cli, ["shrink", "model.onnx"]).exit_code == 0
    again = ("small.toml", "--text", "words.txt", "--from", "model.shrunk.onnx", "--set", "optim.epochs=2", "-o")
    result = invoke(*again, "tuned.onnx", "--name", "tuned")
    assert result.exit_code == 0
    first, second, *_ = result.output.splitlines()
    pattern = (
        r"from model.shrunk.onnx: embedding (\d+), LSTM (\d+) \+ (\d+); perplexity (\S+) in ONNX Runtime, "
        r"(\S+) in the rebuilt network \(\S+ apart; first [\d,]+ words of the validation text\)"
    )
    found = re.fullmatch(pattern, first)
    assert found is not None, first
    embedding, one, other, onnx_perplexity, torch_perplexity = found.groups()
    assert onnx_perplexity == torch_perplexity
    assert (
        second == f"the exported model carries a state of {one} + {other} units, where model.shrunk.onnx takes 12 + 9"
    )
    resolved = (folder / "runs/tuned/recipe.toml").read_text()
    assert "# started from model.shrunk.onnx" in resolved
    assert f"embedding_size = {embedding}\nhidden_sizes = [{one}, {other}]" in resolved
    assert 'method = "dense"' in resolved
    assert len(metrics("tuned")) == 2
    (folder / "tuned.onnx").unlink()
    assert invoke("--resume", "runs/tuned", "-o", "tuned.onnx").exit_code == 0  # the folder alone is enough
    assert (folder / "tuned.onnx").read_bytes() == (folder / "runs/tuned/model.onnx").read_bytes()


def test_a_share_to_keep_makes_the_continued_run_select_neurons_again(folder):
    assert invoke("small.toml", "--text", "words.txt", "--method", "dense", "--set", "optim.epochs=1").exit_code == 0
    again = ("small.toml", "--text", "words.txt", "--from", "model.onnx", "--keep", "0.5", "-o", "narrow.onnx")
    assert invoke(*again, "--name", "narrow").exit_code == 0
    assert 'method = "neuron-selection"' in (folder / "runs/narrow/recipe.toml").read_text()
    assert abs(json.loads((folder / "runs/narrow/result.json").read_text())["share"] - 0.5) < 0.05


def test_direct_trains_the_pruned_sizes_from_scratch_as_the_file_or_the_run_has_them(folder):
    assert invoke("small.toml", "--text", "words.txt").exit_code == 0
    assert CliRunner().invoke(cli, ["shrink", "model.onnx"]).exit_code == 0
    direct = ("small.toml", "--text", "words.txt", "--set", "gates.dropout=0.1", "--set", "optim.epochs=1",
              "--set", "model.hidden_dropout=0.3")  # fmt: skip
    assert invoke(*direct, "--like", "model.shrunk.onnx", "--name", "file", "-o", "file.onnx").exit_code == 0
    assert invoke(*direct, "--like", "runs/small", "--name", "run", "-o", "run.onnx").exit_code == 0
    recipes = [(folder / f"runs/{name}/recipe.toml").read_text() for name in ("file", "run")]
    assert recipes[0] == recipes[1]
    sizes = re.search(r"embedding_size = (\d+)\nhidden_sizes = \[(\d+), (\d+)\]\ndropout = 0.1", recipes[0])
    embedding, one, other = map(int, sizes.groups())
    share = json.loads((folder / "runs/small/result.json").read_text())["share"]
    macs = 4 * one * (embedding + one) + 4 * other * (one + other)
    assert macs == pytest.approx(share * (4 * 12 * 22 + 4 * 9 * 21))
    assert 'method = "direct"' in recipes[0]
    assert "hidden_dropout" not in recipes[0]
    assert (folder / "file.onnx").read_bytes() == (folder / "run.onnx").read_bytes()
    (folder / "file.onnx").unlink()
    assert invoke("--resume", "runs/file", "-o", "file.onnx").exit_code == 0
    assert (folder / "file.onnx").read_bytes() == (folder / "run.onnx").read_bytes()
