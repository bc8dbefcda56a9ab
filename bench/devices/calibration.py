"""Measure this machine's own profile, and how far estimates on it are from measurements.

What can be checked of the estimator is checked here, on the host: figures come from small kernels, the models that are
then estimated are others, of at least 20 sizes. Two files keep the result: the profile `host` among the user's own,
and in the cache folder the distribution of the error, which every estimate shows.

    step time of an LSTM with one input, R in the first cache = step + H * unit + 4*H*H * one row
    time of a product of 2,048 rows                             = rows * weights * four rows
    time of a call of the smallest LSTM at one step             = call
    bandwidth of a level                                        = half its size, summed again and again
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from .. import runner
from ..cache import cache_folder
from ..costs import read_costs
from ..measure import Progress, measure
from ..plan import Effort, plan_bench, read_interfaces
from .estimation import FOUR_ROW_MACS, ONE_ROW_MACS, estimate
from .naming import HOST
from .profiles import Profile, profile_of, user_folder
from .workload import workload_of

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
NANO = 1e-9
UNITS = (8, 16, 24, 32, 40)  # R of 40 units is 26 kB: in the first cache of every processor here
SHORT, LONG = 10, 200
ROWS, WIDTH = 2048, 64
MEMORY_BYTES = 256 << 20  # beyond every last-level cache's share of one core
# (hidden sizes, steps): from the first cache to memory, one layer and two, streaming and sequences.
VALIDATED = tuple(
    (sizes, steps)
    for steps in (1, 10, 35)
    for sizes in ((16,), (48,), (96,), (128, 128), (192,), (256, 256), (384,), (512,), (768,), (1500,))
)


def calibrate(folder: Path, progress: Progress, *, seconds: float) -> tuple[Profile, dict[str, Any]]:
    """Measure figures and validate estimates with them; write both.

    Args:
        folder: for the models that are written and measured.
        progress: called as the work goes on.
        seconds: of samples for each validated size.

    Raises:
        BenchError: this Python runs under emulation.
    """
    progress(0, len(VALIDATED) + 1, "kernels and memory")
    table = host_figures(folder)
    profile = profile_of(table, name=HOST, where=HOST)
    errors = []
    for number, (hidden, steps) in enumerate(VALIDATED):
        progress(number + 1, len(VALIDATED) + 1, f"LSTM {'x'.join(map(str, hidden))}, {steps} steps")
        path = write_lstm(folder / f"{'x'.join(map(str, hidden))}.onnx", hidden=hidden, inputs=hidden[0])
        errors.append(validate(path, profile, steps=steps, seconds=seconds))
    validation = summarise(errors, machine=table["title"])
    _write(host_file(), to_toml(table))
    _write(validation_file(), json.dumps({**validation, "sizes": errors}, indent=1) + "\n")
    return profile, validation


def host_file() -> Path:
    """Return where this machine's profile is kept: as the user's own, so `--device host` estimates with it."""
    return user_folder() / f"{HOST}.toml"


def validation_file() -> Path:
    """Return where the distribution of the estimates' error is kept."""
    return cache_folder() / "validation.json"


def read_validation() -> dict[str, Any] | None:
    """Return the distribution of the error on this machine; None when it was never calibrated."""
    if not validation_file().is_file():
        return None
    checked: dict[str, Any] = json.loads(validation_file().read_text())
    return {key: value for key, value in checked.items() if key != "sizes"}


def validate(path: Path, profile: Profile, *, steps: int, seconds: float) -> dict[str, Any]:
    """Measure a model and estimate it; return both."""
    (model,) = read_interfaces([path])
    effort = Effort(processes=2, seconds=seconds)
    plan = plan_bench([model], device="cpu", steps=[steps], batches=[1], threads=[1], effort=effort)
    measured = measure(plan, lambda done, total, what: None)
    samples = np.concatenate([samples for run in measured.runs for samples in run.rounds])
    costs = read_costs(path, {feed.name: feed.shape for feed in plan.cases[0].feeds[0]})
    found = estimate(workload_of(costs, name=path.name), profile)
    return {
        "model": path.stem,
        "steps": steps,
        "measured_s": float(np.median(samples)),
        "low_s": found.low_s,
        "high_s": found.high_s,
    }


