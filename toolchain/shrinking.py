"""The stage `shrink`: one ONNX file in, a smaller one out, proven equal before it gets its name.

load -> normalise -> (prune) -> plan: demand, layout -> apply: rewrite -> verify -> rename
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from toolchain.errors import ModelFileError, OutputError
from toolchain.graph.branches import BranchPath, changed_branches
from toolchain.graph.carried import find_state
from toolchain.graph.costs import multiply_adds, parameters
from toolchain.graph.explanation import NodeExplanation, explain
from toolchain.graph.loading import load_model, save_model, written_model
from toolchain.graph.normalise import Normalised, normalise
from toolchain.graph.program import StatePair
from toolchain.graph.surgery import NodeChange, SurgeryPlan, apply_surgery, plan_surgery
from toolchain.graph.unrolled import Unrolled, find_unrolled
from toolchain.interface import ModelInterface, read_interface
from toolchain.oneshot.pruning import DistillationReport, Pruning, PruningReport, analyse_for, distil_cut, prune
from toolchain.oneshot.selection import Analysis
from toolchain.shrink_result import ShrinkResult, Sizes
from toolchain.verification import Parity, check_runs, prove, runnable

AUTO = "auto"
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decision:
    """A model that was read, and what was found in it; holds no weights."""

    interface: ModelInterface
    changes: tuple[NodeChange, ...]
    not_simplified: str | None
    forced: tuple[BranchPath, ...]
    carried: tuple[StatePair, ...]
    undeclared: tuple[StatePair, ...]
    undeclared_units: int
    unrolled: tuple[Unrolled, ...]
    explanations: tuple[NodeExplanation, ...]
    pruned: PruningReport | None
    before: Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """A model in memory, and how it is to be cut."""

    normalised: Normalised
    plan: SurgeryPlan
    analysis: Analysis | None


def shrink(
    model: str | Path | onnx.ModelProto | ir.Model,
    output: str | Path | None = None,
    *,
    carried: str | Sequence[StatePair] | None = None,
    compact_state: bool = False,
    dry_run: bool = False,
    masked: str | Path | None = None,
    explained: bool = False,
    pruning: Pruning | None = None,
    analysis: Analysis | None = None,
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
        explained: also say why each recurrent node keeps what it keeps, which costs a plan per blocker.
        pruning: give up living neurons first, at the least error of the outputs; the result is then proven equal to the
            model with those neurons' weights zeroed, and how far that is from `model` is measured.
        analysis: of the same file for the same samples, from `analyse_file`, where several targets share one.
        progress: called with the name of each step as it begins.

    Returns:
        What was done; with status "nothing_to_remove" no file was written.

    Raises:
        ModelFileError: the file is no valid model, or ONNX Runtime refuses it.
        LayoutError: a recurrent node's tensors disagree.
        ParityError: the result differs; nothing was written.
        OutputError: the result cannot be written.
        CalibrationError: samples do not fit the model.
        SelectionError: the target of `pruning` cannot be met.
    """
    with _as_file(model, output) as source:
        target = Path(output) if output is not None else default_output(source)
        mask = None if masked is None else Path(masked)
        _check_targets(source, target, mask)
        decision, work = _decide(source, carried, compact_state, explained, pruning, analysis, progress)
        _check_targets(source, target, mask, decision.interface.weights_files)
        if not work.plan.removes_something:
            # What blocks a node says more than ONNX Runtime would, of layout=1 for instance.
            if not dry_run and not any(change.blocked_by for change in decision.changes):
                check_runs(decision.interface)
            return _result(decision, "nothing_to_remove", decision.before)
        with ExitStack() as files:  # both files get their names, or neither
            originals = [] if decision.pruned else [decision.interface]
            if (mask is not None or decision.pruned) and not dry_run:
                place = (
                    mask or Path(files.enter_context(tempfile.TemporaryDirectory(prefix="toolchain-"))) / "masked.onnx"
                )
                originals.append(read_interface(files.enter_context(written_model(work.normalised.model, place))))
            progress("rewriting")
            smaller = apply_surgery(work.plan, work.normalised)
            after = Sizes(
                parameters=parameters(smaller.graph),
                multiply_adds=multiply_adds(smaller.graph),
                bytes=decision.before.bytes,
            )
            if dry_run:
                return _result(decision, "dry_run", after)
            unfinished = files.enter_context(written_model(smaller, target))
            kept = (smaller, work.analysis) if pruning is not None and pruning.distill else None
            del smaller, work
            gc.collect()  # a graph's nodes and values refer to one another; ONNX Runtime needs the memory now
            progress("verifying")
            parity, *_ = [
                prove(
                    original, unfinished, carried=decision.carried, compact_state=compact_state, forced=decision.forced
                )
                for original in originals
            ]
            distilled = None
            if kept is not None and pruning is not None and kept[1] is not None:
                better, distilled = distil_cut(kept[0], decision.interface, kept[1], pruning, progress)
                save_model(better, unfinished)
            after = replace(after, bytes=sum(file.stat().st_size for file in unfinished.parent.iterdir()))
        return _result(decision, "written", after, output=target, parity=parity, distilled=distilled)


def analyse_file(
    source: Path,
    pruning: Pruning,
    *,
    carried: str | Sequence[StatePair] | None = None,
    progress: Progress = lambda stage: None,
) -> Analysis:
    """Analyse what a model could give up; what `shrink` then does for a ratio needs no second analysis.

    Raises:
        ModelFileError: the file is no valid model.
        CalibrationError: the samples do not fit it.
        SelectionError: no neuron can be given up.
    """
    model, interface = load_model(source)
    normalised = normalise(model)
    pairs = _carried(normalised.model.graph, interface, carried)
    return analyse_for(normalised.model, interface, pairs, pruning, progress)


