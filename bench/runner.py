"""Time ONNX models in fresh processes: one file that needs only Python, numpy and onnxruntime.

    python runner.py < job.json > result.json     (or: python runner.py job.json)

The same file runs on this machine, is copied to a device, and stands in a bundle, so it imports nothing from this
package and works with Python 3.9 and later. `conduct` leads; it starts copies of this file as workers and talks to them
in JSON lines. How a ratio is made robust on a machine that other programs use:

* A worker holds one model for one shape, nothing else. Load time, first inference and peak memory are therefore those
  of a fresh process, as a user of that model would see them.
* One *replicate* keeps one live worker per model, and they take turns in short rounds of about 50 ms, in random order.
  pyperf and hyperfine run one command to its end and then the next, so a neighbour's load that lasts a few seconds
  falls on one of them; here it falls on all, and cancels in the ratio.
* Replicates start again with new processes, as pyperf does: address layout and page placement differ from process to
  process, and no number of samples in one process averages them out.
* The first call of a round finds the other model's weights in the caches and is dropped, unless it fills the round by
  itself, and then its cold caches weigh little.
* Waiting workers block on a pipe. They burn no CPU, because ONNX Runtime's spinning is off.

A sample is one `session.run` with numpy arrays: what a Python caller waits for, 5 to 10 microseconds of binding
included. They are the same for all models, so ratios of tiny models are understated.

Job:    {"seed", "repetition": 0 or absent, "processes", "rounds", "round_s", "cases": [{"threads", "members": [
             {"model", "path", "feeds": [{"name", "dtype", "shape", "kind", "value"}],
              "carried": [[in, out]], "inputs": NPZ or absent, "worker": PYTHON FILE or absent}]}]}
         `inputs` holds arrays by input name, used in place of those made here. `worker` is run in place of this file:
         it calls `main` with another runtime's `Engine`.
Result: {"machine": {…}, "runs": [{"case", "member", "process", "load_s", "first_s", "warm_up_s", "warm",
             "peak_rss_bytes", "idle_rss_bytes", "rounds_s": [[sample, …], …]}]}
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

Json = dict[str, Any]
Clock = Callable[[], int]

MAX_CALLS_PER_ROUND = 100  # 8 processes x 7 rounds of them put 56 samples beyond p99, in 50 kB of JSON
MIN_ROUNDS = 3  # a model so slow that one round exceeds the budget is still seen three times a process
REPLY_TIMEOUT_S = 300.0  # ten times what loading and warming up a 1 GB model takes from a cold disk
WARM_UP_LIMIT_S = 1.0  # what has not settled by then is not settling; it is reported, not waited for
WARM_UP_WINDOW_S = 0.02
SETTLED = 0.98  # warm when a window's median is no longer 2% below the best one before it

# ELF e_machine of the interpreters that run natively on a platform.machine(), 32-bit ones included.
# Source: https://gabi.xinuos.com/elf/a-emachine.html
NATIVE_ELF_MACHINES = {"x86_64": {62, 3}, "aarch64": {183, 40}, "armv7l": {40}, "riscv64": {243}}


class WorkerError(Exception):
    """A worker process could not do what it was asked."""

    def __init__(self, member: Json, stage: str, reason: str) -> None:
        super().__init__(f"{member['model']}: {stage}: {reason}")
        self.model, self.feeds, self.stage, self.reason = member["model"], member["feeds"], stage, reason


def elf_machine() -> int | None:
    """Return the ELF machine number of this very interpreter; None where there is no /proc.

    `platform.machine()` says what the emulator claims. qemu-user rewrites /proc/self/exe as well, but
    not /proc/thread-self/exe, which is the emulator's own file.
    """
    try:
        with open("/proc/thread-self/exe", "rb") as executable:
            header = executable.read(20)
    except OSError:
        return None
    if header[:4] != b"\x7fELF":
        return None
    return int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")  # EI_DATA: 1 is little endian


def is_emulated(machine: str, elf: int | None) -> bool:
    """Tell whether an interpreter of ELF machine `elf` only pretends to be `machine`."""
    return elf is not None and elf not in NATIVE_ELF_MACHINES.get(machine, {elf})


def describe_machine() -> Json:
    """Return what a reader needs to know about this machine; unknown values are None."""
    elf, cpu, cpufreq = elf_machine(), _cpuinfo(), "/sys/devices/system/cpu/cpu0/cpufreq/"
    khz, mhz = _read(cpufreq + "scaling_cur_freq"), cpu.get("cpu MHz")
    return {
        "cpu_model": _cpu_model(cpu),
        "cpus": os.cpu_count(),
        "cpus_allowed": allowed_cpus(),
        "machine": platform.machine(),
        "elf_machine": elf,
        "emulated": is_emulated(platform.machine(), elf),
        "os": platform.platform(),
        "python": platform.python_version(),
        "governor": _read(cpufreq + "scaling_governor"),
        "frequency_mhz": float(khz) / 1000 if khz else float(mhz) if mhz else None,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def allowed_cpus() -> list[int]:
    """Return the numbers of the CPUs that this process may use, sorted."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return None