def summarise(sizes: Sequence[dict[str, Any]], *, machine: str) -> dict[str, Any]:
    """Return the distribution of the error: of the interval's geometric middle, relative to the measured time."""
    middles = [float(np.sqrt(size["low_s"] * size["high_s"])) for size in sizes]
    errors = [abs(middle / size["measured_s"] - 1) for middle, size in zip(middles, sizes, strict=True)]
    return {
        "machine": machine,
        "models": len(sizes),
        "inside": sum(size["low_s"] <= size["measured_s"] <= size["high_s"] for size in sizes),
        "median_error": float(np.median(errors)),
        "p90_error": float(np.percentile(errors, 90)),
        "worst_error": max(errors),
    }


def host_figures(folder: Path) -> dict[str, Any]:
    """Measure this machine's figures; return them as a profile's table. Cycles are nanoseconds: the clock is 1 GHz."""
    said = "measured by `toolchain bench calibrate`: {}"

    def figure(value: float, how: str) -> dict[str, Any]:
        return {"value": value, "kind": "measured", "source": said.format(how)}

    steps = {units: _lstm_times(folder, units) for units in UNITS}
    per_step = {units: (long - short) / (LONG - SHORT) for units, (short, long) in steps.items()}
    step_s, unit_s, one_row_s = fit_steps(per_step)
    call_s = steps[UNITS[0]][0] - SHORT * per_step[UNITS[0]]
    machine = runner.describe_machine()
    return {
        "title": str(machine["cpu_model"] or machine["machine"]),
        "core": str(machine["cpu_model"] or machine["machine"]),
        "clock_ghz": figure(1.0, "not needed: cycles are given in nanoseconds"),
        "four_row_cycles": figure(_product_s(folder) * FOUR_ROW_MACS / NANO, "a product of 2,048 rows"),
        "one_row_cycles": figure(one_row_s * ONE_ROW_MACS / NANO, "steps of LSTMs with R in the first cache"),
        "unit_step_cycles": figure(unit_s / NANO, "steps of LSTMs with R in the first cache"),
        "step_cycles": figure(step_s / NANO, "steps of LSTMs with R in the first cache"),
        "call_cycles": figure(max(call_s, NANO) / NANO, "the shortest call of the smallest LSTM"),
        "levels": _levels(figure),
    }


def fit_steps(per_step_s: dict[int, float]) -> tuple[float, float, float]:
    """Solve for the time of a step, a unit and a multiply-add of one row; none is let below a picosecond.

    Args:
        per_step_s: seconds of one step of an LSTM with one input, by its hidden units.
    """
    units = np.array(sorted(per_step_s), dtype=np.float64)
    terms = np.stack([np.ones_like(units), units, 4 * units * units], axis=1)  # [sizes, 3]
    seconds = np.array([per_step_s[int(unit)] for unit in units])
    weights = 1 / seconds  # relative errors count, not those of the largest alone
    solution = np.linalg.lstsq(terms * weights[:, None], seconds * weights, rcond=None)[0]
    step_s, unit_s, one_row_s = (max(float(value), 1e-12) for value in solution)
    return step_s, unit_s, one_row_s


def _lstm_times(folder: Path, units: int) -> tuple[float, float]:
    path = write_lstm(folder / f"kernel-{units}.onnx", hidden=(units,), inputs=1)
    session = runner.open_session(str(path), 1)
    return tuple(  # type: ignore[return-value]
        _fastest(_caller(session, {"X": np.zeros((steps, 1, 1), np.float32)})) for steps in (SHORT, LONG)
    )


def _caller(session: Any, feeds: dict[str, npt.NDArray[np.float32]]) -> Callable[[], object]:
    return lambda: session.run(None, feeds)


