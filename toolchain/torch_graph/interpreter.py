"""The interpreter: a graph's nodes in their order, each looked up in the table of operators.

Initializers become tensors once; those named as trained require gradients. Shape arithmetic runs in the same way, on
small integer tensors. Subgraphs (If, Loop, Scan) and operators of other domains are not in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from toolchain.errors import DistillationError
from toolchain.recurrent import PYTORCH_GATES
from toolchain.torch_graph.elementwise import ELEMENTWISE
from toolchain.torch_graph.mixing import MIXING
from toolchain.torch_graph.movement import MOVEMENT, Operator
from toolchain.torch_graph.node import TorchNode
from toolchain.torch_graph.recurrence import recurrent, unsupported

OPERATORS: dict[str, Operator] = {**ELEMENTWISE, **MOVEMENT, **MIXING, **dict.fromkeys(PYTORCH_GATES, recurrent)}
_DOMAINS = ("", "ai.onnx")
_ADVICE = "Leave --distill or --from out."
# What PyTorch and numpy raise for operands that an operator does not take.
_OPERAND_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    node: TorchNode
    operator: Operator
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]


class TorchGraph:
    """A graph that can be run and differentiated; the model that it is made from is not changed.

    Attributes:
        trained: the tensors that require gradients, by initializer name, in ONNX's layout.
    """

    def __init__(self, model: ir.Model, trained: Collection[str] = ()) -> None:
        """Read a model.

        Raises:
            DistillationError: a node is not in the table of operators.
        """
        opset = int(model.opset_imports.get("", 1))
        self._steps = tuple(_step(node, opset) for node in model.graph)
        self._constants = {
            name: torch.tensor(np.asarray(value.const_value.numpy()))
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        }
        self.trained = {name: self._constants[name].requires_grad_() for name in trained}

    def run(
        self,
        feeds: Mapping[str, Tensor],
        names: Sequence[str],
        *,
        before_recurrence: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the named values.

        Args:
            feeds: inputs by name; an initializer's name replaces its value.
            names: which values to return.
            before_recurrence: changes what each recurrent node reads, as dropout does.

        Raises:
            DistillationError: PyTorch refuses an operator's operands.
        """
        values: dict[str, Tensor] = {**self._constants, **feeds}
        for step in self._steps:
            operands = [values[name] if name else None for name in step.inputs]
            if before_recurrence is not None and step.operator is recurrent and operands[0] is not None:
                operands[0] = before_recurrence(operands[0])
            try:
                result = step.operator(step.node, *operands)
            except _OPERAND_ERRORS as error:
                problem = " ".join(str(error).split())[:200]
                raise DistillationError(
                    f"node {step.node.name!r} ({step.node.op_type}): cannot be computed in PyTorch ({problem}); "
                    f"expected operands that it takes. {_ADVICE}"
                ) from error
            results = (result,) if isinstance(result, Tensor) else result
            if any(step.outputs[len(results) :]):
                raise _refusal(step.node.name, f"the output {step.outputs[len(results)]!r} of {step.node.op_type}")
            values.update(zip(step.outputs, results, strict=False))
        return {name: values[name] for name in names}


def _step(node: ir.Node, opset: int) -> _Step:
    name = node.name or str(node.outputs[0].name)
    attributes = {key: attribute.value for key, attribute in node.attributes.items()}
    seen = TorchNode(name=name, op_type=node.op_type, opset=opset, attributes=attributes, outputs=len(node.outputs))
    operator = OPERATORS.get(node.op_type) if node.domain in _DOMAINS else None
    reason = unsupported(seen, [value is not None for value in node.inputs]) if operator is recurrent else None
    if operator is None or reason is not None:
        kind = node.op_type if node.domain in _DOMAINS else f"{node.domain}.{node.op_type}"
        raise _refusal(name, kind if operator is None else f"{kind} with {reason}")
    return _Step(
        node=seen,
        operator=operator,
        inputs=tuple(value.name if value is not None and value.name else None for value in node.inputs),
        outputs=tuple(str(value.name) for value in node.outputs),
    )


def _refusal(name: str, what: str) -> DistillationError:
    return DistillationError(
        f"node {name!r}: {what} is not among the {len(OPERATORS)} operators that can be differentiated here; expected "
        f"only such operators. {_ADVICE}"
    )
