"""The other end of the ssh connection: takes files, runs the runner, sends its result, leaves nothing behind.

It is sent as text and executed by the remote's Python, so it is one file, needs the standard library alone, and works
with Python 3.9 and later. Requests come in on standard input, one JSON line each, replies go out on standard output:

    {"do": "check", "runner": sha256}                            -> {"machine", "numpy", "onnxruntime", …, "python"}
    {"do": "put", "sha256", "size"}, then size bytes   -> {"done": "put"}
    {"do": "run", "files": {path: sha256}, "job"}      -> {"progress": [done, total, text]}…, {"result"} or {"error"}
    an empty line: the other side is alive             -> nothing

The end of standard input, silence for SILENCE_S, or a signal means that nobody waits for an answer any more: the runner
and its workers are ended and the folder is removed. sshd closes the input when its connection is cut; where the network
fails without a word, the silence tells.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from typing import Any, BinaryIO

SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
SILENCE_S = 60.0  # twelve times the pause between two signs of life
Json = dict[str, Any]

CHECK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import runner
found = runner.describe_machine()
for name in ("numpy", "onnxruntime"):
    try:
        found[name] = __import__(name).__version__
    except (ImportError, OSError, AttributeError, RuntimeError, ValueError) as error:
        found[name] = None
        found[name + "_error"] = type(error).__name__ + ": " + str(error).strip().split("\\n")[0]
print(json.dumps(found))
"""


class GoneError(Exception):
    """The other side is gone."""


class Agent:
    """One connection. `requests` is filled by a thread, so that a running job does not keep us from listening."""

    def __init__(self, source: BinaryIO, folder: str) -> None:
        self.source, self.folder = source, folder
        self.requests: queue.Queue[Json | None] = queue.Queue()
        self.process: subprocess.Popen[str] | None = None

    def listen(self) -> None:
        """Read requests until the input ends; a file's bytes go to the folder right here."""
        try:
            for line in iter(self.source.readline, b""):
                request = json.loads(line) if line.strip() else {"do": "live"}
                if request["do"] == "put":
                    self._store(request)
                self.requests.put(request)
        except (OSError, ValueError) as error:
            self.requests.put({"do": "fail", "error": str(error)})
        self.requests.put(None)

    def _store(self, request: Json) -> None:
        left, digest = request["size"], hashlib.sha256()
        path = os.path.join(self.folder, request["sha256"])
        with open(path, "wb") as file:
            while left:
                piece = self.source.read(min(left, 1 << 20))
                if not piece:
                    return
                file.write(piece)
                self.requests.put({"do": "live"})
                digest.update(piece)
                left -= len(piece)
        if digest.hexdigest() != request["sha256"]:
            raise OSError("a file arrived damaged")

    def next(self) -> Json:
        """Return the next request; raise GoneError when there will be none."""
        while True:
            try:
                request = self.requests.get(timeout=SILENCE_S)
            except queue.Empty:
                raise GoneError from None
            if request is None:
                raise GoneError
            if request["do"] != "live":
                return request

    def serve(self) -> None:
        """Answer every request until the other side goes."""
        while True:
            request = self.next()
            if request["do"] == "fail":
                send({"error": request["error"]})
                raise GoneError
            if request["do"] == "put":
                send({"done": "put"})
            elif request["do"] == "check":
                send(self.check(request["runner"]))
            elif request["do"] == "run":
                self.run(request)

    def check(self, sha256: str) -> Json:
        """Say which machine this is and which software it has."""
        shutil.copy(os.path.join(self.folder, sha256), os.path.join(self.folder, "runner.py"))
        done = subprocess.run(
            [sys.executable, "-c", CHECK, self.folder], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False
        )
        found: Json = json.loads(done.stdout or b"{}")
        return {"executable": sys.executable, **found}

    def run(self, request: Json) -> None:
        """Run a job in a process group of its own; send what it says."""
        for path, sha256 in request["files"].items():
            place = os.path.join(self.folder, path)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            if not os.path.exists(place):
                os.link(os.path.join(self.folder, sha256), place)
        job = os.path.join(self.folder, "job.json")
        with open(job, "w", encoding="utf-8") as file:
            json.dump(request["job"], file)
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(self.folder, "runner.py"), job],
            stdin=subprocess.DEVNULL,
            stdout=open(os.path.join(self.folder, "result.json"), "wb"),  # noqa: SIM115
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            cwd=self.folder,
            start_new_session=True,
        )
        threading.Thread(target=self._report, args=(self.process,), daemon=True).start()
        while True:
            request = self.next()
            if request["do"] == "ended":
                break
        with open(os.path.join(self.folder, "result.json"), encoding="utf-8") as file:
            text = file.read()
        code = self.process.wait()
        self.process = None
        send({"result": json.loads(text)} if code == 0 else {"error": request["said"] or f"exit code {code}"})

    def _report(self, process: subprocess.Popen[str]) -> None:
        said = ""
        assert process.stderr is not None
        for line in process.stderr:
            said = line.strip() or said
            send({"progress": said})
        self.requests.put({"do": "ended", "said": said})

    def end(self) -> None:
        """End whatever runs, and remove the folder."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


LOCK = threading.Lock()


def send(reply: Json) -> None:
    """Write one line; a closed output means that the other side is gone."""
    with LOCK:
        try:
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()
        except OSError:
            raise GoneError from None


def main(source: BinaryIO) -> None:
    """Serve one connection."""

    def stop(number: int, frame: Any) -> None:
        raise GoneError

    for number in SIGNALS:
        signal.signal(number, stop)
    agent = Agent(source, tempfile.mkdtemp(prefix="toolchain-bench-"))
    code = 1
    try:
        threading.Thread(target=agent.listen, daemon=True).start()
        agent.serve()
    except GoneError:
        code = 0
    finally:
        agent.end()
        if code:
            traceback.print_exc()
        os._exit(code)  # the listening thread may hang on an input that never ends


if __name__ == "__main__":
    main(sys.stdin.buffer)
