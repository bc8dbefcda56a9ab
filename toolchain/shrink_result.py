"""What `shrink` did: sizes before and after, proof, what was given up; and the same as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolchain.graph.explanation import NodeExplanation
from toolchain.graph.program import StatePair
from toolchain.graph.surgery import NodeChange
from toolchain.graph.unrolled import Unrolled
from toolchain.oneshot.pruning import DistillationReport, PruningReport
from toolchain.verification import Parity

SCHEMA = 1


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
        unrolled: recurrences that no recurrent operator computes, none of whose units can be cut.
        pruned: what living neurons were given up, None where none were to be.
        explanations: one for each of `nodes`, where they were asked for.
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
    unrolled: tuple[Unrolled, ...]
    explanations: tuple[NodeExplanation, ...]
    pruned: PruningReport | None
    distilled: DistillationReport | None

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
            "unrolled": [asdict(recurrence) for recurrence in self.unrolled],
            "explanations": [asdict(explanation) for explanation in self.explanations],
            "pruned": None if self.pruned is None else asdict(self.pruned),
            "distilled": None if self.distilled is None else asdict(self.distilled),
        }
