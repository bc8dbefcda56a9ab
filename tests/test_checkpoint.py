from __future__ import annotations

import os

import pytest
import torch

from toolchain.errors import OutputError, TrainingError
from toolchain.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)


def test_a_checkpoint_reads_back_bit_by_bit(tmp_path):
    shared = torch.randn(3, 4)
    tensors = {
        "a": shared,
        "b": shared,
        "c": shared.T,
        "random": torch.get_rng_state(),
        "d": shared.bfloat16(),
    }
    facts = {"third": 1 / 3, "rows": [{"x": None}]}
    save_checkpoint(tmp_path / "x.safetensors", Checkpoint(tensors=tensors, facts=facts))
    loaded = load_checkpoint(tmp_path / "x.safetensors")
    assert loaded.facts == facts
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in tensors.items())
    assert list(tmp_path.iterdir()) == [tmp_path / "x.safetensors"]


def test_an_interrupted_write_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, Checkpoint(tensors={"a": torch.zeros(1)}, facts={}))

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OutputError, match=r"x.safetensors: cannot be written \(No space left on device\)"):
        save_checkpoint(path, Checkpoint(tensors={"a": torch.ones(1)}, facts={}))
    assert float(load_checkpoint(path).tensors["a"]) == 0.0
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_missing_or_damaged_checkpoint_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"gone.safetensors: no readable checkpoint"):
        load_checkpoint(tmp_path / "gone.safetensors")
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, Checkpoint(tensors={"a": torch.zeros(100)}, facts={}))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(TrainingError, match=r"x.safetensors: no readable checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
def test_an_optimizer_goes_on_as_if_nothing_had_happened(tmp_path, kind):
    def pull(weight, optimizer):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()

    weight = torch.nn.Parameter(torch.arange(3.0))
    optimizer = kind([weight])
    pull(weight, optimizer)
    copy = torch.nn.Parameter(weight.detach().clone())
    other = kind([copy])
    save_checkpoint(tmp_path / "x", pack_optimizer("optimizer", optimizer))
    unpack_optimizer("optimizer", other, load_checkpoint(tmp_path / "x"))
    pull(weight, optimizer)
    pull(copy, other)
    assert torch.equal(weight, copy)