def _product_s(folder: Path) -> float:
    """Return the seconds of one multiply-add in a product of many rows with a matrix in the first cache."""
    weights = numpy_helper.from_array(np.full((WIDTH, WIDTH), 0.01, np.float32), "weights")
    node = helper.make_node("MatMul", ["X", "weights"], ["Y"])
    path = _save(folder / "product.onnx", [node], [weights], [ROWS, WIDTH])
    call = _caller(runner.open_session(str(path), 1), {"X": np.ones((ROWS, WIDTH), np.float32)})
    return _fastest(call) / (ROWS * WIDTH * WIDTH)


def _levels(figure: Callable[[float, str], dict[str, Any]]) -> list[dict[str, Any]]:
    sizes = cache_sizes()
    levels = [
        {
            "name": name,
            "capacity_bytes": {"value": size, "kind": "published", "source": f"{CACHES} of the kernel"},
            "bandwidth_gb_s": figure(bandwidth_gb_s(size // 2), f"summing {size // 2} bytes"),
        }
        for name, size in sizes
    ]
    del levels[0]["bandwidth_gb_s"]  # the loops' own cycles include it
    return [*levels, {"name": "DRAM", "bandwidth_gb_s": figure(bandwidth_gb_s(MEMORY_BYTES), "summing 256 MB")}]


def cache_sizes() -> list[tuple[str, int]]:
    """Return name and bytes of each data cache of the first CPU, from the core outwards."""
    found = []
    for folder in sorted(CACHES.glob("index*")):
        kind, level = (folder / "type").read_text().strip(), (folder / "level").read_text().strip()
        if kind != "Instruction":
            found.append(
                (f"L{level}{'D' if kind == 'Data' else ''}", int((folder / "size").read_text().strip()[:-1]) * 1024)
            )
    return found or [("L1D", 32 << 10), ("L2", 1 << 20)]


def bandwidth_gb_s(size: int) -> float:
    """Return how fast one core reads so many bytes again and again."""
    values = np.ones(max(size // 4, 64), np.float32)
    return values.nbytes / _fastest(lambda: np.dot(values, values)) / 1e9


def _fastest(call: Callable[[], object], budget_s: float = 0.3) -> float:
    """Return the seconds of the fastest call within a budget: what disturbs only makes it slower."""
    end, fastest = time.perf_counter() + budget_s, float("inf")
    calls = 0
    while calls < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - start)
        calls += 1
    return fastest


def write_lstm(path: Path, *, hidden: Sequence[int], inputs: int) -> Path:
    """Write LSTM layers with random weights, one on the other; time-major, input `X` of `inputs` features."""
    random = np.random.default_rng(0)
    nodes, tensors, source, width = [], [], "X", inputs
    for layer, units in enumerate(hidden):
        for name, shape in (("W", (1, 4 * units, width)), ("R", (1, 4 * units, units)), ("B", (1, 8 * units))):
            values = random.uniform(-0.05, 0.05, shape).astype(np.float32)
            tensors.append(numpy_helper.from_array(values, f"{name}{layer}"))
        operands = [source, f"W{layer}", f"R{layer}", f"B{layer}"]
        nodes.append(helper.make_node("LSTM", operands, [f"Y{layer}"], name=f"lstm{layer}", hidden_size=units))
        nodes.append(helper.make_node("Squeeze", [f"Y{layer}", "direction"], [f"h{layer}"]))
        source, width = f"h{layer}", units
    nodes[-1].output[0] = "Y"
    tensors.append(numpy_helper.from_array(np.array([1]), "direction"))
    return _save(path, nodes, tensors, ["time", "batch", inputs])


def _save(path: Path, nodes: Sequence[Any], tensors: Sequence[Any], shape: Sequence[int | str]) -> Path:
    given = helper.make_tensor_value_info("X", TensorProto.FLOAT, list(shape))
    answer = helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "calibration", [given], [answer], list(tensors))
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def to_toml(table: dict[str, Any]) -> str:
    """Return a profile's table as the file that `read_profile` reads."""
    lines = [f"{key} = {_value(value)}" for key, value in table.items() if key != "levels"]
    for level in table["levels"]:
        lines += ["", "[[levels]]", *(f"{key} = {_value(value)}" for key, value in level.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)  # TOML's strings and numbers are JSON's


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text)
    unfinished.replace(path)
