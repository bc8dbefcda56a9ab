"""How long a workload takes on a profile, as an interval.

    core    products: cycles of ONNX Runtime's loops over four rows and over one, whichever the rows fill
            + units, steps and the call, by cycles each
    memory  bytes of the matrices / bandwidth of the level that holds them
    interval [max(core, memory), core + memory]: loads hide behind arithmetic completely, or not at all

Both ends of every figure are carried through: the fast end takes the fewest cycles at the highest clock and bandwidth,
the slow end the opposite. A call reads every matrix once from the level that holds all of them, because the others
were read since the call before; R's further passes come from the level that holds R. Where nobody published a cache's
bandwidth, it lies between that of the memory behind it and what never delays the core. One core, float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolchain.errors import BenchError

from ..costs import ModelCosts
from ..plan import BenchPlan, Case
from .profiles import Level, Profile
from .workload import Product, Workload, workload_of

FOUR_ROW_MACS = 256  # multiply-adds behind `four_row_cycles`: four rows, 64 of a matrix's numbers
ONE_ROW_MACS = 64
GIGA = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Seconds, from the fast end to the slow end."""

    low_s: float
    high_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """An interval in seconds, and what it is made of."""

    low_s: float
    high_s: float
    core: Span
    memory: Span
    left_out: tuple[str, ...]


def estimate(workload: Workload, profile: Profile) -> Estimate:
    """Return how long one call takes on one core of the profile."""
    core, memory = core_time(workload, profile), memory_time(workload, profile)
    return Estimate(
        low_s=max(core.low_s, memory.low_s),
        high_s=core.high_s + memory.high_s,
        core=core,
        memory=memory,
        left_out=workload.left_out,
    )


def core_time(workload: Workload, profile: Profile) -> Span:
    """Return the time of the arithmetic, with every operand in the first cache."""
    four_rows = sum(product.rows // 4 * product.weights * product.repeats for product in workload.products)
    one_row = sum(product.rows % 4 * product.weights * product.repeats for product in workload.products)
    terms = (
        (profile.four_row_cycles, four_rows * 4 / FOUR_ROW_MACS),
        (profile.one_row_cycles, one_row / ONE_ROW_MACS),
        (profile.unit_step_cycles, workload.unit_steps),
        (profile.step_cycles, workload.node_steps),
        (profile.call_cycles, 1),
    )
    fewest, most = (
        sum(cycles.low * times for cycles, times in terms),
        sum(cycles.high * times for cycles, times in terms),
    )
    return Span(low_s=fewest / (profile.clock_ghz.high * GIGA), high_s=most / (profile.clock_ghz.low * GIGA))


def memory_time(workload: Workload, profile: Profile) -> Span:
    """Return the time of reading the matrices."""
    everything = workload.weight_bytes
    spans = [_reading(product, everything, profile) for product in workload.products]
    return Span(low_s=sum(span.low_s for span in spans), high_s=sum(span.high_s for span in spans))


def _reading(product: Product, everything: int, profile: Profile) -> Span:
    first = _seconds_per_byte(everything, profile)
    again = _seconds_per_byte(product.weight_bytes, profile)
    size, more = product.weight_bytes, product.weight_bytes * (product.repeats - 1)
    return Span(
        low_s=size * first.low_s + more * again.low_s,
        high_s=size * first.high_s + more * again.high_s,
    )


def _seconds_per_byte(held_bytes: int, profile: Profile) -> Span:
    """Return how fast a core reads from the innermost level that holds so many bytes."""
    number = next(number for number, level in enumerate(profile.levels) if _holds(level, held_bytes))
    level = profile.levels[number]
    if level.bandwidth_gb_s is not None:
        return Span(low_s=1 / (level.bandwidth_gb_s.high * GIGA), high_s=1 / (level.bandwidth_gb_s.low * GIGA))
    if number == 0:  # the loops' cycles include their loads from the first cache
        return Span(low_s=0.0, high_s=0.0)
    behind = next(outer.bandwidth_gb_s for outer in profile.levels[number + 1 :] if outer.bandwidth_gb_s is not None)
    return Span(low_s=0.0, high_s=1 / (behind.high * GIGA))


def _holds(level: Level, held_bytes: int) -> bool:
    return level.capacity_bytes is None or held_bytes <= level.capacity_bytes.low


def estimate_plan(
    plan: BenchPlan, profile: Profile, costs: Mapping[tuple[int, int], ModelCosts]
) -> list[dict[str, Any]]:
    """Estimate every model in every case; return one row each.

    The ratio is of intervals, so it is wide: the errors of two estimates may go opposite ways.

    Args:
        plan: what to estimate.
        profile: the processor.
        costs: of each model in each case, by the numbers of case and model.

    Raises:
        BenchError: the plan asks for several threads, or a model cannot be estimated.
    """
    if any(case.threads != 1 for case in plan.cases):
        raise BenchError(
            f"device {plan.device!r}: the figures are of one core; expected --threads 1. Measure several threads on "
            "the device itself, through ssh."
        )
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(plan.cases):
        known = [costs[number, member] for member in range(len(plan.models))]
        found = [
            estimate(workload_of(one, name=model.name), profile) for one, model in zip(known, plan.models, strict=True)
        ]
        rows += [_row(plan, case, member, found, known[member]) for member in range(len(plan.models))]
    return rows


def _row(plan: BenchPlan, case: Case, member: int, found: Sequence[Estimate], costs: ModelCosts) -> dict[str, Any]:
    """Return one model's row; `found` holds the estimates of all models, the baseline's first."""
    model, baseline, one = plan.models[member], found[0], found[member]
    return {
        "model": model.name,
        "baseline": plan.models[0].name,
        "is_baseline": member == 0,
        "device": plan.device,
        "method": "estimated",
        "threads": case.threads,
        "steps": case.steps,
        "batch": case.batch,
        "state_fed_back": plan.streams(case, model),
        "low_s": one.low_s,
        "high_s": one.high_s,
        "core_low_s": one.core.low_s,
        "core_high_s": one.core.high_s,
        "memory_low_s": one.memory.low_s,
        "memory_high_s": one.memory.high_s,
        "multiply_adds": costs.multiply_adds,
        "bytes_moved": costs.bytes_moved,
        "left_out": list(one.left_out),
        "ratio_low": 1.0 if member == 0 else baseline.low_s / one.high_s,
        "ratio_high": 1.0 if member == 0 else baseline.high_s / one.low_s,
        "file_bytes": model.file_bytes,
        "parameters": model.parameters,
        "reads_tokens": model.reads_tokens,
    }
