"""Weights beside the model: mapped while they are looked at, never written over, never half replaced."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from graphs import layer_with_head, recurrent_shapes, run

import toolchain
from toolchain import shrinking
from toolchain.cli import cli
from toolchain.errors import OutputError
from toolchain.graph import loading, saving
from toolchain.graph.loading import load_model

FEEDS = {"X": np.random.default_rng(3).standard_normal((6, 2, 5)).astype(np.float32)}
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write a model whose weights lie in `weights.bin`, in a folder of its own."""
    inside = onnx.load(layer_with_head(tmp_path / "inside.onnx"))
    (tmp_path / "inside.onnx").unlink()
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "m.onnx"
    onnx.save(inside, path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    return path


@pytest.fixture
def outgrown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every model too large for one file."""
    monkeypatch.setattr(loading, "MAX_EMBEDDED_BYTES", 100)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def locations(path: Path) -> set[str]:
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}


def assert_shrunk(source: Path, output: Path) -> None:
    loaded = onnx.load(output)  # fails where an offset or a length is wrong
    onnx.checker.check_model(loaded, full_check=True)
    assert recurrent_shapes(output) == [(5, 5)]
    np.testing.assert_allclose(run(output, FEEDS)["Z"], run(source, FEEDS)["Z"], atol=1e-6)


def is_mapped(file: Path) -> bool:
    return str(file.resolve()) in Path("/proc/self/maps").read_text()


@linux
def test_weights_are_mapped_while_an_array_of_them_lives_and_no_longer(source: Path) -> None:
    model, _ = load_model(source)
    tensor = model.graph.initializers["W"].const_value
    assert tensor is not None
    weights = source.parent / "weights.bin"
    assert not is_mapped(weights)
    array = tensor.numpy()
    assert is_mapped(weights)
    assert not array.flags.owndata
    del array
    assert not is_mapped(weights)


@linux
def test_when_the_proof_begins_neither_model_is_in_memory(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shrinking.prove
    gc.collect()
    held_before = sum(isinstance(thing, ir.Model) for thing in gc.get_objects())

    def look(*arguments: object, **options: object) -> object:
        assert sum(isinstance(thing, ir.Model) for thing in gc.get_objects()) == held_before
        assert not is_mapped(source.parent / "weights.bin")
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shrinking, "prove", look)
    assert toolchain.shrink(source).status == "written"


@pytest.mark.usefixtures("outgrown")
def test_a_result_too_large_for_one_file_gets_a_weights_file_of_its_own(source: Path) -> None:
    before = contents(source.parent)
    result = toolchain.shrink(source)
    assert result.output is not None
    assert locations(result.output) == {"m.shrunk.onnx.data"}
    assert_shrunk(source, result.output)
    files = [result.output, source.parent / "m.shrunk.onnx.data"]
    assert result.after.bytes == sum(file.stat().st_size for file in files)
    assert before.items() <= contents(source.parent).items()
    assert len(contents(source.parent)) == len(before) + 2


def test_a_result_in_another_folder_brings_all_its_weights(source: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    toolchain.shrink(source, tmp_path / "elsewhere" / "out.onnx")
    assert list(contents(tmp_path / "elsewhere")) == ["out.onnx"]
    assert_shrunk(source, tmp_path / "elsewhere" / "out.onnx")


@pytest.mark.usefixtures("outgrown")
def test_a_weights_file_of_another_model_is_never_written_over(tmp_path: Path) -> None:
    inside = onnx.load(layer_with_head(tmp_path / "inside.onnx"))
    source = tmp_path / "m.onnx"
    onnx.save(inside, source, save_as_external_data=True, location="out.onnx.data", size_threshold=100)
    weights = (tmp_path / "out.onnx.data").read_bytes()
    toolchain.shrink(source, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == weights
    assert locations(tmp_path / "out.onnx") == {"out.onnx.1.data"}
    assert_shrunk(source, tmp_path / "out.onnx")


@pytest.mark.usefixtures("outgrown")
def test_writing_again_replaces_the_model_and_drops_the_weights_that_it_had(source: Path) -> None:
    for names in ({"m.shrunk.onnx.data"}, {"m.shrunk.onnx.1.data"}, {"m.shrunk.onnx.data"}):
        result = toolchain.shrink(source)
        assert result.output is not None
        assert locations(result.output) == names
        assert set(contents(source.parent)) == {"m.onnx", "weights.bin", "m.shrunk.onnx", *names}
    assert_shrunk(source, result.output)


def test_the_weights_file_of_the_input_is_no_place_for_the_output(source: Path) -> None:
    before = contents(source.parent)
    for options in ({"output": source.parent / "weights.bin"}, {"masked": source.parent / "weights.bin"}):
        with pytest.raises(OutputError, match=r"weights\.bin: holds weights of the model to shrink; expected another"):
            toolchain.shrink(source, **options)  # type: ignore[arg-type]
    assert contents(source.parent) == before


def test_results_do_not_replace_the_input_whatever_it_is_called(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    Path("link.onnx").symlink_to("m.onnx")
    before = contents(source.parent)
    for model, output in (("m.onnx", "./m.onnx"), ("link.onnx", "m.onnx"), ("m.onnx", "link.onnx"),
                          ("../models/m.onnx", "m.onnx")):  # fmt: skip
        with pytest.raises(OutputError, match="is the model to shrink; expected another file"):
            toolchain.shrink(model, output)
    with pytest.raises(OutputError, match=r"x\.onnx: is to hold both results; expected a file for each"):
        toolchain.shrink("m.onnx", "x.onnx", masked="./x.onnx")
    assert contents(source.parent) == before


@pytest.mark.parametrize("command", ["shrink", "inspect"])
def test_json_does_not_replace_a_model(source: Path, command: str) -> None:
    before = contents(source.parent)
    done = CliRunner().invoke(cli, [command, str(source), "--json", str(source)])
    assert str(done.exception) == (
        f"{source}: is a model; expected a file of its own for the JSON. Choose another with --json."
    )
    assert contents(source.parent) == before


def test_json_does_not_replace_the_result(source: Path) -> None:
    result = source.parent / "m.shrunk.onnx"
    done = CliRunner().invoke(cli, ["shrink", str(source), "--json", str(result)])
    assert isinstance(done.exception, OutputError)
    assert not result.exists()


def test_a_linked_model_is_read_where_the_link_and_its_weights_lead_to(source: Path, tmp_path: Path) -> None:
    """A cache of downloads keeps files under their digests, and links with their names elsewhere."""
    links = tmp_path / "links"
    links.mkdir()
    for name in ("m.onnx", "weights.bin"):
        (links / name).symlink_to(source.parent / name)
    result = toolchain.shrink(links / "m.onnx")
    assert result.output == links / "m.shrunk.onnx"
    assert_shrunk(source, links / "m.shrunk.onnx")
    assert set(contents(source.parent)) == {"m.onnx", "weights.bin"}


def test_weights_with_a_second_name_are_read(source: Path, tmp_path: Path) -> None:
    os.link(source.parent / "weights.bin", tmp_path / "same.bin")
    assert toolchain.shrink(source).status == "written"


def test_relative_paths_are_taken_from_the_working_folder(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent.parent)
    result = toolchain.shrink("models/m.onnx", "out.onnx")
    assert result.output == Path("out.onnx")
    assert_shrunk(source, source.parent.parent / "out.onnx")


_KILLED = """
import os, signal, sys
from toolchain.graph import loading, saving
from toolchain import files, shrinking
loading.MAX_EMBEDDED_BYTES = 100
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "proof":
    shrinking.prove = die
else:
    real = os.replace
    files.os.replace = lambda one, other: die() if str(other).endswith(".onnx") else real(one, other)
shrinking.shrink(sys.argv[1])
"""


@linux
@pytest.mark.usefixtures("outgrown")
@pytest.mark.parametrize("moment", ["proof", "rename"])
def test_a_killed_write_leaves_the_older_result_as_it_was(source: Path, moment: str) -> None:
    result = toolchain.shrink(source)
    before = contents(source.parent)
    done = subprocess.run([sys.executable, "-c", _KILLED, str(source), moment], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert before.items() <= contents(source.parent).items()
    assert result.output is not None
    assert_shrunk(source, result.output)
    toolchain.shrink(source)
    assert_shrunk(source, result.output)


def test_weights_written_one_by_one_make_the_file_that_protobuf_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = layer_with_head(tmp_path / "m.onnx")
    model = ir.load(source)
    model.metadata_props["key"] = "value"
    model.graph.initializers["head"].const_value = ir.tensor(np.ones((8, 3), np.float16)[:, ::-1], name="head")
    ir.save(model, tmp_path / "whole.onnx")
    monkeypatch.setattr(saving, "LARGE_BYTES", 40)
    saving.save_embedded(model, tmp_path / "parts.onnx")
    whole, parts = (onnx.load(tmp_path / name) for name in ("whole.onnx", "parts.onnx"))
    for proto in (whole, parts):
        proto.graph.initializer.sort(key=lambda tensor: tensor.name)
    assert parts == whole
    assert (tmp_path / "parts.onnx").stat().st_size == (tmp_path / "whole.onnx").stat().st_size
    ir.save(model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**31, 2**35 - 1])
def test_numbers_are_written_as_protobuf_writes_them(number: int) -> None:
    from google.protobuf.internal.encoder import _VarintBytes

    assert saving._varint(number) == _VarintBytes(number)
