"""A folder that a device without ssh measures by itself, and the way back from its result to rows.

DIR/README.md      what to do on the device
    runner.py      the same file that measures here
    job.json       the runner's job, paths inside DIR
    bundle.json    the question it answers: models, shapes, effort
    models/…       each content once
    result.json    written by the device: python3 runner.py job.json > result.json
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from toolchain.errors import BenchError, OutputError

from .. import runner
from ..measure import read_result
from ..plan import BenchPlan, Effort, plan_bench, read_interfaces
from ..report import Row, build_rows
from .jobs import PortableJob, portable_job

README = """# Measure these models on this device

Needs Python 3.9 or newer with numpy and onnxruntime (`pip install onnxruntime`), and nothing else. In this folder:

    python3 runner.py job.json > result.json

It takes about {seconds:.0f} s. Then bring result.json back into this folder on the machine that made it, and run there:

    toolchain devices merge {name}
"""
SCHEMA = 1


def write_bundle(
    folder: Path, plan: BenchPlan, *, steps: Sequence[int], batches: Sequence[int], threads: Sequence[int]
) -> None:
    """Write everything that a device needs to measure a plan; the folder appears complete or not at all.

    Args:
        folder: does not exist yet.
        plan: what is to be measured.
        steps: sequence lengths that were asked for, from which `read_bundle` plans the same again.
        batches: likewise.
        threads: likewise.

    Raises:
        OutputError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise OutputError(f"{folder}: exists already; expected a new folder. Remove it, or name another.")
    portable = portable_job(plan)
    question = {
        "schema": SCHEMA,
        "models": [
            {"name": model.name, "path": member["path"]}
            for model, member in zip(plan.models, portable.job["cases"][0]["members"], strict=True)
        ],
        "steps": list(steps),
        "batches": list(batches),
        "threads": list(threads),
        "effort": asdict(plan.effort),
    }
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
            unfinished = Path(name) / "bundle"
            _fill(unfinished, portable)
            (unfinished / "bundle.json").write_text(json.dumps(question, indent=1) + "\n")
            seconds = len(plan.cases) * (plan.effort.seconds + plan.effort.processes * len(plan.models))
            (unfinished / "README.md").write_text(README.format(seconds=seconds, name=folder.name))
            unfinished.rename(folder)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror}). Free the space or choose another place."
        ) from error


def _fill(folder: Path, portable: PortableJob) -> None:
    for place, (path, _) in portable.files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / place)
    shutil.copyfile(runner.__file__, folder / "runner.py")
    (folder / "job.json").write_text(json.dumps(portable.job))


def read_bundle(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """Read a device's result back; return its machine and the rows, as a measurement here would give them.

    Raises:
        BenchError: the folder is no bundle or was changed, there is no result, or the device was emulated.
    """
    question = _read(folder / "bundle.json", "Name a folder that `toolchain devices bundle` wrote.")
    result = _read(folder / "result.json", "Run `python3 runner.py job.json > result.json` on the device first.")
    interfaces = read_interfaces([folder / entry["path"] for entry in question["models"]])
    named = [replace(model, name=entry["name"]) for model, entry in zip(interfaces, question["models"], strict=True)]
    plan = plan_bench(
        named,
        device=f"bundle:{folder.name}",
        steps=question["steps"],
        batches=question["batches"],
        threads=question["threads"],
        effort=Effort(**question["effort"]),
    )
    if json.loads(json.dumps(portable_job(plan).job)) != _read(folder / "job.json", "Write the bundle again."):
        raise BenchError(
            f"{folder}: its models or its job were changed; expected them as written. Write the bundle again."
        )
    if result["machine"]["emulated"]:
        raise BenchError(
            f"{folder}: its result is of an emulated {result['machine']['machine']}; expected a native Python, because "
            "emulated time counts instructions and knows no caches. Use --device qemu:PROFILE for that."
        )
    return result["machine"], build_rows(read_result(plan, result))


def _read(path: Path, advice: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror}); expected a file of a bundle. {advice}") from error
    except ValueError as error:
        raise BenchError(f"{path}: is not complete JSON ({error}); expected a whole file. {advice}") from error
    return content
