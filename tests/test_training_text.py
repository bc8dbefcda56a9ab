"""Columns of text that begin at another place in every epoch."""

from __future__ import annotations

import numpy as np
import torch
from tiny_training import ALONE

from toolchain.training.processes import Processes, own_columns
from toolchain.training.training_text import TrainingText

COLUMNS = torch.arange(40).reshape(4, 10).T.contiguous()  # [10, 4]: each number once


def text(processes=ALONE, *, seed=0, partial_shuffle=True):
    columns = own_columns(COLUMNS, processes=processes)
    return TrainingText(columns=columns, partial_shuffle=partial_shuffle, seed=seed, batch_size=4, processes=processes)


def test_a_column_keeps_its_words_and_their_order_and_begins_elsewhere():
    read = text().of_epoch(3)
    for number, column in enumerate(read.T):
        start = int(column[0]) - 10 * number
        assert np.array_equal(column, np.roll(COLUMNS[:, number], -start))
    starts = {tuple(text().of_epoch(epoch)[0].tolist()) for epoch in range(20)}
    assert len(starts) == 20
    assert len({int(row[0]) for row in (text().of_epoch(epoch)[0] for epoch in range(60))}) == 10  # any place


def test_an_epoch_is_the_same_whenever_it_is_asked_for_and_another_for_another_seed():
    one = text()
    third, second = one.of_epoch(3), one.of_epoch(2)
    assert torch.equal(one.of_epoch(3), third)
    assert torch.equal(text().of_epoch(2), second)
    assert not torch.equal(text(seed=1).of_epoch(2), second)


def test_two_processes_read_together_what_one_reads_alone():
    halves = [text(Processes(device=torch.device("cpu"), count=2, index=index)).of_epoch(5) for index in (0, 1)]
    assert torch.equal(torch.cat(halves, dim=1), text().of_epoch(5))


def test_unless_asked_for_the_text_is_as_it_is():
    assert torch.equal(text(partial_shuffle=False).of_epoch(7), COLUMNS)
