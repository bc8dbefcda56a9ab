"""Run inside the emulated interpreter: answers of the models, and a mark before and after every call.

    qemu-aarch64 … python3 guest.py job.json

It imports Python, numpy, ONNX Runtime and the runner beside it, nothing else.

Job: {"calls", "results", "members": [{"path", "feeds", "outputs", "threads", "carried": [[in, out]]}]}, where feeds and
outputs are npz files, read and written. Results (JSON): who ran, {"machine", "onnxruntime", "numpy", "python"}.

Marks, in the plugin's file: two that follow each other, which is what marking itself costs, then two around each call.
"""

from __future__ import annotations

import ctypes
import json
import platform
import sys
from typing import Any

import numpy as np

MARK = 0xC0DE  # count.c knows it
PARITY_CALLS = 3  # outputs of so many calls are compared: a carried state has then been fed back twice

Json = dict[str, Any]


def run_member(member: Json, calls: int, mark: Any) -> None:
    """Call one model `calls` times, marked, and save the outputs of the first calls."""
    from runner import open_session  # type: ignore[import-not-found]  # lies beside this file there

    session = open_session(member["path"], member["threads"])
    with np.load(member["feeds"]) as stored:
        feeds = {name: stored[name] for name in stored.files}
    names = [output.name for output in session.get_outputs()]
    saved = {}
    mark()
    mark()
    for call in range(calls):
        mark()
        values = session.run(names, feeds)
        mark()
        answers = dict(zip(names, values))  # noqa: B905  (as many by definition)
        feeds.update({state_in: answers[state_out] for state_in, state_out in member["carried"]})
        if call < PARITY_CALLS:
            saved.update({f"{call}/{name}": value for name, value in answers.items()})
    np.savez(member["outputs"], **saved)


def main(path: str) -> None:
    """Run the job in the named file."""
    import onnxruntime

    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    syscall = ctypes.CDLL(None).syscall
    for member in job["members"]:
        run_member(member, job["calls"], lambda: syscall(MARK))
    software = {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__, "python": platform.python_version()}
    with open(job["results"], "w", encoding="utf-8") as file:
        json.dump({"machine": platform.machine(), **software}, file)


if __name__ == "__main__":
    main(sys.argv[1])
