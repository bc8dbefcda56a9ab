"""Rows of a result file are found by their key, say where they come from, and never lose a column."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from toolchain.bench.result_file import ORIGIN, origin, read_rows, record_rows, sha256_of

from toolchain.errors import BenchError

FIELDS = ("model", "seed", "ms")


def test_a_row_replaces_the_one_with_its_key_and_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    record_rows(
        path, FIELDS, ("model", "seed"), [{"model": "a", "seed": 0, "ms": 1.23456789}, {"model": "a", "seed": 1}]
    )
    record_rows(path, FIELDS, ("model", "seed"), [{"model": "a", "seed": 0, "ms": 2.0, "note": "of no column"}])
    assert read_rows(path) == [{"model": "a", "seed": "1", "ms": ""}, {"model": "a", "seed": "0", "ms": "2"}]
    assert read_rows(tmp_path / "gone.csv") == []


def test_a_file_with_other_columns_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    record_rows(path, FIELDS, ("model",), [{"model": "a"}])
    before = path.read_bytes()
    with pytest.raises(BenchError, match=r"a.csv: has other columns \(mj, ms\); expected model, seed, mj. Move it"):
        record_rows(path, ("model", "seed", "mj"), ("model",), [{"model": "b"}])
    assert path.read_bytes() == before


def test_a_row_says_by_what_command_it_was_made_without_the_users_folders() -> None:
    row = origin("toolchain.bench.x", ["--data", "/home/me/text", "a b"], folders={"/home/me/text": "FOLDER"})
    assert tuple(row) == ORIGIN
    assert row["command"] == "python -m toolchain.bench.x --data FOLDER 'a b'"
    assert "onnxruntime " in row["versions"]


def test_a_commit_is_marked_where_files_differ_from_it(request: pytest.FixtureRequest) -> None:
    said = origin("m", [])["commit"]
    folder = request.config.rootpath
    command = ["git", "status", "--porcelain", "--untracked-files=no"]
    try:
        changed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        assert said == "unknown"
    else:
        assert said.endswith("+") == bool(changed.strip())


def test_a_files_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")
