"""The stage `shrink`: one ONNX file in, a smaller one out, proven equal before it gets its name.

load -> normalise -> plan: demand, layout -> apply: rewrite -> verify -> rename
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from toolchain.errors import ModelFileError, OutputError
from toolchain.graph.carried import declared_state, find_state
from toolchain.graph.loading import file_bytes, load_model, save_model, written_whole
from toolchain.graph.normalise import Normalised, normalise
from toolchain.graph.program import StatePair
from toolchain.graph.surgery import (
    NodeChange,
    SurgeryPlan,
    apply_surgery,
    multiply_adds,
    parameters,
    plan_surgery,
)
from toolchain.verification import Parity, verify

SCHEMA = 1
AUTO = "auto"
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a model costs: weights, multiply-adds for one step of one sequence, bytes of its files."""

    parameters: int
    multiply_adds: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShrinkResult:
    """What `shrink` did.

    Attributes:
        status: "written", "dry_run" or "nothing_to_remove".
        source: the model that was read; never changed.
        output: the model that was written, None when none was.
        nodes: every recurrent node before and after.
        before: what `source` costs.
        after: what the smaller model costs; on a dry run its bytes are those of `source`.
        parity: how far both models are apart, None when nothing was written.
        carried: the state pairs that were assumed.
        undeclared: state pairs that the graph shows and nobody declared.
        undeclared_units: hidden units that would go if they were declared.
        not_simplified: why onnxsim could not run; None when it did.
    """

    status: str
    source: Path
    output: Path | None
    nodes: tuple[NodeChange, ...]
    before: Sizes
    after: Sizes
    parity: Parity | None
    carried: tuple[StatePair, ...]
    undeclared: tuple[StatePair, ...]
    undeclared_units: int
    not_simplified: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data, by the schema in docs/shrink.md."""
        return {
            "schema": SCHEMA,
            "status": self.status,
            "source": str(self.source),
            "output": None if self.output is None else str(self.output),
            "nodes": [
                {
                    "name": node.name,
                    "op_type": node.op_type,
                    "num_directions": node.num_directions,
                    "hidden_size": {"before": node.hidden_before, "after": node.hidden_after},
                    "input_size": {"before": node.input_before, "after": node.input_after},
                    "blocked_by": [asdict(blocker) for blocker in node.blocked_by],
                }
                for node in self.nodes
            ],
            **{
                cost: {"before": getattr(self.before, cost), "after": getattr(self.after, cost)}
                for cost in ("parameters", "multiply_adds", "bytes")
            },
            "parity": None if self.parity is None else asdict(self.parity),
            "carried": [list(pair) for pair in self.carried],
        }


def shrink(
    model: str | Path | onnx.ModelProto | ir.Model,
    output: str | Path | None = None,
    *,
    carried: str | Sequence[StatePair] | None = None,
    compact_state: bool = False,
    dry_run: bool = False,
    masked: str | Path | None = None,
    progress: Progress = lambda stage: None,
) -> ShrinkResult:
    """Rewrite a model with smaller recurrent tensors.

    Args:
        model: an ONNX file, or a model in memory (then `output` must be given). Never changed.
        output: the file to write; by default `NAME.shrunk.onnx` beside the input.
        carried: state inputs with the outputs that the caller feeds back into them; "auto" takes every pair that the
            graph shows; None takes what the model's metadata declares.
        compact_state: let the carried state's own shapes shrink; by default its interface stays as it is.
        dry_run: decide everything, write nothing.
        masked: also write the model just before the cut: the input's shapes, and what the result is proven equal to.
        progress: called with the name of each step as it begins.

    Returns:
        What was done; with status "nothing_to_remove" no file was written.

    Raises:
        ModelFileError: the file is no valid model, or ONNX Runtime refuses it.
        LayoutError: a recurrent node's tensors disagree.
        ParityError: the result differs; nothing was written.
        OutputError: the result cannot be written.
    """
    with _as_file(model, output) as source:
        target = Path(output) if output is not None else default_output(source)
        _check_targets(source, target, None if masked is None else Path(masked))
        progress("reading")
        loaded = load_model(source)
        declared = declared_state(loaded, source)
        original_parameters = parameters(loaded.graph)
        progress("simplifying")
        normalised = normalise(loaded)
        progress("deciding")
        graph = normalised.model.graph
        pairs = _carried(graph, source, declared, carried)
        plan = plan_surgery(graph, carried=pairs, compact_state=compact_state)
        undeclared, undeclared_units = _undeclared(graph, plan, pairs)
        before = Sizes(parameters=original_parameters, multiply_adds=multiply_adds(graph), bytes=file_bytes(source))
        status, after, parity = "nothing_to_remove", before, None
        if plan.removes_something and dry_run:
            smaller = apply_surgery(plan, normalised).graph
            status = "dry_run"
            after = Sizes(parameters=parameters(smaller), multiply_adds=multiply_adds(smaller), bytes=before.bytes)
        elif plan.removes_something:
            status = "written"
            after, parity = _write(
                plan,
                normalised,
                source,
                target,
                None if masked is None else Path(masked),
                pairs,
                compact_state,
                progress,
            )
        return ShrinkResult(
            status=status,
            source=source,
            output=target if status == "written" else None,
            nodes=plan.changes,
            before=before,
            after=after,
            parity=parity,
            carried=pairs,
            undeclared=undeclared,
            undeclared_units=undeclared_units,
            not_simplified=normalised.not_simplified,
        )


def default_output(source: Path) -> Path:
    """Return the name beside the input: `model.onnx` becomes `model.shrunk.onnx`."""
    return source.with_name(f"{source.name.removesuffix('.onnx')}.shrunk.onnx")


@contextmanager
def _as_file(model: str | Path | onnx.ModelProto | ir.Model, output: str | Path | None) -> Iterator[Path]:
    """Give a model in memory a file for the time of the work; ONNX Runtime verifies files."""
    if isinstance(model, str | Path):
        yield Path(model)
        return
    if output is None:
        raise OutputError("output: missing; expected the file to write when the model is in memory. Give one.")
    with tempfile.TemporaryDirectory(prefix="toolchain-") as folder:
        path = Path(folder) / "model.onnx"
        save_model(model if isinstance(model, ir.Model) else ir.from_proto(model), path)
        yield path


def _check_targets(source: Path, *targets: Path | None) -> None:
    for target in targets:
        if target is not None and target.resolve() == source.resolve():
            raise OutputError(
                f"{target}: is the model to shrink; expected another file, because the input is never "
                "changed. Choose another name with -o."
            )


def _carried(
    graph: ir.Graph, source: Path, declared: tuple[StatePair, ...], asked: str | Sequence[StatePair] | None
) -> tuple[StatePair, ...]:
    """Return the state pairs to assume: those asked for, else those declared in the model."""
    pairs = declared if asked is None else find_state(graph) if isinstance(asked, str) else tuple(asked)
    outputs = {str(value.name) for value in graph.outputs}
    if outputs <= {output for _, output in pairs}:
        raise ModelFileError(
            f"{source}: all of its outputs ({', '.join(sorted(outputs))}) are carried state; expected at "
            "least one that somebody reads. Name the pairs that are state with --carried IN=OUT."
        )
    return pairs


def _undeclared(graph: ir.Graph, plan: SurgeryPlan, pairs: Sequence[StatePair]) -> tuple[tuple[StatePair, ...], int]:
    """Return the state pairs that nobody declared, and how many more units would go if they were."""
    outputs = {str(value.name) for value in graph.outputs}
    missing = tuple(pair for pair in find_state(graph) if pair not in pairs)
    if not missing or outputs <= {output for _, output in (*pairs, *missing)}:
        return (), 0
    freed = plan_surgery(graph, carried=[*pairs, *missing], compact_state=False).units_removed - plan.units_removed
    return missing, freed


def _write(
    plan: SurgeryPlan,
    normalised: Normalised,
    source: Path,
    target: Path,
    masked: Path | None,
    carried: Sequence[StatePair],
    compact_state: bool,
    progress: Progress,
) -> tuple[Sizes, Parity]:
    """Cut, save under a temporary name, prove equal, rename."""
    if masked is not None:
        with written_whole(masked) as unfinished:
            save_model(normalised.model, unfinished)
    progress("rewriting")
    smaller = apply_surgery(plan, normalised)
    sizes = parameters(smaller.graph), multiply_adds(smaller.graph)
    with written_whole(target) as unfinished:
        save_model(smaller, unfinished)
        progress("verifying")
        parity = verify(source, unfinished, carried=carried, compact_state=compact_state)
        if masked is not None:
            verify(masked, unfinished, carried=carried, compact_state=compact_state)
        return Sizes(parameters=sizes[0], multiply_adds=sizes[1], bytes=file_bytes(unfinished)), parity
