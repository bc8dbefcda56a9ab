"""Run models in the real aarch64 ONNX Runtime under qemu-user: instructions, cache misses, parity, never time.

Emulated time would restate the instruction count and know no caches: dense 2x1500 over 2x256 was 33 times in
emulated time and 31 times in instructions, while hardware gave 81 to 96, because the dense weights leave its caches.

A call's count is exact at one thread. Counts of calls differ by what Python and the allocator happen to do, so the
minimum stands for the model, as the fewest instructions that it can be done with. So it does for cache misses, which
are simulated if the plan asks for it: caches of the profile's sizes, data only, nothing prefetched (count.c).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.errors import BenchError
from toolchain.interface import ModelInterface
from toolchain.runtime import open_session, run

from .. import runner
from ..measure import Progress, job_of
from ..plan import BenchPlan, Case
from .guest import PARITY_CALLS
from .profiles import Profile
from .sysroot import APT_INSTALL, QEMU, Sysroot, build_plugin, emulated_cores

Row = dict[str, Any]
Feeds = dict[str, npt.NDArray[Any]]

CALLS = 8  # counts settle at the third or fourth; one 2x1500 call of 35 steps takes 2 s
CALL_TIMEOUT_S = 120.0  # of one call, loading included; a 2x1500 model takes 10 s in all
GUEST_FILES = (Path(runner.__file__), Path(__file__).with_name("guest.py"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulated:
    """One model in one case: counts of every call, and how far its outputs are from this machine's.

    `misses` has one tuple for each simulated level of cache, the nearest first.
    """

    instructions: tuple[int, ...]
    misses: tuple[tuple[int, ...], ...] = ()
    max_abs_diff: float
    max_abs_value: float


def emulate(
    plan: BenchPlan, profile: Profile, sysroot: Sysroot, progress: Progress
) -> tuple[dict[str, Any], list[Row]]:
    """Run every model of a plan on the profile's core; return what ran there, and one row per model and case.

    Raises:
        BenchError: the plan asks for several threads, QEMU has no such core, or the emulated process fails.
        ModelFileError: a model does not load on this machine.
    """
    core, job = _check(plan, profile), job_of(plan)
    build_plugin(sysroot)
    caches = simulated_caches(profile) if plan.simulate_caches else {}
    rows: list[Row] = []
    machine: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="toolchain-emulation-") as name:
        folder = Path(name)
        for path in GUEST_FILES:
            shutil.copy(path, folder)
        for done, case in enumerate(plan.cases):
            progress(done, len(plan.cases), f"instructions at {case.steps} steps")
            members = [
                _member(member, number, threads=case.threads, seed=job["seed"], folder=folder)
                for number, member in enumerate(job["cases"][done]["members"])
            ]
            machine = _run_guest(members, profile, sysroot, folder, caches)
            counts = read_marks(folder / "marks", len(members))
            seen = [
                Emulated(
                    instructions=instructions, misses=tuple(misses), **_parity(plan.models[number], members[number])
                )
                for number, (instructions, *misses) in enumerate(counts)
            ]
            rows += _rows(plan, case, seen, caches)
    return {**machine, "emulated_core": core, "sysroot": str(sysroot.folder), "simulated_caches": caches}, rows


def simulated_caches(profile: Profile) -> dict[str, int]:
    """Return the bytes of each level of cache by its name, the nearest first; the most that the profile allows."""
    return {level.name: int(level.capacity_bytes.high) for level in profile.levels if level.capacity_bytes is not None}


def _check(plan: BenchPlan, profile: Profile) -> str:
    if any(case.threads != 1 for case in plan.cases):
        raise BenchError(
            f"device {plan.device!r}: counts are exact for one thread only; expected --threads 1. "
            "Measure several threads on the device itself, through ssh."
        )
    if profile.emulate_as is None:
        raise BenchError(
            f"device {plan.device!r}: the profile names no core that QEMU emulates; expected emulate_as in it. "
            f"Estimate it with --device {profile.name}."
        )
    if profile.emulate_as not in emulated_cores():
        raise BenchError(
            f"device {plan.device!r}: the installed QEMU has no {profile.emulate_as}; expected one that has. "
            f"Install a newer qemu-user, or use qemu:graviton2, the nearest that every QEMU since 7.0 has."
        )
    return profile.emulate_as


def _member(member: Row, number: int, *, threads: int, seed: int, folder: Path) -> Row:
    """Write the inputs of one of the runner's members; return the guest's order for it."""
    np.savez(folder / f"feeds-{number}.npz", **runner.make_feeds({**member, "seed": seed}))
    return {
        "path": str(Path(member["path"]).resolve()),
        "feeds": str(folder / f"feeds-{number}.npz"),
        "outputs": str(folder / f"outputs-{number}.npz"),
        "threads": threads,
        "carried": member["carried"],
    }


def _run_guest(
    members: Sequence[Row], profile: Profile, sysroot: Sysroot, folder: Path, caches: Mapping[str, int]
) -> dict[str, Any]:
    """Run the guest's job under QEMU; return what it says about itself."""
    job, results = folder / "job.json", folder / "results.json"
    job.write_text(json.dumps({"calls": CALLS, "results": str(results), "members": list(members)}))
    timeout_s = CALL_TIMEOUT_S * len(members) * CALLS
    try:
        done = subprocess.run(
            guest_command(profile, sysroot, [str(folder / "guest.py"), str(job)], folder / "marks", caches),
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env={"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"},
            cwd=folder,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise BenchError(f"{QEMU}: is not installed; expected it on PATH. Run `{APT_INSTALL} qemu-user`.") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{QEMU}: no end after {timeout_s:g} s; expected less. Use fewer --steps.") from error
    if done.returncode != 0 or not results.is_file():
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BenchError(
            f"device 'qemu:{profile.name}': the emulated process failed ({last.rstrip('.')}); expected it to run "
            "the models. Install its packages again: `toolchain devices install qemu`."
        )
    said: dict[str, Any] = json.loads(results.read_text())
    return said


def guest_command(
    profile: Profile, sysroot: Sysroot, arguments: Sequence[str], marks: Path, caches: Mapping[str, int] | None = None
) -> list[str]:
    """Return the command line that runs the emulated Python with `arguments`; counts go to `marks`."""
    view = sysroot.view(profile)
    environment = {
        "PYTHONPATH": str(sysroot.site),
        "PYTHONHASHSEED": "0",  # the order of dictionaries and sets changes counts
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    plugin = ",".join([str(sysroot.plugin), f"out={marks}", *(f"level={size}" for size in (caches or {}).values())])
    options = ["-cpu", str(profile.emulate_as), "-L", str(view), "-plugin", plugin]
    options += [part for name, value in environment.items() for part in ("-E", f"{name}={value}")]
    return [QEMU, *options, str(sysroot.python(view)), "-s", *arguments]


def read_marks(path: Path, members: int) -> list[tuple[tuple[int, ...], ...]]:
    """Return each member's counts, one tuple over its calls for each column, less what a mark itself costs."""
    marks = np.loadtxt(path, dtype=np.int64, ndmin=2)  # [marks, 1 + levels]
    expected = members * 2 * (CALLS + 1)
    if len(marks) != expected:
        raise BenchError(f"plugin count.c: wrote {len(marks)} marks; expected {expected}. Install qemu-user again.")
    spans = (marks[1::2] - marks[::2]).reshape(members, CALLS + 1, -1)
    counts = np.maximum(
        spans[:, 1:] - spans[:, :1], 0
    )  # [members, CALLS, columns]; a mark may miss what a call does not
    return [tuple(tuple(map(int, column)) for column in member.T) for member in counts]


def _parity(model: ModelInterface, member: Row) -> dict[str, float]:
    """Run the same calls here and compare; a NaN on one side only counts as infinitely far."""
    session = open_session(model.path, threads=1)
    with np.load(member["feeds"]) as stored:
        feeds: Feeds = {name: stored[name] for name in stored.files}
    furthest, largest = 0.0, 0.0
    with np.load(member["outputs"]) as theirs:
        for call in range(PARITY_CALLS):
            ours = run(session, feeds)
            feeds.update({state_in: ours[state_out] for state_in, state_out in member["carried"]})
            for name, value in ours.items():
                furthest = max(furthest, difference(value, theirs[f"{call}/{name}"]))
                largest = max(largest, float(np.abs(np.nan_to_num(value)).max(initial=0.0)))
    return {"max_abs_diff": furthest, "max_abs_value": largest}


def difference(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> float:
    """Return the largest absolute difference; infinite where shapes differ or only one side is a number."""
    if ours.shape != theirs.shape:
        return float("inf")
    left, right = ours.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity less infinity, which counts as equal
        gap = np.where((left == right) | (np.isnan(left) & np.isnan(right)), 0.0, np.abs(left - right))
    return float(np.nan_to_num(gap, nan=np.inf, posinf=np.inf).max(initial=0.0))


def _rows(plan: BenchPlan, case: Case, seen: Sequence[Emulated], caches: Iterable[str] = ()) -> list[Row]:
    fewest = [min(one.instructions) for one in seen]
    return [
        {
            "model": model.name,
            "baseline": plan.models[0].name,
            "is_baseline": number == 0,
            "device": plan.device,
            "method": "emulated",
            "threads": case.threads,
            "steps": case.steps,
            "batch": case.batch,
            "state_fed_back": plan.streams(case, model),
            "instructions": fewest[number],
            "instructions_of_calls": list(one.instructions),
            "instruction_ratio": fewest[0] / fewest[number],
            "cache_misses": {name: min(misses) for name, misses in zip(caches, one.misses, strict=True)},
            # JSON has no infinity: None stands for outputs that cannot be compared at all
            "parity_max_abs_diff": one.max_abs_diff if np.isfinite(one.max_abs_diff) else None,
            "parity_max_abs_value": one.max_abs_value,
            "file_bytes": model.file_bytes,
            "parameters": model.parameters,
            "reads_tokens": model.reads_tokens,
            "seed": plan.effort.seed,
        }
        for number, (model, one) in enumerate(zip(plan.models, seen, strict=True))
    ]
