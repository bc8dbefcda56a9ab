"""Files appear complete or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolchain.errors import OutputError
from toolchain.files import write_text, written_whole


def test_a_file_is_written_with_what_was_written_beside_it(tmp_path: Path) -> None:
    with written_whole(tmp_path / "m.onnx") as unfinished:
        unfinished.write_text("model")
        unfinished.with_name("m.data").write_text("weights")
        assert not (tmp_path / "m.onnx").exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"m.onnx": "model", "m.data": "weights"}


@pytest.mark.parametrize("error", [ValueError("wrong"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_the_older_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("older")

    def write() -> None:
        with written_whole(path) as unfinished:
            unfinished.write_text("half")
            raise error

    with pytest.raises((type(error), OutputError)):
        write()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"m.onnx": "older"}


def test_a_full_disk_and_a_missing_folder_are_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as error, written_whole(tmp_path / "m.onnx", remedy="Make room."):
        raise OSError(28, "No space left on device")
    assert str(error.value) == (
        f"{tmp_path}/m.onnx: cannot be written (No space left on device); expected a writable folder with free space. "
        "Make room."
    )
    with pytest.raises(OutputError, match=r"gone/x\.txt: cannot be written \(No such file or directory\); expected"):
        write_text(tmp_path / "gone" / "x.txt", "text")
    with pytest.raises(OutputError, match=r": is a folder; expected the name of a file to write\. Name a file inside"):
        write_text(tmp_path, "text")


def test_a_written_file_can_be_read_by_whom_a_new_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("text")
    write_text(tmp_path / "whole", "text")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode
