"""The README's commands exist, with the options it shows."""

from __future__ import annotations

import re
import shlex

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
    for _, name, *arguments in found:
        listing = CliRunner().invoke(cli, [name, "--help"]).output
        for option in (word for word in arguments if word.startswith("-")):
            assert re.search(rf"(^|[\s,]){option}\b", listing), f"toolchain {name} {option}"
