"""A folder that a device without ssh measures by itself, and the way back from its result to rows.

DIR/README.md      what to do on the device
    runner.py      the same file that measures here
    job.json       the runner's job, paths inside DIR
    bundle.json    the question it answers: models, shapes, effort
    models/…       each content once
    inputs/…       real inputs, where some were given
    result.json    written by the device: python3 runner.py job.json > result.json
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from toolchain.errors import BenchError, OutputError

from .. import runner
from ..bench_result import BenchResult, result_of
from ..measure import read_result
from ..plan import BenchPlan, Effort, plan_bench, read_interfaces
from .jobs import PortableJob, portable_job

README = """# Measure these models on this device

Needs Python 3.9 or newer with numpy and onnxruntime (`pip install onnxruntime`), and nothing else. In this folder:

    python3 runner.py job.json > result.json

It takes about {seconds:.0f} s. Then bring result.json back into this folder on the machine that made it, and run there:

    toolchain bench merge {name}
"""
SCHEMA = 1


def write_bundle(folder: Path, plan: BenchPlan) -> None:
    """Write everything that a device needs to measure a plan; the folder appears complete or not at all.

    Args:
        folder: does not exist yet.
        plan: what is to be measured.

    Raises:
        OutputError: the folder exists, or cannot be written.
        BenchError: a model is to run on another runtime.
    """
    if folder.exists():
        raise OutputError(f"{folder}: exists already; expected a new folder. Remove it, or name another.")
    portable = portable_job(plan)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
            unfinished = Path(name) / "bundle"
            _fill(unfinished, portable)
            (unfinished / "bundle.json").write_text(json.dumps(_question(plan, portable), indent=1) + "\n")
            seconds = len(plan.cases) * (plan.effort.seconds + plan.effort.processes * len(plan.models))
            (unfinished / "README.md").write_text(README.format(seconds=seconds, name=folder.name))
            unfinished.rename(folder)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror}). Free the space or choose another place."
        ) from error


def _question(plan: BenchPlan, portable: PortableJob) -> dict[str, Any]:
    """Return what `read_bundle` plans the same again from; shapes are those that the models agreed on."""
    members = portable.job["cases"][0]["members"]
    return {
        "schema": SCHEMA,
        "models": [
            {"name": model.name, "path": member["path"]} for model, member in zip(plan.models, members, strict=True)
        ],
        "steps": sorted({case.steps for case in plan.cases}),
        "batches": sorted({case.batch for case in plan.cases}),
        "threads": sorted({case.threads for case in plan.cases}),
        "effort": asdict(plan.effort),
        "inputs": members[0].get("inputs"),
        "protocol": plan.protocol,
    }


def _fill(folder: Path, portable: PortableJob) -> None:
    for place, (path, _) in portable.files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / place)
    shutil.copyfile(runner.__file__, folder / "runner.py")
    (folder / "job.json").write_text(json.dumps(portable.job))


def read_bundle(folder: Path) -> BenchResult:
    """Read a device's result back; return what a measurement here would give.

    Raises:
        BenchError: the folder is no bundle or was changed, there is no result, or the device was emulated.
    """
    question = _read(folder / "bundle.json", "Name a folder that `toolchain bench bundle` wrote.")
    if question.get("schema") != SCHEMA:
        raise BenchError(
            f"{folder / 'bundle.json'}: has schema {question.get('schema')!r}; expected {SCHEMA}. Write it again with "
            "this version."
        )
    result = _read(folder / "result.json", "Run `python3 runner.py job.json > result.json` on the device first.")
    plan = _plan(folder, question)
    if json.loads(json.dumps(portable_job(plan).job)) != _read(folder / "job.json", "Write the bundle again."):
        raise BenchError(
            f"{folder}: its models or its job were changed; expected them as written. Write the bundle again."
        )
    if result["machine"]["emulated"]:
        raise BenchError(
            f"{folder}: its result is of an emulated {result['machine']['machine']}; expected a native Python, because "
            "emulated time counts instructions and knows no caches. Use --device qemu:PROFILE for that."
        )
    _check_complete(folder, plan, result)
    return result_of(read_result(plan, result))


def _check_complete(folder: Path, plan: BenchPlan, result: dict[str, Any]) -> None:
    """Refuse a result of another job: every model must have run in every case, in every process."""
    numbers = product(range(len(plan.cases)), range(len(plan.models)), range(plan.effort.processes))
    ran = [(run["case"], run["member"], run["process"]) for run in result["runs"]]
    if sorted(ran) != sorted(numbers):
        raise BenchError(
            f"{folder / 'result.json'}: holds {len(ran)} runs; expected {len(plan.cases)} cases of {len(plan.models)} "
            f"models in {plan.effort.processes} processes each. It is of another job: run this folder's on the device."
        )


def _plan(folder: Path, question: dict[str, Any]) -> BenchPlan:
    """Plan again what the bundle was written for."""
    interfaces = read_interfaces([folder / entry["path"] for entry in question["models"]])
    plan = plan_bench(
        [replace(model, name=entry["name"]) for model, entry in zip(interfaces, question["models"], strict=True)],
        device=f"bundle:{folder.name}",
        steps=question["steps"],
        batches=question["batches"],
        threads=question["threads"],
        effort=Effort(**question["effort"]),
    )
    inputs = folder / question["inputs"] if question["inputs"] else None
    return replace(plan, inputs=inputs, protocol=question["protocol"])


def _read(path: Path, advice: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror}); expected a file of a bundle. {advice}") from error
    except ValueError as error:
        raise BenchError(f"{path}: is not complete JSON ({error}); expected a whole file. {advice}") from error
    return content
