"""What a training loop needs of the other processes, when `accelerate launch` started more than one.

Every process holds the whole model, reads its own columns of the batch, and averages gradients explicitly.
(A wrapper such as DistributedDataParallel fixes parameter shapes at its start; ours change when the network
is compacted.) Alone, each function returns what it was given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from toolchain.errors import MissingExtraError, TrainingError

Decision = TypeVar("Decision")


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process among all.

    Attributes:
        device: where this process computes.
        count: number of processes.
        index: of this process, 0 for the main one.
    """

    device: torch.device
    count: int
    index: int

    @property
    def is_main(self) -> bool:
        """Tell whether this process writes files and speaks."""
        return self.index == 0


def join_processes(device: str) -> Processes:
    """Find the device and, under `accelerate launch`, the other processes.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        MissingExtraError: accelerate is not installed.
        TrainingError: a GPU is asked for and there is none.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingExtraError("accelerate", extra="train") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device cuda: not available; expected a GPU that PyTorch can use. Use `--device cpu`.")
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    return Processes(device=state.device, count=state.num_processes, index=state.process_index)


def average_gradients(parameters: Iterable[nn.Parameter], extra: float, *, processes: Processes) -> float:
    """Replace every gradient by its mean over the processes, in one message.

    Args:
        parameters: the same ones in every process.
        extra: one more number to average along the way.
        processes: from `join_processes`.

    Returns:
        The mean of `extra`.
    """
    if processes.count == 1:
        return extra
    from accelerate.utils import reduce

    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([*(g.flatten() for g in gradients), gradients[0].new_tensor([extra])])
    flat = reduce(flat, reduction="mean")
    pieces = flat[:-1].split([g.numel() for g in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))
    return float(flat[-1])


def gather_columns(tensor: Tensor, *, processes: Processes) -> Tensor:
    """Join every process's columns along axis 1: `[x, B/count, y]` becomes `[x, B, y]`."""
    if processes.count == 1:
        return tensor
    from accelerate.utils import gather

    gathered: Tensor = gather(tensor.transpose(0, 1).contiguous())
    return gathered.transpose(0, 1).contiguous()


def own_columns(tensor: Tensor, *, processes: Processes) -> Tensor:
    """Return this process's share of axis 1, on its device.

    Raises:
        TrainingError: the columns cannot be shared out evenly.
    """
    width, rest = divmod(tensor.shape[1], processes.count)
    if rest:
        raise TrainingError(
            f"optim.batch_size: {tensor.shape[1]} columns for {processes.count} processes; expected a "
            f"multiple. Use `--set optim.batch_size={width * processes.count or processes.count}`."
        )
    return tensor[:, processes.index * width : (processes.index + 1) * width].contiguous().to(processes.device)


def decided_by_main(decision: Decision, *, processes: Processes) -> Decision:
    """Return the main process's decision in every process."""
    if processes.count == 1:
        return decision
    from accelerate.utils import broadcast_object_list

    box = [decision]
    broadcast_object_list(box)
    return box[0]


def mean_of(value: float, *, processes: Processes) -> float:
    """Return the mean over the processes of a number each has."""
    if processes.count == 1:
        return value
    from accelerate.utils import reduce

    return float(reduce(torch.tensor([value], dtype=torch.float64, device=processes.device), reduction="mean"))


def leave_processes() -> None:
    """End the connection to the other processes; nothing to do when there are none."""
    from accelerate import PartialState

    PartialState().destroy_process_group()
