"""The training text in columns, which an epoch reads from top to bottom.

With `partial_shuffle` each column begins at another place in every epoch, and goes on at its top after its end: the
network sees the same words in other windows, in other batches and after other states, and yet in their order.

Source: Press 2019, arXiv 1903.04167.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from toolchain.training.processes import Processes, own_columns


@dataclass(slots=True, kw_only=True)
class TrainingText:
    """What this process reads.

    Attributes:
        columns: this process's, token ids, shape `[rows, batch_size/processes]`.
        partial_shuffle: see above.
        seed: of the places where columns begin, with the epoch's number.
        batch_size: columns over all processes.
        processes: this process among all.
    """

    columns: Tensor
    partial_shuffle: bool
    seed: int
    batch_size: int
    processes: Processes
    _shuffled: tuple[int, Tensor] | None = field(default=None, init=False)  # the last epoch asked for

    def of_epoch(self, epoch: int) -> Tensor:
        """Return the columns as epoch `epoch`, counted from 0, reads them; the same whenever it is asked."""
        if not self.partial_shuffle:
            return self.columns
        if self._shuffled is None or self._shuffled[0] != epoch:
            rows = len(self.columns)
            starts = np.random.default_rng([self.seed, epoch]).integers(rows, size=(1, self.batch_size))
            own = own_columns(torch.from_numpy(starts), processes=self.processes)
            read = (torch.arange(rows, device=own.device)[:, None] + own) % rows
            self._shuffled = epoch, self.columns.gather(0, read)
        return self._shuffled[1]
