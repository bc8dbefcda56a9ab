"""From a plan to rows on its device, whatever the method."""

from __future__ import annotations

from typing import Any

from toolchain.errors import BenchError

from ..measure import Progress, measure
from ..plan import BenchPlan
from ..report import Row, build_rows
from .calibration import read_validation
from .estimation import estimate_plan
from .naming import Device, resolve_device
from .ssh import measure_through_ssh
from .sysroot import find_sysroot


def bench_on_device(plan: BenchPlan, progress: Progress) -> tuple[dict[str, Any], list[Row]]:
    """Run a plan on the device that it names; return the machine and the rows, which all carry one method.

    Raises:
        ModelFileError: ONNX Runtime does not load a model.
        BenchError: the device cannot be used, or a model cannot be measured there as asked.
    """
    device = resolve_device(plan.device)
    machine, rows = _run(plan, device, progress)
    note = {"device_note": device.note} if device.note else {}
    return {**machine, **note}, rows


def _run(plan: BenchPlan, device: Device, progress: Progress) -> tuple[dict[str, Any], list[Row]]:
    if device.method == "measured":
        measurement = measure(plan, progress)
        return measurement.machine, build_rows(measurement)
    if device.address is not None:
        measurement = measure_through_ssh(plan, device.address, progress)
        return measurement.machine, [{**row, "method": device.method} for row in build_rows(measurement)]
    profile = device.profile
    assert profile is not None
    described = {"profile": profile.name, "title": profile.title, "core": profile.core}
    if device.method == "estimated":
        rows = estimate_plan(plan, profile, progress)
        return {**described, "validation": read_validation()}, rows
    from .emulation import emulate  # opens ONNX Runtime in this process, which nothing else here needs

    sysroot = find_sysroot()
    if sysroot is None:
        raise BenchError(
            f"device {plan.device!r}: the aarch64 Python is not installed for this ONNX Runtime; expected it in the "
            "cache folder (190 MB, fetched by apt and pip). Run `toolchain devices install qemu`."
        )
    ran, rows = emulate(plan, profile, sysroot, progress)
    return {**described, **ran}, rows