def _cpuinfo() -> dict[str, str]:
    """Return the first CPU's facts by name."""
    pairs = (line.partition(":") for line in reversed((_read("/proc/cpuinfo") or "").splitlines()))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _cpu_model(cpu: dict[str, str]) -> str | None:
    """Name the CPU; ARM kernels leave the name out: then the board, or the part number."""
    arm = f"ARM implementer {cpu.get('CPU implementer')} part {cpu['CPU part']}" if "CPU part" in cpu else None
    return cpu.get("model name") or _read("/proc/device-tree/model") or arm or platform.processor() or None


def time_round(call: Callable[[], None], clock: Clock, round_s: float, max_calls: int) -> list[float]:
    """Call until `round_s` has passed or `max_calls` are timed; return seconds without the cold first one."""
    samples: list[float] = []
    end = clock() + int(round_s * 1e9)
    while True:
        start = clock()
        call()
        now = clock()
        samples.append((now - start) / 1e9)
        if now >= end or len(samples) > max_calls:
            return samples[1:] or samples


def warm_up(call: Callable[[], None], clock: Clock) -> tuple[float, bool]:
    """Call until the latency stops falling; return the seconds spent and whether it did stop."""
    begin = clock()
    best = None
    while True:
        window = sorted(time_round(call, clock, WARM_UP_WINDOW_S, MAX_CALLS_PER_ROUND))
        median = window[len(window) // 2]
        spent_s = (clock() - begin) / 1e9
        if best is not None and median >= SETTLED * best:
            return spent_s, True
        if spent_s > WARM_UP_LIMIT_S:
            return spent_s, False
        best = median if best is None else min(best, median)


def make_feed(feed: Json, seed: int) -> Any:
    """Build one input array. It depends on the seed and its own name, so all models get the same values."""
    import numpy as np

    shape, dtype = tuple(feed["shape"]), np.dtype(feed["dtype"])
    generator = np.random.default_rng([seed, zlib.crc32(feed["name"].encode())])
    if feed["kind"] == "ids":
        return generator.integers(0, feed["value"], shape).astype(dtype)
    if feed["kind"] == "normal":
        return generator.standard_normal(shape).astype(dtype)
    return np.full(shape, feed["value"], dtype)


def open_session(path: str | bytes, threads: int) -> Any:
    """Load a model with exactly `threads` threads, one operator at a time, and no spinning."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors; a warning is no reason to write over the progress bar
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def make_feeds(job: Json) -> Json:
    """Build all inputs of a model; arrays in the file `inputs` come before made ones."""
    import numpy as np

    given = np.load(job["inputs"]) if job.get("inputs") else {}
    return {
        feed["name"]: given[feed["name"]] if feed["name"] in given else make_feed(feed, job["seed"])
        for feed in job["feeds"]
    }


def make_call(session: Any, feeds: Json, carried: Sequence[Sequence[str]]) -> Callable[[], None]:
    """Return a function that runs the model once and feeds carried outputs back to their inputs."""
    if not carried:
        return lambda: session.run(None, feeds)
    outputs = [output.name for output in session.get_outputs()]
    positions = [(state_in, outputs.index(state_out)) for state_in, state_out in carried]

    def call() -> None:
        values = session.run(outputs, feeds)
        for name, position in positions:
            feeds[name] = values[position]

    return call


def peak_rss_bytes() -> int:
    """Return the largest resident size of this process so far.

    `ru_maxrss` survives exec on Linux: a worker started by a large parent would report the parent.
    """
    for line in (_read("/proc/self/status") or "").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Engine(NamedTuple):
    """A runtime: packages that decide how fast it is, and how it loads a model; sessions have ONNX Runtime's `run`."""

    packages: tuple[str, ...]
    open_session: Callable[[str, int], Any]

    def versions(self) -> Json:
        """Import the packages, which is no part of loading a model, and return their versions."""
        return {name: importlib.import_module(name).__version__ for name in self.packages}


ONNX_RUNTIME = Engine(("onnxruntime", "numpy"), open_session)


def serve(requests: IO[str], replies: IO[str], engine: Engine, clock: Clock = time.perf_counter_ns) -> None:
    """Load the model of the first line, then time one round for every line that follows."""
    job = json.loads(requests.readline())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, allowed_cpus()[: job["threads"]])
    software = engine.versions()
    idle_rss_bytes = peak_rss_bytes()
    start = clock()
    session = engine.open_session(job["path"], job["threads"])
    load_s = (clock() - start) / 1e9
    _reply(replies, load_s=load_s, **software)
    requests.readline()  # "first": the model is accepted; what fails from here on is its input
    call = make_call(session, make_feeds(job), job["carried"])
    start = clock()
    call()
    first_s = (clock() - start) / 1e9
    warm_up_s, warm = warm_up(call, clock)
    memory = {"peak_rss_bytes": peak_rss_bytes(), "idle_rss_bytes": idle_rss_bytes}
    _reply(replies, first_s=first_s, warm_up_s=warm_up_s, warm=warm, **memory)
    for line in requests:
        samples = time_round(call, clock, json.loads(line)["round_s"], MAX_CALLS_PER_ROUND)
        _reply(replies, samples_s=[round(sample, 9) for sample in samples])


