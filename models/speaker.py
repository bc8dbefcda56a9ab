"""The worked example of docs/your-own-model.md: a network and a training loop that somebody might have already.

`SpeakerNet` and `learn` are shown in the docs as they stand here. Nothing in them belongs to this toolchain but the
price of the gates and the line that freezes them; on a model without gates `learn` is ordinary training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolchain.gates import expected_l0, freeze_gates, total_l0

from .vowels import CHANNELS, SPEAKERS, Utterances, pad

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}
BATCH_SIZE = 30
NOISE = 0.6  # of a channel's spread; without, 5% fewer of held-out training utterances are recognized


class SpeakerNet(nn.Module):
    """Scores nine speakers after every frame, so that it can listen to a stream."""

    mean: Tensor
    spread: Tensor

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU], hidden_size: int, examples: Utterances) -> None:
        super().__init__()
        frames = torch.from_numpy(np.concatenate(examples.frames))
        self.register_buffer("mean", frames.mean(0))
        self.register_buffer("spread", frames.std(0))
        self.rnn = cell(CHANNELS, hidden_size, num_layers=2, dropout=0.3)
        self.scores = nn.Linear(hidden_size, SPEAKERS)

    def forward(self, frames: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return scores `[T, B, 9]` and the state after them, given frames `[T, B, 12]`."""
        frames = (frames - self.mean) / self.spread
        if self.training:
            frames = frames + NOISE * torch.randn_like(frames)
        hidden, state = self.rnn(frames, state)
        return self.scores(hidden), state


def learn(model: nn.Module, utterances: Utterances, *, epochs: int, price: float = 0.0) -> None:
    """Train in place; a gated model pays `price`, in nats, for the share of its weights that the gates keep."""
    gates = [parameter for name, parameter in model.named_parameters() if name.endswith("log_alpha")]
    weights = [parameter for name, parameter in model.named_parameters() if not name.endswith("log_alpha")]
    optimizer = torch.optim.AdamW([{"params": weights, "lr": 3e-3}, {"params": gates, "lr": 0.1, "weight_decay": 0.0}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for epoch in range(epochs):
        if gates and epoch == epochs // 2:
            freeze_gates(model)  # from here on the weights settle around what is left
        for chosen in torch.randperm(len(utterances.speakers)).split(BATCH_SIZE):  # type: ignore[no-untyped-call]
            batch = utterances.take(chosen.tolist())
            frames, real = map(torch.from_numpy, pad(batch.frames))
            scores, _ = model(frames)
            mean = (scores * real).sum(0) / real.sum(0)  # over each utterance's own frames: [B, 9]
            loss = nn.functional.cross_entropy(mean, torch.from_numpy(batch.speakers))
            if gates:
                loss = loss + price * expected_l0(model) / total_l0(model)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
        schedule.step()
