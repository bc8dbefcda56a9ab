"""One self-contained HTML page from bench results and training runs: no script, no network, readable in print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolchain import __version__

from .cells import latency_cells, model_cells
from .charts import charts_of, shape_of
from .devices.naming import MEASURED
from .devices.showing import headline, unmeasured_cells, unmeasured_notes, unmeasured_warnings
from .family_chart import family_section
from .run_charts import TrainingRecord, run_charts
from .svg import Chart
from .table import verdict, warnings

TEMPLATE = "page.html.j2"
WORD_COLUMNS = frozenset({"model", "shape", "layer", "operator", "verdict", "phase", "neurons of"})  # not numbers
UNMEASURED_TITLES = {"emulated": "Instructions before and after", "estimated": "Estimated latency"}
# What is shown of a machine: the key in the result, and what it is called.
FACTS = (("cpu_model", "processor"), ("cpus", "CPUs"), ("machine", "architecture"), ("os", "system"),
         ("governor", "frequency governor"), ("onnxruntime", "ONNX Runtime"), ("torch", "PyTorch"),
         ("openvino", "OpenVINO"), ("numpy", "numpy"), ("python", "Python"))  # fmt: skip


def render(
    *,
    results: Sequence[Mapping[str, Any]] = (),
    runs: Sequence[TrainingRecord] = (),
    families: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> str:
    """Return the page.

    Args:
        results: stored results, as `toolchain bench --json` writes them.
        runs: training runs.
        families: members of each, as `toolchain shrink --family --json` writes them.
    """
    from jinja2 import Environment, StrictUndefined, select_autoescape

    environment = Environment(
        autoescape=select_autoescape(default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.from_string(Path(__file__).with_name(TEMPLATE).read_text("utf-8"))
    sections = [_bench_section(result, number) for number, result in enumerate(results)]
    sections += [_run_section(run, number) for number, run in enumerate(runs)]
    sections += [family_section(members, number) for number, members in enumerate(families)]
    return template.render(title=_title(sections), sections=sections, version=__version__, words=WORD_COLUMNS)


def _title(sections: Sequence[Mapping[str, Any]]) -> str:
    return sections[0]["title"] if len(sections) == 1 else "Training and latency"


def _bench_section(result: Mapping[str, Any], number: int) -> dict[str, Any]:
    rows = [{**_ABSENT, **row} for row in result["rows"]]
    told = _measured if rows[0]["method"] in MEASURED else _unmeasured
    return {
        "id": f"bench{number}",
        **told(result["machine"], rows),
        "charts": charts_of({**result, "rows": rows}, f"bench{number}"),
        "facts": [(name, str(result["machine"][key])) for key, name in FACTS if result["machine"].get(key) is not None],
    }


def _measured(machine: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    several = len({row["model"] for row in rows}) > 1
    return {
        "title": ("Latency before and after" if several else "Latency") + _place(rows[0]),
        "lead": verdict(rows).splitlines(),
        "warnings": list(warnings(rows)),
        "tables": [*latency_cells(rows, shape_of), model_cells(rows)],
    }


def _unmeasured(machine: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": UNMEASURED_TITLES[rows[0]["method"]] + _place(rows[0]),
        "lead": [f"{headline(machine, rows)}.", *unmeasured_notes(machine, rows)],
        "warnings": unmeasured_warnings(rows),
        "tables": list(unmeasured_cells(rows, shape_of)),
    }


# Fields that results of older versions do not have.
_ABSENT: dict[str, Any] = {
    "precision": 0.0, "precision_asked": None, "multiply_adds": None, "bytes_moved": None, "bytes_per_s": None,
    "flops_per_s": None, "limit_share": None,
}  # fmt: skip


def _place(row: Mapping[str, Any]) -> str:
    """Return the device, unless it is this machine, so that sections of one page differ."""
    return "" if row["device"] == "cpu" else f", {row['device']}"


def _run_section(run: TrainingRecord, number: int) -> dict[str, Any]:
    charts: list[Chart] = run_charts(run, f"run{number}")
    settings = {**run.recipe.get("model", {}), **run.recipe.get("run", {}), **run.recipe.get("gates", {})}
    shown = ("hidden_sizes", "dropout", "method", "keep", "seed", "precision")
    return {
        "id": f"run{number}",
        "title": f"Training run {run.name}",
        "lead": [chart.summary for chart in charts],
        "warnings": [] if run.result is not None else ["This run has not finished: it has no result yet."],
        "tables": [],
        "charts": charts,
        "facts": [(name, str(settings[name])) for name in shown if name in settings],
    }
