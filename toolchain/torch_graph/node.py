"""One node as its operator sees it: attributes and the integers that older opsets keep in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchNode:
    """What an operator is told beside its operands; `outputs` is how many the node has."""

    name: str
    op_type: str
    opset: int
    attributes: Mapping[str, Any]
    outputs: int

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute's Python value, or `default` when the node does not carry it."""
        return self.attributes.get(name, default)

    def integers(self, name: str, operand: Tensor | None = None) -> list[int] | None:
        """Return integers that older opsets keep in an attribute and newer ones in an operand; None when absent."""
        if operand is not None:
            return [int(number) for number in operand.reshape(-1).tolist()]
        numbers = self.attribute(name)
        return None if numbers is None else [int(number) for number in numbers]
