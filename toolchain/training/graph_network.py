"""An ONNX graph as the network in training: its constants are the parameters, and it is written as the same graph.

For networks that cannot be rebuilt from their sizes, such as a reader that `toolchain shrink` has cut differently in
every direction. What stays of the file is the graph; dropout is put before each recurrent node.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from toolchain.errors import TrainingError
from toolchain.graph.loading import load_model
from toolchain.graph.normalise import normalise
from toolchain.graph.saving import save_embedded
from toolchain.graph.token_model import VOCABULARY_KEY
from toolchain.recurrent import GATES, slot
from toolchain.torch_graph.interpreter import TorchGraph


class GraphNetwork(nn.Module):
    """Runs a graph on the CPU; `forward` takes the graph's inputs by name and returns its outputs in their order."""

    def __init__(self, path: Path, *, dropout: float = 0.0) -> None:
        """Read a model.

        Args:
            path: of the ONNX file.
            dropout: probability of dropping a value that a recurrent node reads, in [0, 1), while training.

        Raises:
            ModelFileError: the file is no valid model.
            DistillationError: an operator cannot be differentiated.
            TrainingError: it holds no floating-point weights.
        """
        super().__init__()
        model, _ = load_model(path)
        self.vocabulary_hash = model.metadata_props.get(VOCABULARY_KEY)
        self._model = normalise(model).model
        self._graph = TorchGraph(self._model)
        self._names = _weight_names(self._model.graph)
        if not self._names:
            raise TrainingError(
                f"{path}: keeps no weights as constants of 32-bit floating-point numbers; expected some to train. "
                "Continue a model before it is quantized."
            )
        self._outputs = [str(value.name) for value in self._model.graph.outputs]
        # A list, because names in a graph may hold dots, which names of parameters may not.
        initializers = self._model.graph.initializers
        self.weights = nn.ParameterList(
            nn.Parameter(torch.tensor(_array(initializers[name].const_value))) for name in self._names
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, **feeds: Tensor) -> tuple[Tensor, ...]:
        """Run the graph; operands and results have the shapes that the file declares."""
        weights = dict(zip(self._names, self.weights, strict=True))
        values = self._graph.run({**feeds, **weights}, self._outputs, before_recurrence=self.dropout)
        return tuple(values[name] for name in self._outputs)

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Units of each recurrent node, in the graph's order."""
        weights = [node.inputs[slot("R")] for node in self._model.graph if node.op_type in GATES]
        return tuple(R.const_value.shape.numpy()[2] for R in weights if R is not None and R.const_value is not None)

    def write(self, path: Path) -> None:
        """Write the graph with the weights as they are now; an existing file is replaced."""
        model = self._model.clone()
        for name, weight in zip(self._names, self.weights, strict=True):
            array = weight.detach().cpu().numpy()
            model.graph.initializers[name].const_value = ir.tensor(array, name=name)
        save_embedded(model, path)


def _weight_names(graph: ir.Graph) -> list[str]:
    """Return the constants to train: of float32 and more than one number, which leaves out factors such as 0.5."""
    return [
        name
        for name, value in graph.initializers.items()
        if value.const_value is not None
        and value.const_value.dtype == ir.DataType.FLOAT
        and value.const_value.size > 1
        and value.uses()
    ]


def _array(tensor: ir.TensorProtocol | None) -> np.ndarray:
    assert tensor is not None  # for the type checker: `_weight_names` left those out
    return np.array(tensor.numpy())
