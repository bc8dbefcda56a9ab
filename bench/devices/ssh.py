"""Measure on another machine through the system's own ssh.

One connection, one process there: `agent` is sent as text to the remote Python, takes the runner and the models into a
fresh temporary folder (each content once), runs, and sends the raw samples back. Authentication, host keys, jump hosts
and everything else are OpenSSH's: keys or the agent, `~/.ssh/config`, no question is ever asked.

A lost connection ends the measurement here with a message; the agent notices there, ends what runs and removes its
folder (see its module). Samples of half a run are thrown away: they are no base for an interval.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from toolchain.errors import BenchError, ModelFileError

from .. import runner
from ..measure import Measurement, Progress, read_result
from ..plan import BenchPlan
from .jobs import PIECE_BYTES, file_sha256, portable_job
from .naming import Address

AGENT = Path(__file__).with_name("agent.py")
RUNNER = Path(runner.__file__)
BOOTSTRAP = "import sys;exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
OPTIONS = (
    "BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=10", "ClearAllForwardings=yes",
    "ServerAliveInterval=5", "ServerAliveCountMax=3",  # a dead network is noticed after 15 s
)  # fmt: skip
SIGN_OF_LIFE_S = 5.0
SSH_FAILED = 255  # ssh's own exit code; every other one is the remote command's
NO_COMMAND = (126, 127)  # of a shell that finds no such program, or may not run it

# What ssh says -> what is wrong, what to do. The first that occurs counts: a changed key also fails verification.
SSH_ERRORS = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its host key is not the known one",
     "Find out why before anything else; then remove the old key with `ssh-keygen -R {host}`."),
    ("Host key verification failed", "its host key is not known",
     "Connect once with `{ssh}`, compare the fingerprint, and accept it."),
    ("No matching host key", "it offers no host key that ssh accepts", "Update its sshd."),
    ("Permission denied", "it refuses this user or key",
     "Give it your key with `ssh-copy-id`, or load the key with `ssh-add`; passwords are never asked."),
    ("Too many authentication failures", "it refuses all keys", "Name one key for it in ~/.ssh/config."),
    ("Connection refused", "nothing listens on that port", "Start sshd there, or correct the port."),
    ("Could not resolve hostname", "there is no such host", "Correct its name, or add it to ~/.ssh/config."),
    ("No route to host", "it cannot be reached", "Switch it on, or connect it."),
    ("Network is unreachable", "it cannot be reached", "Connect this machine to its network."),
    ("timed out", "it does not answer", "Switch it on, or correct its address."),
)  # fmt: skip


class Connection:
    """An agent on the other side; a context manager that leaves nothing there. Not for several threads."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.sent: set[str] = set()
        self.heard = False
        self._writing = threading.Lock()
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        """Connect and start the agent."""
        if shutil.which("ssh") is None:
            raise BenchError(
                f"device {str(self.address)!r}: ssh is not installed here; expected OpenSSH's client. "
                "Run `apt-get install openssh-client`."
            )
        self._stderr = tempfile.TemporaryFile()  # a pipe could fill up
        self._process = subprocess.Popen(
            ssh_command(self.address), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
        )
        source = AGENT.read_bytes()
        self._send(f"{len(source)}\n".encode() + source)
        threading.Thread(target=self._stay_alive, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the input, which ends the agent, and wait for ssh."""
        self._closing.set()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            with self._writing:
                self._process.stdin.close()
        except OSError:
            pass  # the connection is gone already
        try:
            self._process.wait(timeout=SIGN_OF_LIFE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def check(self) -> dict[str, Any]:
        """Send the runner; return what machine and software is there.

        Raises:
            BenchError: the connection fails, Python or a package is missing there, or it is emulated.
        """
        self.put(RUNNER, file_sha256(RUNNER))
        found = self._ask({"do": "check", "runner": file_sha256(RUNNER)})
        for package in ("numpy", "onnxruntime"):
            if not found.get(package):
                reason = found.get(f"{package}_error", "Python itself fails there")
                python = found.get("executable", self.address.python)
                raise BenchError(
                    f"device {str(self.address)!r}: its {python} has no {package} ({reason}); expected one that "
                    f"imports. Run `{python} -m pip install {package}` there, or name another Python: "
                    f"{self.address}/path/of/python3."
                )
        if found["emulated"]:
            raise BenchError(
                f"device {str(self.address)!r}: its Python says {found['machine']} but runs under emulation (ELF "
                f"machine {found['elf_machine']}); expected a native one, because emulated time counts instructions "
                "and knows no caches. Measure on the device itself, or use qemu:PROFILE here."
            )
        return found

    def put(self, path: Path, sha256: str) -> None:
        """Send a file, unless the same content was sent before."""
        if sha256 in self.sent:
            return
        with path.open("rb") as file, self._writing:
            size = path.stat().st_size
            self._write(json.dumps({"do": "put", "sha256": sha256, "size": size}).encode() + b"\n")
            while piece := file.read(PIECE_BYTES):
                self._write(piece)
        self._receive()
        self.sent.add(sha256)

    def run(self, job: dict[str, Any], files: dict[str, str], progress: Callable[[str], None]) -> dict[str, Any]:
        """Run a job there; `files` says which content its paths mean.

        Raises:
            BenchError: the connection is lost, or the runner fails.
        """
        reply = self._ask({"do": "run", "files": files, "job": job})
        while "progress" in reply:
            progress(reply["progress"])
            reply = self._receive()
        result: dict[str, Any] = reply["result"]
        return result

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._send(json.dumps(request).encode() + b"\n")
        return self._receive()

    def _stay_alive(self) -> None:
        while not self._closing.wait(SIGN_OF_LIFE_S):
            with self._writing:
                if not self._write(b"\n"):
                    return

    def _send(self, content: bytes) -> None:
        with self._writing:
            self._write(content)

    def _write(self, content: bytes) -> bool:
        """Write; a broken pipe is told by the next reading, which knows why."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(content)
            self._process.stdin.flush()
        except (OSError, ValueError):
            return False
        return True

    def _receive(self) -> dict[str, Any]:
        """Return the next reply; what a login script prints before the first one is passed over."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        while line and not self.heard and not line.startswith(b"{"):
            line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._lost()
        self.heard = True
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise self._failed(reply["error"])
        return reply

    def _failed(self, said: str) -> BenchError | ModelFileError:
        said = said.removeprefix("error: ").rstrip(".")
        if ": load: " in said:
            return ModelFileError(
                f"device {str(self.address)!r}: its ONNX Runtime does not load a model ({said}); expected one that it "
                "can run. Export it for a lower opset, or update onnxruntime there."
            )
        return BenchError(
            f"device {str(self.address)!r}: the measurement failed there ({said}); expected it to end. Choose other "
            "--steps or --batch, or look at the device."
        )

    def _lost(self) -> BenchError:
        """Say why there is no reply."""
        try:
            code: int | None = self._process.wait(timeout=SIGN_OF_LIFE_S)
        except subprocess.TimeoutExpired:
            code = None
        self._stderr.seek(0)
        said = self._stderr.read().decode("utf-8", "replace").strip()
        return BenchError(explain_loss(self.address, code, said, heard=self.heard))


def ssh_command(address: Address) -> list[str]:
    """Return the command that starts the agent's interpreter there."""
    command = ["ssh", "-T", "-x"]
    command += [part for option in OPTIONS for part in ("-o", option)]
    return [*command, *_destination(address), f"exec {address.python} -u -c '{BOOTSTRAP}'"]


def _destination(address: Address) -> list[str]:
    """Return ssh's arguments for an address, whose parts cannot begin with a dash."""
    port = ["-p", str(address.port)] if address.port else []
    return [*port, f"{address.user}@{address.host}" if address.user else address.host]


def explain_loss(address: Address, code: int | None, said: str, *, heard: bool) -> str:
    """Return one line on why a connection ended, from ssh's exit code and what it said."""
    where = f"device {str(address)!r}"
    last = (said.splitlines() or ["it said nothing"])[-1].strip().rstrip(".")
    if heard:
        return (
            f"{where}: the connection was cut in the middle ({last}); expected it to last. Nothing is left running "
            "there. Try again, with fewer --seconds if it keeps breaking."
        )
    if code in NO_COMMAND:
        return (
            f"{where}: it has no {address.python} ({last}); expected Python 3.9 or newer. Install it there, or name "
            f"another one: {address}/path/of/python3."
        )
    if code == SSH_FAILED:
        by_hand = " ".join(["ssh", *_destination(address)])
        for words, wrong, remedy in SSH_ERRORS:
            if words in said:
                advice = remedy.format(host=address.host, ssh=by_hand)
                return f"{where}: {wrong} ({last}); expected to log in without a question. {advice}"
        return f"{where}: ssh fails ({last}); expected to log in without a question. Try `{by_hand}`."
    return f"{where}: its Python ended with code {code} ({last}); expected Python 3.9 or newer. Update it there."


def measure_through_ssh(plan: BenchPlan, address: Address, progress: Progress) -> Measurement:
    """Measure a plan on another machine.

    Raises:
        BenchError: see `Connection`.
        ModelFileError: a model does not load there.
    """
    portable = portable_job(plan)
    total = portable.job["processes"] * len(portable.job["cases"])
    done = iter(range(total + 1))
    with Connection(address) as connection:
        connection.check()
        for number, (path, sha256) in enumerate(portable.files.values()):
            progress(0, total, f"sending file {number + 1} of {len(portable.files)}")
            connection.put(path, sha256)
        files = {place: sha256 for place, (_, sha256) in portable.files.items()}
        result = connection.run(portable.job, files, lambda text: progress(next(done, total), total, text))
    result["machine"]["address"] = str(address)
    return read_result(plan, result)
