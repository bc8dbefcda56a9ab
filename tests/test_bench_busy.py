from __future__ import annotations

import os

import pytest
from toolchain.bench.busy import busy_cpus


def test_busy_cpus_are_those_that_were_not_idle_in_between() -> None:
    lines = iter(["cpu  100 0 50 800 50 0 0 0 0 0", "cpu  160 0 70 880 90 0 0 0 0 0"])
    assert busy_cpus(0.0, lambda: next(lines)) == pytest.approx((os.cpu_count() or 1) * 80 / 200)  # 80 of 200 ticks


def test_where_the_system_does_not_say_nothing_is_claimed() -> None:
    assert busy_cpus(0.0, lambda: "") is None
