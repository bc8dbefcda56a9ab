"""What follows from a measurement, wherever it was made: rows with speedups, and what each layer costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .costs import ModelCosts, read_costs
from .measure import Measurement
from .plan import BenchPlan
from .report import Context, Row, build_rows
from .roofline import Roofline

CostsByNumber = Mapping[tuple[int, int], ModelCosts]  # (case, member of the plan's models)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What was measured, emulated or estimated, on what, and what follows from it.

    `layers` holds, for each model, what its layers cost at the longest shape.
    """

    machine: dict[str, Any]
    rows: tuple[Row, ...]
    layers: Mapping[str, ModelCosts] = field(default_factory=dict)
    rooflines: tuple[Roofline, ...] = ()


def result_of(measurement: Measurement, context: Context | None = None) -> BenchResult:
    """Derive the statistics of a measurement; None leaves out what only the machine that measured could say."""
    context = context or Context(costs=costs_of(measurement.plan))
    return BenchResult(
        machine=measurement.machine,
        rows=tuple(build_rows(measurement, context)),
        layers=layers_of(measurement.plan, context.costs),
        rooflines=tuple(context.rooflines.values()),
    )


def costs_of(plan: BenchPlan) -> CostsByNumber:
    """Return what each model costs in each case; shapes alone decide, so equal ones are looked at once."""
    found: dict[tuple[Any, ...], ModelCosts] = {}
    costs = {}
    for number, case in enumerate(plan.cases):
        for member, model in enumerate(plan.models):
            shapes = {feed.name: feed.shape for feed in case.feeds[member]}
            key = (model.path, *sorted(shapes.items()))
            if key not in found:
                found[key] = read_costs(model.path, shapes)
            costs[number, member] = found[key]
    return costs


def layers_of(plan: BenchPlan, costs: CostsByNumber) -> dict[str, ModelCosts]:
    """Return what each model's layers cost in the longest case, by the model's name."""
    longest = len(plan.cases) - 1
    return {model.name: costs[longest, member] for member, model in enumerate(plan.models)}