def _decide(
    source: Path,
    carried: str | Sequence[StatePair] | None,
    compact_state: bool,
    explained: bool,
    pruning: Pruning | None,
    analysis: Analysis | None,
    progress: Progress,
) -> tuple[_Decision, _Work]:
    """Read a model and plan its surgery."""
    progress("reading")
    model, interface = load_model(source)
    weights = parameters(model.graph)
    progress("simplifying")
    normalised = normalise(model)
    progress("deciding")
    graph = normalised.model.graph
    pairs = _carried(graph, interface, carried)
    before = Sizes(parameters=weights, multiply_adds=multiply_adds(graph), bytes=interface.file_bytes)
    pruned = None
    if pruning is not None:
        if analysis is None:
            analysis = analyse_for(normalised.model, interface, pairs, pruning, progress)
        pruned = prune(normalised, interface, analysis, pruning, progress)
    plan, forced = _proven_plan(graph, interface, pairs, compact_state, progress)
    undeclared, undeclared_units = _undeclared(graph, plan, pairs)
    decision = _Decision(
        interface=interface,
        changes=plan.changes,
        not_simplified=normalised.not_simplified,
        forced=forced,
        carried=pairs,
        undeclared=undeclared,
        undeclared_units=undeclared_units,
        unrolled=find_unrolled(graph),
        explanations=explain(plan) if explained else (),
        pruned=pruned,
        before=before,
    )
    return decision, _Work(normalised=normalised, plan=plan, analysis=analysis)


def _proven_plan(
    graph: ir.Graph,
    interface: ModelInterface,
    carried: tuple[StatePair, ...],
    compact_state: bool,
    progress: Progress,
) -> tuple[SurgeryPlan, tuple[BranchPath, ...]]:
    """Plan, and leave alone each branch of an If that cannot be run, as a cut in it could not be proven.

    Returns the plan, and the branches to force when it is verified.
    """
    left_alone: dict[ir.Graph, str] = {}
    ran: set[BranchPath] = set()
    while True:
        plan = plan_surgery(graph, carried=carried, compact_state=compact_state, left_alone=left_alone)
        changed = changed_branches(plan) if plan.removes_something else ()
        unseen = [branch.path for branch in changed if branch.path not in ran and branch.graph not in left_alone]
        if not unseen:
            return plan, tuple(branch.path for branch in changed)
        progress("running each branch")
        ran |= runnable(interface, unseen, carried=carried)
        reason = "it lies in the {}, which runs at none of the inputs tried, so that a cut could not be proven"
        left_alone |= {branch.graph: reason.format(branch.path[-1]) for branch in changed
                       if branch.path in unseen and branch.path not in ran}  # fmt: skip


def _result(
    decision: _Decision,
    status: str,
    after: Sizes,
    *,
    output: Path | None = None,
    parity: Parity | None = None,
    distilled: DistillationReport | None = None,
) -> ShrinkResult:
    return ShrinkResult(
        status=status,
        source=decision.interface.path,
        output=output,
        nodes=decision.changes,
        before=decision.before,
        after=after,
        parity=parity,
        carried=decision.carried,
        undeclared=decision.undeclared,
        undeclared_units=decision.undeclared_units,
        not_simplified=decision.not_simplified,
        unrolled=decision.unrolled,
        explanations=decision.explanations,
        pruned=decision.pruned,
        distilled=distilled,
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
        # With its weights beside it the file has no limit of size, and the caller's model is left as it is.
        ir.save(model if isinstance(model, ir.Model) else ir.from_proto(model), path, external_data="model.weights")
        yield path


def _check_targets(source: Path, target: Path, mask: Path | None, weights: Sequence[Path] = ()) -> None:
    """Refuse to write over what is read, or one result over the other."""
    taken = {source.resolve(): "is the model to shrink"}
    taken |= {file.resolve(): "holds weights of the model to shrink" for file in weights}
    for place in (target, mask):
        if place is not None and place.resolve() in taken:
            raise OutputError(
                f"{place}: {taken[place.resolve()]}; expected another file, because the input is never changed. "
                "Choose another name."
            )
    if mask is not None and mask.resolve() == target.resolve():
        raise OutputError(f"{mask}: is to hold both results; expected a file for each. Choose another name.")


def _carried(
    graph: ir.Graph, interface: ModelInterface, asked: str | Sequence[StatePair] | None
) -> tuple[StatePair, ...]:
    """Return the state pairs to assume: those asked for, else those declared in the model."""
    pairs = interface.carried if asked is None else find_state(graph) if isinstance(asked, str) else tuple(asked)
    outputs = {str(value.name) for value in graph.outputs}
    if outputs <= {output for _, output in pairs}:
        raise ModelFileError(
            f"{interface.name}: all of its outputs ({', '.join(sorted(outputs))}) are carried state; expected at "
            "least one that somebody reads. Name the pairs that are state with --carried IN=OUT."
        )
    return pairs


def _undeclared(graph: ir.Graph, plan: SurgeryPlan, pairs: Sequence[StatePair]) -> tuple[tuple[StatePair, ...], int]:
    """Return the state pairs that nobody declared, and how many more units would go if they were."""
    outputs = {str(value.name) for value in graph.outputs}
    missing = tuple(pair for pair in find_state(graph) if pair not in pairs)
    if not missing or outputs <= {output for _, output in (*pairs, *missing)}:
        return (), 0
    declared = plan_surgery(graph, carried=[*pairs, *missing], compact_state=False, left_alone=plan.left_alone)
    return missing, declared.units_removed - plan.units_removed
