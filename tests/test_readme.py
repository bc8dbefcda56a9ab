"""The README's commands exist, with the options it shows."""

from __future__ import annotations

import re
import shlex

import click
import pytest
from click.testing import CliRunner

from toolchain.cli import cli


def commands(text: str) -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("toolchain ")]


def test_every_command_shown_is_understood(request: pytest.FixtureRequest) -> None:
    found = commands((request.config.rootpath / "README.md").read_text())
    assert {words[1] for words in found} >= {"train", "shrink", "bench"}
    for _, *words in found:
        name, arguments = split(words)
        listing = CliRunner().invoke(cli, [*name, "--help"]).output
        for option in (word for word in arguments if word.startswith("-")):
            assert re.search(rf"(^|[\s,]){option}\b", listing), f"toolchain {' '.join(name)} {option}"


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words of a command, two where there is such a command, and its arguments."""
    number = 2 if cli.get_command(click.Context(cli), " ".join(words[:2])) else 1
    return words[:number], words[number:]


def test_a_command_of_two_words_is_looked_up_as_one() -> None:
    assert split(["bench", "compare", "a.json", "--seed", "1"]) == (["bench", "compare"], ["a.json", "--seed", "1"])
    assert split(["bench", "model.onnx", "--seed", "1"]) == (["bench"], ["model.onnx", "--seed", "1"])
