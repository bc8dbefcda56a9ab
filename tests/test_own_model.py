"""What docs/your-own-model.md shows runs as it stands: its Python in one program, then its commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import onnx
import torch
from click.testing import CliRunner
from test_vowels import spoken
from toolchain.models import vowels

from toolchain.cli import cli


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.S)


def test_the_worked_example_runs(request, tmp_path, monkeypatch, capsys) -> None:
    """On utterances made up here, so that nothing is downloaded."""
    page = request.config.rootpath / "docs" / "your-own-model.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vowels, "load_vowels", lambda: (spoken(180), spoken(seed=1)))
    torch.set_num_threads(1)
    program = blocks(page, "python")
    exec(compile("\n".join(program), str(page), "exec"), {"__name__": "example"})
    said = capsys.readouterr().out
    assert re.search(r"^speaker \d after \d frames$", said, re.M)
    kept = [int(number) for number in re.search(r"^\[(\d+), (\d+)\]$", said, re.M).groups()]
    quick = {"bench": ["--processes", "2", "--seconds", "0.1"], "shrink": []}
    for line in "".join(blocks(page, "bash")).splitlines():
        _, command, *arguments = shlex.split(line, comments=True)
        done = CliRunner().invoke(cli, [command, *arguments, *quick[command]])
        assert done.exit_code == 0, done.output
    sizes = [attribute.i for node in onnx.load("speaker.shrunk.onnx").graph.node if node.op_type == "GRU"
             for attribute in node.attribute if attribute.name == "hidden_size"]  # fmt: skip
    assert sizes == kept
    assert max(kept) < 128


def test_the_loop_that_is_shown_is_about_twenty_lines(request) -> None:
    (loop,) = [block for block in blocks(request.config.rootpath / "docs" / "your-own-model.md", "python")
               if "def learn" in block]  # fmt: skip
    body = [line for line in loop.splitlines() if line.strip()]
    assert len(body) <= 27
