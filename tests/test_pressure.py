from __future__ import annotations

import pytest
import torch

from toolchain.training.pressure import STIFFNESS, Pressure


def lagrangian(**changes) -> Pressure:
    return Pressure(**{"l0_weight": None, "keep": 0.2, "ramp": 0.5, **changes})


def slope(pressure: Pressure, share: float, progress: float = 1.0) -> float:
    leaf = torch.tensor(share, requires_grad=True)
    pressure.price(leaf, progress).backward()
    return float(leaf.grad)


def test_a_fixed_weight_is_a_constant_slope_that_no_update_changes():
    pressure = Pressure(l0_weight=3.0, keep=None, ramp=0.5)
    pressure.update(0.9, 1.0)
    assert [slope(pressure, share) for share in (0.1, 0.9)] == [3.0, 3.0]
    assert pressure.multiplier == 0.0


def test_the_target_falls_linearly_during_the_ramp_and_then_stays():
    pressure = lagrangian()
    assert [pressure.target(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert lagrangian(ramp=0.0).target(0.0) == pytest.approx(0.2)


def test_below_the_target_the_price_is_flat_and_above_it_rises():
    pressure = lagrangian()
    assert slope(pressure, 0.1) == 0.0
    assert slope(pressure, 0.3) == pytest.approx(STIFFNESS * 0.1)


def test_the_multiplier_grows_above_the_target_and_shrinks_below_but_never_under_zero():
    pressure = lagrangian()
    pressure.update(0.7, 1.0)
    raised = pressure.multiplier
    assert raised > 0
    assert slope(pressure, 0.2) == pytest.approx(raised)
    pressure.update(0.0, 1.0)
    assert pressure.multiplier < raised
    for _ in range(100):
        pressure.update(0.0, 1.0)
    assert pressure.multiplier == 0.0


def test_gradient_descent_on_the_price_reaches_the_target_against_a_constant_pull():
    """A share that wants to grow with slope 1 is held at the target."""
    pressure, share = lagrangian(ramp=0.0), torch.tensor(0.9, requires_grad=True)
    for _ in range(4000):
        loss = pressure.price(share, 1.0) - share
        (gradient,) = torch.autograd.grad(loss, share)
        with torch.no_grad():
            share -= 0.002 * gradient
        pressure.update(share.item(), 1.0)
    assert float(share) == pytest.approx(0.2, abs=0.02)