def _reply(replies: IO[str], **values: Any) -> None:
    replies.write(json.dumps(values) + "\n")
    replies.flush()


class Worker:
    """One worker process; every question has a time limit, and death has a reason."""

    def __init__(self, member: Json, threads: int, seed: int) -> None:
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close; a pipe could fill up)
        # -P: the folder of this file holds modules with names of the standard library (statistics).
        flags = ["-P"] if sys.version_info >= (3, 11) else []
        self.process = subprocess.Popen(
            [sys.executable, *flags, member.get("worker") or os.path.abspath(__file__), "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            encoding="utf-8",
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # numpy's threads are never used here
        )
        self.job = {**member, "threads": threads, "seed": seed}

    def close(self) -> None:
        """End the process, whatever it is doing, and let its files go."""
        self.process.kill()
        self.process.communicate()
        self.stderr.close()

    def ask(self, stage: str, request: Json, timeout_s: float = REPLY_TIMEOUT_S) -> Json:
        """Send one line and return the reply.

        Raises:
            WorkerError: the worker ended or was silent for `timeout_s`.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        end = time.monotonic() + timeout_s
        timer = threading.Timer(timeout_s, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            reason = f"no answer for {timeout_s:g} s" if time.monotonic() >= end else self._last_words()
            raise WorkerError(self.job, stage, reason)
        reply: Json = json.loads(line)
        return reply

    def _last_words(self) -> str:
        """Return why the process ended: the exception that closes its traceback, or the signal."""
        code = self.process.wait()
        self.stderr.seek(0)
        lines = self.stderr.read().decode("utf-8", "replace").splitlines()
        indented = [number for number, line in enumerate(lines) if line.startswith("  ")]
        exception = " ".join(lines[indented[-1] + 1 :]).strip() if indented else ""
        if exception or code >= 0:
            return exception or f"the process ended with exit code {code}"
        cause = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"the process was ended by {signal.Signals(-code).name}{cause}"


def conduct(job: Json, report: Callable[[int, int, str], None]) -> Json:
    """Run a whole job and return its result; `report(done, total, what)` is called as it goes on.

    Raises:
        WorkerError: a model could not be loaded, or could not be run on its inputs.
    """
    shuffled = random.Random(job["seed"] + job.get("repetition", 0))
    result: Json = {"machine": describe_machine(), "runs": []}  # the machine before this job adds its own load
    cases = range(len(job["cases"]))
    order = [(process, case) for process in range(job["processes"]) for case in shuffled.sample(cases, len(cases))]
    for done, (process, case) in enumerate(order):
        report(done, len(order), f"processes {process + 1} of {job['processes']}")
        for member, run in _replicate(job, job["cases"][case], shuffled):
            result["machine"].update(run.pop("software"))
            result["runs"].append({"case": case, "member": member, "process": process, **run})
    report(len(order), len(order), "done")
    return result


def _replicate(job: Json, case: Json, shuffled: random.Random) -> Iterator[tuple[int, Json]]:
    """Measure every member of a case in its own fresh process, taking turns; yield (member, run)."""
    members = range(len(case["members"]))
    workers = {}
    runs: dict[int, Json] = {}
    try:
        for member in shuffled.sample(members, len(members)):
            workers[member] = Worker(case["members"][member], case["threads"], job["seed"])
            loaded = workers[member].ask("load", workers[member].job)
            first = workers[member].ask("run", {})
            runs[member] = {"load_s": loaded.pop("load_s"), "software": loaded, **first, "rounds_s": []}
        _take_turns(job, workers, runs, shuffled)
    finally:
        for worker in workers.values():
            worker.close()
    yield from sorted(runs.items())


def _take_turns(job: Json, workers: dict[int, Worker], runs: dict[int, Json], shuffled: random.Random) -> None:
    """Let the live workers time one round each, in a new random order every time."""
    end = time.monotonic() + 1.5 * job["rounds"] * job["round_s"] * len(workers)  # 1.5: slack for slow calls
    for number in range(job["rounds"]):
        if number >= MIN_ROUNDS and time.monotonic() > end:
            return
        for member in shuffled.sample(sorted(workers), len(workers)):
            runs[member]["rounds_s"].append(workers[member].ask("run", {"round_s": job["round_s"]})["samples_s"])


def main(arguments: Sequence[str], engine: Engine = ONNX_RUNTIME) -> int:
    """Serve as a worker, or conduct the job in the named file or on standard input."""
    if "--worker" in arguments:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the conductor's; its end closes our stdin
        replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what libraries print must not land between the replies
        serve(sys.stdin, replies, engine)
        return 0
    try:
        with open(arguments[0], encoding="utf-8") if arguments else sys.stdin as file:
            result = conduct(json.load(file), lambda done, total, what: print(what, file=sys.stderr))
    except (OSError, ValueError, WorkerError) as error:  # no such file, not JSON, a model that fails
        print(f"error: {error}", file=sys.stderr)
        return 1
    json.dump(result, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
