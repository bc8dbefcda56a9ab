"""From a device to what runs a plan on it: a measuring function, or rows of a method that measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from toolchain.errors import BenchError

from ..costs import ModelCosts
from ..measure import Measurement, Progress, measure
from ..plan import BenchPlan
from ..report import Row
from .calibration import read_validation
from .estimation import estimate_plan
from .naming import Device
from .ssh import measure_through_ssh
from .sysroot import find_sysroot, missing_for_emulation


def measuring_on(device: Device) -> Callable[[BenchPlan, Progress], Measurement]:
    """Return the function that measures a plan on a device of method `measured` or `measured-ssh`."""
    address = device.address
    if address is None:
        return measure
    return lambda plan, progress: measure_through_ssh(plan, address, progress)


def run_unmeasured(
    plan: BenchPlan, device: Device, costs: Mapping[tuple[int, int], ModelCosts], progress: Progress
) -> tuple[dict[str, Any], list[Row]]:
    """Emulate or estimate a plan; return what it rests on, and the rows.

    Args:
        plan: what to emulate or estimate.
        device: with a profile.
        costs: of each model in each case, by the numbers of case and model.
        progress: called as it goes on.

    Raises:
        ModelFileError: ONNX Runtime does not load a model.
        BenchError: the device cannot be used, or a model cannot be run there as asked.
    """
    profile = device.profile
    assert profile is not None
    described = {"profile": profile.name, "title": profile.title, "core": profile.core, "device_note": device.note}
    if device.method == "estimated":
        return {**described, "validation": read_validation()}, estimate_plan(plan, profile, costs)
    from .emulation import emulate  # opens ONNX Runtime in this process, which nothing else here needs

    missing, sysroot = missing_for_emulation(), find_sysroot()
    if missing is not None or sysroot is None:
        raise BenchError(
            f"device {plan.device!r}: cannot be emulated yet; expected QEMU, and an aarch64 Python with this ONNX "
            f"Runtime in the cache folder (190 MB, fetched by apt and pip). Run `{missing}`."
        )
    ran, rows = emulate(plan, profile, sysroot, progress)
    return {**described, **ran}, rows
