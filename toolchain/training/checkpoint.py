"""One file that holds everything a run needs to go on: tensors by name, and facts as JSON.

The format is safetensors; the facts are its metadata entry `facts`. A file is written to a temporary name,
then renamed, so an interrupted write leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolchain.errors import MissingExtraError, TrainingError
from toolchain.files import written_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Tensors by dotted name, and everything else as JSON values."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in place of an older one.

    Raises:
        OutputError: the file cannot be written.
        MissingExtraError: safetensors is not installed.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise MissingExtraError("safetensors", extra="train") from error
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in checkpoint.tensors.items()}
    with written_whole(path, remedy="Make room, then go on with `--resume`.") as unfinished:
        save_file(tensors, unfinished, metadata={"facts": json.dumps(checkpoint.facts)})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, tensors on the CPU.

    Raises:
        TrainingError: there is none, or it is damaged.
        MissingExtraError: safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("safetensors", extra="train") from error
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            facts = json.loads(file.metadata()["facts"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{path}: no readable checkpoint ({error}); expected what a run writes after each epoch. "
            "Check the folder, or start the run again."
        ) from error
    return Checkpoint(tensors=tensors, facts=facts)


def pack_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> Checkpoint:
    """Return an optimizer's state: its tensors as `<prefix>.<parameter index>.<key>`, its groups as facts."""
    state = optimizer.state_dict()
    tensors = {
        f"{prefix}.{index}.{key}": value
        for index, entry in state["state"].items()
        for key, value in entry.items()
        if isinstance(value, Tensor)
    }
    return Checkpoint(tensors=tensors, facts={prefix: state["param_groups"]})


def unpack_optimizer(prefix: str, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Give `optimizer`, which has the same parameters, the state that `pack_optimizer` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in with_prefix(prefix, checkpoint.tensors).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": checkpoint.facts[prefix]})


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose name begins with `<prefix>.`, under the rest of their name."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}
