from __future__ import annotations

import dataclasses

import pytest

from toolchain.training.pruning_sections import GatesSection
from toolchain.training.recipe import OptimSection
from toolchain.training.schedule import plan_schedule

GATES = GatesSection(keep=0.2, freeze_at=0.5)


def optim(**changes) -> OptimSection:
    return OptimSection(**{"learning_rate": 2.0, "epochs": 4, "clip_norm": 1.0, "steps": 10, **changes})


def test_a_text_is_divided_into_whole_windows_with_a_successor_for_each_word():
    schedule = plan_schedule(optim(), GATES, rows=101)
    assert (schedule.steps, schedule.updates_per_epoch, schedule.updates) == (10, 10, 40)
    assert (schedule.freeze_at, schedule.compact_every) == (20, 10)
    assert plan_schedule(optim(), GATES, rows=100).updates_per_epoch == 9


def test_a_short_text_is_one_short_window():
    schedule = plan_schedule(optim(), None, rows=4)
    assert (schedule.steps, schedule.updates_per_epoch, schedule.freeze_at) == (3, 1, None)


def test_cosine_rises_in_the_warmup_and_falls_to_zero():
    schedule = plan_schedule(optim(warmup=0.1), None, rows=101)
    rates = [schedule.learning_rate(update) for update in range(40)]
    assert rates[:4] == sorted(rates[:4])
    assert rates[0] == pytest.approx(0.5)
    assert max(rates) == pytest.approx(2.0, rel=0.03)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[20] == pytest.approx(1.0)
    assert rates[-1] < 0.01


def test_decay_keeps_the_full_rate_for_its_first_epochs():
    """Zaremba et al. 2014: `max_epoch` epochs at 1.0, then divided after each epoch."""
    schedule = plan_schedule(optim(schedule="decay", decay=0.5, decay_after=2), None, rows=101)
    assert [schedule.learning_rate(update) for update in (0, 19, 20, 29, 30)] == [2.0, 2.0, 1.0, 1.0, 0.5]


def test_selection_is_over_when_gates_are_frozen():
    schedule = plan_schedule(optim(), GATES, rows=101)
    assert [schedule.selection_progress(update) for update in (0, 10, 20, 30)] == [0.0, 0.5, 1.0, 1.0]


def test_selection_may_start_late():
    schedule = plan_schedule(optim(), dataclasses.replace(GATES, start_at=0.25), rows=101)
    assert (schedule.start_at, schedule.freeze_at) == (10, 20)
    assert [schedule.selection_progress(update) for update in (0, 10, 15, 25)] == [-1.0, 0.0, 0.5, 1.0]
